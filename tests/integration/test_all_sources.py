"""All sources in one daemon, with real brokers: a failure of one doesn't affect the others."""

from __future__ import annotations

import atexit
import itertools
import json
import re
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.frames import number_of, udp_frame
from peers.kafka import KafkaBroker, shared_broker
from peers.process import pause_seconds
from peers.redis import RedisServer
from peers.sqs import SQSServer, shared_server
from peers.tcpdump import read_packets
from peers.wire import Wire

shared_peer = "Kafka broker that is killed"

BROKERS = ("redis", "kafka", "sqs")
SOURCES = (*BROKERS, "http")

#: How long a request takes to be captured while its source is connected, and until a source works again.
WORKS_SECONDS = 90.0
BACK_SECONDS = 120.0

#: The longest time that a stop takes: a source takes up to 1.5 s, and the end of the process half a second,
#: or some seconds on a busy machine. A poll of SQS would take 20 s.
STOP_SECONDS = 10.0

#: How old requests may be in the tests of that, not counting clock skew: longer than a machine may be too
#: busy to receive them.
AGE_SECONDS = 10
SKEW_SECONDS = 5

_redis: list[RedisServer] = []
# Each request has its own port; each test has its own topic and queue.
_numbers = itertools.count(1000)

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Brokers:
    """One broker of each kind. They run when a test starts, and end with the test runner."""

    redis: RedisServer
    kafka: KafkaBroker
    sqs: SQSServer


def shared_brokers() -> Brokers:
    """The brokers of all these tests, as starting them takes seconds. All of them run."""
    if not _redis:
        _redis.append(RedisServer())
        atexit.register(_redis[0].stop)
    if not _redis[0].is_running:
        _redis[0].start()
    return Brokers(redis=_redis[0], kafka=shared_broker(), sqs=shared_server())


def until(look: Callable[[], Found | None], what: str, seconds: float = WORKS_SECONDS) -> Found:
    """Poll until something is found; returns it."""
    began = time.monotonic()
    while (found := look()) is None:
        waited = time.monotonic() - began
        if waited > seconds:
            raise AssertionError(f"waited {seconds:g} s for {what} in vain")
        time.sleep(pause_seconds(waited))
    return found


class AllSourcesCase(SynchronousTestCase):
    """A link, three brokers, and a daemon with all sources."""

    def setUp(self) -> None:
        """Set them up."""
        self.brokers = shared_brokers()
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        number = next(_numbers)
        self.topic = f"requests{number}"
        self.brokers.kafka.create_topic(self.topic)
        self.queue = self.brokers.sqs.create_queue(f"requests{number}")

    def daemon(self, **options: Any) -> Daemon:
        """A daemon whose sources are all connected. It runs until the end of the test."""
        daemon = self.started(**options)
        for words in ("subscribed to channel", "reading topic", f"SQS {self.queue}: listening"):
            daemon.logged(words)
        return daemon

    def started(self, *, group: str = "", more: str = "", **options: Any) -> Daemon:
        """
        A daemon whose sources may not be connected yet. With a group, it shares Kafka's messages.

        @param more: more sections of its configuration.
        """
        shared = f'group = "{group}"\n' if group else ""
        daemon = Daemon(
            f'[redis]\nlisten = true\nhost = "127.0.0.1"\nport = {self.brokers.redis.port}\n'
            f'[kafka]\nlisten = true\nserver = ["{self.brokers.kafka.server}"]\ntopic = "{self.topic}"\n'
            f"{shared}"
            f'[sqs]\nlisten = true\nurl = "{self.queue}"\naccessid = "a"\naccesskey = "b"\n{more}',
            **options,
        )
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def request(self, daemon: Daemon, **more: Any) -> tuple[int, str]:
        """A request for the first packet to its own port; returns the port and the request."""
        port = next(_numbers)
        fields = {"interface": [self.wire.interface], "packets": 1, "timeout": 600}
        return port, json.dumps({"node": daemon.node, **fields, "bpf": f"udp dst port {port}", **more})

    def send(self, daemon: Daemon, source: str, body: str, *, status: int = 202) -> None:
        """Send a request to a source, whose broker must be up. HTTP answers with this status."""
        match source:
            case "redis":
                # A source that isn't subscribed yet would never receive it.
                subscribed = lambda: self.brokers.redis.publish("capture", body.encode()) or None  # noqa: E731
                until(subscribed, "a subscriber", BACK_SECONDS)
            case "kafka":
                self.brokers.kafka.produce(self.topic, [body.encode()])
            case "sqs":
                self.brokers.sqs.send(self.queue, [body])
            case "http":
                answered, answer = daemon.request("POST", "/captures", body.encode())
                self.assertEqual(answered, status, answer)

    def captured(self, daemon: Daemon, source: str, port: int, seconds: float = WORKS_SECONDS) -> None:
        """A source's request is captured: the packet to its port is in its file."""
        pattern = re.compile(rf"(\w+): capturing on \S+ for {source}, filter 'udp dst port {port}'")
        capture = until(lambda: pattern.search(daemon.log), f"a request by {source}", seconds)[1]
        self.wire.send([udp_frame(port, port=port - 1), udp_frame(port, port=port)])
        state = daemon.done(capture)
        self.assertEqual((state["reason"], state["source"]), ("packets", source))
        (packet,) = read_packets(daemon.file_of(capture))
        self.assertEqual(packet.data, udp_frame(port, port=port))
        self.assertEqual(number_of(packet.data), port)

    def works(self, daemon: Daemon, sources: Iterable[str], seconds: float = WORKS_SECONDS) -> None:
        """A request to each of these sources is captured, all at the same time."""
        ports = {}
        for source in sources:
            ports[source], body = self.request(daemon)
            self.send(daemon, source, body)
        for source, port in ports.items():
            self.captured(daemon, source, port, seconds)


class AllSourcesTests(AllSourcesCase):
    """One source fails, and doesn't affect the others."""

    def others(self, broker: str) -> list[str]:
        """All sources but one."""
        return [source for source in SOURCES if source != broker]

    def test_at_once(self) -> None:
        """A request to each is captured, at the same time."""
        daemon = self.daemon()
        self.works(daemon, SOURCES)
        self.assertEqual(4, daemon.log.count("capturing on"))
        self.assertNotIn("#warn", daemon.log)

    def test_stop_message(self) -> None:
        """Through each source, a message stops the captures of a request, which deliver what they have."""
        daemon = self.daemon(general="maxcaptures = 4")
        ports = {}
        for source in SOURCES:
            ports[source], body = self.request(daemon, packets=10, requestid=f"by {source}")
            self.send(daemon, "http", body)
        self.wire.send([udp_frame(port, port=port) for port in ports.values()])
        for source, port in ports.items():
            self.send(daemon, source, json.dumps({"nodere": ".", "stop": f"by {source}"}), status=200)
            capture = until(
                lambda source=source: re.search(rf"(\w+): ended by a request from {source}", daemon.log),  # type: ignore[misc]
                f"a stop by {source}",
            )[1]
            state = daemon.done(capture)
            self.assertEqual((state["reason"], state["packets"]), ("cancelled", 1))
            self.assertEqual(state["request"]["requestid"], f"by {source}")
            (packet,) = read_packets(daemon.file_of(capture))
            self.assertEqual(number_of(packet.data), port)
        until(lambda: self.brokers.sqs.counts(self.queue) == (0, 0) or None, "an empty queue")

    def test_killed(self) -> None:
        """Each broker in turn is killed: the others work as quickly, and so does it once it is back."""
        daemon = self.daemon()
        self.works(daemon, SOURCES)
        for broker in BROKERS:
            self.kill(broker)
            try:
                self.logged(daemon, broker)
                for _ in range(3):
                    self.works(daemon, self.others(broker))
            finally:
                self.restart(broker)
            self.works(daemon, [broker], BACK_SECONDS)
        self.works(daemon, SOURCES)
        # Each outage is logged once, by its own source only.
        warnings = re.findall(r"#warn\] (.*)", daemon.log)
        tellers = [line.split()[0].lower() for line in warnings]
        self.assertEqual([*BROKERS], [teller for teller, _ in itertools.groupby(tellers)], warnings)
        self.assertEqual(len(warnings), len(set(warnings)), warnings)
        self.assertNotIn("Traceback", daemon.log)

    def test_frozen(self) -> None:
        """Each broker in turn is frozen for a while: the others work, and so does it once it continues."""
        daemon = self.daemon()
        self.works(daemon, SOURCES)
        for broker in BROKERS:
            peer = getattr(self.brokers, broker)
            peer.freeze()
            try:
                for _ in range(3):
                    self.works(daemon, self.others(broker))
            finally:
                peer.thaw()
            self.works(daemon, [broker], BACK_SECONDS)
        self.assertNotIn("Traceback", daemon.log)

    def test_all_down_at_start(self) -> None:
        """With all brokers down, the daemon starts, and HTTP works; so does each broker once it is up."""
        for broker in BROKERS:
            self.kill(broker)
        try:
            daemon = self.started()
            for broker in BROKERS:
                self.logged(daemon, broker)
            self.works(daemon, ["http"])
        finally:
            for broker in BROKERS:
                self.restart(broker)
        for source in SOURCES:
            self.works(daemon, [source], BACK_SECONDS)

    def test_stop(self) -> None:
        """A stop takes no longer with a frozen broker, whichever it is."""
        for broker in (None, *BROKERS):
            daemon = self.daemon()
            self.works(daemon, ["http"])
            # Until each is in the middle of its wait.
            time.sleep(0.5)
            if broker is not None:
                getattr(self.brokers, broker).freeze()
            try:
                began = time.monotonic()
                daemon.signal(signal.SIGTERM)
                self.assertEqual(0, daemon.wait())
                self.assertLess(time.monotonic() - began, STOP_SECONDS, broker)
            finally:
                if broker is not None:
                    getattr(self.brokers, broker).thaw()

    def kill(self, broker: str) -> None:
        """Kill a broker."""
        match broker:
            case "redis":
                self.brokers.redis.end()
            case "kafka" | "sqs":
                getattr(self.brokers, broker).kill()

    def restart(self, broker: str) -> None:
        """Start a broker again."""
        match broker:
            case "redis" | "kafka":
                getattr(self.brokers, broker).start()
            case "sqs":
                self.brokers.sqs.restart()
                # Redis keeps nothing.
                self.brokers.sqs.create_queue(self.queue.rpartition("/")[2])

    def logged(self, daemon: Daemon, broker: str) -> None:
        """An outage is logged by its own source."""
        until(
            lambda: re.search(rf"#warn\] {broker} ", daemon.log, re.IGNORECASE),
            f"a word of {broker}",
            BACK_SECONDS,
        )


class RequestAgeTests(AllSourcesCase):
    """A request that is too old by its broker's clock captures nothing."""

    def daemon(self, **options: Any) -> Daemon:
        """A daemon that accepts recent requests only."""
        return super().daemon(general=f"maxrequestage = {AGE_SECONDS}", **options)

    def refused(self, daemon: Daemon, source: str) -> list[str]:
        """The log lines about rejected requests of a source."""
        lines = [line for line in daemon.log.splitlines() if f"request from {source} refused" in line]
        for line in lines:
            self.assertIn("#warn] ", line)
        return lines

    def test_kafka(self) -> None:
        """A record with an old time stamp is rejected; a recent one isn't, nor one that is ahead."""
        daemon = self.daemon()
        old, old_body = self.request(daemon)
        young, young_body = self.request(daemon)
        ahead, ahead_body = self.request(daemon)
        producer = self.brokers.kafka.producer()
        try:
            for body, age in (
                (old_body, 120.0),
                (young_body, 1.0),
                (ahead_body, -600.0),
            ):
                sent = int((time.time() - age) * 1000)
                producer.send(self.topic, body.encode(), timestamp_ms=sent).get(180)
        finally:
            producer.close(60)
        self.captured(daemon, "kafka", young)
        self.captured(daemon, "kafka", ahead)
        # They arrive in order.
        (line,) = self.refused(daemon, "kafka")
        self.assertRegex(line, "was sent 1[2-9][0-9] s ago, and must be at most 10 s old on this node")
        self.assertNotIn(f"port {old}'", daemon.log)
        self.assertEqual(2, daemon.log.count("capturing on"))

    def test_sqs(self) -> None:
        """A message that stayed in its queue for long is rejected and deleted; a recent one isn't."""
        daemon = self.daemon()
        old, old_body = self.request(daemon)
        young, young_body = self.request(daemon)
        self.brokers.sqs.send(self.queue, [old_body], DelaySeconds=AGE_SECONDS + SKEW_SECONDS + 2)
        self.brokers.sqs.send(self.queue, [young_body], DelaySeconds=1)
        self.captured(daemon, "sqs", young)
        (line,) = until(lambda: self.refused(daemon, "sqs") or None, "a refusal", 60)
        self.assertRegex(
            line, "was sent (?:1[7-9]|[2-5][0-9]) s ago, and must be at most 10 s old on this node"
        )
        until(lambda: self.brokers.sqs.counts(self.queue) == (0, 0) or None, "an empty queue")
        self.assertNotIn(f"port {old}'", daemon.log)
        self.assertEqual(1, daemon.log.count("capturing on"))

    def test_no_clock(self) -> None:
        """Redis and HTTP have no time stamps: their requests count as recent."""
        self.works(self.daemon(), ["redis", "http"])
