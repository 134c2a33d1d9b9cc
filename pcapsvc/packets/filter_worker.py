"""A process that compiles filters: the daemon's side of L{pcapsvc.packets.filter_child}."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport, IReactorProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from pcapsvc.packets.filter_child import ANSWER, INSTRUCTION_BYTES, MOST_INSTRUCTIONS, READY, REQUEST, ROUGH

_SCRIPT = str(Path(__file__).with_name("filter_child.py").resolve())
# The daemon's own interpreter, even if its path is out of our user's reach, or has another program by now.
# Without proc(5), its path has to do.
_INTERPRETER = "/proc/self/exe"
# The dynamic linker's: whoever needs it for the daemon needs it for the child.
_PASSED_ON = ("LD_LIBRARY_PATH",)
_MOST_ANSWER_BYTES = MOST_INSTRUCTIONS * INSTRUCTION_BYTES
_MOST_STDERR_BYTES = 2048
_NICENESS = 10


class WorkerFailed(Exception):
    """
    The process ended before it had answered, or answered nonsense. The message says which.

    @ivar is_by_filter: whether it used more processor time or memory than a filter may.
    """

    def __init__(self, message: str, *, is_by_filter: bool = False) -> None:
        super().__init__(message)
        self.is_by_filter = is_by_filter


class FilterKey(msgspec.Struct, frozen=True, kw_only=True):
    """
    All that the compiled program depends on.

    @ivar link_type: of the handle.
    @ivar snap_length: of the handle, in bytes.
    @ivar netmask: of the interface, as inet_aton(3) has it; 0 if the filter doesn't ask for it.
    """

    bpf: str
    link_type: int
    snap_length: int
    netmask: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the process answered in the end: a kind of L{pcapsvc.packets.filter_child}, and its payload."""

    kind: bytes
    payload: bytes


class FilterWorker(ProcessProtocol):
    """
    A process that compiles one filter at a time.

    @ivar rough: the program of the current filter as it was before the optimizer; empty if there is none
        that the kernel would accept, or none yet.
    """

    transport: IProcessTransport

    def __init__(self) -> None:
        self.rough = b""
        self._ready: Deferred[None] | None = None
        self._is_ready = False
        self._outcome: Deferred[Outcome] | None = None
        self._ended: Deferred[None] = Deferred()
        self._has_ended = False
        self._end = WorkerFailed("")
        self._received = b""
        self._stderr = b""

    @classmethod
    def start(cls, reactor: IReactorProcess, library: str, *, cpu_seconds: int) -> FilterWorker:
        """
        Start a process. It inherits no descriptor, and nothing of the environment.

        @param library: the path of the shared library that libpcap is in.
        @param cpu_seconds: how much processor time a filter may take before the kernel ends the process.

        @raise OSError: if no process can be started.
        """
        worker = cls()
        reactor.spawnProcess(
            worker,
            _INTERPRETER if os.path.exists(_INTERPRETER) else sys.executable,
            [sys.executable, "-I", "-S", _SCRIPT, library, str(os.getpid()), str(cpu_seconds)],
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        )
        return worker

    def when_ready(self) -> Deferred[None]:
        """
        Wait until the process can compile. One caller at a time.

        @return: fires when it can; fails with L{WorkerFailed}. On cancel, it is no longer waited for.
        """
        ready: Deferred[None] = Deferred()
        if self._has_ended:
            ready.errback(self._end)
        elif self._is_ready:
            ready.callback(None)
        else:
            self._ready = ready
        return ready

    def cpu_seconds(self) -> float | None:
        """How much processor time the process has used; L{None} if that is unknown."""
        try:
            used, _, _ = Path(f"/proc/{self.transport.pid}/schedstat").read_text().split()
        except (OSError, ValueError):
            return None
        return int(used) / 1e9

    def yield_to_others(self) -> None:
        """Have the process give way to captures, and to whatever else there is to do."""
        try:
            os.setpriority(os.PRIO_PROCESS, self.transport.pid, _NICENESS)
        except OSError:
            pass  # It has ended, or a filter of system calls doesn't permit it: the scheduler shares fairly.

    def when_ended(self) -> Deferred[None]:
        """
        Wait for the end of the process.

        @return: fires when it has been reaped.
        """
        ended: Deferred[None] = Deferred()

        def on_end(_: None) -> None:
            ended.callback(None)

        self._ended.addCallback(on_end)
        return ended

    def compile(self, key: FilterKey) -> Deferred[Outcome]:
        """
        Compile a filter. Only one at a time, and not before the process is ready.

        @return: fires with the outcome; fails with L{WorkerFailed}. It can't be cancelled, but L{kill}
            ends it.
        """
        assert self._outcome is None
        self.rough = b""
        self._outcome = Deferred()
        outcome = self._outcome
        bpf = key.bpf.encode()
        if self._has_ended:
            self._fail(self._end)
        else:
            # ITransport.write of a process that has just ended does nothing; processEnded follows.
            header = REQUEST.pack(key.link_type, key.snap_length, key.netmask, len(bpf))
            self.transport.write(header + bpf)
        return outcome

    def kill(self) -> Deferred[None]:
        """
        End the process, whatever it is doing.

        @return: fires when it has been reaped.
        """
        if not self._has_ended:
            try:
                self.transport.signalProcess("KILL")
            except ProcessExitedAlready:
                pass  # it is about to be reaped
        return self.when_ended()

    def outReceived(self, data: bytes) -> None:
        """Answers, or parts of them."""
        self._received += data
        while len(self._received) >= ANSWER.size:
            kind, length = ANSWER.unpack_from(self._received)
            if length > _MOST_ANSWER_BYTES:
                self._received = b""
                self._fail(WorkerFailed("it answered nonsense"))
                self.kill()
                return
            end = ANSWER.size + length
            if len(self._received) < end:
                return
            payload = self._received[ANSWER.size : end]
            self._received = self._received[end:]
            self._on_answer(kind, payload)

    def errReceived(self, data: bytes) -> None:
        """What the interpreter says when it can't go on."""
        self._stderr = (self._stderr + data)[-_MOST_STDERR_BYTES:]

    def processEnded(self, reason: Failure) -> None:
        """It has been reaped, and its pipes are closed."""
        self._has_ended = True
        said = self._stderr.decode("utf-8", "replace").strip().splitlines()
        last = said[-1] if said else ""
        self._end = WorkerFailed(
            f"{reason.getErrorMessage()} {last}".strip(),
            is_by_filter=getattr(reason.value, "signal", None) == signal.SIGXCPU
            or last.startswith("MemoryError"),
        )
        self._fail(self._end)
        self._ended.callback(None)

    def _on_answer(self, kind: bytes, payload: bytes) -> None:
        if kind == READY:
            self._is_ready = True
            if (ready := self._take_ready()) is not None and not ready.called:
                ready.callback(None)
        elif kind == ROUGH:
            self.rough = payload
        else:
            outcome, self._outcome = self._outcome, None
            if outcome is not None:
                outcome.callback(Outcome(kind=kind, payload=payload))

    def _take_ready(self) -> Deferred[None] | None:
        ready, self._ready = self._ready, None
        return ready

    def _fail(self, error: WorkerFailed) -> None:
        outcome, self._outcome = self._outcome, None
        for waiting in (self._take_ready(), outcome):
            if waiting is not None and not waiting.called:
                waiting.errback(error)
