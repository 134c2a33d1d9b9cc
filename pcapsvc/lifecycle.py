"""A service that stops its parts in order, within a time limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from pcapsvc.interfaces.lifecycle import IHurriable

# The share of the stop time-out that is reserved for saving unfinished work.
_HURRIED_SHARE = 0.25
# The share, and the least seconds, that the first group may take. It is the sources, which only settle
# with their brokers: a broker that hangs must not cost the work in progress its time.
_FIRST_SHARE = 0.25
_FIRST_SECONDS = 2.0
# By how many seconds the end of the time is noticed late if the process was stopped meanwhile, at least.
_STALL_SECONDS = 1.0


class OrderedServices(Service):
    """
    Stops its parts from the first to the last, each after the previous one has stopped, and
    starts them in the reverse order.

    @param parts: in the order in which they stop. The services of a list stop concurrently. The
        first part is what brings work in; the others do that work.
    @param stop_timeout_seconds: how long the whole stop may take. The first part is cancelled after
        a quarter of it; or after two seconds if that is longer, but no later than half of it. When
        only a quarter is left, every L{IHurriable} service is hurried. At the end, whatever is
        still stopping is cancelled, and so is whatever comes after it. If the process did not run
        when the time was up, a quarter of it is left from when it runs again.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        parts: Sequence[IService | Sequence[IService]],
        *,
        stop_timeout_seconds: float,
    ) -> None:
        self._reactor = reactor
        self._groups = [tuple(part) if isinstance(part, Sequence) else (part,) for part in parts]
        self._stop_timeout = stop_timeout_seconds
        self._ends = 0.0
        self._first_ends = 0.0
        self._is_first = False
        self._is_hurried = False
        self._stopping: Deferred[Any] | None = None
        self._deadline: IDelayedCall | None = None

    def privilegedStartService(self) -> None:
        """Start the parts, as far as that takes privileges."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        for part in self._start_order():
            part.privilegedStartService()  # type: ignore[no-untyped-call]

    def startService(self) -> None:
        """Start the parts."""
        super().startService()  # type: ignore[no-untyped-call]
        self._is_hurried = False
        for part in self._start_order():
            part.startService()  # type: ignore[no-untyped-call]

    def stopService(self) -> Deferred[None]:
        """
        Stop the parts.

        @return: fires when all have stopped, or the time is up. Never fails.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """
        Leave the parts only the time that saving their work takes. Before the stop, this applies to
        the stop from its beginning. A second call does nothing.
        """
        if self._is_hurried:
            return
        self._is_hurried = True
        if self._stopping is not None:
            self._limit(self._stop_timeout * _HURRIED_SHARE)
            self._set_deadline(self._stopping)
            self._hurry_parts()

    async def _stop(self) -> None:
        self._ends = self._first_ends = float("inf")
        self._limit(self._stop_timeout * (_HURRIED_SHARE if self._is_hurried else 1))
        hurry = self._reactor.callLater(self._stop_timeout * (1 - _HURRIED_SHARE), self._hurry_parts)
        for group in self._groups:
            self._is_first = group is self._groups[0]
            await self._stop_group(group)
        if hurry.active():
            hurry.cancel()

    def _limit(self, seconds: float) -> None:
        """Limit the time for the rest of the stop, and that for the first group to its share."""
        now = self._reactor.seconds()
        self._ends = min(self._ends, now + seconds)
        first = min(seconds / 2, max(seconds * _FIRST_SHARE, _FIRST_SECONDS))
        self._first_ends = min(self._first_ends, now + first)

    async def _stop_group(self, group: Sequence[IService]) -> None:
        stopping = DeferredList([Deferred.fromCoroutine(self._stop_one(part)) for part in group])
        if stopping.called:
            return
        self._stopping = stopping
        self._set_deadline(stopping)
        if self._is_hurried:
            # This group had not begun to stop when the others were hurried.
            self._hurry_parts()
        await stopping
        self._stopping = None
        self._clear_deadline()

    async def _stop_one(self, part: IService) -> None:
        try:
            await maybeDeferred(part.stopService)
        except CancelledError:
            self._log.error("{part} did not stop in time", part=type(part).__name__)
        except Exception:  # noqa: BLE001 - whatever it is, the other parts are stopped
            self._log.failure("{part} failed to stop", part=type(part).__name__)

    def _set_deadline(self, stopping: Deferred[Any]) -> None:
        self._clear_deadline()
        ends = min(self._ends, self._first_ends) if self._is_first else self._ends
        left = max(0.0, ends - self._reactor.seconds())
        self._deadline = self._reactor.callLater(left, self._time_is_up, stopping, ends)

    def _time_is_up(self, stopping: Deferred[Any], ends: float) -> None:
        now = self._reactor.seconds()
        if now - ends <= _STALL_SECONDS:
            stopping.cancel()
            return
        self._first_ends = now + self._stop_timeout * _HURRIED_SHARE
        self._ends = max(self._ends, self._first_ends)
        self._set_deadline(stopping)

    def _clear_deadline(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None

    def _hurry_parts(self) -> None:
        self._is_hurried = True
        for group in self._groups:
            for part in group:
                if IHurriable.providedBy(part):
                    part.hurry()

    def _start_order(self) -> Sequence[IService]:
        return [part for group in reversed(self._groups) for part in group]
