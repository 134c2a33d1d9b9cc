"""The whole flow, when a source sends more requests than its rate allows."""

from __future__ import annotations

from typing import Any

from pcapsvc.core.event import RequestBusy
from pcapsvc.core.message import Message
from pcapsvc.core.rate import RequestRate
from pcapsvc.core.result import Accepted, Busy, NotForThisNode, Rejected
from pcapsvc.core.session import StopReason
from peers.frames import udp_frame
from tests.unit.contents import PeakMemory
from tests.unit.pipeline_case import PipelineCase, descriptors

_MEBIBYTE = 1 << 20


class RequestRateTests(PipelineCase):
    """Three requests a second, and the clock stands still."""

    max_captures = 10

    def setUp(self) -> None:
        """A clock of its own."""
        self.seconds = 100.0
        self.options = {"rate": RequestRate(3), "now": lambda: self.seconds}
        super().setUp()

    def test_busy(self) -> None:
        """What is over the rate is busy, is reported as such, and begins nothing."""
        verdicts = [self.submit(interface=["mem0"]) for _ in range(5)]
        self.assertEqual([type(verdict) for verdict in verdicts], [Accepted] * 3 + [Busy] * 2)
        refused = verdicts[4]
        assert isinstance(refused, Busy)
        self.assertEqual(refused.reason, "more than 3 requests a second come from test")
        self.assertEqual(self.events(RequestBusy)[-1], RequestBusy(reason=refused.reason))
        self.assertEqual(self.system.open_handles, 3)
        self.seconds += 1
        self.assertIsInstance(self.submit(interface=["mem0"]), Accepted)
        self.successResultOf(self.stop())

    def test_what_counts(self) -> None:
        """Messages for others count for nothing; those for this node do, though they be wrong."""
        for _ in range(100):
            self.assertEqual(self.judge(Message(source="test", body=b'{"node": "other"}')), NotForThisNode())
        for _ in range(3):
            self.assertIsInstance(self.submit(interface=["mem0"], packets=-1), Rejected)
        self.assertIsInstance(self.submit(interface=["mem0"]), Busy)

    def test_garbage_counts(self) -> None:
        """What is not even JSON counts as well: its rejections are work like any other."""
        verdicts = [self.judge(Message(source="test", body=b"{" * 50)) for _ in range(5)]
        self.assertEqual([type(verdict) for verdict in verdicts], [Rejected] * 3 + [Busy] * 2)

    def test_costly_expressions(self) -> None:
        """
        Expressions that are costly to compile have a share of the time for each source, however few its
        requests are; after that they are busy, until it has time again.
        """

        def judged(number: int) -> type:
            self.seconds += 0.001
            body = b'{"nodere": "(?i)%s%d"}' % (rb"\\pL" * 8, number)
            return type(self.judge(Message(source="redis", body=body)))

        verdicts = [judged(number) for number in range(300)]
        self.assertLess(verdicts.count(NotForThisNode), 20)
        self.assertEqual(set(verdicts), {NotForThisNode, Busy})
        self.assertIsInstance(self.judge(Message(source="redis", body=b'{"nodere": "^x"}')), NotForThisNode)
        self.seconds += 10
        self.assertIs(judged(1000), NotForThisNode)

    def test_large_garbage(self) -> None:
        """Large messages that have to be read more closely have that share as well; small ones always are."""
        large = b'{"x": "%s"}' % (b"\\\\n" * 20_000)
        verdicts = [self.judge(Message(source="redis", body=large)) for _ in range(100)]
        reasons = [verdict.reason for verdict in verdicts if isinstance(verdict, Busy)]
        self.assertGreater(reasons.count("the messages from redis take too much time to read"), 70)
        self.assertEqual(self.judge(Message(source="redis", body=b'{"NODE": "other"}')), NotForThisNode())

    def test_other_sources(self) -> None:
        """A source that exceeds its rate doesn't affect the others."""
        body = b'{"node": "sensor1", "interface": ["mem0"]}'
        verdicts = [self.judge(Message(source="redis", body=body)) for _ in range(5)]
        self.assertIsInstance(verdicts[4], Busy)
        self.assertIsInstance(self.judge(Message(source="http", body=body)), Accepted)
        self.successResultOf(self.stop())


class FloodTests(PipelineCase):
    """Ten thousand requests at once, with the rate that is usual."""

    max_captures = 4
    options: dict[str, Any] = {"rate": RequestRate(100), "now": lambda: 100.0}

    def test_flood(self) -> None:
        """They leave memory and descriptors, and a capture that runs, as they were."""
        capture_id = self.begin(packets=20)
        self.arrive(*[udp_frame(number) for number in range(10)])
        opened = descriptors()
        with PeakMemory() as memory:
            for _ in range(10_000):
                self.submit(interface=["mem1"], bytes=1000)
                self.reporter.events[3:] = []
                self.lines.clear()
        self.assertLess(memory.grown_bytes, 4 * _MEBIBYTE)
        # Each of the three captures that there was room for has a handle and its memory.
        self.assertLessEqual(descriptors() - opened, 3 * 3)
        self.assertEqual(self.system.open_handles, 4)
        self.arrive(*[udp_frame(number) for number in range(10, 20)])
        state = self.state(capture_id)
        self.assertEqual((state["reason"], state["packets"]), (StopReason.PACKETS.value, 20))
        self.successResultOf(self.stop())
