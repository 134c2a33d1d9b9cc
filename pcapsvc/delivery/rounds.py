"""Rounds through the spool: what is due is delivered from there, and what is too old is removed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.delivery.entry import State
from pcapsvc.delivery.ispool import ISpool
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.interfaces.lifecycle import IHurriable


@implementer(IHurriable)
class Rounds(Service):
    """
    Goes through the spool at the start, and then periodically. On each route of each destination there is
    one attempt at a time, the oldest capture first: the other slots are for captures from memory.

    It is stopped before the outboxes, so that the spool takes no slot from the last captures.

    @param interval_seconds: between two rounds.
    """

    name = "rounds"
    _log = Logger()

    def __init__(
        self, reactor: IReactorTime, spool: ISpool, outboxes: Sequence[Outbox], *, interval_seconds: float
    ) -> None:
        self._reactor = reactor
        self._spool = spool
        self._outboxes = tuple(outboxes)
        self._interval = interval_seconds
        self._running: set[Deferred[None]] = set()
        self._pauses: set[Deferred[Any]] = set()
        self._stopping = False

    def startService(self) -> None:
        """Begin. Everything that is in the spool is due."""
        super().startService()  # type: ignore[no-untyped-call]
        self._stopping = False
        for outbox in self._outboxes:
            outbox.open_spool()
        self._hold(Deferred.fromCoroutine(self._begin()))

    def stopService(self) -> Deferred[None]:
        """
        Begin no further attempts.

        @return: fires when those that go on have ended; on cancel, they are cancelled. What is not
            delivered stays in the spool.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._stopping = True
        self._spool.end_listing()
        for outbox in self._outboxes:
            outbox.close_spool()
        for pause in list(self._pauses):
            pause.cancel()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        try:
            await DeferredList(list(self._running))
        except CancelledError:
            self.hurry()

    def hurry(self) -> None:
        """If this is being stopped, cancel the attempts that go on: see L{IHurriable}."""
        if self._stopping:
            for outbox in self._outboxes:
                outbox.cancel_from_spool()

    async def _begin(self) -> None:
        await self._spool.tidy()
        unknown = self._spool.destinations() - {outbox.destination for outbox in self._outboxes}
        if unknown:
            self._log.warn(
                "the spool has captures for {destinations}, which is not configured",
                destinations=", ".join(sorted(unknown)),
            )
        self._hold(Deferred.fromCoroutine(self._repeat(self._spool.tidy)))
        for outbox in self._outboxes:
            for route in outbox.routes:
                self._hold(Deferred.fromCoroutine(self._repeat(partial(self._round, outbox, route))))

    def _hold(self, running: Deferred[None]) -> None:
        self._running.add(running)

        def ended(result: object) -> None:
            self._running.discard(running)
            if isinstance(result, Failure) and not isinstance(result.value, CancelledError):
                self._log.failure("internal error: no more rounds through the spool", result)

        running.addBoth(ended)

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except CancelledError:
                pass  # such as by threads that are left behind at a stop
            except Exception:  # noqa: BLE001 - the next round may fare better, and must come
                self._log.failure("internal error in a round through the spool")
            if self._stopping:
                return
            pause: Deferred[Any] = deferLater(self._reactor, self._interval)
            self._pauses.add(pause)
            try:
                await pause
            except CancelledError:
                return
            finally:
                self._pauses.discard(pause)

    async def _round(self, outbox: Outbox, route: str) -> None:
        """Attempt everything that is due on one route to one destination, once."""
        for entry in self._spool.due(outbox.destination):
            if self._stopping:
                return
            if entry.state is State.SPOOLED and outbox.route(entry.options) == route:
                await outbox.retry(entry)
