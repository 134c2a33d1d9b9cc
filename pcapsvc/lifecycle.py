"""A service that stops its parts one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger


class OrderedServices(Service):
    """
    Starts its parts from the last to the first, and stops them from the first to
    the last, each after the one before it has stopped.

    @param parts: in the order of stopping.
    @param stop_timeout_seconds: how long all the stopping may take. What still stops
        then is cancelled, and so is what comes after it.
    """

    _log = Logger()

    def __init__(
        self, reactor: IReactorTime, parts: Sequence[IService], *, stop_timeout_seconds: float
    ) -> None:
        self._reactor = reactor
        self._parts = tuple(parts)
        self._stop_timeout = stop_timeout_seconds

    def privilegedStartService(self) -> None:
        """Start the parts, as far as privileges are needed for it."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        for part in reversed(self._parts):
            part.privilegedStartService()  # type: ignore[no-untyped-call]

    def startService(self) -> None:
        """Start the parts."""
        super().startService()  # type: ignore[no-untyped-call]
        for part in reversed(self._parts):
            part.startService()  # type: ignore[no-untyped-call]

    def stopService(self) -> Deferred[None]:
        """
        Stop the parts.

        @return: fires when all have stopped, or the time is up. Never fails.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        ends = self._reactor.seconds() + self._stop_timeout
        for part in self._parts:
            left = max(0.0, ends - self._reactor.seconds())
            stopping = maybeDeferred(part.stopService)
            stopping.addTimeout(left, self._reactor, lambda result, _: result)
            try:
                await stopping
            except CancelledError:
                self._log.error("{part} did not stop in time", part=type(part).__name__)
            except Exception:  # noqa: BLE001 - whatever it is, the other parts are stopped
                self._log.failure("{part} did not stop as it should", part=type(part).__name__)
