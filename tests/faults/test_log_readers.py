"""A log that nobody reads, or that can't hold every character, costs neither answers nor a stop."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.trial import unittest

from peers.process import free_port

ROOT = Path(__file__).resolve().parents[2]
# fcntl(2), F_SETPIPE_SZ: the module doesn't know it in every version.
_F_SETPIPE_SZ = 1031
_PATIENCE_SECONDS = 60.0
# At least so many of them are logged. The others are counted, as there are too many in a second.
_LOGGED = 15
#: Refused with a line of some 400 characters each.
MISTAKES = json.dumps({"node": "any", **{f"mistake{number}": 1 for number in range(10)}}).encode()


class LogReaderTests(unittest.SynchronousTestCase):
    """C{twistd} in a process of its own, whose log goes where the test says."""

    def setUp(self) -> None:
        """A configuration."""
        folder = tempfile.TemporaryDirectory(prefix="pcapsvc-log-")
        self.addCleanup(folder.cleanup)
        self.directory = Path(folder.name)
        self.port = free_port()
        self.configuration = self.directory / "pcapsvc.toml"
        self.configure("")

    def configure(self, general: str) -> None:
        """Write the configuration."""
        self.configuration.write_text(
            f"[general]\nnodename = 'n'\nmaxrequestrate = 0\n"
            f"writelocal = true\nlocaldir = '{self.directory}'\n"
            f"{general}\n[http]\nlisten = 'tcp:{self.port}:interface=127.0.0.1'\n"
        )

    @property
    def plugin(self) -> tuple[str, ...]:
        """The end of a command line."""
        return ("--pidfile=", "pcapsvc", "--config", str(self.configuration))

    def start(
        self, stdout: int, *, arguments: Sequence[str] | None = None, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start it, and wait until it answers."""
        if arguments is None:
            arguments = ("-n", *self.plugin)
        twistd = str(Path(sys.executable).with_name("twistd"))
        process = subprocess.Popen(
            [twistd, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stdout,
            cwd=self.directory,
            env={**os.environ, **environment},
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.until(lambda: self.status(b"{}") is not None, "an answer")
        return process

    def until(self, check: Callable[[], Any], what: str) -> Any:
        """Wait until something is the case."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not (found := check()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited for {what} in vain")
            time.sleep(0.02)
        return found

    def status(self, body: bytes) -> int | None:
        """The status of the answer to a message; L{None} if there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_SECONDS)
        try:
            connection.request("POST", "/captures", body)
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    def flood(self, requests: int = 60) -> None:
        """Send requests that are refused, each of which must be answered."""
        for number in range(requests):
            self.assertEqual(400, self.status(MISTAKES), f"after {number} requests")

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End it by SIGTERM: it has to exit with status 0."""
        process.send_signal(signal.SIGTERM)
        self.assertEqual(0, process.wait(_PATIENCE_SECONDS))

    def pipe(self) -> tuple[int, int]:
        """The ends of a pipe of 4 KiB."""
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        fcntl.fcntl(writer, _F_SETPIPE_SZ, 4096)
        return reader, writer

    def read(self, reader: int) -> str:
        """All that can be read now."""
        os.set_blocking(reader, False)
        found = b""
        while True:
            try:
                chunk = os.read(reader, 65536)
            except (BlockingIOError, OSError):
                break
            if not chunk:
                break
            found += chunk
        return found.decode(errors="replace")

    def test_pipe(self) -> None:
        """If the reader of a pipe hangs, requests are answered, and SIGTERM ends the process with 0."""
        _, writer = self.pipe()
        process = self.start(writer)
        os.close(writer)
        self.flood()
        self.stop(process)

    def test_tac(self) -> None:
        """The same if the daemon is started from C{pcapsvc.tac}."""
        _, writer = self.pipe()
        process = self.start(
            writer,
            arguments=("-n", "--pidfile=", "-y", str(ROOT / "pcapsvc.tac")),
            PCAPSVC_CONFIG=str(self.configuration),
        )
        os.close(writer)
        self.flood()
        self.stop(process)

    def test_journal(self) -> None:
        """The same if standard output is a stream socket that nobody reads, as of a stuck journal."""
        reader, writer = socket.socketpair()
        self.addCleanup(reader.close)
        writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        process = self.start(writer.fileno())
        writer.close()
        self.flood()
        self.stop(process)

    def test_terminal(self) -> None:
        """The same if standard output is a terminal that is stopped, as by Ctrl-S."""
        leader, follower = pty.openpty()
        self.addCleanup(os.close, leader)
        process = self.start(follower)
        os.close(follower)
        text = ""

        def is_listening() -> bool:
            nonlocal text
            text += self.read(leader)
            return "listening" in text

        self.until(is_listening, "the first lines")
        os.write(leader, b"\x13")
        self.flood()
        self.stop(process)

    def test_any_observer(self) -> None:
        """The same if what C{--logger} names never returns, as a log file on a disk that hangs."""
        (self.directory / "hanging.py").write_text(
            "import threading\nfrom zope.interface import implementer, provider\n"
            "from twisted.logger import ILogObserver\n\n"
            "def observer():\n"
            "    @provider(ILogObserver)\n"
            "    def hang(event):\n"
            "        threading.Event().wait()\n"
            "    return hang\n"
        )
        process = self.start(
            subprocess.DEVNULL,
            arguments=("-n", "--logger", "hanging.observer", *self.plugin),
            PYTHONPATH=f"{self.directory}:{ROOT}",
        )
        self.flood()
        self.stop(process)

    def test_healthy(self) -> None:
        """If the log is read, it ends with the last lines of the daemon, also if they are many and late."""
        path = self.directory / "log"
        with path.open("wb") as file:
            process = self.start(file.fileno())
        self.flood(20)
        self.stop(process)
        lines = path.read_text().splitlines()
        self.assertIn("Server Shut Down.", lines[-1])
        self.assertGreaterEqual(sum("mistake" in line for line in lines), _LOGGED)

    def test_read_late(self) -> None:
        """What was logged while nobody read is there when the log is read again, in order."""
        reader, writer = self.pipe()
        process = self.start(writer)
        os.close(writer)
        self.flood()
        text = ""

        def read() -> bool:
            nonlocal text
            text += self.read(reader)
            return text.count("mistake0") >= _LOGGED

        self.until(read, "the lines")
        process.send_signal(signal.SIGTERM)
        self.until(lambda: read() and process.poll() is not None, "the end")
        read()
        self.assertEqual(0, process.wait())
        self.assertIn("Server Shut Down.", text.splitlines()[-1])

    def test_encodings(self) -> None:
        """A character that the log's encoding lacks is escaped, and its line is not lost."""
        self.configure("logrequests = true")
        for number, encoding in enumerate(("ascii", "latin-1", "utf-8")):
            path = self.directory / f"log{number}"
            with path.open("wb") as file:
                process = self.start(file.fileno(), PYTHONIOENCODING=encoding)
            body = json.dumps({"node": "any", "alertstr": "before \u20ac after"}, ensure_ascii=False)
            self.assertEqual(400, self.status(body.encode()))
            self.stop(process)
            sign = "\u20ac" if encoding == "utf-8" else "\\u20ac"
            self.assertIn(f"before {sign} after", path.read_bytes().decode(encoding))
