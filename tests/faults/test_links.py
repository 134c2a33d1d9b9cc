"""
The network between the daemon and a broker fails: a link goes down silently.

Unlike with a broker that dies, nothing is reset or refused. Only a source that sends requests and
waits for the answers can tell this from a broker that has no messages.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.sources.sqs.source import HIDDEN_SECONDS
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.kafka import KafkaBroker
from peers.link import Link
from peers.redis import RedisServer
from peers.sqs import SQSServer
from peers.tcpdump import read_packets
from peers.wire import Wire
from tests.integration.test_all_sources import until

#: The longest time until a request is captured, and until a source works again, on a busy machine. TCP itself
#: would retry only about as long after an outage as the outage lasted.
WORKS_SECONDS = 30.0
BACK_SECONDS = 20.0

#: How much longer anything may take on a busy machine. TCP would give up a connection after minutes.
BUSY_SECONDS = 10.0

#: A moment that no source notices, and how long lost packets take to be sent again.
MOMENT_SECONDS = 0.5
SENT_AGAIN_SECONDS = 30.0

#: How long a link stays down after its source has noticed: some attempts to connect. By then TCP itself
#: would retry rarely.
LONGER_SECONDS = 12.0

#: How long the slowest one takes to notice: a node of a Kafka group without a partition.
SLOWEST_SECONDS = 23.0 + BUSY_SECONDS

#: A stop waits up to 1.5 s for a source, and a busy machine takes longer. To wait for a connection, or for an
#: answer, would take 10 s and more.
STOP_SECONDS = 9.5
GROWN_BYTES = 4 << 20
#: Threads that are begun when more of what a busy machine has put off happens at once, and that remain.
MORE_THREADS = 3

# Each request has its own port; each test has its own topic and queue.
_numbers = itertools.count(1000)


def lasting(peer: Any) -> Any:
    """Start a peer for all tests, as starting takes seconds. It ends with the test runner."""
    atexit.register(peer.stop)
    peer.start()
    return peer


@cache
def shared_link() -> Link:
    """The link. The brokers are at its far end, the daemon is at the near one."""
    link: Link = lasting(Link())
    return link


@cache
def shared_broker(make: Callable[..., Any]) -> Any:
    """A broker at the far end."""
    link = shared_link()
    return lasting(make(host=link.far, wrapper=link.wrapper))


def possessions(daemon: Daemon) -> Counter[str]:
    """A daemon's descriptors by kind, and its threads."""
    kinds = [re.sub(r"^\d+: |:?\[\d+\]", "", one) for one in daemon.descriptors()]
    return Counter([*kinds, *("thread" for _ in Path(f"/proc/{daemon.pid}/task").iterdir())])


def memory_bytes(daemon: Daemon) -> int:
    """How much memory a daemon uses."""
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class LinkSuite:
    """
    A link, a broker at its far end, and another link to capture from.

    @cvar name: the name of the source.
    @cvar make: makes the broker.
    @cvar unnoticed_seconds: for so long, at least, silence means nothing to the source.
    @cvar noticed_seconds: the longest time until it notices silence.
    @cvar listening: what it logs when it works.
    @cvar variants: other configurations with which a stop is tried.
    """

    name: str
    make: Callable[..., Any]
    unnoticed_seconds: float
    noticed_seconds: float
    listening: str
    variants: tuple[str, ...] = ("",)

    def setUp(self) -> None:
        """Set them up."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.link = shared_link()
        self.addCleanup(self.link.up)
        self.broker = shared_broker(type(self).make)
        self.prepare(f"requests{next(_numbers)}")

    def prepare(self, name: str) -> None:
        """Create what a test needs in the broker."""

    def configuration(self) -> str:
        """The daemon's configuration for this broker."""
        raise NotImplementedError

    def publish(self, body: str) -> None:
        """Publish at the far end, which works in an outage, too."""
        raise NotImplementedError

    def publisher(self) -> Callable[[str], object]:
        """Get ready to publish quickly."""
        return self.publish

    def daemon(self, more: str = "", general: str = "") -> Daemon:
        """A daemon that is connected to the broker. It runs until the end of the test."""
        daemon = Daemon(self.configuration() + more, general=general)
        self.addCleanup(daemon.stop)
        daemon.start()
        daemon.logged(self.listening)
        return daemon

    def kept(self, daemon: Daemon, in_outage: list[int]) -> list[int]:
        """Check that requests of an outage are captured after it, if the broker keeps them."""
        raise NotImplementedError

    def request(self, daemon: Daemon) -> tuple[int, str]:
        """A request for the first packet to its own port; returns the port and the request."""
        port = next(_numbers)
        fields = {"interface": [self.wire.interface], "packets": 1, "timeout": 600}
        return port, json.dumps({"node": daemon.node, **fields, "bpf": f"udp dst port {port}"})

    def published(self, daemon: Daemon) -> int:
        """Publish a request; returns its port."""
        port, body = self.request(daemon)
        self.publish(body)
        return port

    def by_http(self, daemon: Daemon, count: int = 1) -> list[int]:
        """Send some requests over HTTP at once, and await their captures; returns their ports."""
        ports = []
        for _ in range(count):
            port, body = self.request(daemon)
            status, answer = daemon.request("POST", "/captures", body.encode())
            self.assertEqual(status, 202, answer)
            ports.append(port)
        self.captured(daemon, "http", *ports)
        return ports

    def captured(self, daemon: Daemon, source: str, *ports: int, seconds: float = WORKS_SECONDS) -> None:
        """A source's requests are captured, and delivered."""
        captures = []
        for port in ports:
            pattern = re.compile(rf"(\w+): capturing on \S+ for {source}, filter 'udp dst port {port}'")
            found = until(
                lambda pattern=pattern: pattern.search(daemon.log), f"a request by {source}", seconds
            )
            captures.append(found[1])
        self.wire.send([udp_frame(port, port=port) for port in ports])
        for capture in captures:
            self.assertEqual(daemon.done(capture)["reason"], "packets")

    def once(self, daemon: Daemon, ports: list[int]) -> None:
        """The requests for these ports, and no others, were captured once each, and delivered."""
        captured = re.findall(r"capturing on \S+ for \w+, filter 'udp dst port (\d+)'", daemon.log)
        self.assertEqual(Counter(map(int, captured)), Counter(ports))
        packets = [packet.data for path in daemon.captures.iterdir() for packet in read_packets(path)]
        self.assertEqual(Counter(packets), Counter(udp_frame(port, port=port) for port in ports))

    def warnings(self, daemon: Daemon) -> list[str]:
        """The log lines of a daemon at level warn or above."""
        return re.findall(r".*#(?:warn|error|critical)\] .*|Traceback.*", daemon.log)

    def stops(self, daemon: Daemon) -> None:
        """Stop a daemon."""
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        self.assertLess(time.monotonic() - began, STOP_SECONDS, daemon.log)

    def test_outage(self) -> None:
        """
        An outage is logged once, and so is its end; HTTP works in the meantime. Afterwards requests are
        received as before, also those of the outage if the broker keeps them. Each is captured
        once, and the daemon has leaked nothing.
        """
        daemon = self.daemon()
        # Some at once, as the threads that they need remain.
        ports = [*self.by_http(daemon, 8), self.published(daemon)]
        self.captured(daemon, self.name, ports[-1])
        # Until the connections of these requests are closed.
        time.sleep(0.5)
        before, memory = possessions(daemon), memory_bytes(daemon)

        self.link.down()
        began = time.monotonic()
        in_outage = [self.published(daemon)]
        while not self.warnings(daemon):
            self.assertLess(time.monotonic() - began, self.noticed_seconds + BUSY_SECONDS)
            ports += self.by_http(daemon)
            time.sleep(0.5)
        in_outage.append(self.published(daemon))
        noticed = time.monotonic()
        while time.monotonic() < noticed + LONGER_SECONDS:
            ports += self.by_http(daemon)
            time.sleep(0.5)
        self.link.up()

        until(lambda: daemon.log.count(self.listening) > 1 or None, "its end", BACK_SECONDS)
        ports.append(self.published(daemon))
        self.captured(daemon, self.name, ports[-1])
        ports += self.kept(daemon, in_outage)

        def is_as_before() -> bool | None:
            grown = possessions(daemon) - before
            return (grown.keys() <= {"thread"} and grown["thread"] <= MORE_THREADS) or None

        until(is_as_before, f"{before}, not {possessions(daemon)}")
        self.assertLess(memory_bytes(daemon), memory + GROWN_BYTES)
        self.once(daemon, ports)
        self.assertEqual(len(self.warnings(daemon)), 1, daemon.log)
        self.assertEqual(daemon.log.count(self.listening), 2, daemon.log)

    def test_moment(self) -> None:
        """A link that is down for a moment is not logged, and what was published then arrives."""
        daemon = self.daemon()
        publish = self.publisher()
        port, body = self.request(daemon)
        began = time.monotonic()
        self.link.down()
        publish(body)
        time.sleep(MOMENT_SECONDS)
        self.link.up()
        # On a busy machine it may have been more than a moment.
        is_noticeable = time.monotonic() - began > self.unnoticed_seconds
        self.captured(daemon, self.name, port, seconds=SENT_AGAIN_SECONDS)
        ports = [port, self.published(daemon)]
        self.captured(daemon, self.name, ports[1])
        self.once(daemon, ports)
        self.assertLessEqual(len(self.warnings(daemon)), is_noticeable, daemon.log)

    def test_stop(self) -> None:
        """A stop is quick, before the outage is noticed and after, while the source connects again."""
        daemons = [(self.daemon(more), self.daemon(more)) for more in self.variants]
        began = time.monotonic()
        self.link.down()
        time.sleep(1)
        for unaware, _ in daemons:
            self.stops(unaware)
            # On a busy machine it may notice before it has stopped.
            can_be_aware = time.monotonic() - began > self.unnoticed_seconds
            self.assertLessEqual(len(self.warnings(unaware)), can_be_aware, unaware.log)
        for _, aware in daemons:
            until(lambda aware=aware: self.warnings(aware) or None, "a word of it", SLOWEST_SECONDS)
        time.sleep(2)
        for _, aware in daemons:
            self.stops(aware)
            self.assertEqual(len(self.warnings(aware)), 1, aware.log)


class RedisTests(LinkSuite, SynchronousTestCase):
    """
    Redis: what is published in an outage is lost, as only connected subscribers receive it.

    The source takes 15 s to notice silence: up to 10 s until it sends a PING, and 5 s for the answer.
    """

    name = "redis"
    make = RedisServer
    unnoticed_seconds = 5.0
    noticed_seconds = 15.0
    listening = ": subscribed to channel 'capture'"

    def configuration(self) -> str:
        return f'[redis]\nlisten = true\nhost = "{self.broker.host}"\nport = {self.broker.port}\n'

    def publish(self, body: str) -> None:
        self.link.there(self.broker.publish, "capture", body.encode())

    def kept(self, daemon: Daemon, in_outage: list[int]) -> list[int]:
        # It doesn't come late either.
        time.sleep(1)
        return []


class KafkaTests(LinkSuite, SynchronousTestCase):
    """
    Kafka: a topic keeps what is published in an outage.

    The source takes 10 s to notice silence: that is how long a broker has to answer.
    """

    name = "kafka"
    make = KafkaBroker
    unnoticed_seconds = 10.0
    noticed_seconds = 10.0
    listening = ": reading topic 'requests"
    variants = ("", 'group = "nodes"\n')

    def prepare(self, name: str) -> None:
        self.topic = name
        self.link.there(self.broker.create_topic, name)

    def configuration(self) -> str:
        return f'[kafka]\nlisten = true\nserver = ["{self.broker.server}"]\ntopic = "{self.topic}"\n'

    def publish(self, body: str) -> None:
        self.link.there(self.broker.produce, self.topic, [body.encode()])

    def publisher(self) -> Callable[..., object]:
        producer = self.link.there(self.broker.producer)
        self.addCleanup(producer.close, WORKS_SECONDS)
        producer.partitions_for(self.topic)

        def publish(body: str, **options: Any) -> None:
            producer.send(self.topic, body.encode(), **options).get(WORKS_SECONDS)

        return publish

    def kept(self, daemon: Daemon, in_outage: list[int]) -> list[int]:
        self.captured(daemon, self.name, *in_outage)
        return in_outage

    def test_too_old(self) -> None:
        """What is too old when an outage is over is rejected; what isn't is captured."""
        daemon = self.daemon(general="maxrequestage = 100")
        publish = self.publisher()
        _, old = self.request(daemon)
        port, new = self.request(daemon)
        began = time.monotonic()
        self.link.down()
        publish(old, timestamp_ms=int((time.time() - 120) * 1000))
        publish(new)
        self.link.up()
        is_noticeable = time.monotonic() - began > self.unnoticed_seconds
        self.captured(daemon, self.name, port, seconds=SENT_AGAIN_SECONDS)
        self.once(daemon, [port])
        refused, *others = sorted(self.warnings(daemon), key=lambda line: "refused" not in line)
        self.assertRegex(refused, r"request from kafka refused.* was sent 1[2-9]\d s ago")
        self.assertLessEqual(len(others), is_noticeable, daemon.log)

    def test_standby(self) -> None:
        """A node of a group without a partition also logs an outage and its end."""
        daemons = [self.daemon('group = "nodes"\n') for _ in range(2)]
        self.link.down()
        for daemon in daemons:
            until(lambda daemon=daemon: self.warnings(daemon) or None, "a word of it", SLOWEST_SECONDS)
        self.link.up()
        for daemon in daemons:
            again = lambda daemon=daemon: daemon.log.count(self.listening) > 1 or None  # noqa: E731
            until(again, "its end", BACK_SECONDS)
            self.assertEqual(len(self.warnings(daemon)), 1, daemon.log)


class SQSTests(LinkSuite, SynchronousTestCase):
    """
    SQS: a queue keeps what is published in an outage.

    The source takes 10 s longer to notice silence than a poll waits, which is 20 s by default;
    here it is 3 s.
    """

    name = "sqs"
    make = SQSServer
    unnoticed_seconds = 10.0
    noticed_seconds = 13.0

    def prepare(self, name: str) -> None:
        self.queue: str = self.link.there(self.broker.create_queue, name)
        self.listening = f"SQS {self.queue}: listening"

    def configuration(self) -> str:
        return (
            f'[sqs]\nlisten = true\nurl = "{self.queue}"\nwaitseconds = 3\naccessid = "a"\naccesskey = "b"\n'
        )

    def publish(self, body: str) -> None:
        self.link.there(self.broker.send, self.queue, [body])

    def kept(self, daemon: Daemon, in_outage: list[int]) -> list[int]:
        # The first one went to the poll that was waiting when the link went down: it is invisible for a
        # while.
        for port in reversed(in_outage):
            self.captured(daemon, self.name, port, seconds=HIDDEN_SECONDS)
        counts = lambda: self.link.there(self.broker.counts, self.queue) == (0, 0) or None  # noqa: E731
        until(counts, "an empty queue")
        return in_outage
