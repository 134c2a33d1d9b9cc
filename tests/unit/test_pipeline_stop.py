"""The whole flow, when a request stops the captures of another one."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel

from pcapsvc.core.event import CaptureStopped, RequestBusy, RequestRejected
from pcapsvc.core.message import Message
from pcapsvc.core.rate import RequestRate
from pcapsvc.core.result import Accepted, Busy, Ended, NotForThisNode, Rejected, StartedCapture
from pcapsvc.core.session import StopReason
from pcapsvc.judge import MOST_PENDING
from peers.frames import udp_frame
from tests.unit.pipeline_case import PipelineCase, packets_in
from tests.unit.test_preparation import PreparationCase

NOTHING = Ended(captures=())


class StopTests(PipelineCase):
    """Captures that are running."""

    max_captures = 3

    def test_all_of_the_request(self) -> None:
        """Every capture of the request ends, and delivers what it has; those of others go on."""
        other = self.begin(requestid="r-2")
        accepted = self.submit(interface=["mem0", "mem1"], requestid="r-1")
        assert isinstance(accepted, Accepted)
        frames = [udp_frame(1), udp_frame(2)]
        self.arrive(*frames)
        self.system.deliver("mem1", frames[0])
        ended = self.submit(stop="r-1")
        self.hand_over()
        assert isinstance(ended, Ended)
        self.assertEqual(set(ended.captures), set(accepted.captures))
        for capture, packets in zip(accepted.captures, (frames, frames[:1]), strict=True):
            state = self.state(capture.capture_id)
            self.assertEqual((state["state"], state["reason"]), ("done", "cancelled"))
            self.assertEqual(packets_in(self.one.files[state["file"]]), packets)
        self.assertEqual(self.state(other)["state"], "capturing")
        self.assertEqual([event.reason for event in self.events(CaptureStopped)], [StopReason.CANCELLED] * 2)
        first = accepted.captures[0].capture_id
        self.assertIn((LogLevel.info, f"{first}: ended by a request from test"), self.lines)
        self.successResultOf(self.stop())

    def test_nothing_to_stop(self) -> None:
        """If no capture of the request is running, that is no error, and no event is reported."""
        capture_id = self.begin(requestid="r-1", packets=1)
        self.begin()
        self.arrive(udp_frame(1))
        self.assertEqual(self.state(capture_id)["state"], "done")
        before = len(self.reporter.events)
        self.assertEqual(self.submit(stop="r-1"), NOTHING)
        self.assertEqual(self.submit(stop="None"), NOTHING)
        self.assertEqual(len(self.reporter.events), before)
        self.successResultOf(self.stop())

    def test_label_as_it_was_changed(self) -> None:
        """The C{requestid} is compared as every event repeats it: a number has become text."""
        self.begin(requestid=5)
        ended = self.submit(stop="5")
        assert isinstance(ended, Ended)
        self.assertEqual([capture.interface for capture in ended.captures], ["mem0"])
        self.successResultOf(self.stop())

    def test_for_others(self) -> None:
        """A message for other nodes stops nothing here."""
        capture_id = self.begin(requestid="r-1")
        self.assertEqual(
            self.judge(Message(source="test", body=b'{"node": "x", "stop": "r-1"}')), NotForThisNode()
        )
        self.assertEqual(self.state(capture_id)["state"], "capturing")
        self.successResultOf(self.stop())

    def test_rejected(self) -> None:
        """A wrong one stops nothing, and is reported like other wrong ones."""
        capture_id = self.begin(requestid="r-1")
        self.assertIsInstance(self.submit(stop="r-1", interface=["mem0"]), Rejected)
        self.assertEqual(len(self.events(RequestRejected)), 1)
        self.assertEqual(self.state(capture_id)["state"], "capturing")
        self.successResultOf(self.stop())

    def test_full(self) -> None:
        """It works while the node is full."""
        [capture_id, *_] = [self.begin(requestid=f"r-{number}") for number in range(3)]
        self.assertIsInstance(self.submit(interface=["mem0"]), Busy)
        expected = Ended(captures=(StartedCapture(capture_id=capture_id, interface="mem0"),))
        self.assertEqual(self.submit(stop="r-0"), expected)
        self.hand_over()
        self.assertIsInstance(self.submit(interface=["mem0"]), Accepted)
        self.successResultOf(self.stop())

    def test_while_stopping(self) -> None:
        """While the daemon is stopping, it is answered as others are: every capture is ending."""
        self.begin(requestid="r-1")
        stopping = self.stop()
        self.assertEqual(self.submit(stop="r-1"), Busy(reason="the daemon is stopping"))
        self.successResultOf(stopping)


class BoundsTests(PipelineCase):
    """Rate and age."""

    def setUp(self) -> None:
        """Two requests a second, of up to a minute."""
        self.options = {
            "rate": RequestRate(2),
            "now": lambda: 100.0,
            "wall_clock": lambda: 1_700_000_000.0,
            "max_request_age_seconds": 60,
        }
        super().setUp()

    def test_rate(self) -> None:
        """It counts for the rate of its source."""
        verdicts = [self.submit(stop="r-1") for _ in range(3)]
        self.assertEqual(verdicts[:2], [NOTHING] * 2)
        self.assertIsInstance(verdicts[2], Busy)
        self.assertEqual(len(self.events(RequestBusy)), 1)

    def test_age(self) -> None:
        """One that is too old is rejected."""
        message = Message(source="test", body=b'{"node": "any", "stop": "r-1"}', sent_at=1_700_000_000.0 - 66)
        self.assertIsInstance(self.judge(message), Rejected)


class PreparationTests(PreparationCase):
    """Captures that are being prepared."""

    max_captures = MOST_PENDING + 1

    def test_ends_as_soon_as_it_starts(self) -> None:
        """Captures in preparation end as soon as they start, with what has arrived since they were opened."""
        verdict, other = self.ask(requestid="r-1"), self.ask(requestid="r-2")
        self.assertEqual(self.successResultOf(self.ask(interface=None, stop="r-1")), NOTHING)
        for opening in self.opening:
            opening.callback(None)
        accepted, going_on = self.successResultOf(verdict), self.successResultOf(other)
        assert isinstance(accepted, Accepted) and isinstance(going_on, Accepted)
        self.hand_over()
        state = self.state(accepted.captures[0].capture_id)
        self.assertEqual((state["state"], state["reason"]), ("done", "cancelled"))
        self.assertEqual(self.state(going_on.captures[0].capture_id)["state"], "capturing")
        self.successResultOf(self.stop())

    def test_later_request_of_the_same_name(self) -> None:
        """A request that arrives after the stop isn't stopped, whatever its C{requestid}."""
        self.successResultOf(self.ask(interface=None, stop="r-1"))
        verdict = self.ask(requestid="r-1")
        self.opening[0].callback(None)
        accepted = self.successResultOf(verdict)
        assert isinstance(accepted, Accepted)
        self.assertEqual(self.state(accepted.captures[0].capture_id)["state"], "capturing")
        self.successResultOf(self.stop())

    def test_many_in_preparation(self) -> None:
        """It works while the source has as many requests in preparation as it may."""
        verdicts: list[Deferred[Any]] = [self.ask(requestid="r-1", bytes=1000) for _ in range(MOST_PENDING)]
        self.assertIsInstance(self.successResultOf(self.ask(bytes=1000)), Busy)
        self.assertEqual(self.successResultOf(self.ask(interface=None, stop="r-1")), NOTHING)
        while self.opening:
            self.opening.pop(0).callback(None)
        self.hand_over()
        for verdict in verdicts:
            [capture] = self.successResultOf(verdict).captures
            self.assertEqual(self.state(capture.capture_id)["reason"], "cancelled")
        self.successResultOf(self.stop())
