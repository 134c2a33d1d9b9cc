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

_PATIENCE_SECONDS = 90.0


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
        self._run(
            *("-f", os.devnull, "set-option", "-g", "remain-on-exit", "on", ";"),
            *("set-option", "-g", "default-terminal", "tmux-256color", ";"),
            *("new-session", "-d", "-x", str(columns), "-y", str(rows), "-c", str(directory)),
            shlex.join(["env", *variables, *command]),
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
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not (status := self._run("display-message", "-p", "#{pane_dead_status}").strip()):
            if time.monotonic() > deadline:
                raise AssertionError("\n".join(["it goes on and on:", *self.screen()]))
            time.sleep(0.1)
        return int(status)

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
