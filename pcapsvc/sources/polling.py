"""
What sources that poll have in common: a thread of their own, a pause after each
failure, and few words about an outage.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from threading import Thread
from typing import Any, Generic, TypeVar

from twisted.internet import defer, task
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.threads import DaemonThreadPool

#: How long to wait after a failure: at first, and at most.
RETRY_SECONDS = (0.5, 10.0)

#: How long a stop waits for what was heard already to be seen to.
STOP_SECONDS = 1.0

Result = TypeVar("Result")


class Backoff:
    """
    How long to wait before the next attempt: twice as long after each failure.

    @param first_seconds: after the first failure.
    @param longest_seconds: at most.
    @param chance: gives a number from 0 to 1. Each wait is cut by up to half by it,
        so that the nodes of a fleet don't all come back at once.
    """

    def __init__(
        self,
        first_seconds: float = RETRY_SECONDS[0],
        longest_seconds: float = RETRY_SECONDS[1],
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._chance = chance
        self._seconds = first_seconds

    def failed(self) -> float:
        """Take note of a failure. The seconds to wait before the next attempt."""
        seconds = self._seconds * (1 + self._chance()) / 2
        self._seconds = min(self._seconds * 2, self._longest_seconds)
        return seconds

    def worked(self) -> None:
        """Take note of a success: the next failure is a first one."""
        self._seconds = self._first_seconds


class Outage:
    """
    Tells of an outage once for each kind of problem in it, and of its end.

    @param who: what a line of the log begins with: C{Kafka a.example:9092}.
    @param each_change: tell a problem again that comes back after another.
    """

    def __init__(self, log: Logger, who: str, *, each_change: bool = False) -> None:
        self._log = log
        self._who = who
        self._each_change = each_change
        self._told: set[str] = set()
        self._works = False

    def tell(self, kind: str, problem: str) -> None:
        """
        It doesn't work.

        @param kind: what is told once only, until it worked.
        @param problem: in words; never with a secret in them.
        """
        self._works = False
        if kind not in self._told:
            if self._each_change:
                self._told.clear()
            self._told.add(kind)
            self._log.warn("{who}: {problem}; trying until it works", who=self._who, problem=problem)

    def over(self, news: str) -> None:
        """
        It works. It is told after an outage, and for the first time.

        @param news: what works now, in words.
        """
        if not self._works:
            self._log.info("{who}: {news}", who=self._who, news=news)
        self._works = True
        self._told.clear()


class OwnThread:
    """
    A pool of one daemon thread, that runs one function after the other. L{run} is a
    L{pcapsvc.interfaces.threads.RunInThread}.

    A poll that can't be interrupted (20 s, of SQS) delays nothing here: neither the
    reactor's pool, nor others of ours, nor the stop.
    """

    def __init__(self, reactor: Any, name: str) -> None:
        """
        @param reactor: whose C{callFromThread} brings results back.
        """
        self._reactor = reactor
        self._name = name
        self._pool: ThreadPool | None = None

    def run(self, function: Callable[..., Any], *args: Any) -> defer.Deferred[Any]:
        """
        Run a function, after those given before it.

        @return: fires with what the function returns; fails with what it raises. On
            cancel, it is no longer waited for; it runs on to its end.
        """
        if self._pool is None:
            self._pool = DaemonThreadPool(minthreads=0, maxthreads=1, name=self._name)
            self._pool.start()
        result: defer.Deferred[Any] = deferToThreadPool(self._reactor, self._pool, function, *args)
        return result

    def stop(self) -> None:
        """Let the thread end, after what it was given already. Nobody waits for it; L{run} begins another."""
        pool, self._pool = self._pool, None
        if pool is not None:
            # A pool's stop waits for its threads, as nobody else does.
            Thread(target=pool.stop, daemon=True, name=f"{self._name}-stop").start()


class Poller(Generic[Result]):
    """
    Runs a function that blocks again and again, in a thread, and sees to each of
    its results before the next call.

    @param poll: is called in the thread, for ever.
    @param hear: is called with what C{poll} returned, in the reactor's thread; the
        Deferred that it may return is waited for.
    @param failed: is called with what C{poll} or C{hear} raised; then there is a pause.
    @param run_in_thread: L{OwnThread.run}. One that others use would be held up.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        poll: Callable[[], Result],
        hear: Callable[[Result], defer.Deferred[None] | None],
        *,
        failed: Callable[[Exception], None],
        backoff: Backoff,
        run_in_thread: RunInThread,
    ) -> None:
        self._reactor = reactor
        self._poll = poll
        self._hear = hear
        self._failed = failed
        self._backoff = backoff
        self._run_in_thread = run_in_thread
        self._polling = False
        self._hearing = False
        self._work: defer.Deferred[None] | None = None

    def start(self) -> None:
        """Begin to poll."""
        self._polling = True
        self._work = defer.Deferred.fromCoroutine(self._go_on())
        self._work.addErrback(lambda why: self._log.failure("a poller ended by itself", why))

    def stop(self) -> defer.Deferred[None]:
        """
        Poll no more. What a poll that runs now still brings is dropped.

        @return: fires at once, or when what was heard has been seen to, and after
            L{STOP_SECONDS} at the latest. Never fails.
        """
        self._polling = False
        work, self._work = self._work, None
        if work is None:
            return defer.succeed(None)
        if self._hearing:
            work.addTimeout(STOP_SECONDS, self._reactor, lambda result, _: result)
        else:
            work.cancel()
        return work

    async def _go_on(self) -> None:
        while self._polling:
            pause_seconds = 0.0
            try:
                result = await self._run_in_thread(self._poll)
                self._hearing = True
                try:
                    await defer.maybeDeferred(self._hear, result)
                finally:
                    self._hearing = False
                self._backoff.worked()
            except Exception as problem:  # noqa: BLE001 - whatever it is, the next attempt must come
                if self._is_stopped():
                    return
                pause_seconds = self._backoff.failed()
                try:
                    self._failed(problem)
                except Exception:  # noqa: BLE001 - and come it does
                    self._log.failure("a failure could not be told")
            if pause_seconds:
                try:
                    await task.deferLater(self._reactor, pause_seconds)
                except defer.CancelledError:
                    return

    def _is_stopped(self) -> bool:
        return not self._polling
