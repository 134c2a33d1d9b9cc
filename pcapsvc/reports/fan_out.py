"""Several reporters as one."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.event import Event
from pcapsvc.interfaces.reports import IReporter


@implementer(IReporter)
class FanOutReporter:
    """
    Passes every event to all reporters. A reporter that raises, which it should not, is logged,
    and affects neither the others nor the work that is reported.
    """

    _log = Logger()

    def __init__(self, reporters: Sequence[IReporter]) -> None:
        self._reporters = tuple(reporters)

    def add(self, reporter: IReporter) -> None:
        """Pass on events to one more reporter, from now on."""
        self._reporters = (*self._reporters, reporter)

    def report(self, event: Event) -> None:
        """Pass on an event."""
        for reporter in self._reporters:
            try:
                reporter.report(event)
            except Exception:  # noqa: BLE001 - reporting must not affect the work that is reported
                self._log.failure("internal error in {reporter}", reporter=type(reporter).__name__)
