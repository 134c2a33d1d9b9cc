"""Every documented command that starts the daemon starts it again after a kill."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from twisted.trial import unittest

from peers.process import free_port

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 180.0
# Where commands are documented.
_DOCUMENTS = (
    "README.md",
    "docs/*.md",
    "pcapsvc.tac",
    "packaging/*.service",
    "examples/*.toml",
    "DESIGN.md",
)
_COMMAND = re.compile(
    r"(?:PCAPSVC_CONFIG=\S+ )?[\w./$\"-]*\btwistd\"? (?:-\S+ )+(?:pcapsvc|\S*\.tac)\b[^\n`}|]*"
)


def documented_commands() -> list[str]:
    """The commands that start the daemon, without those that only print something."""
    found = []
    for pattern in _DOCUMENTS:
        paths = sorted(ROOT.glob(pattern))
        assert paths, pattern
        for path in paths:
            found += [match[0] for match in _COMMAND.finditer(path.read_text())]
    return [command for command in found if "--help" not in command and "--version" not in command]


class DocumentedCommandsTests(unittest.SynchronousTestCase):
    """The commands, run as they are written, but for their paths."""

    def setUp(self) -> None:
        """A configuration, and a directory to start in."""
        temporary = tempfile.TemporaryDirectory(prefix="pcapsvc-command-")
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.port = free_port()
        self.configuration = self.directory / "pcapsvc.toml"
        self.configuration.write_text(
            f"[general]\nnodename = 'n'\nwritelocal = true\nlocaldir = '{self.directory}'\n"
            f"[http]\nlisten = 'tcp:{self.port}:interface=127.0.0.1'\n"
        )

    def commands(self) -> list[str]:
        """The documented commands, once each: several documents have the same ones, but for their paths."""
        return list({tuple(self.words(command)): command for command in documented_commands()}.values())

    def words(self, command: str) -> list[str]:
        """A command, with our paths."""
        words = []
        for word in shlex.split(command):
            if word.startswith("PCAPSVC_CONFIG="):
                continue
            if word.endswith("twistd"):
                words.append(str(Path(sys.executable).with_name("twistd")))
            elif word.endswith(".tac"):
                words.append(str(ROOT / "pcapsvc.tac"))
            elif word.startswith("[options]"):
                words += ["--config", str(self.configuration)]
            elif ".toml" in word:
                words.append(str(self.configuration))
            else:
                words.append(word)
        return words

    def start(self, command: str, directory: str) -> subprocess.Popen[bytes]:
        """Start it in a directory, and wait until it runs."""
        log = self.directory / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self.words(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=directory,
                env={**os.environ, "PCAPSVC_CONFIG": str(self.configuration)},
            )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{command}: {log.read_text()}")
            time.sleep(0.02)
        return process

    def answers(self) -> bool:
        """Whether it answers: it listens a moment before it runs, and handles signals from then on only."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_SECONDS)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def test_found(self) -> None:
        """There are commands with the configuration's path, and one with the application file."""
        commands = documented_commands()
        self.assertTrue(any("--config" in command for command in commands), commands)
        self.assertTrue(any(".tac" in command for command in commands), commands)
        # What "make run" starts.
        self.assertRegex((ROOT / "scripts" / "run").read_text(), r"/twistd\" -n --pidfile= pcapsvc")

    def test_after_a_kill(self) -> None:
        """
        After SIGKILL, each command starts the daemon again; also if the process id of the first one
        belongs to another process by then.
        """
        for command in self.commands():
            process = self.start(command, str(self.directory))
            process.kill()
            process.wait()
            # As every first process of a container has the id 1.
            stale = self.directory / "twistd.pid"
            if stale.exists():
                stale.write_text("1")
            process = self.start(command, str(self.directory))
            process.send_signal(signal.SIGTERM)
            self.assertEqual(0, process.wait(_PATIENCE_SECONDS), command)

    def test_read_only(self) -> None:
        """Each command starts the daemon in a directory that nobody can write to."""
        for command in self.commands():
            process = self.start(command, "/sys")
            process.send_signal(signal.SIGTERM)
            self.assertEqual(0, process.wait(_PATIENCE_SECONDS), command)
            self.assertNotIn("Traceback", (self.directory / "log").read_text())
