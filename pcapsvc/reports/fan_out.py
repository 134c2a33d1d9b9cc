"""All reporters as one."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.event import Event
from pcapsvc.interfaces.reports import IReporter


@implementer(IReporter)
class FanOutReporter:
    """
    Tells every event to all reporters. One that breaks its promise and raises costs no
    other its news, and changes nothing of what is done.
    """

    _log = Logger()

    def __init__(self, reporters: Sequence[IReporter]) -> None:
        self._reporters = tuple(reporters)

    def report(self, event: Event) -> None:
        """Tell an event."""
        for reporter in self._reporters:
            try:
                reporter.report(event)
            except Exception:  # noqa: BLE001 - what is told must not change what is done
                self._log.failure("{reporter} met a fault", reporter=type(reporter).__name__)
