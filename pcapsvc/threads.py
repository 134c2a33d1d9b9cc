"""Threads for blocking clients, apart from the reactor's pool."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from threading import Thread
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from pcapsvc.interfaces.threads import RunInThread

#: How many seconds a stop waits for threads that are still busy.
STOP_SECONDS = 2.0
# After how many seconds patient work looks for a thread again, and how often.
_RETRY_SECONDS = 1.0
_MOST_RETRIES = 300


class IThreadReactor(IReactorFromThreads, IReactorTime):
    """A reactor that has time, and can be called from threads."""


class NotRunning(RuntimeError):
    """The threads have not been started, or are stopping. Nothing was called."""


class NoThread(OSError, NotRunning):
    """The system allows no more threads: a limit on processes (pids cgroup, RLIMIT_NPROC), or no memory."""


class DaemonThreadPool(ThreadPool):
    """A pool of daemon threads: a thread that hangs does not keep the process alive."""

    threads: list[Thread]

    def threadFactory(self, *args: Any, **kwargs: Any) -> Thread:  # type: ignore[override]
        """Make a daemon thread: see L{ThreadPool}."""
        return Thread(*args, daemon=True, **kwargs)

    def run(self, reactor: IReactorFromThreads, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """
        Run a function in one of the threads. If no more can be started, it waits for one of those.

        @return: fires with what the function returns. Fails with what it raises, or with L{NoThread}.
        """
        try:
            return deferToThreadPool(reactor, self, function, *args)
        except RuntimeError as error:
            # The pool counts a thread as its own before it starts, and would wait for it at the end.
            self.threads[:] = [thread for thread in self.threads if thread.ident is not None]
            if not self.workers:
                return fail(NoThread(errno.EAGAIN, str(error)))
        most, self.max = self.max, self.workers
        try:
            return deferToThreadPool(reactor, self, function, *args)
        finally:
            self.max = most

    def stop_soon(self) -> None:
        """Have each thread end after what there is to do, and return at once, unlike L{stop}."""
        self.threads = []
        self.stop()


class Threads(Service):
    """
    A pool of daemon threads, separate from the reactor's, so that a client that hangs delays
    neither DNS look-ups nor the exit of the process.

    L{run} is a L{pcapsvc.interfaces.threads.RunInThread}.

    @param most: how many threads there may be. They are started on demand; work that finds no
        free thread waits for one.
    """

    _log = Logger()

    def __init__(self, reactor: IThreadReactor, *, most: int = 16) -> None:
        self._reactor = reactor
        self._most = most
        self._pool: DaemonThreadPool | None = None
        self._unfinished: set[Deferred[Any]] = set()

    def run(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """
        Run a function in one of the threads.

        @return: fires with what the function returns. Fails with what it raises, with
            L{NotRunning} if it was not called, or with L{twisted.internet.defer.CancelledError} if it
            still hung when the service stopped. On cancel, the result is discarded; the thread goes on.
        """
        if self._pool is None:
            return fail(NotRunning("the threads are not running"))
        result = self._pool.run(self._reactor, function, *args)
        self._unfinished.add(result)

        def finished(passed_on: Any) -> Any:
            self._unfinished.discard(result)
            return passed_on

        return result.addBoth(finished)

    def close_descriptor(self, descriptor: int) -> None:
        """Close a descriptor in a thread, because that may take a while; right here if there is none."""

        def close_here(failure: Failure) -> None:
            # After any other failure, a thread has closed it.
            if isinstance(failure.value, NotRunning):
                os.close(descriptor)

        self.run(os.close, descriptor).addErrback(close_here)

    def startService(self) -> None:
        """Begin to accept work."""
        super().startService()  # type: ignore[no-untyped-call]
        self._pool = DaemonThreadPool(minthreads=0, maxthreads=self._most, name="pcapsvc")
        self._pool.start()

    def stopService(self) -> Deferred[None]:
        """
        Accept no more work, and wait for the work in progress.

        @return: fires when every thread has ended, or after L{STOP_SECONDS} if that is
            sooner. Threads that still hang then end with the process.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        stopped: Deferred[None] = Deferred()
        pool, self._pool = self._pool, None
        if pool is None:
            stopped.callback(None)
            return stopped
        try:
            # ThreadPool.stop blocks until its threads have ended, so it gets a thread, too.
            Thread(target=self._join, args=(pool, stopped), daemon=True, name="pcapsvc-stop").start()
        except RuntimeError:
            pool.stop_soon()
            DeferredList(self._unfinished).addCallback(lambda _: self._fire(stopped))
        give_up = self._reactor.callLater(STOP_SECONDS, self._give_up, stopped)

        def joined(_: None) -> None:
            if give_up.active():
                give_up.cancel()

        return stopped.addCallback(joined)

    def _join(self, pool: ThreadPool, stopped: Deferred[None]) -> None:
        pool.stop()
        self._reactor.callFromThread(self._fire, stopped)

    def _fire(self, stopped: Deferred[None]) -> None:
        if not stopped.called:
            stopped.callback(None)

    def _give_up(self, stopped: Deferred[None]) -> None:
        self._log.warn("abandoned {count} threads that did not finish in time", count=len(self._unfinished))
        for result in tuple(self._unfinished):
            result.cancel()
        self._fire(stopped)


class ThreadPools(MultiService):
    """
    The thread pools of one daemon. Each part that blocks has its own, so that one that hangs
    takes up no other's threads.
    """

    name = "threads"

    def __init__(self, reactor: IThreadReactor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reactor = reactor

    def new(self, most: int = 16) -> Threads:
        """
        Make a pool, which is started and stopped with the others.

        @param most: the number of threads that it may have.
        """
        pool = Threads(self._reactor, most=most)
        pool.setServiceParent(self)  # type: ignore[no-untyped-call]
        return pool


def patient(run_in_thread: RunInThread, reactor: IReactorTime) -> RunInThread:
    """
    Have work wait for up to five minutes until a thread can be started, rather than fail with L{NoThread} at
    once: for work on a capture, which would be lost otherwise.

    @return: what it returns fires as that of L{Threads.run}. On cancel while it waits, nothing is called.
    """
    log, is_logged = Logger(), False

    async def run(function: Callable[..., Any], *args: Any) -> Any:
        nonlocal is_logged
        for _ in range(_MOST_RETRIES):
            try:
                result = await run_in_thread(function, *args)
                is_logged = False
                return result
            except NoThread as error:
                if not is_logged:
                    is_logged = True
                    log.warn(
                        "captures are waiting for a thread to encode or compress them: {why}", why=str(error)
                    )
                await deferLater(reactor, _RETRY_SECONDS)
        return await run_in_thread(function, *args)

    return lambda function, *args: Deferred.fromCoroutine(run(function, *args))
