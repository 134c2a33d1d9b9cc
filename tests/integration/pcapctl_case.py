"""Runs pcapctl as a user does: in a process of its own, with or without a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from peers.nursery import PCAPCTL_VARIABLE, ForkedProcess
from peers.process import Child
from peers.terminal import Terminal as OwnTerminal

_PATIENCE_SECONDS = 180.0
#: The command.
PROGRAM = [sys.executable, "-m", "pcapsvc.client"]
#: Where it runs.
ROOT = Path(__file__).parents[2]


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
    A pcapctl that runs without a terminal.

    @ivar output: what it writes to standard output.
    """

    def __init__(self, *words: str, is_cold: bool = False, **variables: str) -> None:
        """
        Start it.

        @param words: the command line.
        @param is_cold: whether it must import everything itself, as it does for users, even if this run has
            a nursery.
        @param variables: more of its environment.
        """
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lasts as long as this
        reading, writing = os.pipe()
        self.output: IO[bytes] = os.fdopen(reading, "rb")
        try:
            self._process = _start(words, writing, self._errors.fileno(), environment(**variables), is_cold)
        finally:
            os.close(writing)

    def interrupt(self) -> None:
        """What Ctrl-C does without a terminal."""
        self._process.send_signal(signal.SIGINT)

    def terminate(self) -> None:
        """What C{kill} does."""
        self._process.terminate()

    def first_line(self) -> str:
        """Wait for a line."""
        return self.output.readline().decode()

    def line_with(self, pattern: str) -> str:
        """Wait for a line in which a pattern is found."""
        while line := self.first_line():
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line with {pattern!r}: {self.end()}")

    def end(self) -> Ended:
        """Wait until it has ended."""
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(_PATIENCE_SECONDS, kill)
        timer.start()
        try:
            output = b"" if self.output.closed else self.output.read()
            status = self._process.wait()
        finally:
            timer.cancel()
            timer.join()
        self.output.close()
        self._errors.seek(0)
        errors = self._errors.read().decode()
        if is_late.is_set():
            raise AssertionError(f"it goes on and on: {output.decode()}{errors}")
        return Ended(status=status, lines=output.decode().splitlines(), errors=errors)


def _start(
    words: Sequence[str], output: int, errors: int, variables: Mapping[str, str], is_cold: bool
) -> Child:
    path = os.environ.get(PCAPCTL_VARIABLE)
    if path is not None and not is_cold:
        arguments = [PROGRAM[-1], *words]
        return ForkedProcess(
            path, arguments, output=output, errors=errors, environment=variables, directory=ROOT
        )
    return subprocess.Popen(
        [*PROGRAM, *words], cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
    )


def pcapctl(*words: str, is_cold: bool = False, **variables: str) -> Ended:
    """Run pcapctl to its end: see L{Running}."""
    return Running(*words, is_cold=is_cold, **variables).end()


class Terminal(OwnTerminal):
    """A pcapctl in a terminal of its own."""

    def __init__(self, *words: str, columns: int = 120, rows: int = 30, **variables: str) -> None:
        super().__init__(
            [*PROGRAM, *words],
            environment=environment(**variables),
            directory=ROOT,
            columns=columns,
            rows=rows,
        )
