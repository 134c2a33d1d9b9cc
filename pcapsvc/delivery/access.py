"""Access to the spool's directory: in threads, and for what changes it, one at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredLock

from pcapsvc.core.errors import SpoolError
from pcapsvc.interfaces.threads import RunInThread


class ExclusiveAccess:
    """
    Runs functions that block. Those that change the directory run one at a time: who waits for one can
    be cancelled, but a thread can't, and the disk may hang. So the next one begins only after the
    thread has finished, whoever still waits for it.

    @param report: receives what could not be undone.
    """

    def __init__(self, run_in_thread: RunInThread, report: Callable[[Exception], object]) -> None:
        self._run_in_thread = run_in_thread
        self._report = report
        self._lock = DeferredLock()
        # Work that was cancelled, and keeps the directory until it has finished.
        self._late: Deferred[Any] | None = None

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Within, nobody else is. On cancel, it is no longer waited for."""
        await self._lock.acquire()
        try:
            yield
        finally:
            late, self._late = self._late, None
            if late is None:
                self._lock.release()
            else:
                late.addBoth(lambda _: self._lock.release())

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """
        Run a function in a thread.

        @raise SpoolError: if it fails, whatever it raises; or if there are no threads.
        """
        try:
            return await self._run_in_thread(function, *args)
        except (SpoolError, CancelledError):
            raise
        except Exception as error:
            raise SpoolError(str(error) or type(error).__name__) from error

    async def run_alone(
        self, function: Callable[..., Any], *args: Any, undo: Callable[[Any], object] | None = None
    ) -> Any:
        """
        Run a function, within L{alone}. If this is cancelled, L{alone} lasts until the function has returned.

        @param undo: takes back its result, in a thread, if this was cancelled.
        """
        work: Deferred[Any] = Deferred.fromCoroutine(self.run(function, *args))
        try:
            return await self.finish(work)
        except CancelledError:
            if self._late is work:
                self._late = Deferred.fromCoroutine(self._undo(work, undo))
            raise

    async def finish(self, work: Deferred[Any]) -> Any:
        """Wait for work, within L{alone}. If this is cancelled, the work and L{alone} go on until its end."""
        waiting: Deferred[Any] = Deferred()

        def ended(result: Any) -> Any:
            if waiting.called:
                return result
            waiting.callback(result)
            return None

        work.addBoth(ended)
        try:
            return await waiting
        except CancelledError:
            if not work.called:
                self._late = work
            raise

    async def _undo(self, work: Deferred[Any], undo: Callable[[Any], object] | None) -> None:
        try:
            result = await work
        except (SpoolError, CancelledError):
            return
        try:
            if undo is not None:
                await self.run(undo, result)
        except (SpoolError, CancelledError) as error:
            self._report(error)
