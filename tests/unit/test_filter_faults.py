"""Filters that are rejected, and the faults of processes that are not the filter's."""

from __future__ import annotations

import signal

from pcapsvc.core.errors import NodeBusy
from pcapsvc.packets.filter_cache import REJECTED_SECONDS
from pcapsvc.packets.filter_child import ANSWER, ERROR, PROGRAM, ROUGH
from pcapsvc.packets.filter_worker import FilterWorker
from tests.unit.filter_case import LIMIT, OPTIMIZER, QUICK, FilterCase


class RejectionTests(FilterCase):
    """What is remembered of filters that were rejected."""

    def test_remembered(self) -> None:
        """A filter that took too long is rejected at once if it comes again within a minute, at no cost."""
        compiled = self.compile("endless")
        self.clock.pump([QUICK, OPTIMIZER, LIMIT - OPTIMIZER])
        first = self.rejection(compiled)
        self.assertGreater(first.compile_seconds, 0)
        self.clock.advance(REJECTED_SECONDS - 1)
        again = self.rejection(self.compile("endless"))
        self.assertEqual((str(again), again.compile_seconds), (str(first), 0.0))
        self.assertEqual(len(self.clock.processes), 1)
        self.clock.advance(1)
        compiled = self.compile("endless")
        self.clock.alive[0].answer(PROGRAM, b"program")
        self.successResultOf(compiled)

    def test_same_kind_only(self) -> None:
        """A rejection counts for handles of the same kind."""
        compiled = self.compile("one")
        [process] = self.clock.processes
        process.answer(ERROR, b"syntax error")
        self.rejection(compiled)
        compiled = self.compile("one", snap_length=99)
        process.answer(PROGRAM, b"program")
        self.successResultOf(compiled)

    def test_bounded(self) -> None:
        """Up to 256 rejections are remembered, the latest ones, and programs are not displaced by them."""
        compiled = self.compile("good")
        [process] = self.clock.processes
        process.answer(PROGRAM, b"program")
        self.successResultOf(compiled)
        for number in range(257):
            compiled = self.compile(f"bad {number}")
            process.answer(ERROR, b"syntax error")
            self.rejection(compiled)
        self.successResultOf(self.compile("good"))
        self.rejection(self.compile("bad 1"))
        compiled = self.compile("bad 0")
        self.assertEqual(process.asked[-1], "bad 0")
        process.answer(ERROR, b"syntax error")
        self.rejection(compiled)

    def test_node_busy_is_not_remembered(self) -> None:
        """What was not the filter's fault is forgotten."""
        compiled = self.compile("one")
        for process in range(2):
            self.clock.processes[process].end()
        self.failureResultOf(compiled, NodeBusy)
        compiled = self.compile("one")
        self.clock.alive[0].answer(PROGRAM, b"program")
        self.successResultOf(compiled)


class FaultTests(FilterCase):
    """Processes that end, or don't compute."""

    def test_killed(self) -> None:
        """A filter whose process is killed, or crashes, is compiled by another one."""
        for number in (signal.SIGKILL, signal.SIGSEGV):
            compiled = self.compile(f"filter {number}")
            self.clock.alive[0].end(signal=number)
            self.assertNoResult(compiled)
            self.clock.alive[0].answer(PROGRAM, b"program")
            self.assertEqual(self.successResultOf(compiled).instructions, b"program")
        self.assertEqual(len(self.clock.processes), 3)

    def test_killed_twice(self) -> None:
        """If the second process ends as well, the node is busy; the next filter gets a new one."""
        compiled = self.compile("one")
        for process in range(2):
            self.clock.processes[process].end()
        error = self.failureResultOf(compiled, NodeBusy).value
        self.assertIn("the filter compiler failed: ", str(error))
        following = self.compile("next")
        self.clock.processes[2].answer(PROGRAM, b"program")
        self.successResultOf(following)

    def test_killed_twice_by_the_optimizer(self) -> None:
        """If both end within the optimizer, the filter is used without optimization, this time."""
        compiled = self.compile("one")
        for process in range(2):
            self.clock.processes[process].answer(ROUGH, b"rough")
            self.clock.processes[process].end()
        self.assertFalse(self.successResultOf(compiled).is_optimized)
        compiled = self.compile("one")
        self.clock.processes[2].answer(PROGRAM, b"program")
        self.assertTrue(self.successResultOf(compiled).is_optimized)

    def test_nonsense(self) -> None:
        """A process that answers more than it may is ended, and replaced once."""
        compiled = self.compile("one")
        for process in range(2):
            self.clock.processes[process].protocol.outReceived(ANSWER.pack(PROGRAM, 1 << 20))
        self.failureResultOf(compiled, NodeBusy)
        self.assertEqual(self.clock.alive, [])

    def test_limits(self) -> None:
        """A filter that exceeds the limit of processor time, or of memory, is rejected."""
        compiled = self.compile("slow")
        self.clock.processes[0].end(signal=signal.SIGXCPU)
        self.assertIn("can't be compiled: ", str(self.rejection(compiled)))
        compiled = self.compile("large")
        self.clock.processes[1].end(b"Traceback:\nMemoryError\n", signal=signal.SIGABRT)
        self.assertIn("MemoryError", str(self.rejection(compiled)))

    def test_starved(self) -> None:
        """A process that gets no processor time is replaced once; then the node is busy."""
        self.patch(FilterWorker, "cpu_seconds", lambda worker: 0.0)
        compiled = self.compile("one")
        self.clock.pump([QUICK] * int(LIMIT))
        self.assertFalse(self.clock.processes[0].is_alive)
        self.assertNoResult(compiled)
        self.clock.processes[1].answer(PROGRAM, b"program")
        self.successResultOf(compiled)
        compiled = self.compile("two")
        self.clock.pump([QUICK] * int(2 * LIMIT))
        error = self.failureResultOf(compiled, NodeBusy).value
        self.assertIn("it got hardly any processor time within 20 s", str(error))

    def test_slow_though_not_starved(self) -> None:
        """A process that has computed, though not all the time, took too long."""
        self.patch(FilterWorker, "cpu_seconds", lambda worker: self.clock.seconds() / 5)
        compiled = self.compile("one")
        self.clock.pump([QUICK] * int(LIMIT))
        self.assertIn("did not compile within 20 s", str(self.rejection(compiled)))

    def test_cancel_in_between(self) -> None:
        """A cancel, or a stop, ends the second process, too."""
        compiled = self.compile("one")
        self.clock.processes[0].end()
        self.successResultOf(self.compiler.stopService())
        self.failureResultOf(compiled, NodeBusy)
        self.assertEqual(self.clock.alive, [])
