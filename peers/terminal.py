"""A program in a terminal of its own."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_PATIENCE_SECONDS = 180.0


class Terminal:
    """
    A terminal, with a program that runs there.

    @ivar written: everything that has been written there.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        columns: int = 120,
        rows: int = 30,
    ) -> None:
        """
        @param command: the path of the program, and its arguments.
        @param environment: its environment; C{TERM} is added unless it is there.
        @param directory: the directory that it runs in.
        """
        self.written = ""
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            # Before the program can ask for it.
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.chdir(directory)
            os.execve(command[0], [*command], {"TERM": "xterm", **environment})

    def type(self, keys: str) -> None:
        """Type something; C{\\x03} is Ctrl-C."""
        os.write(self._terminal, keys.encode())

    def shows(self, pattern: str) -> None:
        """Wait until something is written there."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while not re.search(pattern, self.text):
            if not self._read(until):
                raise AssertionError(f"no {pattern!r} in {self.text[-2000:]!r}")

    @property
    def text(self) -> str:
        """What was written, without colours and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.written).replace("\r", "")

    def signal_thread(self, number: int) -> None:
        """Send a signal to a thread of the program that isn't its main thread."""
        others = {int(thread.name) for thread in Path(f"/proc/{self._pid}/task").iterdir()} - {self._pid}
        # Of a process that isn't one's own, Python knows no threads.
        if ctypes.CDLL(None, use_errno=True).tgkill(self._pid, min(others), number):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def end(self) -> int:
        """Wait until it has ended. Return its status."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while self._read(until):
            pass
        os.close(self._terminal)
        if time.monotonic() > until:
            os.kill(self._pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def close(self) -> None:
        """Hang up, and wait until it has ended."""
        os.close(self._terminal)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _read(self, until: float) -> bool:
        """Read what it writes next. Whether there was anything before it ended, or before the time is up."""
        readable, _, _ = select.select([self._terminal], [], [], max(0.0, until - time.monotonic()))
        try:
            data = os.read(self._terminal, 65536) if readable else b""
        except OSError:
            # Nobody has the terminal open any more.
            data = b""
        self.written += data.decode("utf-8", "replace")
        return bool(data)
