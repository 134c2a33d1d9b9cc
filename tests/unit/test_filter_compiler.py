"""The order in which filters are compiled in processes."""

from __future__ import annotations

import gc

from twisted.internet.defer import CancelledError

from pcapsvc.core.errors import NodeBusy
from pcapsvc.core.filter import Program, everything
from pcapsvc.packets.filter_child import ERROR, LONG, MEMORY, PROGRAM, ROUGH
from pcapsvc.packets.filter_compiler import START_SECONDS
from tests.unit.filter_case import IDLE, LIMIT, OPTIMIZER, QUICK, FilterCase


class FilterCompilerTests(FilterCase):
    """L{FilterCompiler}, with processes and time of our own."""

    def test_compiled(self) -> None:
        """A filter is compiled by one process, and the next one by the same."""
        first = self.compile("one")
        [process] = self.clock.processes
        process.answer(ROUGH, b"rough")
        self.assertNoResult(first)
        process.answer(PROGRAM, b"program")
        self.assertEqual(self.successResultOf(first), Program(bpf="one", instructions=b"program"))
        second = self.compile("two")
        process.answer(ERROR, b"syntax\nerror")
        self.assertIn("libpcap says: syntax error", str(self.rejection(second)))
        self.assertEqual((process.asked, len(self.clock.processes)), (["one", "two"], 1))

    def test_empty(self) -> None:
        """The empty filter needs no process."""
        for bpf in ("", " \t"):
            self.assertEqual(self.successResultOf(self.compile(bpf)), everything(100))
        self.assertEqual(self.clock.processes, [])

    def test_known(self) -> None:
        """What was compiled is known for handles of the same kind; the netmask counts only if it is used."""
        for bpf, kinds in (("one", 2), ("ip broadcast", 3)):
            for kind in ({}, {"netmask": 7}, {"snap_length": 99}, {}):
                compiled = self.compile(bpf, **kind)
                if not compiled.called:
                    self.clock.processes[0].answer(PROGRAM, b"program")
                self.successResultOf(compiled)
            self.assertEqual(self.clock.processes[0].asked.count(bpf), kinds)
        self.assertEqual(self.successResultOf(self.compile("one")).compile_seconds, 0.0)

    def test_cache_is_bounded(self) -> None:
        """The cache is bounded: the programs that were used last stay."""
        for number in range(40):
            self.compile("filter 0")
            self.compile(f"filter {number}")
            self.clock.processes[0].answer(PROGRAM, bytes(32768))
        asked = self.clock.processes[0].asked
        self.assertEqual((len(asked), len(self.clock.processes)), (40, 1))
        self.successResultOf(self.compile("filter 0"))
        self.compile("filter 1")
        self.assertEqual(asked[-1], "filter 1")
        self.clock.processes[0].answer(PROGRAM)

    def test_same_filter_at_once(self) -> None:
        """A filter for several interfaces is compiled once, and each gets the result."""
        compiled = [self.compile("one") for _ in range(3)]
        compiled[1].cancel()
        self.failureResultOf(compiled[1], CancelledError)
        self.clock.processes[0].answer(PROGRAM, b"program")
        for one in (compiled[0], compiled[2]):
            self.successResultOf(one)
        self.assertEqual(self.clock.processes[0].asked, ["one"])

    def test_in_turn(self) -> None:
        """Filters are compiled in the order in which they came."""
        compiled = [self.compile(str(number)) for number in range(4)]
        [process] = self.clock.processes
        for number, one in enumerate(compiled):
            self.assertEqual(process.asked[-1], str(number))
            process.answer(PROGRAM, b"program")
            self.successResultOf(one)
            self.clock.advance(0)

    def test_stacks(self) -> None:
        """
        The next filter begins after everything that follows from the one before, and not within it.
        """
        first, second = self.compile("first"), self.compile("second")
        [process] = self.clock.processes
        asked: list[list[str]] = []
        first.addCallback(lambda _: asked.append(process.asked[:]))
        process.answer(PROGRAM, b"program")
        self.assertEqual(asked, [["first"]])
        self.clock.advance(0)
        self.assertEqual(process.asked, ["first", "second"])
        process.answer(PROGRAM, b"program")
        self.successResultOf(second)

    def test_hard_filter_delays_no_other(self) -> None:
        """After a moment, a filter that takes long leaves the turn to the next, and goes on by itself."""
        hard, easy = self.compile("hard"), self.compile("easy")
        self.clock.advance(QUICK)
        process, other = self.clock.processes
        other.answer(PROGRAM, b"program")
        self.successResultOf(easy)
        self.assertNoResult(hard)
        process.answer(PROGRAM, b"hard program")
        self.assertEqual(self.successResultOf(hard).instructions, b"hard program")
        self.assertEqual(len(self.clock.alive), 1)

    def test_hard_filters_in_turn(self) -> None:
        """Hard filters for which there is no place give up their processes, and start again in order."""
        hard = [self.compile(f"hard {number}") for number in range(3)]
        for _ in hard:
            self.clock.pump([QUICK, 0])
        self.assertEqual(len(self.clock.alive), 1)
        easy = self.compile("easy")
        self.clock.alive[1].answer(PROGRAM, b"program")
        self.successResultOf(easy)
        for number, one in enumerate(hard):
            [process] = [process for process in self.clock.alive if process.asked[-1] == f"hard {number}"]
            process.answer(PROGRAM, b"program")
            self.successResultOf(one)
            self.clock.advance(0)

    def test_without_optimization(self) -> None:
        """A filter whose optimization takes too long is used as it was before, and its process is ended."""
        compiled = self.compile("endless")
        [process] = self.clock.processes
        process.answer(ROUGH, b"rough")
        self.clock.pump([QUICK, OPTIMIZER - QUICK])
        program = self.successResultOf(compiled)
        self.assertEqual((program.instructions, program.is_optimized), (b"rough", False))
        self.assertEqual(program.compile_seconds, OPTIMIZER)
        self.assertFalse(process.is_alive)
        self.assertEqual(self.successResultOf(self.compile("endless")).instructions, b"rough")

    def test_without_optimization_by_another_process(self) -> None:
        """What a process had found before it was given up is used, too."""
        first = self.compile("first")
        self.clock.advance(QUICK)
        compiled = self.compile("second")
        self.clock.processes[1].answer(ROUGH, b"rough")
        self.clock.pump([QUICK, LIMIT, OPTIMIZER])
        self.rejection(first)
        self.assertEqual(self.successResultOf(compiled).instructions, b"rough")

    def test_too_slow(self) -> None:
        """A filter that can't be used without optimization gets more time, and is rejected in the end."""
        compiled = self.compile("endless")
        [process] = self.clock.processes
        process.answer(ROUGH, b"")
        self.clock.pump([QUICK, OPTIMIZER])
        self.assertNoResult(compiled)
        self.clock.advance(LIMIT - OPTIMIZER)
        error = self.rejection(compiled)
        self.assertEqual(str(error), 'bpf = "endless": did not compile within 20 s')
        self.assertGreaterEqual(error.compile_seconds, LIMIT)
        self.assertFalse(process.is_alive)

    def test_too_long(self) -> None:
        """A program that is too long for the kernel is rejected."""
        compiled = self.compile("long")
        self.clock.processes[0].answer(LONG, b"5000")
        self.assertIn(
            "compiles to 5000 instructions, and the kernel accepts 4096", str(self.rejection(compiled))
        )

    def test_several_vlans(self) -> None:
        """Of a filter for several VLANs, libpcap compiles the rest. What is wrong is said about all of it."""
        bpf = "vlan and (ether[14:2] & 0xfff = 7 or ether[14:2] & 0xfff = 8) and udp"
        compiled = self.compile(bpf)
        [process] = self.clock.processes
        process.answer(PROGRAM, b"program.")
        program = self.successResultOf(compiled)
        self.assertEqual((process.asked, program.bpf), (["vlan and udp"], bpf))
        self.assertTrue(program.instructions.endswith(b"program."))
        for kind, payload, rule in (
            (PROGRAM, bytes(8 * 4090), "compiles to 41"),
            (ERROR, b"syntax error", "syntax error"),
        ):
            compiled = self.compile(bpf.replace("udp", rule))
            process.answer(kind, payload)
            problem = str(self.rejection(compiled))
            self.assertIn('bpf = "vlan and (ether[14:2]', problem)
            self.assertIn(rule, problem)

    def test_too_much_memory(self) -> None:
        """A filter that takes too much memory is used without optimization, or rejected."""
        for rough in (b"rough", b""):
            compiled = self.compile(f"large {len(rough)}")
            self.clock.processes[0].answer(ROUGH, rough)
            self.clock.processes[0].answer(MEMORY)
            if rough:
                self.assertFalse(self.successResultOf(compiled).is_optimized)
            else:
                self.assertIn("takes too much memory to compile", str(self.rejection(compiled)))

    def test_cancel(self) -> None:
        """What nobody waits for any more is not compiled, whether it waits or is being compiled."""
        first, second = self.compile("first"), self.compile("second")
        third = self.compile("third")
        for one in (second, first):
            one.cancel()
            self.failureResultOf(one, CancelledError)
        self.assertFalse(self.clock.processes[0].is_alive)
        self.clock.advance(0)
        self.clock.processes[1].answer(PROGRAM, b"program")
        self.successResultOf(third)
        self.assertEqual(self.clock.processes[1].asked, ["third"])

    def test_cancel_of_a_hard_filter(self) -> None:
        """One that is hard makes room for the next."""
        first, second = self.compile("first"), self.compile("second")
        self.clock.pump([QUICK, 0, QUICK])
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.clock.advance(0)
        [process] = self.clock.alive
        self.assertEqual(process.asked, ["second"])
        process.answer(PROGRAM, b"program")
        self.successResultOf(second)

    def test_waited_too_long(self) -> None:
        """A filter that gets no turn in time is not the sender's fault."""
        hard = [self.compile(f"hard {number}") for number in range(7)]
        self.clock.pump([QUICK] * 8 + [LIMIT] * 6)
        self.rejection(hard[0])
        error = self.failureResultOf(hard[6], NodeBusy).value
        self.assertIn("the filter waited 100 s for others to be compiled", str(error))
        for one in hard:
            one.addErrback(lambda _: None)

    def test_no_process(self) -> None:
        """If no process can be started, the node is busy; and the next filter tries again."""
        self.clock.error = OSError(11, "Resource temporarily unavailable")
        error = self.failureResultOf(self.compile("one"), NodeBusy).value
        self.assertIn("Resource temporarily unavailable", str(error))
        self.clock.error = None
        compiled = self.compile("one")
        self.clock.processes[0].answer(PROGRAM, b"program")
        self.successResultOf(compiled)

    def test_does_not_start(self) -> None:
        """A process that doesn't become ready, or ends before, makes the node busy."""
        self.clock.starts = False
        compiled = self.compile("one")
        self.clock.advance(START_SECONDS)
        self.failureResultOf(compiled, NodeBusy)
        compiled = self.compile("one")
        self.clock.processes[1].end(b"Traceback:\nOSError: no such library\n")
        self.failureResultOf(compiled, NodeBusy)
        self.assertEqual(self.clock.alive, [])

    def test_idle(self) -> None:
        """A process that has nothing to do for a while is ended; the next filter gets a new one."""
        for number in range(2):
            compiled = self.compile(f"filter {number}")
            self.clock.advance(IDLE * 0.01)
            self.clock.alive[0].answer(PROGRAM, b"program")
            self.successResultOf(compiled)
        self.assertEqual(len(self.clock.processes), 1)
        self.clock.advance(IDLE)
        self.assertEqual(self.clock.alive, [])
        compiled = self.compile("next")
        self.clock.alive[0].answer(PROGRAM, b"program")
        self.successResultOf(compiled)

    def test_died_while_idle(self) -> None:
        """A process that ends while it has nothing to do is replaced."""
        compiled = self.compile("one")
        self.clock.processes[0].answer(PROGRAM, b"program")
        self.successResultOf(compiled)
        self.clock.processes[0].end()
        compiled = self.compile("two")
        self.clock.processes[1].answer(PROGRAM, b"program")
        self.successResultOf(compiled)

    def test_kept_ready(self) -> None:
        """On request, a process is ready from the start, for as long as the service runs."""
        self.compiler = self.make(keep_ready=True)
        [process] = self.clock.processes
        self.clock.advance(IDLE * 2)
        hard = self.compile("hard")
        self.assertEqual(process.asked, ["hard"])
        self.clock.advance(QUICK)
        self.assertEqual(len(self.clock.alive), 2)
        process.answer(PROGRAM, b"program")
        self.successResultOf(hard)
        self.assertEqual(len(self.clock.alive), 1)

    def test_stop(self) -> None:
        """A stop ends all processes, and what they compiled or would have is not the sender's fault."""
        hard, waiting = self.compile("hard"), self.compile("waiting")
        self.clock.advance(QUICK)
        late = self.compile("late")
        self.successResultOf(self.compiler.stopService())
        for one in (hard, waiting, late, self.compile("after")):
            self.failureResultOf(one, NodeBusy)
        self.assertEqual(self.clock.alive, [])

    def test_stop_without_time(self) -> None:
        """If there is no time to wait for the processes, they are killed nevertheless; nothing is logged."""
        self.compile("hard").addErrback(lambda _: None)
        [process] = self.clock.alive
        end = process.end
        self.patch(process, "end", lambda: None)
        stopping = self.compiler.stopService()
        stopping.cancel()
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])
        end()
        self.successResultOf(stopping)
