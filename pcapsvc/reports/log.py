"""Events in the log."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.errors import Problem
from pcapsvc.core.event import (
    CaptureDelivered,
    CaptureFailed,
    CaptureStarted,
    CaptureStopped,
    DeliveryFailed,
    DeliveryPostponed,
    DeliverySpooled,
    Event,
    RequestAccepted,
    RequestBusy,
    RequestRejected,
)
from pcapsvc.core.history import Missing, MissingReason, PastPackets
from pcapsvc.core.line_limit import LineLimit
from pcapsvc.core.rolling import RollingPackets
from pcapsvc.core.session import StopReason
from pcapsvc.core.text import counted, one_line
from pcapsvc.core.timestamp import rfc3339
from pcapsvc.interfaces.reports import IReporter

#: How many refused requests are logged per second and source. The others are counted.
REFUSALS_A_SECOND = 20
# How many characters are logged of the problems of each.
_MOST_CHARACTERS = 400

# How lines of the log go on after "stopped".
_REASONS = {
    StopReason.PACKETS: "as the packet limit is reached",
    StopReason.BYTES: "as the size limit is reached",
    StopReason.DURATION: "as its time is up",
    StopReason.IDLE: "as no more packets arrive",
    StopReason.PAST: "as the past was all that was requested",
    StopReason.CANCELLED: "as requested",
    StopReason.SHUTDOWN: "as the daemon is stopping",
    StopReason.DEVICE_LOST: "as the interface is gone",
}
_MISSING = {
    MissingReason.TOO_SHORT: "the history is kept for fewer seconds",
    MissingReason.SIZE: "the history's memory is too small for it",
    MissingReason.DROPS: "the kernel dropped packets",
    MissingReason.DOWN: "the interface was down or gone",
    MissingReason.STARTED: "recording began later",
    MissingReason.LIMIT: "a limit of the capture had room for the newest packets only",
    MissingReason.SNAP: "the history keeps fewer bytes of each packet",
    MissingReason.NONE: "no history of the interface is kept",
}


@implementer(IReporter)
class LogReporter(Service):
    """
    Logs events. Every line about a capture begins with its id.

    Refused requests are logged up to a limit per second, so that a flood of them neither fills the
    disk nor takes time from captures. The number of the others is logged a second later, or at
    the stop.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._refusals: dict[str, LineLimit] = {}
        # By source: the call that will log how many refusals were suppressed.
        self._counts_due: dict[str, IDelayedCall] = {}

    def stopService(self) -> None:
        """Log how many refusals were suppressed, as far as that has not been logged yet."""
        super().stopService()  # type: ignore[no-untyped-call]
        for source, due in tuple(self._counts_due.items()):
            due.cancel()
            self._count(source)

    def report(self, event: Event) -> None:
        """See L{IReporter.report}."""
        match event.data:
            case RequestRejected() | RequestBusy() as refused:
                self._refused(event.labels.via or "", refused)
            case RequestAccepted(warnings=warnings) if warnings:
                self._warned(event.labels.via or "", warnings)
            case CaptureStarted() as started:
                self._started(event, started)
            case CaptureStopped() as stopped:
                self._stopped(event, stopped)
            case CaptureFailed(problem=problem):
                self._log.error(
                    "{capture_id}: the capture failed: {problem}", capture_id=event.subject, problem=problem
                )
            case CaptureDelivered() as delivered:
                self._log.info(
                    "{capture_id}: delivered to {destination}: {location}",
                    capture_id=event.subject,
                    destination=delivered.destination,
                    location=delivered.location,
                )
            case DeliveryPostponed() as postponed:
                self._log.warn(
                    "{capture_id}: delivery attempt {attempts} to {destination}{spooled} failed, the next is"
                    " in {seconds} s: {problem}",
                    capture_id=event.subject,
                    attempts=postponed.attempts,
                    destination=postponed.destination,
                    spooled=" from the spool" if postponed.spooled else "",
                    seconds=f"{max(0.0, postponed.next_try - event.time):.1f}",
                    problem=postponed.problem,
                )
            case DeliverySpooled(destination=destination, problem=problem):
                self._log.warn(
                    "{capture_id}: not delivered to {destination} yet, and kept in the spool: {problem}",
                    capture_id=event.subject,
                    destination=destination,
                    problem=problem,
                )
            case DeliveryFailed(destination=destination, problem=problem):
                self._log.error(
                    "{capture_id}: delivery to {destination} failed for good: {problem}",
                    capture_id=event.subject,
                    destination=destination,
                    problem=problem,
                )

    def _warned(self, source: str, warnings: Sequence[Problem]) -> None:
        if self._may_log(source):
            self._log.warn(
                "request from {source} accepted, with a warning: {problems}",
                source=source,
                problems=_listed(warnings),
            )

    def _refused(self, source: str, refused: RequestRejected | RequestBusy) -> None:
        if not self._may_log(source):
            if source not in self._counts_due:
                self._counts_due[source] = self._reactor.callLater(1.0, self._count, source)
            return
        if isinstance(refused, RequestRejected):
            self._log.warn(
                "request from {source} refused: {problems}", source=source, problems=_listed(refused.problems)
            )
        else:
            self._log.warn(
                "request from {source} refused: busy: {reason}", source=source, reason=refused.reason
            )

    def _may_log(self, source: str) -> bool:
        limit = self._refusals.setdefault(source, LineLimit(REFUSALS_A_SECOND))
        return limit.may_log(self._reactor.seconds())

    def _count(self, source: str) -> None:
        del self._counts_due[source]
        self._log.warn(
            "{count} more requests from {source} refused",
            count=self._refusals[source].take_suppressed(),
            source=source,
        )

    def _started(self, event: Event, started: CaptureStarted) -> None:
        ends = "until {packets} packets, {bytes} bytes, {idle} s without a packet, or {duration} s"
        if started.rolling is not None:
            ends = "and keeping the newest {bytes} bytes{age}, until it is ended, or for {duration} s"
        age = None if started.rolling is None else started.rolling.seconds
        self._log.info(
            "{capture_id}: capturing on {interface} for {source}, filter {bpf!r}, snap length {snap_length}, "
            + ends,
            capture_id=event.subject,
            interface=event.labels.interface,
            source=event.labels.via,
            bpf=started.bpf,
            snap_length=started.snap_length,
            packets=started.limits.max_packets,
            bytes=started.limits.max_bytes,
            idle=started.limits.idle_seconds,
            duration=started.limits.duration_seconds,
            age="" if age is None else f" of the last {age} s",
        )

    def _stopped(self, event: Event, stopped: CaptureStopped) -> None:
        self._log.info(
            "{capture_id}: stopped, {why}: {packets}, {bytes}{nothing}",
            capture_id=event.subject,
            why=_REASONS[stopped.reason],
            packets=counted(stopped.packets, "packet"),
            bytes=counted(stopped.bytes, "byte"),
            nothing="" if stopped.packets else "; nothing to deliver",
        )
        if stopped.rolling is not None:
            self._rolling(event, stopped.rolling)
        if stopped.history is not None:
            self._past(event, stopped.history)
        if (counts := stopped.counts) is None:
            return
        dropped = counts.dropped or counts.interface_dropped
        (self._log.warn if dropped else self._log.info)(
            "{capture_id}: {received} packets received by the filter, {dropped} dropped by the kernel"
            "{interface_dropped}",
            capture_id=event.subject,
            received=counts.received,
            dropped=counts.dropped,
            interface_dropped=(
                ""
                if counts.interface_dropped is None
                else f", {counts.interface_dropped} dropped by the interface"
            ),
        )

    def _rolling(self, event: Event, rolling: RollingPackets) -> None:
        self._log.info(
            "{capture_id}: the newest of {captured}{first}; {released} released",
            capture_id=event.subject,
            captured=counted(rolling.captured, "packet"),
            first="" if rolling.first is None else f", since {rfc3339(rolling.first)}",
            released=rolling.released,
        )

    def _past(self, event: Event, past: PastPackets) -> None:
        missing = "; ".join(map(_missing, past.missing))
        self._log.info(
            "{capture_id}: of the {seconds} s before the request: {packets}{first}{missing}",
            capture_id=event.subject,
            seconds=past.seconds,
            packets=counted(past.packets, "packet"),
            first="" if past.first is None else f", since {rfc3339(past.first)}",
            missing=f"; missing: {missing}" if missing else "",
        )


def _missing(part: Missing) -> str:
    """A part of the past that is missing, in words."""
    sizes = [
        *([] if part.seconds is None else [f"{part.seconds:.1f} s"]),
        *([] if part.packets is None else [counted(part.packets, "packet")]),
    ]
    why = _MISSING[part.reason]
    return f"{', '.join(sizes)}, as {why}" if sizes else f"as {why}"


def _listed(problems: Sequence[Problem]) -> str:
    """Problems on one line: as many as fit, at least one, and how many more there are."""
    words: list[str] = []
    room = _MOST_CHARACTERS
    for problem in problems:
        one = one_line(str(problem), most=_MOST_CHARACTERS)
        room -= len(one)
        if words and room < 0:
            words.append(f"and {len(problems) - len(words)} more")
            break
        words.append(one)
    return "; ".join(words)
