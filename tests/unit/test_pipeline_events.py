"""The events of the whole flow, and captures that are ended by hand."""

from __future__ import annotations

import json
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred

from pcapsvc.capture.capturer import Capturer
from pcapsvc.core.event import (
    CaptureDone,
    CaptureStarted,
    CaptureStopped,
    Event,
    Payload,
    RequestAccepted,
    RequestBusy,
    RequestRejected,
)
from pcapsvc.core.history import LookBack, Missing, MissingReason, PastPackets
from pcapsvc.core.labels import Labels
from pcapsvc.core.message import Message
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.result import Accepted
from pcapsvc.core.session import StopReason
from pcapsvc.interfaces.capture import ICapture
from pcapsvc.interfaces.captures import EndResult
from peers.frames import udp_frame
from tests.unit.pipeline_case import PipelineCase, packets_in

REQUEST: dict[str, Any] = {"requestid": "r-1", "alertid": 7, "customer": "ACME", "tags": "one,two"}
LABELS = Labels(via="test", **REQUEST)


PAST = PastPackets(
    seconds=30,
    first=1_700_000_000.0,
    packets=2,
    missing=(Missing(reason=MissingReason.STARTED, seconds=1.5),),
)


class RememberingCapturer(Capturer):
    """Its captures have a past, which is more by their end if they asked for it."""

    def prepare(self, plan: CapturePlan) -> Deferred[ICapture]:
        """See L{Capturer.prepare}."""
        return super().prepare(replace(plan, look_back=None)).addCallback(self._remember, plan)

    def _remember(self, capture: Any, plan: CapturePlan) -> ICapture:
        capture.plan = plan
        if (asked := plan.look_back) is not None:
            start = capture.start
            capture.past = replace(PAST, seconds=asked.seconds, packets=0)
            capture.start = lambda: start().addCallback(lambda end: replace(end, past=PAST))
        return capture  # type: ignore[no-any-return]


class PastTests(PipelineCase):
    """What is reported of the past that a capture has."""

    capturer_class = RememberingCapturer
    options: dict[str, Any] = {"wall_clock": lambda: 1_700_000_100.0}

    def test_past(self) -> None:
        """The start has what there was then, the end what is in the file; and so has the state."""
        capture_id = self.begin(packets=1, before=30)
        [started] = self.events(CaptureStarted)
        self.assertEqual(started.history, replace(PAST, packets=0))
        self.assertEqual(self.state(capture_id)["history"]["packets"], 0)
        self.arrive(udp_frame(1))
        [stopped] = self.events(CaptureStopped)
        self.assertEqual(stopped.history, PAST)
        self.assertEqual(self.state(capture_id)["history"], PAST.values())

    def test_not_asked(self) -> None:
        """A capture that didn't ask for the past has none."""
        self.begin(packets=1)
        self.arrive(udp_frame(1))
        for data in self.events(CaptureStarted, CaptureStopped):
            self.assertIsNone(data.history)

    def test_sent(self) -> None:
        """A capture looks back from when its broker accepted the request."""
        for sent_at, since in ((None, 70.0), (60.5, 30.5), (130.0, 70.0)):
            sent = None if sent_at is None else 1_700_000_000 + sent_at
            body = b'{"node": "sensor1", "interface": ["mem0"], "before": 30}'
            verdict = self.judge(Message(source="test", body=body, sent_at=sent))
            assert isinstance(verdict, Accepted), verdict
            plan = self.captures.running[verdict.captures[0].capture_id].plan
            expected = LookBack(seconds=30, snap_length=500, since=1_700_000_000 + since, until=1_700_000_100)
            self.assertEqual(plan.look_back, expected)
        self.successResultOf(self.stop())


class EventTests(PipelineCase):
    """What is reported of requests and their captures."""

    def reported(self, kind: type[Payload]) -> list[Event]:
        """The events of a kind."""
        return [event for event in self.reporter.events if isinstance(event.data, kind)]

    def test_warnings(self) -> None:
        """A label that can't be used as it is costs nothing but a warning, in the verdict and the event."""
        verdict = self.submit(interface=["mem0"], packets=1, tags="one\r\ntwo", customer="x" * 2000)
        assert isinstance(verdict, Accepted), verdict
        self.assertEqual([warning.path for warning in verdict.warnings], ["tags", "customer"])
        [accepted] = self.reported(RequestAccepted)
        assert isinstance(accepted.data, RequestAccepted)
        self.assertEqual(accepted.data.warnings, verdict.warnings)
        self.assertEqual((accepted.labels.tags, accepted.labels.customer), ("one two", "x" * 1024))
        self.successResultOf(self.stop())

    def test_labels(self) -> None:
        """All events about a request and its captures repeat its labels, and the capture's interface."""
        verdict = self.submit(alias=["both"], packets=1, **REQUEST)
        assert isinstance(verdict, Accepted)
        ids = {capture.interface: capture.capture_id for capture in verdict.captures}
        for interface in ids:
            self.arrive(udp_frame(1), interface=interface)
        first, *others = self.reporter.events
        self.assertEqual((first.labels, first.subject), (LABELS, None))
        self.assertEqual(
            first.data, RequestAccepted(captures=verdict.captures, problems=()), "it comes before all others"
        )
        # Started, stopped, delivered twice, done: of each of the two.
        self.assertEqual(len(others), 10)
        for event in others:
            assert event.labels.interface is not None
            self.assertEqual(event.subject, ids[event.labels.interface])
            self.assertEqual(event.labels, Labels(via="test", interface=event.labels.interface, **REQUEST))
            self.assertEqual(event.node, "sensor1")

    def test_started(self) -> None:
        """The start has the whole plan."""
        capture_id = self.begin(packets=5, timeout=3, snap=96, alertstr="x")
        [event] = self.reported(CaptureStarted)
        data = event.data
        assert isinstance(data, CaptureStarted)
        self.assertEqual((data.bpf, data.snap_length, data.alertstr, data.link_type), ("", 96, "x", 1))
        self.assertEqual((data.limits.max_packets, data.limits.idle_seconds), (5, 3))
        self.assertEqual(event.subject, capture_id)
        self.successResultOf(self.stop())

    def test_rejected(self) -> None:
        """A rejection has the labels that are valid, so that the sender knows which request it was."""
        self.submit(interface=["mem0"], packets=-1, **{**REQUEST, "tags": {"not": "text"}})
        [event] = self.reported(RequestRejected)
        self.assertEqual(event.labels, Labels(via="test", requestid="r-1", alertid=7, customer="ACME"))
        self.assertIsNone(event.subject)

    def test_busy(self) -> None:
        """So does an answer that there is no capacity."""
        for _ in range(self.max_captures):
            self.begin()
        self.submit(interface=["mem0"], **REQUEST)
        [event] = self.reported(RequestBusy)
        self.assertEqual(event.labels, LABELS)
        self.successResultOf(self.stop())

    def test_file(self) -> None:
        """The end has the name of the file that is delivered; none if there is no packet."""
        self.begin(packets=1)
        self.arrive(udp_frame(1))
        self.begin()
        self.successResultOf(self.stop())
        stopped = [event.data for event in self.reported(CaptureStopped)]
        self.assertEqual(
            [data.file for data in stopped if isinstance(data, CaptureStopped)], [*self.one.files, None]
        )

    def test_requestid(self) -> None:
        """The sender's id of a request is in the state of its captures."""
        capture_id = self.begin(requestid="r-1")
        self.assertEqual(self.state(capture_id)["request"], {"requestid": "r-1"})
        self.successResultOf(self.stop())


class EndTests(PipelineCase):
    """Captures that are ended by hand."""

    def test_running(self) -> None:
        """A capture that is ended delivers what it has, and is done; others go on."""
        capture_id, other = self.begin(), self.begin(interface=["mem1"])
        frames = [udp_frame(number) for number in range(3)]
        self.arrive(*frames)
        self.assertIs(self.captures.end(capture_id), EndResult.ENDED)
        self.hand_over()
        state = self.state(capture_id)
        self.assertEqual(
            (state["state"], state["reason"], state["packets"]), ("done", StopReason.CANCELLED.value, 3)
        )
        [file] = self.one.files.values()
        self.assertEqual(packets_in(file), frames)
        self.assertIs(self.captures.end(capture_id), EndResult.ALREADY_ENDED)
        self.assertEqual(self.state(other)["state"], "capturing")
        self.successResultOf(self.stop())

    def test_watched(self) -> None:
        """Who watches sees a capture until it is done, and its state is that of JSON."""
        seen: list[str] = []
        self.captures.watch(lambda state: seen.append(json.loads(json.dumps(state))["state"]))
        self.begin(packets=1)
        self.arrive(udp_frame(1))
        # Two deliveries in between.
        self.assertEqual(seen, ["capturing", "delivering", "delivering", "delivering", "done"])
        self.assertEqual(len(self.events(CaptureDone)), 1)
