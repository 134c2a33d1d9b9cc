"""Deliveries of captures that wait in the spool."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.errors import DestinationError, SpoolError
from pcapsvc.core.event import CaptureDelivered, DeliveryPostponed, EventFactory, Payload
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.inventory import Kept
from pcapsvc.delivery.lane import Lane
from pcapsvc.delivery.spool import Spool
from pcapsvc.interfaces.lifecycle import IHurriable
from pcapsvc.interfaces.reports import IReporter

# A destination that is down for long is asked this many intervals apart.
_LONGEST_WAIT_INTERVALS = 30


@implementer(IHurriable)
class Redelivery(Service):
    """
    Tries what is in the spool again: at the start, and then every so often. For each
    way of each destination one capture at a time, the oldest first, each with a back-off
    of its own; captures from memory have the other places.

    Here no failure is for good, as long as the spool keeps the capture: what nobody but
    an operator can mend is tried again, too, only more rarely.

    @param interval_seconds: between two rounds; the back-off grows from it to thirty times as much.
    @param reporter: hears what becomes of each delivery.
    @param events: makes the events.
    @param wall_clock: the time in seconds since the Unix epoch.
    @param chance: a number from 0 to 1, another one each time, for the jitter.
    """

    name = "redelivery"
    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        spool: Spool,
        lanes: Sequence[Lane],
        *,
        interval_seconds: float,
        reporter: IReporter,
        events: EventFactory,
        wall_clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = reactor
        self._spool = spool
        self._lanes = tuple(lanes)
        self._interval = interval_seconds
        self._reporter = reporter
        self._events = events
        self._wall_clock = wall_clock
        self._chance = chance
        self._policy = RetryPolicy(
            attempts=None,
            first_delay_seconds=interval_seconds,
            max_delay_seconds=_LONGEST_WAIT_INTERVALS * interval_seconds,
        )
        self._rounds: set[Deferred[None]] = set()
        self._pauses: set[Deferred[Any]] = set()
        self._attempts: set[Deferred[Any]] = set()
        self._stopping = False

    def startService(self) -> None:
        """Begin: everything that is in the spool is due."""
        super().startService()  # type: ignore[no-untyped-call]
        self._stopping = False
        self._hold(Deferred.fromCoroutine(self._begin()))

    def stopService(self) -> Deferred[None]:
        """
        Begin no more attempts.

        @return: fires when those that go on have come to their end; on cancel, they end
            now. Either way, what is not delivered stays in the spool.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._stopping = True
        for pause in list(self._pauses):
            pause.cancel()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        try:
            await DeferredList(list(self._rounds))
        except CancelledError:
            self.hurry()

    def hurry(self) -> None:
        """End the attempts that go on: see L{IHurriable}. They are made again after the next start."""
        if self._stopping:
            for attempt in list(self._attempts):
                attempt.cancel()

    async def _begin(self) -> None:
        await self._spool.tidy()
        unknown = self._spool.destinations() - {lane.name for lane in self._lanes}
        if unknown:
            self._log.warn(
                "captures wait in the spool for {destinations}, which is not configured",
                destinations=", ".join(sorted(unknown)),
            )
        self._hold(Deferred.fromCoroutine(self._repeat(self._spool.tidy)))
        for lane in self._lanes:
            for route in lane.routes:
                self._hold(Deferred.fromCoroutine(self._repeat(partial(self._round, lane, route))))

    def _hold(self, going_on: Deferred[None]) -> None:
        self._rounds.add(going_on)

        def ended(result: object) -> None:
            self._rounds.discard(going_on)
            if isinstance(result, Failure) and not isinstance(result.value, CancelledError):
                self._log.failure("the way through the spool met a fault", result)

        going_on.addBoth(ended)

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except CancelledError:
                pass  # such as by threads that are left behind at a stop
            except Exception:  # noqa: BLE001 - the next round may fare better, and must come
                self._log.failure("a round through the spool met a fault")
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

    async def _round(self, lane: Lane, route: str) -> None:
        """Each capture that is due on one route to one destination, once."""
        for kept in self._spool.due(lane.name):
            if self._stopping:
                return
            if lane.route(kept.options) == route and self._spool.holds(kept) and not kept.busy:
                kept.busy = True
                try:
                    await self._try(lane, kept)
                finally:
                    self._spool.leave(kept)

    async def _try(self, lane: Lane, kept: Kept) -> None:
        try:
            artifact = await self._spool.read(kept)
            if self._stopping:
                return
            # Of the attempts of a process that was killed, nothing is known.
            attempt = lane.attempt(replace(artifact, may_be_there=True))
            self._attempts.add(attempt)
            try:
                receipt = await attempt
            finally:
                self._attempts.discard(attempt)
        except CancelledError:
            return
        except SpoolError as error:
            self._postpone(kept, DestinationError(f"the spool: {error}", retryable=True))
        except DestinationError as error:
            self._postpone(kept, error)
        else:
            # First of all: from here on no restart may find it again.
            await self._spool.delivered(kept)
            self._report(kept, CaptureDelivered(destination=receipt.destination, location=receipt.location))

    def _postpone(self, kept: Kept, error: DestinationError) -> None:
        if not self._spool.holds(kept):
            return
        kept.attempts += 1
        kept.problem = str(error)
        delay = self._policy.wait_after(
            kept.attempts, chance=self._chance(), asked_seconds=error.retry_after_seconds
        )
        if not error.retryable:
            delay = self._policy.max_delay_seconds
        kept.due = self._reactor.seconds() + delay
        self._report(
            kept,
            DeliveryPostponed(
                destination=kept.destination,
                problem=kept.problem,
                attempts=kept.attempts,
                next_try=self._wall_clock() + delay,
                spooled=True,
            ),
        )

    def _report(self, kept: Kept, data: Payload) -> None:
        self._reporter.report(self._events.event(data, kept.labels, kept.capture_id))
