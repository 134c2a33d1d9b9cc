"""Runs jobs in processes, a limited number at a time, and collects their results."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from peers import control_group, wire
from peers.nursery import ForkedProcess, Nursery
from tests.runner.machine import pressure
from tests.runner.outcome import JobProgress, Tally
from tests.runner.schedule import Job

# After this long without an event a process is taken to hang, unless its test has a longer time-out: trial
# ends an asynchronous test after 120 s. Others may wait for many things, each of which may take minutes on a
# busy machine.
PATIENCE_SECONDS = 900.0
# How long a process may take to exit after its last test. It never exits if a test leaves a thread behind.
EXIT_SECONDS = 60.0
# How long it may take to start, and to load the tests.
_START_SECONDS = 300.0
# How long faulthandler may take to write the stacks.
_STACKS_SECONDS = 5.0


# What is expected is an average: some more keeps all processors busy.
_OVERCOMMIT = 1.15
# On a slower machine, or one that does something else as well, it is more than expected. If the pressure on
# its processors is higher than this, in percent, another job would only make all of them slower, and tests
# fail by that. So many of them run nevertheless, for each processor.
_MOST_PRESSURE = 75.0
_LEAST_PER_PROCESSOR = 2
# How often the pressure is looked at.
_LOOK_SECONDS = 1.0


def next_job(
    waiting: Iterable[Job],
    running: Collection[Job],
    processes: int,
    processors: float,
    pressure: float = 0.0,
) -> Job | None:
    """
    The job to start next: the first one that fits beside those that run, or, if none runs, the first one.

    @param processes: how many may run.
    @param processors: how many they may be expected to occupy together.
    @param pressure: as L{tests.runner.machine.pressure} says.
    """
    if len(running) >= processes:
        return None
    if pressure > _MOST_PRESSURE and len(running) >= _LEAST_PER_PROCESSOR * processors:
        return None
    free = processors * _OVERCOMMIT - sum(job.busy for job in running)
    return next((job for job in waiting if not running or job.busy <= free), None)


async def _end_of(process: ForkedProcess) -> None:
    """Wait until a process has ended."""
    loop = asyncio.get_running_loop()
    while process.poll() is None:
        ended = loop.create_future()
        loop.add_reader(process.fileno(), ended.set_result, None)
        try:
            await ended
        finally:
            loop.remove_reader(process.fileno())


class Pool:
    """
    Runs jobs.

    @ivar tally: what came of them.
    """

    def __init__(
        self,
        root: Path,
        directory: Path,
        *,
        nursery: Nursery,
        say: Callable[[str], None],
        patience_seconds: float = PATIENCE_SECONDS,
        exit_seconds: float = EXIT_SECONDS,
    ) -> None:
        """
        @param root: where the processes start: the directory with the C{tests} package.
        @param directory: for their temporary directories and their output.
        @param nursery: starts the processes: one of L{tests.runner.worker}.
        @param say: prints a line.
        @param patience_seconds: how long a process may go without reporting anything; longer if the time-out
            of its test is longer.
        @param exit_seconds: how long it may take to exit after its last test.
        """
        self._root = root
        self._directory = directory
        self._nursery = nursery
        self._say = say
        self._patience_seconds = patience_seconds
        self._exit_seconds = exit_seconds
        self._started = 0
        self.tally = Tally()

    async def run(self, jobs: Sequence[Job], processes: int, processors: float) -> None:
        """
        Run all jobs: several at a time, and then, one by one, those that need the machine alone.

        @param processes: how many at most.
        @param processors: how many they may be expected to occupy together.
        """
        await self._run_all((job for job in jobs if not job.alone), processes, processors)
        await self._run_all((job for job in jobs if job.alone), 1, processors)

    async def _run_all(self, jobs: Iterable[Job], processes: int, processors: float) -> None:
        waiting = list(jobs)
        running: dict[asyncio.Task[Job | None], Job] = {}
        async with asyncio.TaskGroup() as group:
            while waiting or running:
                while job := next_job(waiting, running.values(), processes, processors, pressure()):
                    waiting.remove(job)
                    running[group.create_task(self._run_one(job))] = job
                ended, _ = await asyncio.wait(
                    running, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for task in ended:
                    del running[task]
                    left = task.result()
                    if left is not None:
                        waiting.append(left)

    async def _run_one(self, job: Job) -> Job | None:
        """
        Run one job in a process.

        @return: what is left of it, if the process died.
        """
        self._started += 1
        place = self._directory / f"{self._started}"
        output = place.with_suffix(".log")
        progress = JobProgress(job, self.tally)
        reading, writing = os.pipe()
        try:
            process = self._fork(job, place, output, writing)
        except RuntimeError as error:
            os.close(reading)
            test = f"the process of {' '.join(job.names)}"
            self.tally.add_failure(test, str(error))
            self._say(f"FAILED {test}: {error}")
            return None
        finally:
            os.close(writing)
        try:
            problem = await self._follow(reading, process, progress)
        finally:
            # With what it started, which is in its session.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await _end_of(process)
            wire.clean_up_after(process.pid)
            control_group.clean_up_after(process.pid)
        if problem is None:
            return None
        test = progress.running or f"the process of {' '.join(job.names)}"
        self.tally.add_failure(test, f"{problem}\n\n{output.read_text(errors='replace')}")
        self._say(f"FAILED {test}: {problem}")
        left = progress.unfinished()
        return (
            Job(names=left, alone=job.alone, seconds=0, busy=job.busy)
            if left and not progress.ended
            else None
        )

    def _fork(self, job: Job, place: Path, output: Path, events: int) -> ForkedProcess:
        words = ["tests.runner.worker", "--events", str(events), "--directory", str(place)]
        words += ["--alone"] if job.alone else []
        with output.open("wb") as log:
            return ForkedProcess(
                self._nursery.path,
                [*words, *job.names],
                output=log.fileno(),
                directory=self._root,
                passed=[events],
            )

    async def _follow(self, reading: int, process: ForkedProcess, progress: JobProgress) -> str | None:
        """
        Read the events of a process until it has exited.

        @return: what is wrong with the process, as opposed to its tests; L{None} if nothing is.
        """
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader(limit=1 << 24)
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
            try:
                while True:
                    patience = (
                        max(self._patience_seconds, progress.timeout_seconds)
                        if progress.ready
                        else _START_SECONDS
                    )
                    line = await asyncio.wait_for(stream.readline(), patience)
                    if not line:
                        break
                    before = len(self.tally.failures)
                    summary = progress.event(json.loads(line))
                    if summary is not None:
                        self._say(summary)
                    for test, _ in self.tally.failures[before:]:
                        self._say(f"FAILED {test}")
                    if progress.ended:
                        break
                await asyncio.wait_for(_end_of(process), self._exit_seconds)
            except TimeoutError:
                process.send_signal(signal.SIGABRT)
                with suppress(TimeoutError):
                    await asyncio.wait_for(_end_of(process), _STACKS_SECONDS)
                if progress.ended:
                    return f"did not exit within {self._exit_seconds:.0f} s after its last test"
                return f"hangs: nothing happened for {patience:.0f} s"
            finally:
                transport.close()
        if progress.ended:
            return None
        return f"exited with status {process.returncode} before its tests were done"
