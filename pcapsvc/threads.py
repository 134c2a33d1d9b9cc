"""Threads of our own, for clients that block."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Thread
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

#: How long a stop waits for threads that are still at work.
STOP_SECONDS = 2.0


class IThreadReactor(IReactorFromThreads, IReactorTime):
    """What is asked of a reactor here."""


class NotRunning(RuntimeError):
    """Work was given to threads that have not been started, or that are stopping."""


class DaemonThreadPool(ThreadPool):
    """A pool whose threads keep no process alive: what hangs in one of them dies with the process."""

    def threadFactory(self, *args: Any, **kwargs: Any) -> Thread:  # type: ignore[override]
        """A thread for the pool, made as Twisted asks for it, which doesn't keep the process alive."""
        return Thread(*args, daemon=True, **kwargs)


class Threads(Service):
    """
    A pool of daemon threads, apart from the reactor's own: a client that hangs
    delays neither a DNS look-up nor the process's exit.

    L{run} is a L{pcapsvc.interfaces.threads.RunInThread}.

    @param most: the number of threads, at most. Each begins when it is needed first,
        and work that finds none free waits for one.
    """

    name = "threads"
    _log = Logger()

    def __init__(self, reactor: IThreadReactor, *, most: int = 16) -> None:
        self._reactor = reactor
        self._most = most
        self._pool: DaemonThreadPool | None = None
        self._unfinished: set[Deferred[Any]] = set()

    def run(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """
        Run a function in one of the threads.

        @return: fires with what the function returns; fails with what it raises, with
            L{NotRunning}, or with L{twisted.internet.defer.CancelledError} where it hung
            when the service stopped. On cancel, it is no longer waited for; a thread
            can't be made to stop.
        """
        if self._pool is None:
            return fail(NotRunning("the threads are not running"))
        result: Deferred[Any] = deferToThreadPool(self._reactor, self._pool, function, *args)
        self._unfinished.add(result)

        def finished(passed_on: Any) -> Any:
            self._unfinished.discard(result)
            return passed_on

        return result.addBoth(finished)

    def close_descriptor(self, descriptor: int) -> None:
        """Close a descriptor in one of the threads, as the kernel takes its time; here if none runs."""

        def close_here(failure: Failure) -> None:
            # Any other failure came after a thread had begun.
            if isinstance(failure.value, NotRunning):
                os.close(descriptor)

        self.run(os.close, descriptor).addErrback(close_here)

    def startService(self) -> None:
        """Take work from here on."""
        super().startService()  # type: ignore[no-untyped-call]
        self._pool = DaemonThreadPool(minthreads=0, maxthreads=self._most, name="pcapsvc")
        self._pool.start()

    def stopService(self) -> Deferred[None]:
        """
        Take no more work, and let what there is come to its end.

        @return: fires when every thread has ended, or after L{STOP_SECONDS}, whichever
            comes first; what hangs then is left to die with the process.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        stopped: Deferred[None] = Deferred()
        pool, self._pool = self._pool, None
        if pool is None:
            stopped.callback(None)
            return stopped
        # ThreadPool.stop waits for its threads: so a thread does that, too.
        Thread(target=self._join, args=(pool, stopped), daemon=True, name="pcapsvc-stop").start()
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
        self._log.warn(
            "{count} pieces of work hang in their threads, and are left behind", count=len(self._unfinished)
        )
        for result in tuple(self._unfinished):
            result.cancel()
        self._fire(stopped)
