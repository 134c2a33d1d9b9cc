"""The threads for blocking clients."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from twisted.internet import defer, reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from pcapsvc import threads as threads_module
from pcapsvc.threads import STOP_SECONDS, NoThread, NotRunning, Threads, patient
from tests.unit.logged import logged


class ThreadClock(Clock):
    """A clock that records calls from threads, and does not make them."""

    def __init__(self) -> None:
        super().__init__()
        self.from_threads: list[tuple[object, ...]] = []

    def callFromThread(self, function: object, *args: object) -> None:
        self.from_threads.append((function, *args))


def be_patient(test: TestCase) -> None:
    """Have a stop wait for threads for as long as a busy machine may need."""
    test.patch(threads_module, "STOP_SECONDS", 60.0)


class ThreadsTests(TestCase):
    """L{Threads}, on the real reactor."""

    def setUp(self) -> None:
        be_patient(self)
        self.threads = Threads(reactor, most=2)
        self.threads.startService()
        self.addCleanup(self.threads.stopService)

    async def test_result(self) -> None:
        """A function runs in a daemon thread with its arguments, and its result is returned."""
        thread, total = await self.threads.run(lambda a, b: (threading.current_thread(), a + b), 1, 2)
        self.assertIsNot(thread, threading.current_thread())
        self.assertTrue(thread.daemon)
        self.assertEqual(total, 3)

    async def test_failure(self) -> None:
        """The Deferred fails with what the function raises."""
        with self.assertRaises(ZeroDivisionError):
            await self.threads.run(lambda: 1 // 0)

    async def test_more_work_than_threads(self) -> None:
        """Work that finds no free thread waits for one."""
        results = await defer.gatherResults([self.threads.run(lambda n=n: n) for n in range(20)])
        self.assertEqual(results, list(range(20)))

    async def test_stop_waits_for_work(self) -> None:
        """A stop waits for running and waiting work, and accepts no more."""
        done: list[int] = []

        def work(n: int) -> None:
            time.sleep(0.02)
            done.append(n)

        running = [self.threads.run(work, n) for n in range(5)]
        stopped = self.threads.stopService()
        await self.assertFailure(self.threads.run(work, 99), NotRunning)
        await stopped
        await defer.gatherResults(running)
        self.assertEqual(sorted(done), [0, 1, 2, 3, 4])

    async def test_run_again(self) -> None:
        """The threads can be started again after a stop."""
        await self.threads.stopService()
        self.threads.startService()
        self.assertEqual(await self.threads.run(lambda: 1), 1)

    async def test_not_started(self) -> None:
        """Work fails before the start."""
        await self.assertFailure(Threads(reactor).run(lambda: 1), NotRunning)

    async def test_stop_twice(self) -> None:
        """A second stop fires at once."""
        await self.threads.stopService()
        await self.threads.stopService()


class NoMoreThreadsTests(TestCase):
    """L{Threads}, while the system starts no more threads."""

    def setUp(self) -> None:
        be_patient(self)
        self.threads = Threads(reactor, most=2)
        self.threads.startService()
        self.addCleanup(self.threads.stopService)

    def refuse(self) -> None:
        """Have the system refuse threads: there is no room for a stack of 64 TiB."""
        self.addCleanup(threading.stack_size, threading.stack_size(1 << 46))

    def allow(self) -> None:
        """Have it start them again."""
        threading.stack_size(0)

    async def test_none(self) -> None:
        """If there is no thread at all, nothing is called. The failure is an error of the system."""
        self.refuse()
        called: list[int] = []
        error = await self.assertFailure(self.threads.run(called.append, 1), NoThread)
        self.assertIsInstance(error, OSError)
        self.assertIsInstance(error, NotRunning)
        self.assertEqual((error.strerror, called), ("can't start new thread", []))

    async def test_again(self) -> None:
        """Once they can be started again, they are."""
        self.refuse()
        await self.assertFailure(self.threads.run(lambda: 1), NoThread)
        self.allow()
        self.assertEqual(await self.threads.run(lambda: 1), 1)

    async def test_others_do_the_work(self) -> None:
        """Work waits for the threads that there are."""
        release = threading.Event()
        self.addCleanup(release.set)
        busy = self.threads.run(release.wait)
        self.refuse()
        waiting = [self.threads.run(lambda n=n: n) for n in range(3)]
        release.set()
        await busy
        self.assertEqual(await defer.gatherResults(waiting), [0, 1, 2])

    async def test_all_again(self) -> None:
        """After that, there may be as many threads as before."""
        both = threading.Barrier(2, timeout=90)
        first = self.threads.run(both.wait)
        self.refuse()
        waiting = self.threads.run(lambda: None)
        self.allow()
        await self.threads.run(both.wait)
        await defer.gatherResults([first, waiting])

    async def test_patience(self) -> None:
        """Patient work waits for a thread until it is cancelled, or the threads are stopped."""
        clock = Clock()
        run = patient(self.threads.run, clock)
        self.refuse()
        called: list[int] = []
        lines = logged(self)
        waiting, cancelled = run(called.append, 1), run(called.append, 2)
        clock.advance(60)
        [line] = lines()
        self.assertTrue(line.startswith("captures are waiting for a thread to encode or compress them"), line)
        self.assertNoResult(waiting)
        cancelled.cancel()
        self.failureResultOf(cancelled, defer.CancelledError)
        self.allow()
        clock.advance(60)
        await waiting
        self.assertEqual((called, clock.getDelayedCalls()), ([1], []))
        with self.assertRaises(ZeroDivisionError):
            await run(lambda: 1 // 0)
        await self.threads.stopService()
        self.threads.startService()
        self.refuse()
        waiting = run(called.append, 3)
        clock.pump([1.0] * 301)
        self.failureResultOf(waiting, NoThread)
        await self.threads.stopService()
        self.failureResultOf(run(called.append, 3), NotRunning)

    async def test_descriptor(self) -> None:
        """A descriptor is closed all the same."""
        self.refuse()
        reading, writing = os.pipe()
        os.close(writing)
        self.threads.close_descriptor(reading)
        with self.assertRaises(OSError):
            os.fstat(reading)

    async def test_stop(self) -> None:
        """A stop waits for the work in progress."""
        done: list[int] = []
        release = threading.Event()
        self.addCleanup(release.set)

        def work() -> None:
            release.wait()
            done.append(1)

        running = self.threads.run(work)
        self.refuse()
        stopped = self.threads.stopService()
        self.assertNoResult(stopped)
        release.set()
        await stopped
        await running
        self.assertEqual(done, [1])

    async def test_stop_after_a_refusal(self) -> None:
        """A thread that couldn't be started is not waited for at the stop."""
        self.refuse()
        await self.assertFailure(self.threads.run(lambda: 1), NoThread)
        self.allow()
        self.patch(threads_module, "STOP_SECONDS", 60.0)
        begun = time.monotonic()
        await self.threads.stopService()
        self.assertLess(time.monotonic() - begun, 30.0)


class HangingThreadTests(TestCase):
    """L{Threads} with work that does not end."""

    def test_stop_gives_up(self) -> None:
        """
        A stop does not block, waits no longer than its time-out for a thread that hangs, and
        then cancels that thread's work.
        """
        clock = ThreadClock()
        threads = Threads(clock)  # type: ignore[arg-type]
        threads.startService()
        release = threading.Event()
        self.addCleanup(release.set)
        hanging = threads.run(release.wait)
        stopped = threads.stopService()
        clock.advance(STOP_SECONDS - 0.01)
        self.assertNoResult(stopped)
        self.assertNoResult(hanging)
        clock.advance(0.02)
        self.successResultOf(stopped)
        self.failureResultOf(hanging, defer.CancelledError)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_process_ends(self) -> None:
        """A thread that hangs does not keep the process from ending."""
        program = (
            "import time\n"
            "from twisted.internet import reactor\n"
            "from pcapsvc.threads import Threads\n"
            "threads = Threads(reactor)\n"
            "threads.startService()\n"
            "threads.run(time.sleep, 1000).addErrback(lambda _: None)\n"
            "reactor.addSystemEventTrigger('before', 'shutdown', threads.stopService)\n"
            "reactor.callLater(0.05, reactor.stop)\n"
            "reactor.run()\n"
        )
        path = {"PYTHONPATH": ":".join(sys.path)}
        ended = subprocess.run([sys.executable, "-c", program], timeout=90, capture_output=True, env=path)
        self.assertEqual((ended.returncode, ended.stderr), (0, b""))
