"""Reports the progress of the running captures."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from pcapsvc.core.event import CaptureProgress, EventFactory
from pcapsvc.interfaces.captures import ICaptureRegistry
from pcapsvc.interfaces.reports import IProgressReporter

# How long one turn of the reactor may take, in seconds. The progress of a capture takes about 50 us.
_TURN_SECONDS = 0.001


class ProgressReports(Service):
    """
    Reports the progress of every running capture at intervals, while somebody wants to know it.

    @param captures: knows the captures that are running.
    @param interval_seconds: from the beginning of one round to that of the next.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        captures: ICaptureRegistry,
        reporter: IProgressReporter,
        events: EventFactory,
        *,
        interval_seconds: float,
    ) -> None:
        self._reactor = reactor
        self._captures = captures
        self._reporter = reporter
        self._events = events
        self._interval = interval_seconds
        self._began = 0.0
        self._due: IDelayedCall | None = None

    def startService(self) -> None:
        """Start the first interval."""
        super().startService()  # type: ignore[no-untyped-call]
        self._due = self._reactor.callLater(self._interval, self._begin)

    def stopService(self) -> None:
        """Report no more."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _begin(self) -> None:
        self._began = self._reactor.seconds()
        wanted = self._reporter.wants_progress()
        self._go_on(iter([*self._captures.running] if wanted else []))

    def _go_on(self, capture_ids: Iterator[str]) -> None:
        """Report the next captures, as many as fit into a turn."""
        until = self._reactor.seconds() + _TURN_SECONDS
        for capture_id in capture_ids:
            self._report(capture_id)
            if self._reactor.seconds() >= until:
                self._due = self._reactor.callLater(0, self._go_on, capture_ids)
                return
        left = self._began + self._interval - self._reactor.seconds()
        self._due = self._reactor.callLater(max(0.0, left), self._begin)

    def _report(self, capture_id: str) -> None:
        # It may have ended since the round began.
        if (capture := self._captures.running.get(capture_id)) is None:
            return
        try:
            data = CaptureProgress.of(capture.progress())
            self._reporter.report(self._events.event(data, capture.plan.labels, capture_id))
        except Exception:  # noqa: BLE001 - the others are reported, nevertheless
            self._log.failure("{capture_id}: the progress is unknown", capture_id=capture_id)
