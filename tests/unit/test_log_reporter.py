"""Events in the log."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.core.errors import Problem
from pcapsvc.core.event import (
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureStarted,
    CaptureStopped,
    DeliveryFailed,
    DeliveryPostponed,
    DeliverySpooled,
    Event,
    Payload,
    RequestAccepted,
    RequestBusy,
    RequestRejected,
)
from pcapsvc.core.history import Missing, MissingReason, PastPackets
from pcapsvc.core.labels import Labels
from pcapsvc.core.recording import PacketCounts
from pcapsvc.core.rolling import RollingPackets
from pcapsvc.core.session import CaptureLimits, StopReason
from pcapsvc.reports.log import REFUSALS_A_SECOND, LogReporter
from pcapsvc.testing import event_factory

EVENTS = event_factory()


def event(data: Payload, via: str = "redis") -> Event:
    """An event about the capture C{abc}, or about a request."""
    is_of_request = isinstance(data, RequestAccepted | RequestBusy | RequestRejected)
    return EVENTS.event(data, Labels(via=via, interface="eth0"), None if is_of_request else "abc")


class LogReporterTests(unittest.SynchronousTestCase):
    """The lines of each event."""

    def setUp(self) -> None:
        """Record the log."""
        self.clock = Clock()
        self.lines: list[tuple[LogLevel, str]] = []
        globalLogPublisher.addObserver(self._line)
        self.addCleanup(globalLogPublisher.removeObserver, self._line)

    def _line(self, line: Any) -> None:
        if line.get("log_namespace", "").startswith("pcapsvc."):
            self.lines.append((line["log_level"], formatEvent(line)))

    def report(self, data: Payload) -> list[tuple[LogLevel, str]]:
        """The lines of an event."""
        self.lines.clear()
        LogReporter(self.clock).report(event(data))
        return list(self.lines)

    def stopped(self, counts: PacketCounts | None, packets: int = 3) -> list[tuple[LogLevel, str]]:
        """The lines of a capture that has stopped."""
        return self.report(
            CaptureStopped(reason=StopReason.IDLE, packets=packets, bytes=700, counts=counts, file=None)
        )

    def test_started(self) -> None:
        """The line of a start has the filter and the limits, and nothing else of the request."""
        limits = CaptureLimits(max_packets=10, max_bytes=1000, idle_seconds=5, duration_seconds=60)
        started = CaptureStarted(
            bpf="tcp\nport 80", snap_length=500, limits=limits, started=1_700_000_000.0, link_type=1
        )
        [(level, line)] = self.report(started)
        self.assertIs(level, LogLevel.info)
        self.assertEqual(
            line,
            "abc: capturing on eth0 for redis, filter 'tcp\\nport 80', snap length 500,"
            " until 10 packets, 1000 bytes, 5 s without a packet, or 60 s",
        )

    def test_stopped(self) -> None:
        """The lines of a stop have the reason and the kernel's statistics."""
        self.assertEqual(
            self.stopped(PacketCounts(received=3, dropped=0, interface_dropped=0)),
            [
                (LogLevel.info, "abc: stopped, as no more packets arrive: 3 packets, 700 bytes"),
                (
                    LogLevel.info,
                    "abc: 3 packets received by the filter, 0 dropped by the kernel,"
                    " 0 dropped by the interface",
                ),
            ],
        )

    def past(self, **more: Any) -> str:
        """The line about the past of a capture that has stopped."""
        past = PastPackets(seconds=30, **more)
        stopped = CaptureStopped(
            reason=StopReason.PAST, packets=3, bytes=700, counts=None, file=None, history=past
        )
        [_, (level, line)] = self.report(stopped)
        self.assertIs(level, LogLevel.info)
        return line

    def test_past(self) -> None:
        """What a capture has of the past is a line of its own, from when on, and what is missing."""
        self.assertEqual(self.past(), "abc: of the 30 s before the request: 0 packets")
        self.assertEqual(
            self.past(
                first=1_700_000_000.5,
                packets=1,
                missing=(
                    Missing(reason=MissingReason.STARTED, seconds=12.25),
                    Missing(reason=MissingReason.DROPS, packets=7),
                    Missing(reason=MissingReason.DOWN),
                ),
            ),
            "abc: of the 30 s before the request: 1 packet, since 2023-11-14T22:13:20.500000Z; missing:"
            " 12.2 s, as recording began later; 7 packets, as the kernel dropped packets;"
            " as the interface was down or gone",
        )

    def test_reasons_of_the_past(self) -> None:
        """Each reason is in plain words."""
        for reason in MissingReason:
            line = self.past(missing=(Missing(reason=reason, seconds=1, packets=2),))
            self.assertIn("; missing: 1.0 s, 2 packets, as ", line)
            self.assertNotIn(reason.name, line)

    def test_rolling(self) -> None:
        """The lines of a rolling capture have what it keeps, and in the end from when on, and of how many."""
        for seconds, age in ((None, ""), (30, " of the last 30 s")):
            started = CaptureStarted(
                bpf="",
                snap_length=500,
                limits=CaptureLimits(
                    max_packets=None, max_bytes=1000, idle_seconds=None, duration_seconds=60, is_rolling=True
                ),
                started=1_700_000_000.0,
                link_type=1,
                rolling=RollingPackets(seconds=seconds),
            )
            [(_, line)] = self.report(started)
            ends = f"and keeping the newest 1000 bytes{age}, until it is ended, or for 60 s"
            self.assertTrue(line.endswith(f", snap length 500, {ends}"), line)
        stopped = CaptureStopped(
            reason=StopReason.CANCELLED,
            packets=3,
            bytes=700,
            counts=None,
            file=None,
            rolling=RollingPackets(first=1_700_000_000.25, captured=10, captured_bytes=2000, released=7),
        )
        self.assertEqual(
            [line for _, line in self.report(stopped)],
            [
                "abc: stopped, as requested: 3 packets, 700 bytes",
                "abc: the newest of 10 packets, since 2023-11-14T22:13:20.250000Z; 7 released",
            ],
        )

    def test_dropped(self) -> None:
        """The statistics are a warning if the kernel or the interface dropped packets."""
        for dropped, interface_dropped in ((1, 0), (0, 1)):
            counts = PacketCounts(received=3, dropped=dropped, interface_dropped=interface_dropped)
            self.assertEqual([level for level, _ in self.stopped(counts)], [LogLevel.info, LogLevel.warn])

    def test_unknown_by_the_interface(self) -> None:
        """What the interface dropped is left out if it is unknown."""
        [_, (level, line)] = self.stopped(PacketCounts(received=3, dropped=0, interface_dropped=None))
        self.assertIs(level, LogLevel.info)
        self.assertEqual(line, "abc: 3 packets received by the filter, 0 dropped by the kernel")

    def test_no_counts(self) -> None:
        """Without statistics there is no line about them."""
        self.assertEqual(len(self.stopped(None)), 1)

    def test_nothing_to_deliver(self) -> None:
        """A stop without packets says that there is nothing to deliver."""
        [(_, line)] = self.stopped(None, packets=0)
        self.assertEqual(
            line, "abc: stopped, as no more packets arrive: 0 packets, 700 bytes; nothing to deliver"
        )

    def test_reasons(self) -> None:
        """Each reason for a stop is a line in plain words, and so is a single packet."""
        for reason in StopReason:
            stopped = CaptureStopped(reason=reason, packets=1, bytes=1, counts=None, file=None)
            [(_, line)] = self.report(stopped)
            self.assertRegex(line, r"\Aabc: stopped, as [a-z ]+: 1 packet, 1 byte\Z")

    def test_ends(self) -> None:
        """Failures are errors, a delivery is information, and a capture that is done has no line."""
        for data, level in (
            (CaptureFailed(problem="no memory"), LogLevel.error),
            (DeliveryFailed(destination="s3", problem="no memory"), LogLevel.error),
            (
                CaptureDelivered(destination="s3", location="no memory", seconds=0.5),
                LogLevel.info,
            ),
        ):
            [(found, line)] = self.report(data)
            self.assertIs(found, level)
            self.assertTrue(line.startswith("abc: "), line)
            self.assertTrue(line.endswith("no memory"), line)
        self.assertEqual(self.report(CaptureDone()), [])

    def test_delivered_to_cloudshark(self) -> None:
        """A delivery to CloudShark is logged with its link, which ends in the id that CloudShark assigned."""
        link = "https://shark.example/captures/f00"
        delivered = CaptureDelivered(destination="cloudshark", location=link, seconds=0.5)
        self.assertEqual(
            self.report(delivered),
            [(LogLevel.info, "abc: delivered to cloudshark: https://shark.example/captures/f00")],
        )

    def test_postponed(self) -> None:
        """A delivery that is postponed or spooled is a warning, with the problem and the next attempt."""
        for spooled, words in ((False, ""), (True, " from the spool")):
            postponed = DeliveryPostponed(
                destination="s3",
                problem="503",
                attempts=2,
                next_try=1_700_000_004.04,
                spooled=spooled,
            )
            self.assertEqual(
                self.report(postponed),
                [
                    (
                        LogLevel.warn,
                        f"abc: delivery attempt 2 to s3{words} failed, the next is in 4.0 s: 503",
                    )
                ],
            )
        self.assertEqual(
            self.report(DeliverySpooled(destination="s3", problem="503")),
            [(LogLevel.warn, "abc: not delivered to s3 yet, and kept in the spool: 503")],
        )

    def test_warnings(self) -> None:
        """A warning about a label is a warning in the log."""
        warning = Problem(path="tags", value='"a\\nb"', rule="should be one line")
        self.assertEqual(
            self.report(RequestAccepted(captures=(), warnings=(warning,))),
            [
                (
                    LogLevel.warn,
                    'request from redis accepted, with a warning: tags = "a\\nb": should be one line',
                )
            ],
        )

    def test_refused(self) -> None:
        """The problems of a rejected request are one warning, and so is a request without capacity."""
        problems = (
            Problem(path="packets", value="0", rule="must be 1 or more"),
            Problem(path="x", rule="is odd"),
        )
        self.assertEqual(
            self.report(RequestRejected(problems=problems)),
            [
                (LogLevel.warn, "request from redis refused: packets = 0: must be 1 or more; x: is odd"),
            ],
        )
        self.assertEqual(
            self.report(RequestBusy(reason="all is full")),
            [(LogLevel.warn, "request from redis refused: busy: all is full")],
        )

    def test_flood(self) -> None:
        """Refused requests beyond the limit per second and source are counted, not logged."""
        reporter = LogReporter(self.clock)
        refused = RequestBusy(reason="all is full")
        for _ in range(1000):
            reporter.report(event(refused))
        reporter.report(event(refused, "http"))
        lines = ["request from redis refused: busy: all is full"] * REFUSALS_A_SECOND
        self.assertEqual(
            [line for _, line in self.lines], [*lines, "request from http refused: busy: all is full"]
        )
        self.lines.clear()
        self.clock.advance(1)
        more = (LogLevel.warn, f"{1000 - REFUSALS_A_SECOND} more requests from redis refused")
        self.assertEqual(self.lines, [more])
        reporter.report(event(refused))
        self.assertEqual([line for _, line in self.lines[1:]], lines[:1])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_many_problems(self) -> None:
        """If a request has very many problems, or long ones, some are on the line, and the others counted."""
        for data in (RequestRejected, lambda problems: RequestAccepted(captures=(), warnings=problems)):
            for filler in ("", "x" * 100):
                problems = tuple(Problem(path=f"x{at:03}", value=filler, rule="is odd") for at in range(500))
                [(_, line)] = self.report(data(problems=problems))  # type: ignore[operator]
                self.assertLess(len(line), 600)
                self.assertIn(f": x000 = {filler}: is odd; x001", line)
                shown = line.count("is odd")
                self.assertTrue(line.endswith(f"; and {500 - shown} more"), line)
        [(_, line)] = self.report(RequestRejected(problems=(Problem(path="x", rule="y" * 1000),)))
        self.assertLess(len(line), 600)

    def test_stop(self) -> None:
        """A stop logs how many refusals were suppressed."""
        reporter = LogReporter(self.clock)
        reporter.startService()
        for _ in range(REFUSALS_A_SECOND + 70):
            reporter.report(event(RequestBusy(reason="all is full")))
        self.lines.clear()
        reporter.stopService()
        self.assertEqual([line for _, line in self.lines], ["70 more requests from redis refused"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_braces(self) -> None:
        """Braces in values are not interpreted as a format."""
        failed = CaptureFailed(problem="{capture_id} {nosuch} %s {")
        [(_, line)] = self.report(failed)
        self.assertEqual(line, "abc: the capture failed: {capture_id} {nosuch} %s {")
