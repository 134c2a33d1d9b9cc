"""Deliveries of captures that are in memory: tried again for a while, then kept in the spool."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import FAULT, DestinationError, SpoolError
from pcapsvc.core.event import (
    CaptureDelivered,
    DeliveryFailed,
    DeliveryPostponed,
    DeliverySpooled,
    EventFactory,
    Payload,
)
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.lane import Lane
from pcapsvc.interfaces.delivery import IDelivery, IHeldCapture, ISpool
from pcapsvc.interfaces.lifecycle import IHurriable
from pcapsvc.interfaces.reports import IReporter

_T = TypeVar("_T")

_NOT_TRIED = "the process ended before it was delivered"

#: How long the spool may take for what is to be on the disk first, in seconds, with all that waits for the
#: disk before it: one that takes longer hangs, or has more to do than it can, and destinations may be well.
LONGEST_HOLD_SECONDS = 30.0


@implementer(IDelivery, IHurriable)
class Delivery(Service):
    """
    Delivers each capture to all destinations, each on its own: attempts with pauses in
    between, as long as they may help; then the spool, where there is one. With C{spool_first}
    a capture is on the disk before the first attempt, and no longer in memory; unless the
    disk takes too long.

    @param policy: how many attempts, and the pauses between them.
    @param reporter: hears what becomes of each delivery.
    @param events: makes the events.
    @param spool: keeps what could not be delivered; L{None} where that is lost.
    @param spool_first: whether it keeps each capture before it is tried, too.
    @param wall_clock: the time in seconds since the Unix epoch.
    @param chance: a number from 0 to 1, another one each time, for the jitter.
    """

    name = "delivery"
    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        lanes: Sequence[Lane],
        *,
        policy: RetryPolicy,
        reporter: IReporter,
        events: EventFactory,
        spool: ISpool | None = None,
        spool_first: bool = False,
        wall_clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = reactor
        self._lanes = tuple(lanes)
        self._policy = policy
        self._reporter = reporter
        self._events = events
        self._spool = spool
        self._spool_first = spool_first
        self._wall_clock = wall_clock
        self._chance = chance
        self._deliveries: set[Deferred[None]] = set()
        # In the order in which they began, as a set has none.
        self._waits: dict[Deferred[Any], None] = {}
        self._hurried = False

    def startService(self) -> None:
        """Take time for each delivery, again."""
        super().startService()  # type: ignore[no-untyped-call]
        self._hurried = False

    def stopService(self) -> Deferred[None]:
        """
        Wait for the deliveries that go on.

        @return: fires when there is none left; on cancel, they are given up.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await DeferredList(list(self._deliveries))

    def hurry(self) -> None:
        """
        Attempt nothing more, and spool what is not delivered: see L{IHurriable}. Without
        a spool nothing changes, as an attempt is all that a capture has.
        """
        if self._spool is None:
            return
        self._hurried = True
        # The last ones first: one that has a place would leave it to one that waits for it.
        for waiting in reversed(list(self._waits)):
            waiting.cancel()

    def deliver(self, artifact: Artifact, let_go: Callable[[], object]) -> Deferred[None]:
        """See L{IDelivery.deliver}."""
        delivery = Deferred.fromCoroutine(self._deliver(artifact, let_go))
        if not delivery.called:
            self._deliveries.add(delivery)
            delivery.addBoth(lambda _: self._deliveries.discard(delivery))
        return delivery

    async def _deliver(self, artifact: Artifact, let_go: Callable[[], object]) -> None:
        in_memory = {lane.name for lane in self._lanes}

        def on_disk(lane: Lane) -> None:
            in_memory.discard(lane.name)
            if not in_memory:
                let_go()

        await DeferredList(
            [Deferred.fromCoroutine(self._deliver_to(lane, artifact, on_disk)) for lane in self._lanes]
        )

    async def _hold(self, lane: Lane, artifact: Artifact) -> IHeldCapture | None:
        """The capture, kept in the spool; L{None} where it isn't to be, or can't be, which is told."""
        if self._spool is None or not self._spool_first:
            return None
        try:
            return await self._in_time(self._spool.hold(artifact, lane.name, _NOT_TRIED))
        except SpoolError as error:
            self._log.warn(
                "{capture_id}: in memory alone until {destination} has it, and not in the spool: {problem}",
                capture_id=artifact.capture_id,
                destination=lane.name,
                problem=str(error),
            )
            return None

    async def _deliver_to(self, lane: Lane, artifact: Artifact, on_disk: Callable[[Lane], None]) -> None:
        held: IHeldCapture | None = None
        problem = ""
        try:
            held = await self._hold(lane, artifact)
            if held is not None:
                artifact = held.artifact
                on_disk(lane)
            error = await self._try(lane, artifact, held)
            if error is None:
                return
            problem = f"{error}; "
            failed = await self._keep(lane, artifact, error, held)
        except CancelledError:
            failed = _failed(lane, f"{problem}given up", held)
        except Exception:  # noqa: BLE001 - one delivery fails, and no other
            self._log.failure(
                "{capture_id}: the delivery to {destination} met a fault",
                capture_id=artifact.capture_id,
                destination=lane.name,
            )
            failed = _failed(lane, FAULT, held)
        self._report(artifact, failed)

    async def _try(
        self, lane: Lane, artifact: Artifact, held: IHeldCapture | None
    ) -> DestinationError | None:
        """
        All attempts.

        @return: the error of the last one, if none came through.
        """
        last = DestinationError("the daemon stopped before an attempt came to its end", retryable=True)
        failures = 0
        while not self._is_hurried():
            try:
                receipt = await self._unless_hurried(lane.attempt(artifact))
            except DestinationError as error:
                last = error
            except CancelledError:
                if not self._is_hurried():
                    raise
                break
            else:
                if held is not None:
                    await self._take_out(held, lane)
                self._report(
                    artifact, CaptureDelivered(destination=receipt.destination, location=receipt.location)
                )
                return None
            failures += 1
            artifact = replace(artifact, may_be_there=True)
            delay = self._delay(last, failures)
            if delay is None:
                break
            self._report(
                artifact,
                DeliveryPostponed(
                    destination=lane.name,
                    problem=str(last),
                    attempts=failures,
                    next_try=self._wall_clock() + delay,
                ),
            )
            try:
                await self._unless_hurried(deferLater(self._reactor, delay))
            except CancelledError:
                if not self._is_hurried():
                    raise
        return last

    async def _take_out(self, held: IHeldCapture, lane: Lane) -> None:
        """First of all that follows a success: from here on no restart may find it again."""
        try:
            await self._in_time(held.delivered())
        except CancelledError:
            pass  # it has arrived, for all that
        except SpoolError as error:
            self._log.warn(
                "{capture_id}: delivered to {destination}, and in the spool still; it may be delivered again"
                " after a restart: {problem}",
                capture_id=held.artifact.capture_id,
                destination=lane.name,
                problem=str(error),
            )

    def _in_time(self, kept: Deferred[_T]) -> Deferred[_T]:
        """What the spool's disk is to do in a bounded time. L{SpoolError} where it doesn't."""
        return kept.addTimeout(LONGEST_HOLD_SECONDS, self._reactor, _too_slow)

    def _is_hurried(self) -> bool:
        return self._hurried

    def _delay(self, error: DestinationError, failures: int) -> float | None:
        """How long to wait in memory for the next attempt; L{None} where none is to be made from there."""
        if not error.retryable:
            return None
        delay = self._policy.delay_after(
            failures, chance=self._chance(), asked_seconds=error.retry_after_seconds
        )
        if delay is not None and delay > self._policy.max_delay_seconds and self._spool is not None:
            # The destination asks to be left alone for longer than memory is to be held.
            return None
        return delay

    async def _keep(
        self, lane: Lane, artifact: Artifact, error: DestinationError, held: IHeldCapture | None
    ) -> DeliveryFailed | DeliverySpooled:
        problem, spooled = str(error), False
        if held is None and self._spool is not None:
            try:
                await self._spool.put(artifact, lane.name, problem, error.retry_after_seconds)
                spooled = True
            except SpoolError as reason:
                problem = f"{problem}; and not kept in the spool: {reason}"
        return _failed(lane, problem, held, error.retry_after_seconds, spooled=spooled)

    def _report(self, artifact: Artifact, data: Payload) -> None:
        self._reporter.report(self._events.event(data, artifact.labels, artifact.capture_id))

    async def _unless_hurried(self, waiting: Deferred[_T]) -> _T:
        """What is waited for; to be cancelled by L{hurry}."""
        self._waits[waiting] = None
        try:
            return await waiting
        finally:
            self._waits.pop(waiting, None)


def _too_slow(result: Any, seconds: float) -> Any:
    if isinstance(result, Failure):
        raise SpoolError(f"its disk takes longer than {seconds:g} s")
    return result


def _failed(
    lane: Lane,
    problem: str,
    held: IHeldCapture | None,
    asked_seconds: float | None = None,
    *,
    spooled: bool = False,
) -> DeliveryFailed | DeliverySpooled:
    """What is told of a delivery that came to nothing; what the spool holds is left to it."""
    if held is not None:
        spooled = held.release(problem, asked_seconds)
        if not spooled:
            problem = f"{problem}; and it is gone from the spool"
    return (DeliverySpooled if spooled else DeliveryFailed)(destination=lane.name, problem=problem)
