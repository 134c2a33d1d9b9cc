"""What the sources that poll share: a thread of their own, and a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from twisted.internet import defer, task
from twisted.logger import Logger

from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.outages import Backoff
from pcapsvc.threads import DaemonThreadPool

#: How long a stop waits until what was received is processed.
STOP_SECONDS = 1.0

#: How much longer it waits until what was cancelled has cleaned up.
CLEAN_UP_SECONDS = 0.5

Result = TypeVar("Result")


def drain(
    reactor: Any, pending: Iterable[defer.Deferred[Any]], give_up: Callable[[], object]
) -> defer.Deferred[None]:
    """
    Wait for verdicts, or what follows them, for up to L{STOP_SECONDS}. Then give up, and wait for up to
    L{CLEAN_UP_SECONDS} more.

    @param give_up: cancels the verdicts.

    @return: fires after that, and never fails.
    """
    waiting = list(pending)
    if not waiting:
        return defer.succeed(None)
    timer = reactor.callLater(STOP_SECONDS, give_up)
    drained: defer.Deferred[None] = defer.Deferred()

    def fired(_: object) -> None:
        if timer.active():
            timer.cancel()
        if not drained.called:
            drained.callback(None)

    defer.DeferredList(waiting, consumeErrors=True).addCallback(fired)
    return drained.addTimeout(STOP_SECONDS + CLEAN_UP_SECONDS, reactor, lambda result, _: None)


class OwnThread:
    """
    A pool of one daemon thread, which runs one function after the other. L{run} is a
    L{pcapsvc.interfaces.threads.RunInThread}.

    So a poll that can't be interrupted (20 s for SQS) delays neither the reactor's pool, nor others of ours,
    nor the stop.
    """

    def __init__(self, reactor: Any, name: str) -> None:
        """
        @param reactor: its C{callFromThread} delivers the results.
        """
        self._reactor = reactor
        self._name = name
        self._pool: DaemonThreadPool | None = None

    def run(self, function: Callable[..., Any], *args: Any) -> defer.Deferred[Any]:
        """
        Run a function, after those that were given before it.

        @return: fires with what the function returns; fails with what it raises, or with
            L{pcapsvc.threads.NoThread}. Cancelling it only ends the wait: the function runs to its end.
        """
        if self._pool is None:
            self._pool = DaemonThreadPool(minthreads=0, maxthreads=1, name=self._name)
            self._pool.start()
        return self._pool.run(self._reactor, function, *args)

    def stop(self) -> None:
        """End the thread after what it was given already. Doesn't wait for it. L{run} starts another one."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop_soon()


class Poller(Generic[Result]):
    """
    Calls a blocking function in a thread again and again, and processes each result before the next call.

    @param poll: is called in the thread.
    @param on_result: is called with what C{poll} returned, in the reactor's thread. If it returns a Deferred,
        the next call waits for that.
    @param failed: is called with what C{poll} or C{on_result} raised. A pause follows.
    @param run_in_thread: L{OwnThread.run}. A shared thread would be blocked for others.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        poll: Callable[[], Result],
        on_result: Callable[[Result], defer.Deferred[None] | None],
        *,
        failed: Callable[[Exception], None],
        backoff: Backoff,
        run_in_thread: RunInThread,
    ) -> None:
        self._reactor = reactor
        self._poll = poll
        self._on_result = on_result
        self._failed = failed
        self._backoff = backoff
        self._run_in_thread = run_in_thread
        self._polling = False
        self._processing = False
        self._work: defer.Deferred[None] | None = None

    def start(self) -> None:
        """Start polling."""
        self._polling = True
        self._work = defer.Deferred.fromCoroutine(self._go_on())
        self._work.addErrback(lambda why: self._log.failure("a poller ended unexpectedly", why))

    def stop(self) -> defer.Deferred[None]:
        """
        Stop polling. What a poll that is running returns is dropped. A result that is being processed gets
        L{STOP_SECONDS}; then it is cancelled, and gets L{CLEAN_UP_SECONDS} to clean up.

        @return: fires at once; or, if a result is being processed, after that. Never fails.
        """
        self._polling = False
        work, self._work = self._work, None
        if work is None:
            return defer.succeed(None)
        stopped: defer.Deferred[None] = defer.Deferred()
        work.addBoth(lambda _: None if stopped.called else stopped.callback(None))
        if self._processing:
            work.addTimeout(STOP_SECONDS, self._reactor, lambda result, _: result)
            stopped.addTimeout(STOP_SECONDS + CLEAN_UP_SECONDS, self._reactor, lambda result, _: None)
        else:
            work.cancel()
        return stopped

    async def _go_on(self) -> None:
        while self._polling:
            pause_seconds = 0.0
            try:
                result = await self._run_in_thread(self._poll)
                self._processing = True
                try:
                    await defer.maybeDeferred(self._on_result, result)
                finally:
                    self._processing = False
                self._backoff.worked()
            except Exception as problem:  # noqa: BLE001 - whatever it is, there must be another attempt
                if self._is_stopped():
                    return
                pause_seconds = self._backoff.failed()
                try:
                    self._failed(problem)
                except Exception:  # noqa: BLE001 - as above
                    self._log.failure("a failure could not be reported")
            if pause_seconds:
                try:
                    await task.deferLater(self._reactor, pause_seconds)
                except defer.CancelledError:
                    return

    def _is_stopped(self) -> bool:
        return not self._polling
