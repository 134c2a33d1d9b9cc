"""
The brokers that events are published to fail, while 1,000 captures run.

The packets are in memory. The brokers are real, at the far end of a link, and the node has its own process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.kafka import KafkaBroker
from peers.link import Link
from peers.redis import RedisServer
from peers.sqs import SQSServer
from tests.integration.event_listeners import RedisListener, read_queue, read_topic
from tests.unit.event_schema import problems

CAPTURES = 1000
#: How many events wait for a channel: fewer than there are during a fault.
QUEUE = 500
#: How often the progress of each capture is reported. Every second, brokers and readers would keep the
#: machine busy with nothing else.
PROGRESS_SECONDS = 10
#: How long a fault lasts before the captures end.
FAULT_SECONDS = 6.0
PATIENCE_SECONDS = 400.0
#: How much longer the captures may take to end than without a fault, on a busy machine.
SLACK_SECONDS = 3.0
#: How often a fault that seems to delay the captures is repeated: they are delayed each time, if it does.
RETRIES = 2
#: What may be added to the memory: three queues, their batches, and what the client libraries use.
GROWN_BYTES = 64 << 20
QUIET_SECONDS = 3.0

TOPIC = "capture-events"
_DROPPED = "pcapsvc.reports.dropped"


class Node:
    """The process: see L{tests.faults.many_captures_process}."""

    def __init__(self, configuration: Path, events: Path, errors: Path) -> None:
        with errors.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.many_captures_process", str(configuration), str(events)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )

    def say(self, words: str) -> None:
        """Tell it to do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{words}\n".encode())
        self._process.stdin.flush()

    def state(self) -> dict[str, Any]:
        """How it is."""
        assert self._process.stdout is not None
        self.say("state")
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def until(self, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Wait until its state is so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition(state := self.state()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited for {what} in vain: {state}")
            time.sleep(0.1)
        return state

    def stop(self) -> int:
        """Stop it. Returns its exit status."""
        self.say("stop")
        return self._process.wait(60)

    def kill(self) -> None:
        """End it, if it runs."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class QueueReader:
    """Reads a queue at the far end all the time, because its server keeps nothing when it is killed."""

    def __init__(self, link: Link, server: SQSServer) -> None:
        self._link = link
        self._server = server
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.bodies: list[bytes] = []
        self.url = self.create()

    def create(self) -> str:
        """Create the queue; returns its URL."""
        make = lambda: self._server.create_queue(f"{TOPIC}.fifo", FifoQueue="true")  # noqa: E731
        url: str = self._link.there(make)
        return url

    def start(self) -> None:
        """Start to read."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read what is left, and stop."""
        self._stopping.set()
        self._thread.join(PATIENCE_SECONDS)

    def _read(self) -> None:
        while True:
            was_stopping = self._stopping.is_set()
            found = self._link.there(read_queue, self._server, self.url)
            self.bodies += [message["Body"].encode() for message in found]
            if was_stopping and not found:
                return


class EventBrokersTests(SynchronousTestCase):
    """A node with all channels, whose brokers are disconnected, frozen and killed."""

    timeout = 1800

    def setUp(self) -> None:
        """Set up the brokers, whoever reads from them, and the node."""
        self.link = self.started(Link())
        there = {"host": self.link.far, "wrapper": self.link.wrapper}
        self.redis = self.started(RedisServer(**there))
        self.kafka = self.started(KafkaBroker(**there))
        self.sqs = self.started(SQSServer(**there))
        self.link.there(self.kafka.create_topic, TOPIC)
        self.redis_bodies: list[bytes] = []
        self.queue = QueueReader(self.link, self.sqs)
        self.listen()
        self.addCleanup(lambda: self.listener.stop())
        folder = Path(self.mktemp()).absolute()
        (folder / "captures").mkdir(parents=True)
        configuration, self.events = folder / "pcapsvc.toml", folder / "events.json"
        configuration.write_text(
            f'[general]\nnodename = "node-1"\nwritelocal = true\nlocaldir = "{folder}/captures"\n'
            f"maxcaptures = {CAPTURES}\nmaxrequestrate = 0\nmaxmemory = {4 << 30}\n"
            "[capture]\nbuffersize = 65536\n"
            f'[http]\nlisten = "tcp:0:interface=127.0.0.1"\n'
            f"[reports]\nqueue = {QUEUE}\nprogressinterval = {PROGRESS_SECONDS}\n"
            f'[reports.redis]\nsend = true\nhost = "{self.link.far}"\nport = {self.redis.port}\n'
            f'[reports.kafka]\nsend = true\nserver = ["{self.kafka.server}"]\n'
            f'[reports.sqs]\nsend = true\nurl = "{self.queue.url}"\naccessid = "a"\naccesskey = "b"\n'
        )
        self.node = Node(configuration, self.events, folder / "errors")
        self.addCleanup(self.node.kill)
        self.rounds = 0

    def started(self, peer: Any) -> Any:
        """A peer that runs until the end of the test."""
        self.addCleanup(peer.stop)
        peer.start()
        return peer

    def listen(self) -> None:
        """Read from the brokers, from now on."""
        self.listener = self.link.there(RedisListener, self.redis, TOPIC)
        self.queue.start()

    def hush(self) -> None:
        """Read what is left, and no more."""
        self.listener.stop()
        self.redis_bodies += self.listener.raw
        self.queue.stop()

    def run_captures(self, begin: Callable[[], None], end: Callable[[], None]) -> float:
        """
        Run captures, and end them by packets in the middle of a fault. Returns how long the last one took to
        end once the packets had arrived.

        @param begin: begins the fault. C{end} ends it.
        """
        self.rounds += 1

        count = CAPTURES * self.rounds
        self.node.say(f"start {CAPTURES}")
        self.node.until(lambda state: state["running"] == CAPTURES, "all captures")
        begin()
        try:
            time.sleep(FAULT_SECONDS)
            self.node.say("deliver")
            state = self.node.until(
                lambda state: not state["running"] and state["delivered"] == count, "all deliveries"
            )
        finally:
            end()
        self.assertEqual((state["accepted"], state["complete"]), (count, count))
        for channel in state["channels"].values():
            # With the event about dropped events.
            self.assertLessEqual(channel["waiting"], QUEUE + 1)
        self.settled()
        return float(state["longest_seconds"])

    def settled(self) -> dict[str, Any]:
        """Wait until nothing waits for any channel any more."""

        def is_settled(state: dict[str, Any]) -> bool:
            return all(each["connected"] and not each["waiting"] for each in state["channels"].values())

        self.node.until(is_settled, "all events")
        time.sleep(QUIET_SECONDS)
        return self.node.until(is_settled, "the number of those that were dropped")

    def disconnect(self) -> None:
        """The link goes down."""
        self.link.down()

    def connect(self) -> None:
        """The link comes up again."""
        self.link.up()

    def freeze(self) -> None:
        """All brokers freeze."""
        for broker in (self.redis, self.kafka, self.sqs):
            broker.freeze()

    def thaw(self) -> None:
        """All brokers resume."""
        for broker in (self.redis, self.kafka, self.sqs):
            broker.thaw()

    def kill(self) -> None:
        """Kafka is killed; and the others, too, once what they would lose is read."""
        self.kafka.kill()
        self.link.down()
        self.hush()
        self.redis.end()
        self.sqs.kill()

    def revive(self) -> None:
        """All brokers come back. Nothing is published before somebody reads it."""
        started, over = threading.Event(), threading.Event()
        self.addCleanup(over.set)

        def start() -> None:
            for broker in (self.redis, self.sqs, self.kafka):
                broker.start()
            started.set()
            # They end with the thread that has started them (prctl(2), PR_SET_PDEATHSIG).
            over.wait()

        threading.Thread(target=self.link.there, args=(start,), daemon=True).start()
        self.assertTrue(started.wait(PATIENCE_SECONDS))
        self.queue.create()
        self.listen()
        self.link.up()

    def test_faults(self) -> None:
        """No capture is delayed or lost, the memory is bounded, and what is dropped is counted exactly."""
        usual = self.run_captures(lambda: None, lambda: None)
        before = self.node.state()["rss"]
        for begin, end in (
            (self.disconnect, self.connect),
            (self.freeze, self.thaw),
            (self.kill, self.revive),
        ):
            took = self.run_captures(begin, end)
            for _ in range(RETRIES):
                if took < usual * 2 + SLACK_SECONDS:
                    break
                # How busy the machine is with other things may have changed in the meantime.
                usual = self.run_captures(lambda: None, lambda: None)
                took = min(took, self.run_captures(begin, end))
            self.assertLess(took, usual * 2 + SLACK_SECONDS, begin.__name__)
        state = self.settled()
        self.assertLess(state["rss"] - before, GROWN_BYTES)
        self.hush()
        self.assertEqual(self.node.stop(), 0)
        emitted = {event_id: subject for event_id, _, subject in json.loads(self.events.read_text())}
        topic = [value for _, value in self.link.there(read_topic, self.kafka, TOPIC)]
        for name, bodies in (("redis", self.redis_bodies), ("kafka", topic), ("sqs", self.queue.bodies)):
            self.check(name, bodies, emitted, state["channels"][name]["dropped"])

    def check(self, name: str, bodies: Iterable[bytes], emitted: dict[str, str | None], dropped: int) -> None:
        """Each event has arrived, or is counted; those of a capture have arrived in order."""
        events = {event["id"]: event for event in map(json.loads, bodies)}
        told = sum(event["data"]["dropped"] for event in events.values() if event["type"] == _DROPPED)
        arrived = [event_id for event_id, event in events.items() if event["type"] != _DROPPED]
        self.assertGreater(dropped, 0, name)
        self.assertEqual(set(arrived) - emitted.keys(), set(), name)
        self.assertEqual((told, len(emitted) - len(arrived)), (dropped, dropped), name)
        order: dict[str | None, list[str]] = {}
        for event_id in arrived:
            order.setdefault(emitted[event_id], []).append(event_id)
        places = {event_id: place for place, event_id in enumerate(emitted)}
        for subject, those in order.items():
            if subject is not None:
                self.assertEqual(those, sorted(those, key=places.__getitem__), (name, subject))
        for event in [*events.values()][:: max(1, len(events) // 500)]:
            self.assertEqual(problems(event), [])
