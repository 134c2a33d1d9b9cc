"""A service that stops its parts one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from pcapsvc.interfaces.lifecycle import IHurriable

# How much of the time to stop is left, at least, for keeping what could not be finished.
_HURRIED_PART = 0.25
# How much of it those may take that bring work in, and how long at least, as they settle with their brokers
# what they brought: what they hang on must not cost the work that is there.
_FIRST_PART = 0.25
_FIRST_SECONDS = 2.0


class OrderedServices(Service):
    """
    Starts its parts from the last to the first, and stops them from the first to
    the last, each after the one before it has stopped.

    @param parts: in the order of stopping; those within one list stop side by side. The first
        bring in the work that the others have.
    @param stop_timeout_seconds: how long all the stopping may take. The first parts may take
        a quarter of it, or two seconds, and are cancelled then. When a quarter of it is left, each
        part that is L{IHurriable} is hurried. What still stops in the end is cancelled, and so is
        what comes after it.
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
        self._time_is_up: IDelayedCall | None = None

    def privilegedStartService(self) -> None:
        """Start the parts, as far as privileges are needed for it."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        for part in self._parts_as_they_start():
            part.privilegedStartService()  # type: ignore[no-untyped-call]

    def startService(self) -> None:
        """Start the parts."""
        super().startService()  # type: ignore[no-untyped-call]
        self._is_hurried = False
        for part in self._parts_as_they_start():
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
        Leave no part more time to stop than it takes to keep what it has. A second call does
        nothing; one before the stop counts from its beginning.
        """
        if self._is_hurried:
            return
        self._is_hurried = True
        if self._stopping is not None:
            self._bound(self._stop_timeout * _HURRIED_PART)
            self._watch_the_time(self._stopping)
            self._hurry_parts()

    async def _stop(self) -> None:
        self._ends = self._first_ends = float("inf")
        self._bound(self._stop_timeout * (_HURRIED_PART if self._is_hurried else 1))
        hurry = self._reactor.callLater(self._stop_timeout * (1 - _HURRIED_PART), self._hurry_parts)
        for group in self._groups:
            self._is_first = group is self._groups[0]
            await self._stop_side_by_side(group)
        if hurry.active():
            hurry.cancel()

    def _bound(self, seconds: float) -> None:
        """Let all that is left of the stop take no longer, and the first parts but a part of it."""
        now = self._reactor.seconds()
        self._ends = min(self._ends, now + seconds)
        first = min(seconds / 2, max(seconds * _FIRST_PART, _FIRST_SECONDS))
        self._first_ends = min(self._first_ends, now + first)

    async def _stop_side_by_side(self, group: Sequence[IService]) -> None:
        stopping = DeferredList([Deferred.fromCoroutine(self._stop_one(part)) for part in group])
        if stopping.called:
            return
        self._stopping = stopping
        self._watch_the_time(stopping)
        if self._is_hurried:
            # Those that had not begun to stop when the others were.
            self._hurry_parts()
        await stopping
        self._stopping = None
        self._forget_the_time()

    async def _stop_one(self, part: IService) -> None:
        try:
            await maybeDeferred(part.stopService)
        except CancelledError:
            self._log.error("{part} did not stop in time", part=type(part).__name__)
        except Exception:  # noqa: BLE001 - whatever it is, the other parts are stopped
            self._log.failure("{part} did not stop as it should", part=type(part).__name__)

    def _watch_the_time(self, stopping: Deferred[Any]) -> None:
        self._forget_the_time()
        ends = min(self._ends, self._first_ends) if self._is_first else self._ends
        left = max(0.0, ends - self._reactor.seconds())
        self._time_is_up = self._reactor.callLater(left, stopping.cancel)

    def _forget_the_time(self) -> None:
        if self._time_is_up is not None and self._time_is_up.active():
            self._time_is_up.cancel()
        self._time_is_up = None

    def _hurry_parts(self) -> None:
        self._is_hurried = True
        for group in self._groups:
            for part in group:
                if IHurriable.providedBy(part):
                    part.hurry()

    def _parts_as_they_start(self) -> Sequence[IService]:
        return [part for group in reversed(self._groups) for part in group]
