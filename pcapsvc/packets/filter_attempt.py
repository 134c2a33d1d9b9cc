"""One attempt to compile a filter, on its way through places and processes."""

from __future__ import annotations

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from pcapsvc.packets.filter_worker import FilterKey, FilterWorker, Outcome

# A process that has had less than this share of the time was kept from computing: it was stopped, or the
# machine had no time for it.
_STARVED_SHARE = 0.1


class FilterAttempt:
    """
    A filter on its way through places and processes.

    @ivar worker: the process that compiles it, or is about to.
    @ivar spent_seconds: how long processes were busy with it.
    """

    def __init__(self, reactor: IReactorTime, key: FilterKey) -> None:
        self._reactor = reactor
        self._key = key
        self._places: DeferredSemaphore | None = None
        self._began: float | None = None
        self._cpu_before: float | None = None
        self._outcome: Outcome | Failure | None = None
        self._waiter: Deferred[None] | None = None
        self.worker: FilterWorker | None = None
        self._rough = b""
        self.spent_seconds = 0.0

    @property
    def rough(self) -> bytes:
        """Its program without optimization, if one is known that the kernel accepts; else empty."""
        if self.worker is not None:
            self._rough = self.worker.rough or self._rough
        return self._rough

    async def take_place(self, places: DeferredSemaphore, due: float) -> None:
        """
        Wait for a place, and then leave the one that it has.

        @raise TimeoutError: if there was none by then.
        """
        place: Deferred[DeferredSemaphore] = places.acquire()
        if place.called:
            self._leave_place()
            self._places = places
            return
        await place.addTimeout(max(0.0, due - self._reactor.seconds()), self._reactor)
        self._leave_place()
        self._places = places
        # Whoever left the place has work to finish before this goes on: that is another request's.
        await deferLater(self._reactor, 0)

    def begin(self) -> None:
        """Have the process compile the filter."""
        assert self.worker is not None
        self._began = self._reactor.seconds()
        worker = self.worker
        self._cpu_before = worker.cpu_seconds()

        def on_outcome(outcome: Outcome | Failure) -> None:
            if worker is self.worker:
                self._outcome = outcome
                self._note_time()
                self._wake()

        worker.compile(self._key).addBoth(on_outcome)

    async def wait_until(self, seconds: float) -> Outcome | None:
        """
        Wait for the outcome until C{seconds} after the process began; L{None} if there is none by then.

        @raise WorkerFailed: if there can't be any.
        """
        if self._outcome is None and self._began is not None:
            left = self._began + seconds - self._reactor.seconds()
            self._waiter = Deferred()
            timer = self._reactor.callLater(max(0.0, left), self._wake)
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer.active():
                    timer.cancel()
        if isinstance(self._outcome, Failure):
            self._outcome.raiseException()
        return self._outcome

    async def wait_quick(self, seconds: float, most_seconds: float) -> Outcome | None:
        """
        Wait for the outcome until the process has used C{seconds} of processor time: on a busy machine, that
        takes longer than on an idle one. L{None} if there is none by then.

        @param most_seconds: the longest time to wait.

        @raise WorkerFailed: if there can't be any.
        """
        waited = 0.0
        while waited < most_seconds:
            waited += seconds
            outcome = await self.wait_until(waited)
            used = self._cpu_used()
            if outcome is not None or used is None or used >= seconds / 2:
                return outcome
        return None

    def is_starved(self, seconds: float) -> bool:
        """
        Whether the process has hardly computed, because it was stopped, or because of the machine's load.

        @param seconds: for how long it could have.
        """
        used = self._cpu_used()
        return used is not None and used < _STARVED_SHARE * seconds

    def yield_to_others(self) -> None:
        """What it computes takes long: everything else comes first."""
        if self.worker is not None:
            self.worker.yield_to_others()

    def kill(self) -> None:
        """Give up what is being done, and the place for it."""
        self._note_time()
        self._rough = self.rough
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.kill()
        self._leave_place()

    def take_idle_worker(self) -> FilterWorker | None:
        """The process, if it is done; the attempt gives it up."""
        if not isinstance(self._outcome, Outcome):
            return None
        self._rough = self.rough
        worker, self.worker = self.worker, None
        return worker

    def _cpu_used(self) -> float | None:
        """How much processor time was spent on it, in seconds; L{None} if that is unknown."""
        now = None if self.worker is None else self.worker.cpu_seconds()
        return None if now is None or self._cpu_before is None else now - self._cpu_before

    def _note_time(self) -> None:
        if self._began is not None:
            self.spent_seconds += self._reactor.seconds() - self._began
            self._began = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.called:
            self._waiter.callback(None)

    def _leave_place(self) -> None:
        places, self._places = self._places, None
        if places is not None:
            places.release()
