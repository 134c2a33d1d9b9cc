"""What became of requests, in the log."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.line_limit import LineLimit
from pcapsvc.core.result import (
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureStarted,
    CaptureStopped,
    DeliveryFailed,
    DeliveryPostponed,
    Event,
    Rejected,
    RequestRefused,
)
from pcapsvc.interfaces.reports import IReporter

#: How many refused requests of each source are logged in a second; the others are counted.
REFUSALS_A_SECOND = 20
# And how many problems of each of them.
_MOST_PROBLEMS = 10


@implementer(IReporter)
class LogReporter(Service):
    """
    Logs every event; a capture's id begins each line about it. A flood of requests
    that are refused fills no disk, and leaves time for the captures. A stop tells
    what is still to be counted.

    @param wall_clock: the time in seconds since the Unix epoch.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorTime, wall_clock: Callable[[], float] = time.time) -> None:
        self._reactor = reactor
        self._wall_clock = wall_clock
        self._refusals: dict[str, LineLimit] = {}
        # By source: when the number of its refusals that were not told is told.
        self._counts_due: dict[str, IDelayedCall] = {}

    def stopService(self) -> None:
        """Tell what is still to be counted."""
        super().stopService()  # type: ignore[no-untyped-call]
        for source, due in tuple(self._counts_due.items()):
            due.cancel()
            self._count(source)

    def report(self, event: Event) -> None:
        """Log an event."""
        match event:
            case RequestRefused():
                self._refused(event)
            case CaptureStarted():
                self._started(event)
            case CaptureStopped():
                self._stopped(event)
            case CaptureFailed():
                self._log.error(
                    "{capture_id}: the capture failed: {problem}",
                    capture_id=event.capture_id,
                    problem=event.problem,
                )
            case CaptureDelivered():
                self._log.info(
                    "{capture_id}: delivered to {destination}: {location}",
                    capture_id=event.capture_id,
                    destination=event.receipt.destination,
                    location=event.receipt.location,
                )
            case DeliveryPostponed():
                self._log.warn(
                    "{capture_id}: attempt {attempts} to deliver to {destination}{spooled} failed, the next"
                    " is in {seconds} s: {problem}",
                    capture_id=event.capture_id,
                    attempts=event.attempts,
                    destination=event.destination,
                    spooled=" from the spool" if event.spooled else "",
                    seconds=f"{max(0.0, event.next_try - self._wall_clock()):.1f}",
                    problem=event.problem,
                )
            case DeliveryFailed(spooled=True):
                self._log.warn(
                    "{capture_id}: not delivered to {destination} yet, and kept in the spool: {problem}",
                    capture_id=event.capture_id,
                    destination=event.destination,
                    problem=event.problem,
                )
            case DeliveryFailed():
                self._log.error(
                    "{capture_id}: not delivered to {destination}, and lost to it: {problem}",
                    capture_id=event.capture_id,
                    destination=event.destination,
                    problem=event.problem,
                )
            case CaptureDone():
                pass

    def _refused(self, event: RequestRefused) -> None:
        limit = self._refusals.setdefault(event.source, LineLimit(REFUSALS_A_SECOND))
        if not limit.may_log(self._reactor.seconds()):
            if event.source not in self._counts_due:
                self._counts_due[event.source] = self._reactor.callLater(1.0, self._count, event.source)
            return
        if isinstance(event.verdict, Rejected):
            problems = [str(problem) for problem in event.verdict.problems]
            if (more := len(problems) - _MOST_PROBLEMS) > 0:
                problems[_MOST_PROBLEMS:] = [f"{more} more problems"]
            for problem in problems:
                self._log.warn(
                    "request from {source} refused: {problem}", source=event.source, problem=problem
                )
        else:
            self._log.warn(
                "request from {source} refused: busy: {reason}",
                source=event.source,
                reason=event.verdict.reason,
            )

    def _count(self, source: str) -> None:
        del self._counts_due[source]
        self._log.warn(
            "{count} more requests from {source} refused",
            count=self._refusals[source].take_left_out(),
            source=source,
        )

    def _started(self, event: CaptureStarted) -> None:
        plan = event.plan
        self._log.info(
            "{capture_id}: capturing on {interface} for {source}, filter {bpf!r}, snap length {snap_length},"
            " until {packets} packets, {bytes} bytes, {idle} s without one or {duration} s",
            capture_id=event.capture_id,
            interface=plan.interface,
            source=event.source,
            bpf=plan.bpf,
            snap_length=plan.snap_length,
            packets=plan.limits.max_packets,
            bytes=plan.limits.max_bytes,
            idle=plan.limits.idle_seconds,
            duration=plan.limits.duration_seconds,
        )

    def _stopped(self, event: CaptureStopped) -> None:
        recording = event.recording
        self._log.info(
            "{capture_id}: stopped by {reason}: {packets} packets, {bytes} bytes{nothing}",
            capture_id=event.capture_id,
            reason=recording.reason.value,
            packets=recording.packets,
            bytes=recording.content.size,
            nothing="" if recording.packets else "; there is nothing to deliver",
        )
        counts = recording.counts
        if counts is None:
            return
        dropped = counts.dropped + counts.interface_dropped
        (self._log.warn if dropped else self._log.info)(
            "{capture_id}: {received} packets received by the filter, {dropped} dropped by the kernel,"
            " {interface_dropped} dropped by the interface",
            capture_id=event.capture_id,
            received=counts.received,
            dropped=counts.dropped,
            interface_dropped=counts.interface_dropped,
        )
