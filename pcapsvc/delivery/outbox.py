"""
An outbox: everything that is to be delivered to one destination, from memory and from the spool.

L{Outbox._attempt_until} is the one retry loop. What differs between the two is how long it goes on,
which the L{RetryPolicy} says, and where an entry waits for its next attempt: one from memory backs off in
the loop, one from the spool is put back, and L{Rounds<pcapsvc.delivery.rounds.Rounds>} submit it again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from msgspec.structs import replace
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import FAULT, STOPPED, DestinationError, SpoolError
from pcapsvc.core.event import (
    CaptureDelivered,
    DeliveryFailed,
    DeliveryPostponed,
    DeliverySpooled,
    EventFactory,
    Payload,
)
from pcapsvc.core.result import Receipt
from pcapsvc.core.retry import RetryPolicy, honoured_seconds
from pcapsvc.delivery.disk_wait import LONGEST_HOLD_SECONDS, DiskWait
from pcapsvc.delivery.entry import Entry, Input, State
from pcapsvc.delivery.ispool import ISpool
from pcapsvc.delivery.slots import Slots
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.lifecycle import IHurriable
from pcapsvc.interfaces.reports import IReporter

_T = TypeVar("_T")

_NOT_ATTEMPTED = "the daemon stopped before an attempt completed"
_INTERRUPTED = "the process ended before it was delivered"
_VANISHED = "no longer in the spool"

# A destination that is down for long is tried that many intervals apart.
_LONGEST_DELAY_INTERVALS = 30


class _Side:
    """
    One of the two sides that entries come from, memory or the spool.

    @ivar policy: when attempts are repeated.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy = policy
        self._closed = False
        # In the order in which they began; a set has none.
        self._waits: dict[Deferred[Any], None] = {}

    def is_closed(self) -> bool:
        """Whether there are no further attempts."""
        return self._closed

    def open(self) -> None:
        """Allow attempts."""
        self._closed = False

    def close(self) -> None:
        """Begin no further attempts."""
        self._closed = True

    async def wait(self, waiting: Deferred[_T]) -> _T:
        """Wait for something that L{cancel} may cancel."""
        self._waits[waiting] = None
        try:
            return await waiting
        finally:
            self._waits.pop(waiting, None)

    def cancel(self) -> None:
        """Cancel everything that is waited for."""
        # The last ones first: else those with a slot would leave it to those that wait for one.
        for waiting in reversed(list(self._waits)):
            waiting.cancel()


@implementer(IHurriable)
class Outbox(Service):
    """
    Delivers captures to one destination. Each capture is attempted a few times, and then left to the spool,
    if there is one. With C{spool_first} it is written to the spool before its first attempt, and
    delivered from there; if the disk takes too long, it is delivered from memory.

    From the spool, nothing is given up before it expires: even errors that are not retryable are retried,
    but rarely, as an operator may fix the cause.

    @param slots: how many attempts may go on at the same time on each route of the destination, 1 or more.
    @param timeout_seconds: how long each of them may take; L{None} is no limit.
    @param policy: how many attempts there are from memory, and the delays between them.
    @param spool_interval_seconds: the shortest time between two attempts from the spool. The longest is
        thirty times as much, unless the destination asks for more.
    @param reporter: receives the events.
    @param events: makes the events.
    @param spool: L{None} if there is none: then a capture is lost after its last attempt.
    @param spool_first: whether captures are written to the spool before their first attempt.
    @param stop_wait_seconds: how long a capture may wait for the spool's disk once a stop has begun.
    @param wall_clock: returns the time in seconds since the Unix epoch.
    @param chance: returns a random number from 0 to 1, for the jitter.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        destination: IDestination,
        *,
        slots: int,
        timeout_seconds: float | None,
        policy: RetryPolicy,
        spool_interval_seconds: float,
        reporter: IReporter,
        events: EventFactory,
        spool: ISpool | None = None,
        spool_first: bool = False,
        stop_wait_seconds: float = LONGEST_HOLD_SECONDS,
        wall_clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = reactor
        self._destination = destination
        self._slots = {route: Slots(slots) for route in destination.routes}
        self._timeout_seconds = timeout_seconds
        self._spool_interval = spool_interval_seconds
        # Memory is not to be held for longer than this, if there is a spool.
        patience = None if spool is None else policy.max_delay_seconds
        self._memory = _Side(replace(policy, patience_seconds=patience))
        self._spooled = _Side(
            RetryPolicy(
                attempts=None,
                first_delay_seconds=spool_interval_seconds,
                max_delay_seconds=_LONGEST_DELAY_INTERVALS * spool_interval_seconds,
                retry_lasting=True,
            )
        )
        self._reporter = reporter
        self._events = events
        self._spool = spool
        self._spool_first = spool_first
        self._disk_wait = DiskWait(reactor, stop_seconds=stop_wait_seconds)
        self._wall_clock = wall_clock
        self._chance = chance
        self._deliveries: dict[Deferred[None], Entry] = {}
        self.destination = destination.name
        self.routes = destination.routes
        self.name = f"outbox for {destination.name}"

    def __repr__(self) -> str:
        return f"<Outbox for {self.destination}: {len(self._deliveries)} captures>"

    @property
    def waiting(self) -> list[Entry]:
        """The captures that are being delivered, except for those that are left to the spool."""
        return list(self._deliveries.values())

    def route(self, options: Mapping[str, Any]) -> str | None:
        """The route of a capture, if it is for this destination: see L{IDestination.route}."""
        return self._destination.route(options)

    def startService(self) -> None:
        """Deliver what comes from memory."""
        super().startService()  # type: ignore[no-untyped-call]
        self._memory.open()

    def stopService(self) -> Deferred[None]:
        """
        Wait for the deliveries from memory.

        @return: fires when all have ended; on cancel, those that go on are cancelled.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await DeferredList(list(self._deliveries))

    def hurry(self) -> None:
        """
        Make no further attempts from memory, and leave what is not delivered to the spool: see L{IHurriable}.
        What its disk doesn't accept has an attempt first. Without a spool nothing changes, as attempts are
        all that a capture has.
        """
        if self._spool is not None:
            self._memory.close()
            self._memory.cancel()
            self._disk_wait.hurry()

    def open_spool(self) -> None:
        """Allow attempts from the spool."""
        self._spooled.open()
        self._disk_wait.restore()

    def close_spool(self) -> None:
        """
        A stop has begun: begin no further attempts from the spool, and wait less long for its disk. Attempts
        that go on are completed.
        """
        self._spooled.close()
        self._disk_wait.shorten()

    def cancel_from_spool(self) -> None:
        """Cancel the attempts from the spool. Their captures stay there."""
        self._spooled.cancel()

    def deliver(self, artifact: Artifact, on_disk: Callable[[], object]) -> Deferred[None]:
        """
        Deliver a capture.

        @param on_disk: called when the content is no longer needed because it is in the spool, if that is
            before the Deferred fires.

        @return: fires when the capture is delivered, left to the spool, or lost. Never fails. On
            cancel, it is left to the spool if it is there, and otherwise lost.
        """
        entry = Entry(
            capture_id=artifact.capture_id,
            destination=self.destination,
            options=artifact.options.get(self.destination, {}),
            labels=artifact.labels,
        )
        delivery = Deferred.fromCoroutine(self._deliver(entry, artifact, on_disk))
        if not delivery.called:
            self._deliveries[delivery] = entry

            def ended(_: object) -> None:
                self._deliveries.pop(delivery)

            delivery.addBoth(ended)
        return delivery

    async def _deliver(self, entry: Entry, artifact: Artifact, on_disk: Callable[[], object]) -> None:
        problem = ""
        try:
            artifact = await self._write_ahead(entry, artifact, on_disk)
            error = await self._attempt_until(entry, artifact, self._memory)
            if error is not None:
                problem = f"{error}; "
                await self._put_away(entry, artifact, error)
        except CancelledError:
            self._give_up(entry, f"{problem}{STOPPED}")
        except Exception:  # noqa: BLE001 - one delivery fails, and no other
            self._log.failure(
                "{capture_id}: internal error in the delivery to {destination}",
                capture_id=entry.capture_id,
                destination=self.destination,
            )
            self._give_up(entry, FAULT)

    async def retry(self, entry: Entry) -> None:
        """Attempt to deliver an entry that is C{SPOOLED}, once. If that fails, it is in the spool again."""
        spool = self._the_spool()
        entry.on(Input.TAKE)
        try:
            artifact = await spool.read(entry)
            # Nothing is known of the attempts before: the process may have been killed.
            await self._attempt_until(entry, replace(artifact, may_be_there=True), self._spooled)
        except SpoolError as error:
            if entry.state is not State.QUARANTINED:
                self._failed(entry, DestinationError(f"the spool: {error}", retryable=True), self._spooled)
        except CancelledError:
            pass
        finally:
            if entry.is_taken and not spool.put_back(entry):
                self._lost(entry, _VANISHED)

    async def _write_ahead(self, entry: Entry, artifact: Artifact, on_disk: Callable[[], object]) -> Artifact:
        """
        Write a capture to the spool before its first attempt, if that is wanted. A failure is logged.

        @return: the artifact, from the spool or from memory.
        """
        if self._spool is None or not self._spool_first:
            entry.on(Input.QUEUE)
            return artifact
        entry.on(Input.WRITE_AHEAD)
        try:
            written = await self._disk_wait.limit(self._spool.write(entry, artifact, _INTERRUPTED))
        except SpoolError as error:
            entry.on(Input.NOT_WRITTEN)
            self._log.warn(
                "{capture_id}: in memory until it is delivered to {destination}, not in the spool: {problem}",
                capture_id=entry.capture_id,
                destination=self.destination,
                problem=str(error),
            )
            return artifact
        on_disk()
        return written

    async def _attempt_until(self, entry: Entry, artifact: Artifact, side: _Side) -> DestinationError | None:
        """
        Attempt to deliver an entry until it is delivered, or not to be attempted from here any more. One from
        the spool is attempted once, and then due later.

        @return: the last error, if it is not delivered.
        """
        error = DestinationError(_NOT_ATTEMPTED, retryable=True)
        while (is_needed := self._is_needed(entry)) or not side.is_closed():
            attempt = Deferred.fromCoroutine(self._attempt(entry, artifact))
            try:
                receipt, seconds = await (attempt if is_needed else side.wait(attempt))
            except DestinationError as last:
                error = last
                if is_needed and side.is_closed():
                    break
            except CancelledError:
                if is_needed or not side.is_closed():
                    raise
                break
            else:
                await self._delivered(entry, artifact, receipt, seconds)
                return None
            artifact = replace(artifact, may_be_there=True)
            delay = self._failed(entry, error, side)
            if delay is None or side is self._spooled:
                break
            entry.on(Input.BACK_OFF)
            try:
                await side.wait(deferLater(self._reactor, delay))
            except CancelledError:
                if not side.is_closed():
                    raise
                break
            entry.on(Input.RETRY)
        return error

    def _is_needed(self, entry: Entry) -> bool:
        """
        Whether an attempt is needed even in a hurry: the spool did not accept the entry, and would not do so
        now.
        """
        is_refused = self._spool is not None and self._spool_first and entry.is_in_memory
        return is_refused and (self._memory.is_closed() or self._disk_wait.is_hanging)

    async def _attempt(self, entry: Entry, artifact: Artifact) -> tuple[Receipt, float]:
        """
        Attempt once, when there is a slot.

        @return: the receipt, and how many seconds the attempt took.

        @raise DestinationError: and no other error, if it fails.
        """
        # Not kept while it backs off, which may take minutes.
        route = self.route(entry.options)
        if route is None:
            raise DestinationError("its request doesn't name this destination any more", retryable=False)
        slots = self._slots[route]
        await slots.acquire()
        try:
            entry.on(Input.SLOT)
            for problem in self._destination.check(entry.options):
                raise DestinationError(f"the request's {problem}", retryable=False)
            began = self._reactor.seconds()
            storing = self._destination.store(artifact)
            if self._timeout_seconds is not None:
                storing.addTimeout(self._timeout_seconds, self._reactor, _timed_out)
            receipt = await storing
            return receipt, self._reactor.seconds() - began
        except (DestinationError, CancelledError):
            raise
        except Exception:  # noqa: BLE001 - one delivery fails, and no other
            self._log.failure(
                "{capture_id}: internal error in {destination}",
                capture_id=entry.capture_id,
                destination=self.destination,
            )
            raise DestinationError(FAULT, retryable=False) from None
        finally:
            slots.release()

    def _failed(self, entry: Entry, error: DestinationError, side: _Side) -> float | None:
        """
        An attempt has failed. If there will be another one, it is due then, which is reported.

        @return: how long until then, in seconds; L{None} if there will be none from this side.
        """
        entry.attempts += 1
        entry.problem = str(error)
        delay = side.policy.next_delay(
            entry.attempts,
            retryable=error.retryable,
            chance=self._chance(),
            asked_seconds=error.retry_after_seconds,
        )
        from_spool = side is self._spooled
        if delay is not None and not (from_spool and entry.is_vanished):
            entry.due = self._reactor.seconds() + delay
            self._report(
                entry,
                DeliveryPostponed(
                    destination=self.destination,
                    problem=entry.problem,
                    attempts=entry.attempts,
                    next_try=self._wall_clock() + delay,
                    spooled=from_spool,
                ),
            )
        return delay

    async def _delivered(self, entry: Entry, artifact: Artifact, receipt: Receipt, seconds: float) -> None:
        if entry.on(Input.DELIVER) is State.REMOVING:
            # Before anything else: no restart may find it again.
            try:
                await self._disk_wait.limit(self._the_spool().remove(entry))
            except CancelledError:
                pass  # it is delivered, nevertheless
            except SpoolError as error:
                self._log.warn(
                    "{capture_id}: delivered to {destination}, but still in the spool; it may be delivered"
                    " again after a restart: {problem}",
                    capture_id=entry.capture_id,
                    destination=self.destination,
                    problem=str(error),
                )
        self._report(
            entry,
            CaptureDelivered(
                destination=receipt.destination,
                location=receipt.location,
                seconds=round(seconds, 6),
                file=artifact.name,
                media_type=artifact.media_type,
                bytes=artifact.content.size,
            ),
        )

    async def _put_away(self, entry: Entry, artifact: Artifact, error: DestinationError) -> None:
        """Leave an entry from memory to the spool, or report that it is lost."""
        problem = str(error)
        if self._spool is None or entry.is_taken:
            self._give_up(entry, problem, error.retry_after_seconds)
            return
        entry.on(Input.PUT_AWAY)
        self._postpone(entry, error.retry_after_seconds)
        try:
            await self._spool.write(entry, artifact, problem)
        except SpoolError as reason:
            entry.on(Input.NOT_WRITTEN)
            self._lost(entry, f"{problem}; and not spooled: {reason}")
        else:
            self._report(entry, DeliverySpooled(destination=self.destination, problem=problem))

    def _give_up(self, entry: Entry, problem: str, asked_seconds: float | None = None) -> None:
        """Make no further attempt from memory. What is in the spool is left to it, anything else is lost."""
        if entry.is_in_memory:
            entry.on(Input.ABANDON)
            self._lost(entry, problem)
        elif entry.is_taken:
            self._postpone(entry, asked_seconds)
            if self._the_spool().put_back(entry):
                entry.problem = problem
                self._report(entry, DeliverySpooled(destination=self.destination, problem=problem))
            else:
                self._lost(entry, f"{problem}; and {_VANISHED}")

    def _postpone(self, entry: Entry, asked_seconds: float | None) -> None:
        """An entry is left to the spool: it is due after an interval, or when the destination says."""
        entry.attempts = 0
        entry.due = self._reactor.seconds() + max(self._spool_interval, honoured_seconds(asked_seconds))

    def _the_spool(self) -> ISpool:
        if self._spool is None:
            raise AssertionError("there is no spool")
        return self._spool

    def _lost(self, entry: Entry, problem: str) -> None:
        self._report(entry, DeliveryFailed(destination=self.destination, problem=problem))

    def _report(self, entry: Entry, data: Payload) -> None:
        self._reporter.report(self._events.event(data, entry.labels, entry.capture_id))


def _timed_out(result: Any, seconds: float) -> Any:
    if isinstance(result, Failure):
        raise DestinationError(f"timed out after {seconds:g} s", retryable=True)
    # It completed just in time.
    return result
