"""What becomes of requests, in the log."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.core.errors import Problem
from pcapsvc.core.recording import PacketCounts
from pcapsvc.core.result import (
    Busy,
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureStarted,
    CaptureStopped,
    DeliveryFailed,
    DeliveryPostponed,
    Event,
    Receipt,
    Rejected,
    RequestRefused,
)
from pcapsvc.reports.log import REFUSALS_A_SECOND, LogReporter
from tests.core.test_artifact import recording


class LogReporterTests(unittest.SynchronousTestCase):
    """A line, or a few, for each event."""

    def setUp(self) -> None:
        """A log that is kept."""
        self.clock = Clock()
        self.lines: list[tuple[LogLevel, str]] = []
        globalLogPublisher.addObserver(self._line)
        self.addCleanup(globalLogPublisher.removeObserver, self._line)

    def _line(self, event: Any) -> None:
        if event.get("log_namespace", "").startswith("pcapsvc."):
            self.lines.append((event["log_level"], formatEvent(event)))

    def report(self, event: Event) -> list[tuple[LogLevel, str]]:
        """The lines of an event."""
        self.lines.clear()
        LogReporter(self.clock, lambda: 1_700_000_000.0).report(event)
        return list(self.lines)

    def stopped(self, counts: PacketCounts | None, packets: int = 3) -> list[tuple[LogLevel, str]]:
        """The lines of a capture's end."""
        made = recording(capture_id="abc", counts=counts, packets=packets)
        return self.report(CaptureStopped(capture_id="abc", recording=made))

    def test_started(self) -> None:
        """The start has the filter and the limits, and no more of the request than that."""
        plan = recording(bpf="tcp\nport 80", customer="ACME").plan
        event = CaptureStarted(
            capture_id="abc",
            source="redis",
            plan=plan,
            link_type=1,
            started=1_700_000_000.0,
            progress=lambda: (0, 0),
        )
        [(level, line)] = self.report(event)
        self.assertIs(level, LogLevel.info)
        self.assertEqual(
            line,
            "abc: capturing on eth0 for redis, filter 'tcp\\nport 80', snap length 500,"
            " until 10 packets, 1000 bytes, 5 s without one or 60 s",
        )

    def test_stopped(self) -> None:
        """The end has the reason, and what the kernel counted."""
        self.assertEqual(
            self.stopped(PacketCounts(received=3, dropped=0, interface_dropped=0)),
            [
                (LogLevel.info, "abc: stopped by idle: 3 packets, 0 bytes"),
                (
                    LogLevel.info,
                    "abc: 3 packets received by the filter, 0 dropped by the kernel,"
                    " 0 dropped by the interface",
                ),
            ],
        )

    def test_dropped(self) -> None:
        """Where any packet was dropped, by the kernel or the interface, that is a warning."""
        for dropped, interface_dropped in ((1, 0), (0, 1)):
            counts = PacketCounts(received=3, dropped=dropped, interface_dropped=interface_dropped)
            self.assertEqual([level for level, _ in self.stopped(counts)], [LogLevel.info, LogLevel.warn])

    def test_no_counts(self) -> None:
        """Where the kernel can't be asked, nothing is said of what it counted."""
        self.assertEqual(len(self.stopped(None)), 1)

    def test_nothing_to_deliver(self) -> None:
        """A capture without a packet says that nothing is delivered."""
        [(_, line)] = self.stopped(None, packets=0)
        self.assertEqual(line, "abc: stopped by idle: 0 packets, 0 bytes; there is nothing to deliver")

    def test_ends(self) -> None:
        """What failed is an error; what arrived is not; the end of all is no line at all."""
        for event, level in (
            (CaptureFailed(capture_id="abc", problem="no memory"), LogLevel.error),
            (DeliveryFailed(capture_id="abc", destination="s3", problem="no memory"), LogLevel.error),
            (
                CaptureDelivered(capture_id="abc", receipt=Receipt(destination="s3", location="no memory")),
                LogLevel.info,
            ),
        ):
            [(found, line)] = self.report(event)
            self.assertIs(found, level)
            self.assertTrue(line.startswith("abc: "), line)
            self.assertTrue(line.endswith("no memory"), line)
        self.assertEqual(self.report(CaptureDone(capture_id="abc")), [])

    def test_delivered_to_cloudshark(self) -> None:
        """What arrived at CloudShark is told by its link, which ends in the id that CloudShark gave it."""
        link = "https://shark.example/captures/f00"
        event = CaptureDelivered(capture_id="abc", receipt=Receipt(destination="cloudshark", location=link))
        self.assertEqual(
            self.report(event),
            [(LogLevel.info, "abc: delivered to cloudshark: https://shark.example/captures/f00")],
        )

    def test_postponed(self) -> None:
        """A delivery that is tried again, or spooled, is a warning, with why and when."""
        for spooled, words in ((False, ""), (True, " from the spool")):
            event = DeliveryPostponed(
                capture_id="abc",
                destination="s3",
                problem="503",
                attempts=2,
                next_try=1_700_000_004.04,
                spooled=spooled,
            )
            self.assertEqual(
                self.report(event),
                [
                    (
                        LogLevel.warn,
                        f"abc: attempt 2 to deliver to s3{words} failed, the next is in 4.0 s: 503",
                    )
                ],
            )
        self.assertEqual(
            self.report(DeliveryFailed(capture_id="abc", destination="s3", problem="503", spooled=True)),
            [(LogLevel.warn, "abc: not delivered to s3 yet, and kept in the spool: 503")],
        )

    def test_refused(self) -> None:
        """Each problem of a rejected request is a warning, and so is a lack of room."""
        problems = (
            Problem(path="packets", value="0", rule="must be 1 or more"),
            Problem(path="x", rule="is odd"),
        )
        self.assertEqual(
            self.report(RequestRefused(source="redis", verdict=Rejected(problems=problems))),
            [
                (LogLevel.warn, "request from redis refused: packets = 0: must be 1 or more"),
                (LogLevel.warn, "request from redis refused: x: is odd"),
            ],
        )
        self.assertEqual(
            self.report(RequestRefused(source="redis", verdict=Busy(reason="all is full"))),
            [(LogLevel.warn, "request from redis refused: busy: all is full")],
        )

    def test_flood(self) -> None:
        """Of many refused requests of one source in a second some are told, and the others counted."""
        reporter = LogReporter(self.clock)
        refused = Busy(reason="all is full")
        for _ in range(1000):
            reporter.report(RequestRefused(source="redis", verdict=refused))
        reporter.report(RequestRefused(source="http", verdict=refused))
        lines = ["request from redis refused: busy: all is full"] * REFUSALS_A_SECOND
        self.assertEqual(
            [line for _, line in self.lines], [*lines, "request from http refused: busy: all is full"]
        )
        self.lines.clear()
        self.clock.advance(1)
        more = (LogLevel.warn, f"{1000 - REFUSALS_A_SECOND} more requests from redis refused")
        self.assertEqual(self.lines, [more])
        reporter.report(RequestRefused(source="redis", verdict=refused))
        self.assertEqual([line for _, line in self.lines[1:]], lines[:1])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_many_problems(self) -> None:
        """Of very many problems of one request some are told, and the others counted."""
        problems = tuple(Problem(path=f"x{at}", rule="is odd") for at in range(500))
        lines = self.report(RequestRefused(source="redis", verdict=Rejected(problems=problems)))
        self.assertEqual(len(lines), 11)
        self.assertEqual(lines[-1][1], "request from redis refused: 490 more problems")

    def test_stop(self) -> None:
        """A stop tells how many were not told."""
        reporter = LogReporter(self.clock)
        reporter.startService()
        for _ in range(REFUSALS_A_SECOND + 70):
            reporter.report(RequestRefused(source="redis", verdict=Busy(reason="all is full")))
        self.lines.clear()
        reporter.stopService()
        self.assertEqual([line for _, line in self.lines], ["70 more requests from redis refused"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_braces(self) -> None:
        """Values are never taken for a format."""
        event = CaptureFailed(capture_id="abc", problem="{capture_id} {nosuch} %s {")
        [(_, line)] = self.report(event)
        self.assertEqual(line, "abc: the capture failed: {capture_id} {nosuch} %s {")
