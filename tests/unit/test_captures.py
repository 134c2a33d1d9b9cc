"""The captures that are running, and the last ones that are done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from pcapsvc.captures import REMEMBERED_CAPTURES, Captures
from pcapsvc.core.event import (
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureProgress,
    CaptureStarted,
    CaptureStopped,
    DeliveryFailed,
    DeliveryPostponed,
    DeliverySpooled,
    Payload,
    RequestBusy,
)
from pcapsvc.core.history import Missing, MissingReason, PastPackets
from pcapsvc.core.labels import Labels
from pcapsvc.core.recording import PacketCounts
from pcapsvc.core.session import CaptureLimits, StopReason
from pcapsvc.interfaces.captures import EndResult, ICaptureRegistry, ICaptures
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.testing import MemoryCapture, event_factory
from tests.core.test_artifact import recording

LABELS = Labels(via="redis", requestid="r-1", alertid=7, customer="ACME", interface="eth0")
STARTED = CaptureStarted(
    bpf="tcp",
    snap_length=500,
    limits=CaptureLimits(max_packets=10, max_bytes=1000, idle_seconds=5, duration_seconds=60),
    started=1_700_000_000.75,
    link_type=1,
    alertstr="x",
)
STOPPED = CaptureStopped(
    reason=StopReason.IDLE,
    packets=3,
    bytes=700,
    counts=PacketCounts(received=9, dropped=2, interface_dropped=1),
    file="a.pcap",
)
EMPTY = CaptureStopped(reason=StopReason.IDLE, packets=0, bytes=24, counts=None, file=None)


class RunningCapture(MemoryCapture):
    """A capture that has 600 bytes."""

    def __init__(self, capture_id: str = "a") -> None:
        super().__init__(capture_id, recording().plan, bytes(600))


class CapturesCase(unittest.SynchronousTestCase):
    """Captures with two destinations."""

    def setUp(self) -> None:
        """Captures, none of which has started."""
        self.events = event_factory()
        self.captures = Captures(["local", "s3"])

    def report(self, *payloads: Payload, capture_id: str = "a") -> dict[str, Any]:
        """Report events about a capture, and return its state."""
        for data in payloads:
            self.captures.report(self.events.event(data, LABELS, capture_id))
        state = self.captures.get(capture_id)
        assert state is not None
        return json.loads(json.dumps(state))  # type: ignore[no-any-return]

    def run_capture(self, capture_id: str = "a") -> RunningCapture:
        """A capture that is running."""
        capture = RunningCapture(capture_id)
        self.captures.add(capture)
        self.report(STARTED, capture_id=capture_id)
        return capture

    def ids(self, state: str | None = None) -> list[str]:
        """The ids of the captures in a state, as listed."""
        return [one["id"] for one in self.captures.list(state)]


class StateTests(CapturesCase):
    """What is known of one capture."""

    def test_interfaces(self) -> None:
        """It provides what the pipeline, the reporters and the APIs ask for."""
        for interface in (ICaptures, ICaptureRegistry, IReporter):
            self.assertTrue(verifyObject(interface, self.captures))

    def test_unknown(self) -> None:
        """A capture that never started is unknown, whatever is reported about it."""
        self.captures.report(self.events.event(RequestBusy(reason="x"), LABELS))
        for data in (CaptureDone(), CaptureFailed(problem="x"), STOPPED):
            self.captures.report(self.events.event(data, LABELS, "a"))
        self.assertIsNone(self.captures.get("a"))
        self.assertIsNone(self.captures.get(""))

    def test_not_for_all(self) -> None:
        """A capture has deliveries only to the destinations that it is for."""
        self.captures = Captures(["local", "s3"], lambda name, options: name == "local" and options == {})
        self.run_capture()
        self.assertEqual(self.report(STOPPED)["deliveries"], [{"destination": "local", "state": "pending"}])

    def test_capturing(self) -> None:
        """A running capture has its plan, its labels and its progress."""
        self.run_capture()
        self.assertEqual(
            self.report(),
            {
                "id": "a",
                "state": "capturing",
                "source": "redis",
                "node": "sensor1",
                "interface": "eth0",
                "request": {"alertid": 7, "alertstr": "x", "customer": "ACME", "requestid": "r-1"},
                "bpf": "tcp",
                "snap_length": 500,
                "limits": {"packets": 10, "bytes": 1000, "timeout": 5, "duration": 60},
                "started": "2023-11-14T22:13:20.750000Z",
                "link_type": 1,
                "history": None,
                "rolling": None,
                "packets": 5,
                "bytes": 600,
                "seconds": 1.5,
                "received": 7,
                "dropped": 2,
                "deliveries": [],
            },
        )

    def test_delivering(self) -> None:
        """A stopped capture has the reason and the kernel's statistics; its deliveries are pending."""
        self.run_capture()
        state = self.report(STOPPED)
        expected = {
            "state": "delivering",
            "reason": "idle",
            "packets": 3,
            "bytes": 700,
            "received": 9,
            "dropped": 2,
            "interface_dropped": 1,
            "file": "a.pcap",
            "deliveries": [
                {"destination": "local", "state": "pending"},
                {"destination": "s3", "state": "pending"},
            ],
        }
        self.assertEqual({key: state[key] for key in expected}, expected)

    def test_past(self) -> None:
        """What it has of the past is known while it runs, and once it has stopped."""
        past = PastPackets(seconds=30, missing=(Missing(reason=MissingReason.SIZE, seconds=4.5),))
        expected = {"requested": 30, "first": None, "packets": 0}
        expected["missing"] = [{"reason": "size", "seconds": 4.5, "packets": None}]
        self.assertEqual(self.report(replace(STARTED, history=past))["history"], expected)
        past = replace(past, first=1_700_000_000.0, packets=2)
        expected.update(first="2023-11-14T22:13:20.000000Z", packets=2)
        self.assertEqual(self.report(replace(STOPPED, history=past))["history"], expected)
        self.assertEqual(self.report(CaptureFailed(problem="x"))["history"]["packets"], 0)

    def test_no_packet(self) -> None:
        """A capture without packets has no file and no deliveries, and perhaps no statistics."""
        self.run_capture()
        state = self.report(EMPTY, CaptureDone())
        self.assertEqual((state["state"], state["deliveries"]), ("done", []))
        for key in ("received", "dropped", "interface_dropped", "file"):
            self.assertIsNone(state[key], key)

    def test_done(self) -> None:
        """Each delivery ends on its own."""
        self.run_capture()
        state = self.report(
            STOPPED,
            CaptureDelivered(destination="s3", location="s3://b/k", seconds=0.5),
            DeliveryFailed(destination="local", problem="no space"),
            CaptureDone(),
        )
        self.assertEqual(state["state"], "done")
        self.assertEqual(
            state["deliveries"],
            [
                {"destination": "local", "state": "failed", "problem": "no space"},
                {"destination": "s3", "state": "delivered", "location": "s3://b/k"},
            ],
        )

    def test_retrying(self) -> None:
        """A postponed delivery has its attempts, the last problem and the time of the next attempt."""
        self.run_capture()
        state = self.report(
            STOPPED,
            DeliveryPostponed(destination="s3", problem="503", attempts=2, next_try=1_700_000_000.5),
        )
        self.assertEqual(state["state"], "delivering")
        self.assertEqual(
            state["deliveries"],
            [
                {"destination": "local", "state": "pending"},
                {
                    "destination": "s3",
                    "state": "retrying",
                    "problem": "503",
                    "attempts": 2,
                    "next_try": "2023-11-14T22:13:20.500000Z",
                },
            ],
        )

    def test_spooled(self) -> None:
        """A spooled delivery is followed after the capture is done, until it is delivered or lost."""
        self.run_capture()
        state = self.report(
            STOPPED,
            CaptureDelivered(destination="local", location="/x", seconds=0.5),
            DeliverySpooled(destination="s3", problem="503"),
            CaptureDone(),
        )
        self.assertEqual(state["state"], "done")
        self.assertEqual(state["deliveries"][1], {"destination": "s3", "state": "spooled", "problem": "503"})
        for data, expected in (
            (
                DeliveryPostponed(
                    destination="s3", problem="reset", attempts=1, next_try=1_700_000_000.5, spooled=True
                ),
                {
                    "state": "spooled",
                    "problem": "reset",
                    "attempts": 1,
                    "next_try": "2023-11-14T22:13:20.500000Z",
                },
            ),
            (
                DeliveryFailed(destination="s3", problem="too old"),
                {"state": "failed", "problem": "too old"},
            ),
            (
                CaptureDelivered(destination="s3", location="s3://b/k", seconds=0.5),
                {"state": "delivered", "location": "s3://b/k"},
            ),
        ):
            self.assertEqual(self.report(data)["deliveries"][1], {"destination": "s3", **expected})

    def test_failed(self) -> None:
        """A failed capture has the problem, before and after it is done."""
        self.run_capture()
        for data in (CaptureFailed(problem="no memory"), CaptureDone()):
            state = self.report(data)
            self.assertEqual((state["state"], state["problem"]), ("failed", "no memory"))
            self.assertNotIn("packets", state)

    def test_failed_after_stop(self) -> None:
        """A capture may fail after it has stopped: then no delivery is pending."""
        self.run_capture()
        state = self.report(STOPPED, CaptureFailed(problem="not encoded"), CaptureDone())
        self.assertEqual((state["state"], state["problem"]), ("failed", "not encoded"))
        self.assertEqual(state["deliveries"], [])

    def test_each_by_itself(self) -> None:
        """Events about one capture do not change another."""
        self.run_capture()
        self.run_capture("b")
        self.report(CaptureFailed(problem="x"), capture_id="b")
        self.assertEqual(self.report()["state"], "capturing")


class ListTests(CapturesCase):
    """All captures."""

    def test_newest_first(self) -> None:
        """Captures are listed by their start, the newest first, whether or not they are done."""
        self.assertEqual(self.ids(), [])
        for capture_id in "abcd":
            self.run_capture(capture_id)
        self.report(STOPPED, CaptureDone(), capture_id="d")
        self.report(STOPPED, CaptureDone(), capture_id="a")
        self.assertEqual(self.ids(), ["d", "c", "b", "a"])
        self.assertEqual(self.captures.list()[0], self.captures.get("d"))

    def test_states(self) -> None:
        """They can be filtered by state."""
        for capture_id in "abcd":
            self.run_capture(capture_id)
        self.report(STOPPED, capture_id="b")
        self.report(STOPPED, CaptureDone(), capture_id="c")
        self.report(CaptureFailed(problem="x"), CaptureDone(), capture_id="d")
        for state, capture_id in (("capturing", "a"), ("delivering", "b"), ("done", "c"), ("failed", "d")):
            self.assertEqual(self.ids(state), [capture_id])

    def test_no_such_state(self) -> None:
        """A state that does not exist is an error, which names those that do."""
        error = self.assertRaises(ValueError, self.captures.list, "running")
        self.assertEqual(
            str(error), "state must be one of capturing, delivering, done, failed, not 'running'"
        )

    def test_forgotten(self) -> None:
        """Of the captures that are done, the oldest are forgotten; a running one never is."""
        self.run_capture("running")
        for number in range(REMEMBERED_CAPTURES + 2):
            self.run_capture(str(number))
            self.report(CaptureDone(), capture_id=str(number)) if number < 2 else self.captures.report(
                self.events.event(CaptureDone(), LABELS, str(number))
            )
        self.assertIsNone(self.captures.get("0"))
        self.assertIsNone(self.captures.get("1"))
        self.assertIsNotNone(self.captures.get("2"))
        self.assertIsNotNone(self.captures.get("running"))
        self.assertEqual(len(self.captures.list()), REMEMBERED_CAPTURES + 1)


class EndTests(CapturesCase):
    """Ending a capture by hand."""

    def test_running(self) -> None:
        """A running capture is ended, with a reason of its own."""
        capture = self.run_capture()
        self.assertIs(self.captures.end("a"), EndResult.ENDED)
        self.assertEqual(capture.reasons, [StopReason.CANCELLED])

    def test_not_running(self) -> None:
        """A capture that has stopped or failed is left alone; one that never started is unknown."""
        for capture_id, data in (("a", STOPPED), ("b", CaptureFailed(problem="x")), ("c", CaptureDone())):
            capture = self.run_capture(capture_id)
            self.report(data, capture_id=capture_id)
            self.assertIs(self.captures.end(capture_id), EndResult.ALREADY_ENDED)
            self.assertEqual(capture.reasons, [])
        self.assertIs(self.captures.end("nosuch"), EndResult.UNKNOWN)

    def test_never_started(self) -> None:
        """A capture whose start failed is not kept."""
        self.captures.add(RunningCapture())
        self.captures.report(self.events.event(CaptureDone(), LABELS, "a"))
        self.assertIs(self.captures.end("a"), EndResult.UNKNOWN)


class WatchTests(CapturesCase):
    """Watching captures."""

    def setUp(self) -> None:
        """A watcher."""
        super().setUp()
        self.states: list[tuple[str, str]] = []
        self.unsubscribe = self.captures.watch(self.note)

    def note(self, state: Mapping[str, Any]) -> None:
        """Note the state of a capture."""
        self.states.append((state["id"], state["state"]))

    def test_changes(self) -> None:
        """Each change of a capture is seen, also after it is done."""
        self.run_capture()
        self.report(STOPPED, CaptureDone(), DeliveryFailed(destination="s3", problem="x"))
        self.assertEqual(self.states, [("a", "capturing"), ("a", "delivering"), ("a", "done"), ("a", "done")])

    def test_progress(self) -> None:
        """Progress is not told: whoever wants to know it asks for it."""
        capture = self.run_capture()
        self.states.clear()
        self.report(CaptureProgress.of(capture.progress()))
        self.assertEqual(self.states, [])

    def test_others(self) -> None:
        """What is about no known capture is no change."""
        self.captures.report(self.events.event(RequestBusy(reason="x"), LABELS))
        self.captures.report(self.events.event(CaptureDone(), LABELS, "nosuch"))
        self.assertEqual(self.states, [])

    def test_unsubscribe(self) -> None:
        """A watcher that unsubscribes, even twice, is not called any more; others are."""
        others: list[str] = []
        self.captures.watch(lambda state: others.append(state["id"]))
        self.unsubscribe()
        self.unsubscribe()
        self.run_capture()
        self.assertEqual((self.states, others), ([], ["a"]))

    def test_unsubscribe_within(self) -> None:
        """A watcher may unsubscribe while it is called."""
        calls: list[str] = []

        def once(state: Mapping[str, Any]) -> None:
            calls.append(state["state"])
            unsubscribe()

        unsubscribe = self.captures.watch(once)
        self.run_capture()
        self.report(STOPPED)
        self.assertEqual(calls, ["capturing"])

    def test_unsubscribe_another(self) -> None:
        """A watcher that another one unsubscribes isn't called any more, not even for the same change."""
        calls: list[str] = []
        self.captures.watch(lambda state: unsubscribe())
        unsubscribe = self.captures.watch(lambda state: calls.append(state["state"]))
        self.run_capture()
        self.assertEqual(calls, [])

    def test_faulty(self) -> None:
        """A watcher that raises is logged, and harms neither the capture nor other watchers."""
        self.captures.watch(lambda state: 1 // 0)
        later: list[str] = []
        self.captures.watch(lambda state: later.append(state["state"]))
        self.run_capture()
        self.assertEqual(self.report(STOPPED)["state"], "delivering")
        self.assertEqual(later, ["capturing", "delivering"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
