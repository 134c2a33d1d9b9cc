"""A daemon that listens on unix sockets starts again after it was killed."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from twisted.trial import unittest

_PATIENCE_SECONDS = 180.0


class UnixSocketTests(unittest.SynchronousTestCase):
    """C{twistd} with HTTP and the manhole on unix sockets."""

    def setUp(self) -> None:
        """A configuration, and no daemon."""
        temporary = tempfile.TemporaryDirectory(prefix="pcapsvc-unix-")
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.sockets = [self.directory / "http.sock", self.directory / "manhole.sock"]
        keys = self.directory / "authorized_keys"
        keys.write_bytes(public_key())
        keys.chmod(0o600)
        self.configuration = self.directory / "pcapsvc.toml"
        self.configuration.write_text(
            f"[general]\nnodename = 'n'\nwritelocal = true\nlocaldir = '{self.directory}'\n"
            f"[http]\nlisten = 'unix:{self.sockets[0]}'\n"
            f"[manhole]\nlisten = 'unix:{self.sockets[1]}'\nauthorizedkeys = '{keys}'\n"
            f"hostkey = '{self.directory}/host_key'\n"
        )

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it, and don't wait."""
        twistd = str(Path(sys.executable).with_name("twistd"))
        log = self.directory / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [twistd, "-n", "--pidfile=", "pcapsvc", "--config", str(self.configuration)],
                stdout=file,
                stderr=file,
                cwd=self.directory,
            )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, and wait until it listens on both sockets, and serves."""
        process = self.launch()
        self.both_answer(process)
        # It listens before it handles signals. Until then, SIGTERM would kill it at once.
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_PATIENCE_SECONDS)
            client.connect(str(self.sockets[0]))
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            self.assertTrue(client.recv(1))
        return process

    def both_answer(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until a process listens on both sockets."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not all(map(answers, self.sockets)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.directory / "log").read_text())
            time.sleep(0.02)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill it: its sockets stay."""
        process.kill()
        process.wait()
        self.assertTrue(all(map(is_socket, self.sockets)))

    def test_after_a_kill(self) -> None:
        """Sockets that nobody answers on are replaced, also if a lock names a process that lives."""
        self.kill(self.start())
        for path in self.sockets:
            lock = Path(f"{path}.lock")
            lock.unlink(missing_ok=True)
            lock.symlink_to(str(os.getpid()))
        process = self.start()
        process.send_signal(signal.SIGTERM)
        self.assertEqual(0, process.wait(_PATIENCE_SECONDS))
        self.assertEqual([], [path.name for path in self.directory.glob("*.sock*")])

    def test_in_use(self) -> None:
        """A socket that another process listens on is left alone, even if that is stopped, and reported."""
        first = self.start()
        first.send_signal(signal.SIGSTOP)
        second = self.launch()
        self.assertEqual(1, second.wait(_PATIENCE_SECONDS))
        log = (self.directory / "log").read_text()
        self.assertIn("another process is listening on it", log)
        first.send_signal(signal.SIGCONT)
        self.assertTrue(all(map(answers, self.sockets)))
        first.send_signal(signal.SIGTERM)
        self.assertEqual(0, first.wait(_PATIENCE_SECONDS))

    def test_two_at_once(self) -> None:
        """If two start at once where one was killed, one of them listens, and the other reports that."""
        self.kill(self.start())
        both = [self.launch(), self.launch()]
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while all(each.poll() is None for each in both) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual([1, None], sorted((each.poll() for each in both), key=str))
        [left] = [each for each in both if each.poll() is None]
        # It may have got the first one only, when the other gave up.
        self.both_answer(left)

    def test_not_a_socket(self) -> None:
        """A file that is not a socket is left alone, and reported."""
        self.sockets[0].write_text("precious")
        self.assertEqual(1, self.launch().wait(_PATIENCE_SECONDS))
        self.assertIn("not a socket", (self.directory / "log").read_text())
        self.assertEqual("precious", self.sockets[0].read_text())


def public_key() -> bytes:
    """A public key, as in C{authorized_keys}."""
    key = Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"


def answers(path: Path) -> bool:
    """Whether somebody listens on a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def is_socket(path: Path) -> bool:
    """Whether there is a socket."""
    return path.exists() and stat.S_ISSOCK(path.stat().st_mode)
