"""
Processes that start quickly: they are forked from one that has imported what they import. That is most of
what the start of a daemon costs, and tests start hundreds of them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.proc import die_with_parent, processor_seconds_of

#: The environment variable that says where the daemons of this run come from: the path of a L{Nursery}.
VARIABLE = "PCAPSVC_NURSERY"
#: The same for the processes of pcapctl.
PCAPCTL_VARIABLE = "PCAPSVC_PCAPCTL_NURSERY"

_PATIENCE_SECONDS = 180.0
_LARGEST_ANSWER_BYTES = 4096

# Those of this process that run; and how many seconds of processors those that have ended took.
_running: weakref.WeakSet[ForkedProcess] = weakref.WeakSet()
_ended: list[float] = []


class Nursery:
    """
    Starts processes of one program.

    @ivar path: where it is asked for them.
    """

    def __init__(self, program: str) -> None:
        """
        Start it. It imports what it needs when the first process is asked for.

        @param program: the name of a module: see L{peers.nursery_process}.
        """
        self._directory = tempfile.TemporaryDirectory(prefix="pcapsvc-nursery-")
        self.path = str(Path(self._directory.name) / "socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.path)
            listener.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "peers.nursery_process", str(listener.fileno()), program],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                # Whoever interrupts the tests at a terminal interrupts what has it as well.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def close(self) -> None:
        """End it, and the processes that it forked."""
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()


def fork_daemon(arguments: Sequence[str], output: int, directory: Path) -> ForkedProcess:
    """
    Start C{twistd}, if this run L{has_daemons}.

    @param arguments: the path of C{twistd}, and its arguments.
    @param output: a descriptor for its standard output and standard error.
    @param directory: where it runs.
    """
    path = str(Path(arguments[0]).parent)
    return ForkedProcess(
        os.environ[VARIABLE], arguments, output=output, directory=directory, first_in_path=path
    )


def has_daemons() -> bool:
    """Whether this run has a nursery of daemons."""
    return VARIABLE in os.environ


def processor_seconds() -> float:
    """
    How many seconds of processors those took that nurseries forked for this process: they are not its
    children.
    """
    return sum(_ended) + sum(processor_seconds_of(one.pid) for one in _running)


class ForkedProcess:
    """
    A process that a nursery forked, in a session of its own. It has the methods of L{subprocess.Popen} that
    are needed.

    @ivar pid: its process id, which no other process has until its end was noticed.
    @ivar returncode: its exit status, negative if a signal ended it; L{None} until its end was noticed.
    """

    def __init__(
        self,
        nursery: str,
        arguments: Sequence[str],
        *,
        output: int,
        directory: Path,
        errors: int | None = None,
        environment: Mapping[str, str] | None = None,
        first_in_path: str = "",
        passed: Sequence[int] = (),
    ) -> None:
        """
        Start it.

        @param nursery: the path of the nursery.
        @param arguments: the name by which it is called, and its arguments.
        @param output: a descriptor for its standard output and standard error.
        @param directory: where it runs.
        @param errors: a descriptor for its standard error, if that is another one.
        @param environment: its environment; L{None} for that of this process.
        @param first_in_path: where it looks for modules first; empty for the directory where it runs.
        @param passed: descriptors that it has as well, with the same numbers: one at most.

        @raise RuntimeError: the nursery has ended, or can't start anything.
        """
        assert len(passed) <= 1, passed
        order = {
            "arguments": list(arguments),
            "directory": str(directory),
            "environment": dict(os.environ if environment is None else environment),
            "passed": list(passed),
            "path": first_in_path or str(directory),
        }
        outputs = [output, output if errors is None else errors]
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._connection.settimeout(_PATIENCE_SECONDS)
            self._connection.connect(nursery)
            socket.send_fds(self._connection, [json.dumps(order).encode()], [*outputs, *passed])
            answer = self._receive()
            if "pid" not in answer:
                raise OSError(answer.get("problem", "it has ended"))
        except OSError as error:
            self._connection.close()
            raise RuntimeError(f"the nursery started nothing: {error}") from None
        self.pid: int = answer["pid"]
        _running.add(self)

    def fileno(self) -> int:
        """A descriptor that can be read when it has ended, until its end was noticed."""
        return self._connection.fileno()

    def poll(self) -> int | None:
        """Whether it has ended, and with which status."""
        self._look(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """
        Wait until it has ended. Return its status.

        @param timeout: for how many seconds at most.
        @raise subprocess.TimeoutExpired: it still runs.
        """
        self._look(timeout)
        if self.returncode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        """Send it SIGTERM, unless it has ended."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> None:
        with self._lock:
            if self.returncode is not None:
                return
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            if poll.poll(None if timeout is None else timeout * 1000):
                # If the nursery is gone, the kernel has killed what it had started.
                self.returncode = self._receive().get("status", -signal.SIGKILL)
                _ended.append(processor_seconds_of(self.pid))
                _running.discard(self)
                self._connection.close()

    def _receive(self) -> dict[str, Any]:
        """An answer; an empty one if there is no nursery any more."""
        answer = self._connection.recv(_LARGEST_ANSWER_BYTES)
        received: dict[str, Any] = json.loads(answer or b"{}")
        return received
