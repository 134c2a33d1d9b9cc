"""Runs pcapctl as a user does: in a process of its own, with or without a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

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
    A pcapctl that runs.

    @param words: the command line.
    """

    def __init__(self, *words: str, **variables: str) -> None:
        self._process = subprocess.Popen(
            [*PROGRAM, *words],
            cwd=ROOT,
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

    def terminate(self) -> None:
        """What C{kill} does."""
        self._process.terminate()

    def first_line(self) -> str:
        """Wait for a line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode()

    def line_with(self, pattern: str) -> str:
        """Wait for a line in which a pattern is found."""
        while line := self.first_line():
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line with {pattern!r}: {self.end()}")

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
