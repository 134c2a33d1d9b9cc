"""Tests of the filter compiler, with processes that a test answers for."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial import unittest

from pcapsvc.core.filter import FilterRejected, Program
from pcapsvc.packets.filter_child import ANSWER, READY, REQUEST
from pcapsvc.packets.filter_compiler import FilterCompiler
from pcapsvc.packets.filter_worker import FilterWorker

QUICK, OPTIMIZER, LIMIT, WAIT, IDLE = 1.0, 10.0, 20.0, 100.0, 60.0


class Process:
    """
    A process in place of one that compiles: a test says what it answers.

    @ivar asked: the filters that it was asked to compile.
    """

    def __init__(self, protocol: FilterWorker) -> None:
        self.protocol = protocol
        self.asked: list[str] = []
        self.is_alive = True
        # Not one of this machine: what it computes is unknown.
        self.pid = -1

    def write(self, data: bytes) -> None:
        """A request."""
        self.asked.append(data[REQUEST.size :].decode())

    def signalProcess(self, signal: str) -> None:
        """It is killed."""
        if not self.is_alive:
            raise ProcessExitedAlready
        self.end()

    def end(self, stderr: bytes = b"", signal: int = 9) -> None:
        """It ends, and is reaped."""
        self.is_alive = False
        self.protocol.errReceived(stderr)
        self.protocol.processEnded(Failure(ProcessTerminated(signal=signal)))

    def answer(self, kind: bytes, payload: bytes = b"") -> None:
        """An answer, that comes in two parts."""
        data = ANSWER.pack(kind, len(payload)) + payload
        self.protocol.outReceived(data[:3])
        self.protocol.outReceived(data[3:])


class ProcessClock(Clock):
    """
    A clock with processes.

    @ivar processes: all that were started.
    @ivar starts: whether a new process is ready at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        self.starts = True
        self.error: OSError | None = None

    def spawnProcess(self, protocol: FilterWorker, *args: Any, **kwargs: Any) -> Process:
        """Start one."""
        if self.error is not None:
            raise self.error
        process = Process(protocol)
        protocol.transport = process  # type: ignore[assignment]
        self.processes.append(process)
        if self.starts:
            process.answer(READY)
        return process

    @property
    def alive(self) -> list[Process]:
        """Those that have not ended."""
        return [process for process in self.processes if process.is_alive]


class FilterCase(unittest.SynchronousTestCase):
    """L{FilterCompiler}, with processes and time of our own."""

    def setUp(self) -> None:
        """A compiler with one place for hard filters."""
        self.clock = ProcessClock()
        self.compiler = self.make()

    def make(self, **more: Any) -> FilterCompiler:
        """A compiler that is stopped when the test ends; nothing of it may be left."""
        compiler = FilterCompiler(
            self.clock,  # type: ignore[arg-type]
            "libpcap.so",
            most_hard=1,
            quick_seconds=QUICK,
            optimizer_seconds=OPTIMIZER,
            limit_seconds=LIMIT,
            wait_seconds=WAIT,
            idle_seconds=IDLE,
            **more,
        )
        compiler.startService()

        def stop() -> None:
            self.successResultOf(compiler.stopService())
            self.assertEqual(self.clock.alive, [])
            self.assertEqual(self.clock.getDelayedCalls(), [])

        self.addCleanup(stop)
        return compiler

    def compile(self, bpf: str, *, netmask: int = 0, snap_length: int = 100) -> Deferred[Program]:
        """Compile a filter."""
        return self.compiler.compile(bpf, link_type=1, snap_length=snap_length, netmask=netmask)

    def rejection(self, compiled: Deferred[Program]) -> FilterRejected:
        """Why a filter was rejected."""
        error = self.failureResultOf(compiled, FilterRejected).value
        assert isinstance(error, FilterRejected)
        return error
