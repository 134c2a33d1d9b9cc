"""Measures how late the reactor makes timed calls."""

from __future__ import annotations

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: How often it is measured, in seconds.
INTERVAL_SECONDS = 0.25


class ReactorLag(Service):
    """
    Measures the delay of timed calls in the reactor. Packets are read with the same delay.

    @param observe: is given the seconds.
    """

    def __init__(self, reactor: IReactorTime, observe: Callable[[float], object]) -> None:
        self._reactor = reactor
        self._observe = observe
        self._call: IDelayedCall | None = None
        self._due = 0.0

    def startService(self) -> None:
        """Begin to measure."""
        super().startService()  # type: ignore[no-untyped-call]
        self._wait()

    def stopService(self) -> None:
        """Measure no more."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _wait(self) -> None:
        self._due = self._reactor.seconds() + INTERVAL_SECONDS
        self._call = self._reactor.callLater(INTERVAL_SECONDS, self._measure)

    def _measure(self) -> None:
        late = self._reactor.seconds() - self._due
        self._wait()
        self._observe(late)
