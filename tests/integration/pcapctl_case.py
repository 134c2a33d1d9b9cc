"""Runs pcapctl as a user does: in a process of its own, with or without a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_PATIENCE_SECONDS = 90.0
_PROGRAM = [sys.executable, "-m", "pcapsvc.client.main"]
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """
    A pcapctl that has ended.

    @ivar lines: what it wrote to standard output.
    @ivar errors: what it wrote to standard error.
    """

    status: int
    lines: Sequence[str]
    errors: str


def environment(**more: str) -> dict[str, str]:
    """An environment without a configuration, and with credentials for queues that accept any."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PCAPCTL", "AWS"))}
    aws = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}
    return {**kept, **aws, "XDG_CONFIG_HOME": "/nonexistent", **more}


class Running:
    """
    A pcapctl that runs.

    @param words: the command line.
    """

    def __init__(self, *words: str, **variables: str) -> None:
        self._process = subprocess.Popen(
            [*_PROGRAM, *words],
            cwd=_ROOT,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @property
    def output(self) -> IO[bytes]:
        """What it writes to standard output."""
        assert self._process.stdout is not None
        return self._process.stdout

    def interrupt(self) -> None:
        """What Ctrl-C does without a terminal."""
        self._process.send_signal(signal.SIGINT)

    def first_line(self) -> str:
        """Wait for a line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode()

    def end(self) -> Ended:
        """Wait until it has ended."""
        try:
            output, errors = self._process.communicate(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, errors = self._process.communicate()
            raise AssertionError(f"it goes on and on: {output.decode()}{errors.decode()}") from None
        return Ended(
            status=self._process.returncode, lines=output.decode().splitlines(), errors=errors.decode()
        )


def pcapctl(*words: str, **variables: str) -> Ended:
    """Run pcapctl to its end."""
    return Running(*words, **variables).end()


class Terminal:
    """
    A pcapctl in a terminal of its own.

    @ivar written: everything that it has written there.
    """

    def __init__(self, *words: str, columns: int = 120, rows: int = 30, **variables: str) -> None:
        self.written = ""
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(_ROOT)
            os.execve(sys.executable, [*_PROGRAM, *words], environment(TERM="xterm", **variables))
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

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

    def end(self) -> int:
        """Wait until it has ended. Return its status."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while self._read(until):
            pass
        os.close(self._terminal)
        if time.monotonic() > until:
            os.kill(self._pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

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
