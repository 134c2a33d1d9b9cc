"""A server in a process of its own that never outlives the test."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from peers.claim import claim
from peers.proc import die_with_parent

# Below the ports of outgoing connections (ip(7), ip_local_port_range): one of those could take the port of
# a server that is down for a moment, or connect to itself there.
_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
_ports = range(10240, _outgoing) or range(10240, 65536)
_BLOCK = 256


def _claimed_block() -> Iterator[int]:
    start = _BLOCK * claim("ports", len(_ports) // _BLOCK)
    return iter(_ports[start : start + _BLOCK])


# Claimed now, not with the first port: a claim is a descriptor, and some tests count descriptors.
_block = _claimed_block()


def free_port() -> int:
    """A free TCP port on 127.0.0.1; never the same one twice, nor the same as in another process."""
    global _block
    while True:
        for port in _block:
            if _can_be_bound(port):
                return port
        _block = _claimed_block()


def _can_be_bound(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def pause_seconds(waited: float) -> float:
    """
    How long to pause before whoever waits looks again: each look takes time of the processors, most of it in
    the process that is asked.

    @param waited: for how many seconds it has waited.
    """
    return min(max(0.02, waited / 20), 0.1)


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a TCP port accepts connections."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


class Child(Protocol):
    """What is needed of L{subprocess.Popen}."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; raise L{subprocess.TimeoutExpired} if that takes longer, in seconds."""

    def send_signal(self, sig: int, /) -> None:
        """Send it a signal."""

    def terminate(self) -> None:
        """Send it SIGTERM."""

    def kill(self) -> None:
        """Send it SIGKILL."""


def _end(process: Child, patience_seconds: float = 5.0) -> None:
    """Send SIGTERM, and SIGKILL if that is not enough. A frozen process is resumed."""
    if process.poll() is None:
        process.terminate()
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


class OwnProcess:
    """
    A child process with a temporary directory and a log of its own.

    @ivar directory: temporary; it is removed with this object.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._temporary = tempfile.TemporaryDirectory(prefix=f"pcapsvc-{name}-")
        self.directory = Path(self._temporary.name)
        self._log = self.directory / "log"
        self._process: Child | None = None
        self._finalizer: weakref.finalize[[Child], OwnProcess] | None = None

    @property
    def pid(self) -> int:
        """The process id, while it runs."""
        assert self._process is not None, f"{self._name} is not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started, and has not ended, by itself or by L{end}."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """Everything it wrote to its standard output and standard error."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(
        self,
        arguments: Sequence[str],
        ready: Callable[[], bool],
        *,
        environment: Mapping[str, str] | None = None,
        patience_seconds: float = 180.0,
        start: Callable[[Sequence[str], int, Path], Child] | None = None,
    ) -> None:
        """
        Start it, and wait until it is ready.

        @param start: starts it, with these arguments, with this descriptor for its output, in this directory;
            L{None} for L{subprocess.Popen}.

        @raise RuntimeError: it exited, or was not ready in time. The message has its log.
        """
        assert not self.is_running, f"{self._name} is running"
        # What has crashed can be started again as well.
        self.end()
        with self._log.open("ab") as log:
            if start is not None:
                self._process = start(arguments, log.fileno(), self.directory)
            else:
                self._process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.directory,
                    env=None if environment is None else dict(environment),
                    preexec_fn=die_with_parent,
                )
        self._finalizer = weakref.finalize(self, _end, self._process)
        deadline = time.monotonic() + patience_seconds
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.end()
                raise RuntimeError(f"{self._name} did not start:\n{self.log}")
            time.sleep(0.01)
        if self._process.poll() is not None:
            # Something else answered in its place.
            self.end()
            raise RuntimeError(f"{self._name} exited at once:\n{self.log}")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None, f"{self._name} is not running"
        self._process.send_signal(number)

    def wait(self, patience_seconds: float) -> int:
        """Wait until it exits by itself. Return its exit status, negative if a signal ended it."""
        assert self._process is not None, f"{self._name} is not running"
        return self._process.wait(patience_seconds)

    def end(self) -> None:
        """End it, by its process id. Does nothing if it has already ended."""
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None
            self._process = None

    def exit(self, patience_seconds: float) -> None:
        """Ask it to exit, and wait until it has."""
        self.signal(signal.SIGTERM)
        self.wait(patience_seconds)
        self.end()

    def clean_up(self) -> None:
        """End it, and remove its directory."""
        self.end()
        self._temporary.cleanup()
