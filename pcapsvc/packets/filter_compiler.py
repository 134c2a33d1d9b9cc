"""
Compiles the filters of requests, in processes that can be killed.

Filters come from strangers. The optimizer of libpcap 1.9 never ends on some of them (its issue 112), and on
others its time grows with the cube of their length. While it runs, only the end of its process stops it.

One process, the quick one, serves all filters in the order in which they arrive. A filter that it has not
finished within L{QUICK_SECONDS} is a hard one: the process stays with it, and the next filter gets a new
process. So a hard filter delays an easy one by no more than that. A limited number of hard ones is compiled
at a time; the others are given up for now, and start again, in their order, when there is room.

If the optimizer takes too long, the program is used without optimization: to compile that takes milliseconds,
and the kernel accepts any program of up to 4096 instructions.

A process that is killed, crashes, or gets no processor time is not the sender's fault: the filter gets a
second one, and then the node is busy. What exceeds the limits of time and memory is rejected, and the
rejection is remembered for a while.

A process takes 16 ms to start, and 11 MB of memory (7 MB of its own). So there is none at rest: it is started
for the first filter, and ended when none has come for L{IDLE_SECONDS}.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore, TimeoutError, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pcapsvc.core.errors import NodeBusy
from pcapsvc.core.filter import FilterRejected, Program, everything
from pcapsvc.core.text import one_line
from pcapsvc.core.vlan_choice import vlan_choice
from pcapsvc.packets.filter_attempt import FilterAttempt
from pcapsvc.packets.filter_cache import FilterCache
from pcapsvc.packets.filter_child import INSTRUCTION_BYTES, LONG, MEMORY, MOST_INSTRUCTIONS, PROGRAM
from pcapsvc.packets.filter_worker import FilterKey, FilterWorker, Outcome, WorkerFailed

#: How long a filter may keep the quick process, in seconds. Ordinary filters take less than a millisecond, 35
#: ports take 15 ms, and the longest list of ports that fits into 512 characters (general.maxfilter) 0.1 s.
QUICK_SECONDS = 0.02
#: How long the optimizer may take, in seconds, if the program can do without it.
OPTIMIZER_SECONDS = 2.0
#: How long a filter may take to compile, in seconds. 200 ports take 1.3 s on an idle machine.
LIMIT_SECONDS = 5.0
#: How long a filter may wait until it is compiled, in seconds.
WAIT_SECONDS = 30.0
#: How long a process may take to start, in seconds.
START_SECONDS = 5.0
#: How long a process is kept for the next filter, in seconds.
IDLE_SECONDS = 60.0

# How much longer than its processor time the first part of a filter may take on a busy machine.
_BUSY_FACTOR = 50


class IFilterReactor(IReactorTime, IReactorProcess):
    """What is asked of the reactor here."""


class FilterCompiler(Service):
    """
    Compiles filters as libpcap's live handles would.

    @param library: the path of the shared library that libpcap is in.
    @param keep_ready: have a process ready at all times, for whoever can spare the memory for 16 ms.
    @param most_hard: how many hard filters are compiled at once. The default is half of the
        processors: the others are for captures.
    @param limit_seconds: how long a filter may take to compile.
    @param optimizer_seconds: likewise, if its program is usable without the optimizer.
    @param quick_seconds: how long a filter may keep the quick process.
    @param wait_seconds: how long a filter may wait before it is compiled.
    @param idle_seconds: how long a process is kept for the next filter.
    """

    name = "filter compiler"
    _log = Logger()

    def __init__(
        self,
        reactor: IFilterReactor,
        library: str,
        *,
        keep_ready: bool = False,
        most_hard: int | None = None,
        limit_seconds: float = LIMIT_SECONDS,
        optimizer_seconds: float = OPTIMIZER_SECONDS,
        quick_seconds: float = QUICK_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._reactor = reactor
        self._library = library
        self._keep_ready = keep_ready
        self._limit = limit_seconds
        self._optimizer_limit = min(optimizer_seconds, limit_seconds)
        self._quick_limit = quick_seconds
        self._wait_limit = wait_seconds
        self._idle_limit = idle_seconds
        self._quick_places = DeferredSemaphore(1)
        self._hard_places = DeferredSemaphore(most_hard or max(1, (os.cpu_count() or 1) // 2))
        self._jobs: dict[FilterKey, _Job] = {}
        self._cache = FilterCache()
        # Those that have not been reaped, and the one of them that is ready for the next filter.
        self._workers: set[FilterWorker] = set()
        self._ready: FilterWorker | None = None
        self._idle_timer: IDelayedCall | None = None

    def startService(self) -> None:
        """Accept filters from here on."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._keep_ready:
            self._prepare_worker()

    def stopService(self) -> Deferred[None]:
        """
        End all processes; what they were compiling fails with L{NodeBusy}.

        @return: fires when all have been reaped. On cancel, they are not waited for.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._stop_idling()
        self._ready = None
        for job in tuple(self._jobs.values()):
            job.stop(NodeBusy("the daemon is stopping"))
        ended = DeferredList([worker.kill() for worker in tuple(self._workers)], consumeErrors=True)
        return ended.addCallback(lambda _: None)

    def compile(self, bpf: str, *, link_type: int, snap_length: int, netmask: int = 0) -> Deferred[Program]:
        """
        Compile a filter for handles of this kind.

        @param bpf: a filter of pcap-filter(7).
        @param snap_length: in bytes.
        @param netmask: of the interface, as inet_aton(3) has it.

        @return: fires with the program; fails with L{FilterRejected}, or with L{NodeBusy} if it waited for
            too long, no process could be started, or two have failed. It has fired if the filter is known:
            rejections are remembered for a while. On cancel, it is no longer compiled, unless another
            caller waits for it.
        """
        choice = vlan_choice(bpf, link_type)
        if choice is None:
            return self._compile_text(bpf, link_type, snap_length, netmask)

        def whole(program: Program) -> Program:
            combined = choice.before(program, bpf)
            count = len(combined.instructions) // INSTRUCTION_BYTES
            if count > MOST_INSTRUCTIONS:
                raise FilterRejected(bpf, _too_long(count), compile_seconds=program.compile_seconds)
            return combined

        def rejected(failure: Failure) -> Failure:
            error = failure.value
            if isinstance(error, FilterRejected):
                return Failure(error.about(bpf))  # type: ignore[no-untyped-call]
            return failure

        compiling = self._compile_text(choice.bpf, link_type, snap_length, netmask)
        return compiling.addCallbacks(whole, rejected)

    def _compile_text(self, bpf: str, link_type: int, snap_length: int, netmask: int) -> Deferred[Program]:
        """Likewise, with libpcap alone."""
        if not bpf.strip():
            return succeed(everything(snap_length))
        if not uses_netmask(bpf):
            netmask = 0
        key = FilterKey(bpf=bpf, link_type=link_type, snap_length=snap_length, netmask=netmask)
        known = self._cache.get(key, self._reactor.seconds())
        if isinstance(known, FilterRejected):
            return fail(known)
        if known is not None:
            return succeed(known)
        if not self.running:
            return fail(NodeBusy("the filter compiler is not running"))
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = _Job(lambda: self._jobs.pop(key, None))
            job.begin(Deferred.fromCoroutine(self._compile(key)))
        return job.wait()

    async def _compile(self, key: FilterKey) -> Program:
        """One filter, from its turn to its program, in a second process if the first one fails."""
        due = self._reactor.seconds() + self._wait_limit
        attempt = FilterAttempt(self._reactor, key)
        try:
            program = await self._try(key, attempt, due)
        except WorkerFailed as error:
            self._log.warn("the compiler of the filter {bpf!r} failed: {error}", bpf=key.bpf, error=error)
            attempt = FilterAttempt(self._reactor, key)
            try:
                program = await self._try(key, attempt, due)
            except WorkerFailed as again:
                self._log.error(
                    "the compiler of the filter {bpf!r} failed again: {error}", bpf=key.bpf, error=again
                )
                if not attempt.rough:
                    raise NodeBusy(f"the filter compiler failed: {again}") from None
                # Not remembered: the optimizer may be able to finish it the next time.
                return self._without_optimization(key, attempt, "ended its compiler")
        self._cache.put(key, program)
        return program

    async def _try(self, key: FilterKey, attempt: FilterAttempt, due: float) -> Program:
        """
        Compile a filter in one process, or in one after the other.

        @raise FilterRejected: by the filter's fault.
        @raise WorkerFailed: by no fault of the filter.
        """
        outcome: Outcome | None = None
        problem = None
        try:
            outcome = await self._outcome(attempt, due)
            limit = self._optimizer_limit if attempt.rough else self._limit
            if outcome is None and attempt.is_starved(limit):
                raise WorkerFailed(f"it got hardly any processor time within {limit:g} s")
        except WorkerFailed as error:
            if not error.is_by_filter:
                raise
            problem = f"can't be compiled: {error}"
        finally:
            self._release(attempt)
        try:
            return self._judge(key, outcome, attempt, problem)
        except FilterRejected as error:
            self._cache.put_rejection(key, error.problems[0].rule, self._reactor.seconds())
            raise

    async def _outcome(self, attempt: FilterAttempt, due: float) -> Outcome | None:
        """What a filter's process answers; L{None} if it takes too long."""
        await self._begin(attempt, self._quick_places, due)
        outcome = await attempt.wait_quick(
            self._quick_limit, min(self._limit, _BUSY_FACTOR * self._quick_limit)
        )
        if outcome is not None:
            return outcome
        if self._hard_places.tokens:
            await attempt.take_place(self._hard_places, due)
        else:
            attempt.kill()
            await self._begin(attempt, self._hard_places, due)
        attempt.yield_to_others()
        if self._keep_ready:
            self._prepare_worker()
        outcome = await attempt.wait_until(self._optimizer_limit)
        if outcome is None and not attempt.rough:
            outcome = await attempt.wait_until(self._limit)
        return outcome

    def _judge(
        self, key: FilterKey, outcome: Outcome | None, attempt: FilterAttempt, problem: str | None
    ) -> Program:
        """What a filter was compiled to, or why it wasn't."""
        seconds = attempt.spent_seconds
        if outcome is None:
            limit = self._optimizer_limit if attempt.rough else self._limit
            problem = problem or f"did not compile within {limit:g} s"
        elif outcome.kind == PROGRAM:
            return Program(bpf=key.bpf, instructions=outcome.payload, compile_seconds=seconds)
        elif outcome.kind == MEMORY:
            problem = "takes too much memory to compile"
        else:
            words = outcome.payload.decode("utf-8", "replace")
            problem = f"libpcap says: {one_line(words)}"
            if outcome.kind == LONG:
                problem = _too_long(words)
            raise FilterRejected(key.bpf, problem, compile_seconds=seconds)
        if not attempt.rough:
            raise FilterRejected(key.bpf, problem, compile_seconds=seconds)
        return self._without_optimization(key, attempt, problem)

    def _without_optimization(self, key: FilterKey, attempt: FilterAttempt, problem: str) -> Program:
        """The program as it was before the optimizer, which failed."""
        self._log.info(
            "the filter {bpf!r} is used without optimization: with it, it {problem}",
            bpf=key.bpf,
            problem=problem,
        )
        return Program(
            bpf=key.bpf,
            instructions=attempt.rough,
            is_optimized=False,
            compile_seconds=attempt.spent_seconds,
        )

    async def _begin(self, attempt: FilterAttempt, places: DeferredSemaphore, due: float) -> None:
        """Have a filter compiled as soon as there is a place."""
        try:
            await attempt.take_place(places, due)
        except TimeoutError:
            raise NodeBusy(f"the filter waited {self._wait_limit:g} s for others to be compiled") from None
        worker = self._take_ready() or self._start_worker()
        attempt.worker = worker
        try:
            await worker.when_ready().addTimeout(START_SECONDS, self._reactor)
        except TimeoutError:
            raise NodeBusy(f"the filter compiler did not start within {START_SECONDS:g} s") from None
        except WorkerFailed as error:
            self._log.error("the filter compiler did not start: {error}", error=error)
            raise NodeBusy("the filter compiler did not start") from None
        attempt.begin()

    def _start_worker(self) -> FilterWorker:
        cpu_seconds = math.ceil(self._limit) + 1
        try:
            worker = FilterWorker.start(self._reactor, self._library, cpu_seconds=cpu_seconds)
        except OSError as error:
            raise NodeBusy(f"there is no room for the filter compiler: {error}") from None
        self._workers.add(worker)
        worker.when_ended().addCallback(lambda _: self._on_end(worker))
        return worker

    def _on_end(self, worker: FilterWorker) -> None:
        self._workers.discard(worker)
        if self._ready is worker:
            self._ready = None
            self._stop_idling()

    def _take_ready(self) -> FilterWorker | None:
        self._stop_idling()
        worker, self._ready = self._ready, None
        return worker

    def _release(self, attempt: FilterAttempt) -> None:
        """An attempt is over: its process, if it can compile more, is kept for the next filter."""
        worker = attempt.take_idle_worker()
        if worker is not None and (self._ready is not None or not self.running):
            worker.kill()
        elif worker is not None:
            self._ready = worker
            if not self._keep_ready:
                self._idle_timer = self._reactor.callLater(self._idle_limit, self._end_ready)
        # This leaves its place to the next filter.
        attempt.kill()

    def _end_ready(self) -> None:
        if (worker := self._take_ready()) is not None:
            worker.kill()

    def _prepare_worker(self) -> None:
        if self._ready is not None:
            return
        try:
            self._ready = self._start_worker()
        except NodeBusy as error:
            self._log.warn("{error}", error=error)

    def _stop_idling(self) -> None:
        if self._idle_timer is not None and self._idle_timer.active():
            self._idle_timer.cancel()
        self._idle_timer = None


class _Job:
    """
    A filter that is being compiled, for whoever wants it.

    @param done: called when it is over.
    """

    def __init__(self, done: Callable[[], object]) -> None:
        self._done = done
        self._work: Deferred[Program] | None = None
        self._waiting: list[Deferred[Program]] = []
        self._result: Program | Failure | None = None

    def begin(self, work: Deferred[Program]) -> None:
        """What compiles it. On cancel, it ends whatever it is doing."""
        self._work = work
        work.addBoth(self._over)

    def wait(self) -> Deferred[Program]:
        """Wait for the program. The last to cancel ends the work."""
        wanted: Deferred[Program] = Deferred(self._cancel)
        self._waiting.append(wanted)
        if self._result is not None:
            self._fire_all()
        return wanted

    def stop(self, reason: Exception) -> None:
        """End the work, and have all that wait fail."""
        self._over(Failure(reason))  # type: ignore[no-untyped-call]
        if self._work is not None:
            self._work.cancel()

    def _cancel(self, wanted: Deferred[Program]) -> None:
        if wanted in self._waiting:
            self._waiting.remove(wanted)
        if not self._waiting and self._work is not None:
            self._work.cancel()

    def _over(self, result: Program | Failure) -> None:
        if self._result is None:
            self._result = result
            self._done()
            self._fire_all()

    def _fire_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for wanted in waiting:
            wanted.callback(self._result)  # type: ignore[arg-type]


def _too_long(instructions: object) -> str:
    return f"compiles to {instructions} instructions, and the kernel accepts {MOST_INSTRUCTIONS}"


def uses_netmask(bpf: str) -> bool:
    """
    Whether a filter depends on the netmask of the interface: only C{ip broadcast} does (pcap_compile(3PCAP)).
    """
    return "broadcast" in bpf
