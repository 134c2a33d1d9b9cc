"""
What all channels have in common: a service that publishes events through an L{IPublisher}.

An event waits in a L{ReportQueue} until it is published. If it is unknown whether it has arrived, it is
published again. So it may arrive twice, with the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.event import Event, EventFactory, ReportsDropped
from pcapsvc.core.labels import Labels
from pcapsvc.core.line_limit import LineLimit
from pcapsvc.core.report_queue import Report, ReportQueue
from pcapsvc.core.source_state import SourceState
from pcapsvc.interfaces.reports import IEventChannel, IPublisher
from pcapsvc.net.connectivity import Connectivity
from pcapsvc.net.outages import Backoff, Outage
from pcapsvc.reports.settings import ReportsSettings
from pcapsvc.settings.section import BuildContext

#: How many bytes of JSON wait for a channel.
MAX_BYTES = 16 * 1024 * 1024

#: How long a stop waits until what is left is published.
DRAIN_SECONDS = 3.0

#: How long an event waits for others, so that they are published together.
LINGER_SECONDS = 0.02

#: The least time between two events about dropped events.
DROPPED_SECONDS = 1.0

_REFUSALS_A_SECOND = 1


@implementer(IEventChannel)
class EventChannel(Service):
    """
    Publishes every event, in order, and reconnects for ever.

    @param events: makes the events about dropped events.
    @param name: as in L{IEventChannel}.
    @param limit: how many events may wait.
    @param wall_clock: the time in seconds since the Unix epoch.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        publisher: IPublisher,
        events: EventFactory,
        *,
        name: str,
        limit: int,
        wall_clock: Callable[[], float],
        backoff: Backoff | None = None,
    ) -> None:
        self.name = self._channel = name
        self._reactor = reactor
        self._publisher = publisher
        self._events = events
        self._wall_clock = wall_clock
        self._backoff = backoff or Backoff()
        self._queue = ReportQueue(limit=limit, max_bytes=MAX_BYTES)
        self._batch: list[Report] = []
        self._outage = Outage(self._log, f"Events to {publisher.server}", each_change=True)
        self._connectivity = Connectivity(wall_clock)
        self._refusals = LineLimit(_REFUSALS_A_SECOND)
        self._told_dropped = float("-inf")
        self._is_draining = False
        self._work: Deferred[None] | None = None
        self._idle: Deferred[None] | None = None
        self._pausing: Deferred[None] | None = None
        self._wake_up: IDelayedCall | None = None

    @property
    def dropped(self) -> int:
        """See L{IEventChannel}."""
        return self._queue.dropped

    @property
    def waiting(self) -> int:
        """See L{IEventChannel}."""
        return len(self._queue)

    def state(self) -> SourceState:
        """See L{IEventChannel.state}."""
        return self._connectivity.state

    def wants_progress(self) -> bool:
        """Always: a channel can't know who listens."""
        return True

    def report(self, event: Event) -> None:
        """Have an event published. See L{IReporter.report<pcapsvc.interfaces.reports.IReporter.report>}."""
        self._queue.put(Report.of(event), self._wall_clock())
        self._wake_after(LINGER_SECONDS)

    def startService(self) -> None:
        """Start connecting."""
        super().startService()  # type: ignore[no-untyped-call]
        self._is_draining = False
        self._connectivity.started()
        self._work = Deferred.fromCoroutine(self._stay_connected())
        self._work.addErrback(self._ended_unexpectedly)

    def stopService(self) -> Deferred[None]:
        """
        Publish what is left, within L{DRAIN_SECONDS}, and disconnect.

        @return: fires when that is done. On cancel, what is left is dropped.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._is_draining = True
        work, self._work = self._work, None
        if work is None:
            return succeed(None)
        self._wake()
        if self._pausing is not None:
            self._pausing.cancel()
        stopped: Deferred[None] = Deferred(lambda _: work.cancel())
        deadline = self._reactor.callLater(DRAIN_SECONDS, work.cancel)

        def ended(_: object) -> None:
            if deadline.active():
                deadline.cancel()
            self._give_up_the_rest()
            if not stopped.called:
                stopped.callback(None)

        work.addBoth(ended)
        return stopped

    def _give_up_the_rest(self) -> None:
        self._cancel_wake_up()
        self._connectivity.stopped()
        self._batch = []
        if count := self._queue.drop_all(self._wall_clock()):
            self._log.warn("Events to {server}: {count} were not published", server=self._server, count=count)

    @property
    def _server(self) -> str:
        return self._publisher.server

    def _ended_unexpectedly(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self._log.failure("Events to {server}: internal error", failure, server=self._server)

    async def _stay_connected(self) -> None:
        while True:
            try:
                if await self._publisher.open():
                    self._works()
                await self._publish_all()
            except Exception as problem:
                if isinstance(problem, CancelledError) and self._is_draining:
                    raise
                if not self._is_draining:
                    self._failed(problem)
            finally:
                await self._close()
            if self._is_draining:
                return
            await self._pause()

    async def _close(self) -> None:
        """Disconnect. Whatever goes wrong, the next attempt is with a new connection."""
        try:
            await self._publisher.close()
        except Exception as problem:
            if isinstance(problem, CancelledError):
                raise
            self._log.failure(
                "Events to {server}: the connection did not close properly", server=self._server
            )

    async def _publish_all(self) -> None:
        """Publish whatever there is. Returns if a stop is due and nothing is left; raises what goes wrong."""
        while True:
            self._batch = self._batch or self._next_batch()
            if not self._batch:
                if self._is_draining:
                    return
                await self._wait_for_work()
                continue
            published = await self._publisher.publish(self._batch)
            self._settle(published.arrived, published.refused)
            if self._batch:
                await self._pause()
            else:
                self._backoff.worked()

    def _settle(self, arrived: Sequence[Report], refused: Sequence[Report]) -> None:
        self._queue.settle(arrived)
        if refused:
            self._queue.refuse(refused, self._wall_clock())
            self._log_refusal(refused)
        settled = {report.event_id for report in (*arrived, *refused)}
        self._batch = [report for report in self._batch if report.event_id not in settled]
        if arrived:
            self._works()

    def _next_batch(self) -> list[Report]:
        first: list[Report] = []
        if self._queue.has_unreported and self._connectivity.state.connected and self._may_tell_dropped():
            self._told_dropped = self._reactor.seconds()
            first = [self._dropped_report()]
        return [*first, *self._queue.take(self._publisher.most - len(first), self._publisher.most_bytes)]

    def _may_tell_dropped(self) -> bool:
        return self._is_draining or self._reactor.seconds() >= self._told_dropped + DROPPED_SECONDS

    def _dropped_report(self) -> Report:
        """An event about the events that were dropped. It is held until it has arrived."""
        dropped = self._queue.take_dropped()
        self._log.warn("Events to {server}: {count} were dropped", server=self._server, count=dropped.count)
        data = ReportsDropped(channel=self._channel, dropped=dropped.count, since=dropped.since)
        report = Report.of(self._events.event(data, Labels(via=None)))
        self._queue.hold(report)
        return report

    async def _wait_for_work(self) -> None:
        """Wait for an event, or the loss of the connection."""
        idle: Deferred[None] = Deferred()
        self._idle = idle
        if self._queue.has_unreported:
            self._wake_after(DROPPED_SECONDS)

        def lost(failure: Failure) -> None:
            if not idle.called:
                idle.errback(failure)

        losing = self._publisher.when_lost().addErrback(lost)
        try:
            await idle
        finally:
            self._idle = None
            losing.cancel()

    def _wake_after(self, seconds: float) -> None:
        """Have what waits for work look for it, at this time or sooner."""
        if self._idle is None:
            return
        if self._wake_up is not None and self._wake_up.active():
            if self._wake_up.getTime() <= self._reactor.seconds() + seconds:
                return
            self._wake_up.cancel()
        self._wake_up = self._reactor.callLater(seconds, self._wake)

    def _wake(self) -> None:
        self._cancel_wake_up()
        if self._idle is not None and not self._idle.called:
            self._idle.callback(None)

    def _cancel_wake_up(self) -> None:
        if self._wake_up is not None and self._wake_up.active():
            self._wake_up.cancel()

    async def _pause(self) -> None:
        """Wait before the next attempt; a stop ends that."""
        self._pausing = deferLater(self._reactor, self._backoff.failed())
        try:
            await self._pausing
        except CancelledError:
            if not self._is_draining:
                raise
        finally:
            self._pausing = None

    def _works(self) -> None:
        self._connectivity.connected()
        self._outage.ended(f"publishing to {self._publisher.target}")

    def _failed(self, problem: Exception) -> None:
        kind, words = self._publisher.described(problem)
        words = f"can't publish to {self._publisher.target}: {words}"
        self._connectivity.failed(words)
        self._outage.report(kind, words)

    def _log_refusal(self, refused: Sequence[Report]) -> None:
        if self._refusals.may_log(self._reactor.seconds()):
            more = self._refusals.take_suppressed()
            self._log.warn(
                "Events to {server}: an event of {bytes} bytes was refused{more}",
                server=self._server,
                bytes=len(refused[0].json),
                more=f" (and {more} more)" if more else "",
            )


def never_lost() -> Deferred[None]:
    """The L{IPublisher.when_lost} of a publisher that has no connection to be lost."""
    return Deferred(lambda waiting: waiting.callback(None))


def build_channel(context: BuildContext, publisher: IPublisher, name: str) -> EventChannel:
    """The channel of a section."""
    return EventChannel(
        context.reactor,
        publisher,
        context.events,
        name=name,
        limit=context.settings.section(ReportsSettings).queue,
        wall_clock=context.wall_clock,
    )
