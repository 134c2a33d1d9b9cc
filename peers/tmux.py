"""A real terminal emulator: a tmux server of its own, with one program."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from peers.requirement import require_command

_PATIENCE_SECONDS = 180.0
# What is shown after the program.
_ENDED = "exit status: "


class Tmux:
    """What a person sees on a screen, and types there."""

    def __init__(self) -> None:
        self._program = require_command("tmux", "tmux")
        self._temporary = tempfile.TemporaryDirectory(prefix="pcapsvc-tmux-")
        self._socket = Path(self._temporary.name, "socket")

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        columns: int = 120,
        rows: int = 40,
    ) -> None:
        """Start a program, whose last screen stays after it has ended."""
        variables = [f"{name}={value}" for name, value in environment.items() if name != "TERM"]
        shown = ["sh", "-c", f'"$@"; echo "{_ENDED}$?"; exec sleep 1000', "sh", *command]
        self._run(
            *("-f", os.devnull, "set-option", "-g", "default-terminal", "tmux-256color", ";"),
            *("new-session", "-d", "-x", str(columns), "-y", str(rows), "-c", str(directory)),
            shlex.join(["env", *variables, *shown]),
        )

    def screen(self) -> Sequence[str]:
        """The lines that are on the screen, and those that have left it."""
        return self._run("capture-pane", "-p", "-S", "-").splitlines()

    def shows(self, words: str) -> Sequence[str]:
        """Wait until something is on the screen. Return its lines."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while words not in "\n".join(self.screen()):
            if time.monotonic() > deadline:
                raise AssertionError("\n".join([f"no {words!r} in:", *self.screen()]))
            time.sleep(0.1)
        return self.screen()

    def end(self) -> int:
        """Wait until the program has ended. Return its exit status."""
        last = next(line for line in self.shows(_ENDED) if line.startswith(_ENDED))
        return int(last.removeprefix(_ENDED))

    def stop(self) -> None:
        """End it all."""
        subprocess.run(
            [self._program, "-S", str(self._socket), "kill-server"],
            check=False,
            capture_output=True,
            timeout=30,
        )
        self._temporary.cleanup()

    def _run(self, *words: str) -> str:
        run = subprocess.run(
            [self._program, "-S", str(self._socket), *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"},
        )
        return run.stdout
