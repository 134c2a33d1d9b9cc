"""Several reporters as one."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.event import CaptureProgress, Event
from pcapsvc.interfaces.reports import IProgressReporter, IReporter


@implementer(IProgressReporter)
class FanOutReporter:
    """
    Passes every event to all reporters. A reporter that raises, which it should not, is logged,
    and affects neither the others nor the work that is reported.
    """

    _log = Logger()

    def __init__(self, reporters: Sequence[IReporter]) -> None:
        self._reporters: tuple[IReporter, ...] = ()
        self._progress_reporters: tuple[IProgressReporter, ...] = ()
        for reporter in reporters:
            self.add(reporter)

    def add(self, reporter: IReporter) -> None:
        """Pass on events to one more reporter, from now on."""
        self._reporters = (*self._reporters, reporter)
        if IProgressReporter.providedBy(reporter):
            self._progress_reporters = (*self._progress_reporters, reporter)

    def report(self, event: Event) -> None:
        """Pass on an event."""
        concerned: Sequence[IReporter] = self._reporters
        if isinstance(event.data, CaptureProgress):
            concerned = [each for each in self._progress_reporters if self._wants_progress(each)]
        for reporter in concerned:
            try:
                reporter.report(event)
            except Exception:  # noqa: BLE001 - reporting must not affect the work that is reported
                self._log.failure("internal error in {reporter}", reporter=type(reporter).__name__)

    def wants_progress(self) -> bool:
        """Whether any of them has a use for progress."""
        return any(self._wants_progress(reporter) for reporter in self._progress_reporters)

    def _wants_progress(self, reporter: IProgressReporter) -> bool:
        try:
            return reporter.wants_progress()
        except Exception:  # noqa: BLE001 - neither that of the others
            self._log.failure("internal error in {reporter}", reporter=type(reporter).__name__)
            return False
