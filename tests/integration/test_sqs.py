"""The SQS source and a real queue server."""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from twisted.internet import defer, reactor, task, threads
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial import unittest
from zope.interface import implementer

from pcapsvc.core.message import Message
from pcapsvc.core.result import Accepted, Busy, NotForThisNode, Verdict
from pcapsvc.interfaces.requests import IRequestSink
from pcapsvc.sources.sqs.source import SQSSource
from pcapsvc.testing import MemorySink
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.process import free_port
from peers.s3 import S3Server
from peers.sqs import ForgetfulProxy, SQSServer, shared_server
from peers.tcpdump import read_packets
from peers.wire import Wire

numbers = itertools.count()

NODES = ("node-1", "node-2", "node-3")

#: A process dies with the thread that started it: not one of the reactor's, which end with each test.
_starter = ThreadPoolExecutor(1)

# How long the server takes to store on disk what it was sent.
WRITTEN_SECONDS = 1.5


@implementer(IRequestSink)
class NodeSink:
    """
    A node that accepts the requests for it.

    @ivar taken: the numbers of the requests that it accepted.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self.taken: list[int] = []
        self.sent_at: list[float | None] = []

    def submit(self, message: Message) -> defer.Deferred[Verdict]:
        """Accept a request, or answer that it is for another node."""
        request = json.loads(message.body)
        if request["node"] not in (self._node, "any"):
            return defer.succeed(NotForThisNode())
        self.taken.append(request["alertid"])
        self.sent_at.append(message.sent_at)
        return defer.succeed(Accepted(captures=()))


def request(number: int, node: str) -> str:
    """A request with a number, for a node."""
    return json.dumps({"node": node, "alertid": number})


def descriptors() -> int:
    """How many open descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


class SQSTestCase(unittest.TestCase):
    """A running queue server, and sources."""

    timeout = 600

    def setUp(self) -> None:
        self.events: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    def start(self, *, durable: bool = False, **attributes: str) -> str:
        """
        Create a queue; returns its URL.

        @param durable: whether its server may be disturbed, and its queues survive a kill.
        """
        self.server = shared_server(durable=durable)
        suffix = ".fifo" if "FifoQueue" in attributes else ""
        return self.server.create_queue(f"captures{next(numbers)}{suffix}", **attributes)

    async def restart(self) -> None:
        """Start the server again."""
        starting = _starter.submit(self.server.restart)
        await self.until(starting.done)
        starting.result()

    def observe(self, event: Any) -> None:
        """Collect what the source logs."""
        if any(name in event.get("log_namespace", "") for name in ("sqs", "polling")):
            self.events.append(f"{event['log_level'].name}: {formatEvent(event)}")

    def listen(self, url: str, sink: Any, **options: Any) -> SQSSource:
        """A started source. It is stopped at the end of the test."""
        options = {
            "region": SQSServer.region,
            # The last poll is not waited for at the end, and takes up to this long.
            "wait_seconds": 2,
            "access_id": "AKIAEXAMPLE",
            "access_key": "s3cret/key",
            "retry_seconds": (0.05, 0.2),
            "busy_seconds": (1, 1),
            "answer_seconds": 10.0,
            **options,
        }
        source = SQSSource(reactor, sink, url=url, **options)
        source.startService()
        self.addCleanup(source.stopService)
        return source

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true."""
        while not condition():
            await task.deferLater(reactor, 0.02)

    async def logged(self, text: str) -> None:
        """Wait until a text is logged."""
        await self.until(lambda: any(text in event for event in self.events))

    async def counts(self, url: str) -> tuple[int, int]:
        """How many visible and invisible messages a queue has."""
        counts: tuple[int, int] = await threads.deferToThread(self.server.counts, url)
        return counts

    async def emptied(self, url: str) -> None:
        """Wait until a queue has no message, not even an invisible one."""
        while await self.counts(url) != (0, 0):
            await task.deferLater(reactor, 0.1)

    async def send(self, url: str, *bodies: str, **more: Any) -> list[str]:
        """Send messages; returns their ids."""
        ids: list[str] = await threads.deferToThread(self.server.send, url, bodies, **more)
        return ids

    @staticmethod
    def pollers() -> set[threading.Thread]:
        """The threads of sources; those of earlier tests may still be polling."""
        return {thread for thread in threading.enumerate() if "pcapsvc-sqs" in thread.name}


class ListenTests(SQSTestCase):
    """One source on a queue."""

    async def test_promptly(self) -> None:
        """A waiting poll receives a message with the time when it was sent; the message is deleted."""
        url = self.start()
        sink = NodeSink("node-1")
        self.listen(url, sink, wait_seconds=10)
        await self.logged("listening")
        await task.deferLater(reactor, 1.0)
        for number in range(3):
            began = time.monotonic()
            await self.send(url, request(number, "any"))
            await self.until(lambda number=number: number in sink.taken)  # type: ignore[misc]
            # Soon after it was sent, and long before the poll would have ended.
            self.assertLess(time.monotonic() - began, 8)
        await self.emptied(url)
        for sent_at in sink.sent_at:
            assert sent_at is not None
            self.assertLess(abs(time.time() - sent_at), 30)

    async def test_envelope(self) -> None:
        """A notification from SNS is unwrapped."""
        url = self.start()
        sink = NodeSink("node-1")
        self.listen(url, sink)
        envelope = {"Type": "Notification", "MessageId": "n", "Message": request(7, "node-1")}
        await self.send(url, json.dumps(envelope))
        await self.until(lambda: sink.taken == [7])
        await self.emptied(url)

    async def test_busy(self) -> None:
        """A message for a busy node comes again until it is accepted."""
        url = self.start()
        sink = MemorySink(Busy(reason="full"))
        self.listen(url, sink)
        await self.send(url, "x")
        await self.until(lambda: len(sink.submitted) == 2)
        sink.verdict = Accepted(captures=())
        await self.until(lambda: len(sink.submitted) == 3)
        await self.emptied(url)

    async def test_for_another_node(self) -> None:
        """A message for another node is returned, and soon reaches that node."""
        url = self.start()
        ours, other = NodeSink("node-1"), NodeSink("node-2")
        self.listen(url, ours)
        await self.send(url, request(1, "node-2"))
        await task.deferLater(reactor, 1.0)
        self.listen(url, other)
        await self.until(lambda: other.taken == [1])
        await self.emptied(url)
        self.assertEqual([], ours.taken)

    async def test_for_another_node_deleted(self) -> None:
        """If each node has its own queue, messages for others are deleted."""
        url = self.start()
        sink = NodeSink("node-1")
        self.listen(url, sink, unmatched="delete")
        await self.send(url, request(1, "node-2"), request(2, "node-1"))
        await self.until(lambda: sink.taken == [2])
        await self.emptied(url)

    async def test_first_in_first_out(self) -> None:
        """In a FIFO queue, a message for another node delays its group only until it reaches that node."""
        url = self.start(FifoQueue="true", ContentBasedDeduplication="true")
        sinks = [NodeSink(node) for node in NODES[:2]]
        for sink in sinks:
            self.listen(url, sink)
        for number in range(6):
            await self.send(url, request(number, NODES[number % 2]), MessageGroupId="one")
        await self.emptied(url)
        self.assertEqual([[0, 2, 4], [1, 3, 5]], [sink.taken for sink in sinks])

    async def test_comes_again(self) -> None:
        """A message that wasn't deleted, and becomes visible again, is not submitted again."""
        url = self.start()
        sink = NodeSink("node-1")
        proxy = self.proxy(every=1)
        self.listen(url, sink, endpoint=proxy.endpoint)
        await self.send(url, *(request(number, "node-1") for number in range(20)))
        await self.until(lambda: sum("was delivered again" in event for event in self.events) == 20)
        await self.emptied(url)
        self.assertEqual([*range(20)], sorted(sink.taken))

    async def test_deletion_lost(self) -> None:
        """A message whose deletion failed is deleted when it becomes visible again."""
        url = self.start(durable=True)
        sink = MemorySink()
        taken = sink.submit

        def submit(message: Message) -> defer.Deferred[Verdict]:
            # From here on, deletions fail.
            self.server.kill()
            return taken(message)

        sink.submit = submit  # type: ignore[method-assign]
        await self.send(url, "x")
        await task.deferLater(reactor, WRITTEN_SECONDS)
        self.listen(url, sink, hidden_seconds=1)
        await self.logged("retrying")
        await self.restart()
        await self.logged("was delivered again")
        await self.emptied(url)
        self.assertEqual(1, len(sink.submitted))

    def proxy(self, every: int) -> ForgetfulProxy:
        """A proxy that makes messages come twice."""
        proxy = ForgetfulProxy(self.server.endpoint, every=every)
        proxy.start()
        self.addCleanup(proxy.stop)
        return proxy


class StopTests(SQSTestCase):
    """A stop doesn't wait for a poll."""

    async def test_during_a_poll(self) -> None:
        """It is immediate; a message that the poll still receives is returned at once."""
        url = self.start()
        sink = MemorySink()
        others = self.pollers()
        source = self.listen(url, sink, wait_seconds=20)
        await self.logged("listening")
        await task.deferLater(reactor, 0.3)
        began = time.monotonic()
        await source.stopService()
        self.assertLess(time.monotonic() - began, 12)
        await self.send(url, "x")
        await self.until(lambda: self.pollers() <= others)
        self.assertEqual((1, 0), await self.counts(url))
        self.assertEqual([], sink.submitted)

    async def test_process(self) -> None:
        """The daemon also stops immediately in the middle of a poll."""
        url = self.start()
        daemon = Daemon(f'[sqs]\nlisten = true\nurl = "{url}"\naccessid = "a"\naccesskey = "b"\n')
        self.addCleanup(daemon.stop)
        await threads.deferToThread(daemon.start)
        await threads.deferToThread(daemon.logged, "listening")
        await task.deferLater(reactor, 0.5)
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        await threads.deferToThread(daemon.wait)
        self.assertLess(time.monotonic() - began, 10)


class OutageTests(SQSTestCase):
    """The server is down, silent, or refuses."""

    async def test_killed(self) -> None:
        """
        The server is killed and restarted in the middle of 1,000 requests, some of which come twice: each is
        done once, and the outage and its end are logged once.
        """
        url = self.start(durable=True)
        sink = NodeSink("node-1")
        proxy = ForgetfulProxy(self.server.endpoint, every=4)
        proxy.start()
        self.addCleanup(proxy.stop)
        await self.send(url, *(request(number, "node-1") for number in range(700)))
        await task.deferLater(reactor, 3 * WRITTEN_SECONDS)
        self.listen(url, sink, endpoint=proxy.endpoint, hidden_seconds=2)
        await self.until(lambda: len(sink.taken) > 100)
        await threads.deferToThread(self.server.kill)
        # Until it has its queues again: it answers before.
        proxy.is_cut = True
        taken = len(sink.taken)
        await self.logged("retrying")
        await task.deferLater(reactor, 1.0)
        await self.restart()
        proxy.is_cut = False
        await self.send(url, *(request(number, "node-1") for number in range(700, 1000)))
        await self.until(lambda: len(sink.taken) >= 1000)
        await self.emptied(url)
        self.assertLess(taken, 700)
        self.assertEqual([*range(1000)], sorted(sink.taken))
        self.assertEqual(250, proxy.forgotten)
        lines = [event for event in self.events if "was delivered again" not in event]
        self.assertEqual(["info", "warn", "info"], [event.split(":")[0] for event in lines])

    async def test_frozen(self) -> None:
        """A silent server is given up in time, and polled again when it answers."""
        url = self.start(durable=True)
        sink = NodeSink("node-1")
        self.listen(url, sink, wait_seconds=1, hidden_seconds=2, answer_seconds=1.0)
        await self.logged("listening")
        self.addCleanup(self.server.thaw)
        self.server.freeze()
        await self.logged("warn")
        self.server.thaw()
        await self.send(url, request(1, "node-1"))
        await self.until(lambda: sink.taken == [1])
        await self.emptied(url)

    async def test_no_queue(self) -> None:
        """A missing queue is logged, and polled once it exists."""
        url = self.start()
        sink = NodeSink("node-1")
        self.listen(url.replace("captures", "others"), sink)
        await self.logged("the server answered QueueDoesNotExist")
        await threads.deferToThread(
            self.server.create_queue, url.rpartition("/")[2].replace("captures", "others")
        )
        await self.logged("listening")
        self.assertEqual(2, len(self.events), self.events)

    async def test_wrong_credentials(self) -> None:
        """Wrong credentials are logged, but not the access key."""
        checking = S3Server()
        self.addCleanup(checking.stop)
        await threads.deferToThread(checking.start)
        url = f"{checking.endpoint}/123456789012/captures"
        self.listen(url, MemorySink(), region=checking.region, access_id=checking.access_key)
        # moto answers in XML, although the protocol is JSON. It is logged as received.
        await self.logged("the server answered 403: ")
        self.assertIn("<Code>SignatureDoesNotMatch</Code>", self.events[0])
        self.assertNotIn("s3cret", "".join(self.events))

    async def test_nothing_grows(self) -> None:
        """Hundreds of failed polls leak neither threads nor descriptors."""
        await self.until(lambda: not self.pollers())
        url = f"http://127.0.0.1:{free_port()}/0/captures"
        polls = 0

        def counted() -> float:
            """How long to wait after a poll that has failed."""
            nonlocal polls
            polls += 1
            return 0.5

        source = SQSSource(
            reactor,
            MemorySink(),
            url=url,
            region="r",
            access_id="a",
            access_key="b",
            retry_seconds=(0.001, 0.002),
            chance=counted,
        )
        source.startService()
        self.addCleanup(source.stopService)
        await self.until(lambda: polls >= 20)
        # What earlier tests left behind must not vanish in the meantime.
        gc.collect()
        before = threading.active_count(), descriptors()
        await self.until(lambda: polls >= 320)
        self.assertLessEqual(threading.active_count(), before[0])
        # One socket may be connecting.
        self.assertLessEqual(descriptors(), before[1] + 1)
        self.assertEqual(1, len(self.events), self.events)


class FleetTests(SQSTestCase):
    """Three nodes on one queue."""

    def addressed(self, count: int) -> list[str]:
        """The node that each request is for."""
        chance = random.Random(7)
        return [chance.choice(NODES) for _ in range(count)]

    async def test_each_its_own(self) -> None:
        """Each request is done once, by its node only, although half of them come twice."""
        url = self.start()
        proxy = ForgetfulProxy(self.server.endpoint)
        proxy.start()
        self.addCleanup(proxy.stop)
        sinks = {node: NodeSink(node) for node in NODES}
        for sink in sinks.values():
            self.listen(url, sink, endpoint=proxy.endpoint, hidden_seconds=5)
        nodes = self.addressed(160)
        await self.send(url, *(request(number, node) for number, node in enumerate(nodes)))
        await self.emptied(url)
        for node, sink in sinks.items():
            self.assertEqual([at for at, other in enumerate(nodes) if other == node], sorted(sink.taken))
        self.assertEqual(80, proxy.forgotten)
        self.assertEqual([], [event for event in self.events if event.startswith("warn")])

    async def test_daemons(self) -> None:
        """With three daemons, the packets of each request are in one file of its node."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        url = self.start()
        proxy = ForgetfulProxy(self.server.endpoint)
        proxy.start()
        self.addCleanup(proxy.stop)
        daemons = [
            Daemon(
                f'[sqs]\nlisten = true\nurl = "{url}"\nendpoint = "{proxy.endpoint}"\n'
                'accessid = "a"\naccesskey = "b"\n[capture]\nbuffersize = 65536\n',
                node=node,
                general="maxcaptures = 1000\nmaxmemory = 4000000000",
            )
            for node in NODES
        ]
        for daemon in daemons:
            self.addCleanup(daemon.stop)
            await threads.deferToThread(daemon.start)
        nodes = self.addressed(160)
        # Each request captures packets to its own port.
        bodies = [
            json.dumps(
                {
                    "node": node,
                    "interface": [wire.interface],
                    "bpf": f"udp dst port {1000 + number}",
                    "packets": 1,
                    "bytes": 65536,
                    "timeout": 1000,
                }
            )
            for number, node in enumerate(nodes)
        ]
        await self.send(url, *bodies)
        files: dict[Path, int] = {}
        while len(files) < len(nodes):
            missing = {*range(len(nodes))} - {*files.values()}
            await threads.deferToThread(wire.send, [udp_frame(at, port=1000 + at) for at in missing])
            await task.deferLater(reactor, 0.2)
            for daemon in daemons:
                for path in daemon.captures.glob("*.pcap"):
                    if path not in files:
                        (packet,) = read_packets(path)
                        files[path] = int.from_bytes(packet.data[36:38], "big") - 1000
        await self.emptied(url)
        self.assertEqual(dict.fromkeys(range(160), 1), dict(Counter(files.values())))
        for path, number in files.items():
            self.assertTrue(path.name.startswith(f"{nodes[number]}-"), path.name)
        # The duplicates have been delivered, and no other capture is running.
        self.assertEqual(80, proxy.forgotten)
        for daemon in daemons:
            count = nodes.count(daemon.node)
            self.assertEqual(count, await threads.deferToThread(daemon.logged_times, "capturing on", count))
