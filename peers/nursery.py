"""
Daemons that start quickly: they are forked from a process that has imported what they import, for all tests
of a run. That is most of what a start costs, and tests start hundreds of them.
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
import weakref
from collections.abc import Sequence
from pathlib import Path

from peers.proc import die_with_parent, processor_seconds_of

#: The environment variable that says where the nursery of this run is. Without it there is none.
VARIABLE = "PCAPSVC_NURSERY"

_PATIENCE_SECONDS = 180.0
_LARGEST_ANSWER_BYTES = 4096

# Those of this process that run; and how many seconds of processors those that have ended took.
_running: weakref.WeakSet[ForkedProcess] = weakref.WeakSet()
_ended: list[float] = []


class Nursery:
    """A nursery for this process and those that it starts, until it is closed."""

    def __init__(self) -> None:
        """Start it. It goes on importing in the background."""
        self._directory = tempfile.TemporaryDirectory(prefix="pcapsvc-nursery-")
        path = str(Path(self._directory.name) / "socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "peers.nursery_process", str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                # Whoever interrupts the tests at a terminal interrupts what has it as well.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        os.environ[VARIABLE] = path

    def close(self) -> None:
        """End it, and all that it has started."""
        os.environ.pop(VARIABLE, None)
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()


def is_there() -> bool:
    """Whether this run has a nursery."""
    return VARIABLE in os.environ


def processor_seconds() -> float:
    """
    How many seconds of processors the daemons have taken that the nursery forked for this process: they are
    not its children.
    """
    return sum(_ended) + sum(processor_seconds_of(one.pid) for one in _running)


class ForkedProcess:
    """
    C{twistd}, forked by the nursery. It has the methods of L{subprocess.Popen} that L{peers.process} needs.

    @ivar pid: its process id, which no other process has until its end was noticed.
    @ivar returncode: its exit status, negative if a signal ended it; L{None} until its end was noticed.
    """

    def __init__(self, arguments: Sequence[str], output: int, directory: Path) -> None:
        """
        Start it.

        @param arguments: the path of C{twistd}, and its arguments.
        @param output: a descriptor for its standard output and standard error.
        @param directory: where it runs.
        """
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        order = {"arguments": list(arguments), "directory": str(directory), "environment": environment}
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(_PATIENCE_SECONDS)
        self._connection.connect(os.environ[VARIABLE])
        socket.send_fds(self._connection, [json.dumps(order).encode()], [output])
        answer = self._receive()
        if "pid" not in answer:
            raise RuntimeError("the nursery has ended")
        self.pid = answer["pid"]
        _running.add(self)

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
            raise subprocess.TimeoutExpired("twistd", timeout)
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

    def _receive(self) -> dict[str, int]:
        """An answer; an empty one if there is no nursery any more."""
        answer = self._connection.recv(_LARGEST_ANSWER_BYTES)
        received: dict[str, int] = json.loads(answer or b"{}")
        return received
