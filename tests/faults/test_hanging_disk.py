"""A daemon whose disk hangs: it goes on answering."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.cloudshark import CloudSharkServer
from peers.daemon import Daemon
from tests.faults.shim import Shim

_HANGS_SECONDS = 1.2
_LONGEST_ANSWER_SECONDS = 0.9


class HangingDiskTests(SynchronousTestCase):
    """Every access to the disk takes more than a second, from some moment on."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.disk = self.path / "disk"
        (self.disk / "spool").mkdir(parents=True)
        (self.disk / "local").mkdir()
        self.shim = Shim(self.path, self.disk, SHIM_DELAY=str(int(1000 * _HANGS_SECONDS)))
        self.server = CloudSharkServer()
        self.addCleanup(self.server.stop)
        shutil.copy(self.server.ca_file, self.disk / "ca.pem")
        self.daemon = Daemon(
            f"""
            [cloudshark]
            upload = true
            host = "localhost"
            port = {self.server.port}
            token = "{self.server.token}"
            verify = {json.dumps(str(self.disk / "ca.pem"))}
            [delivery]
            attempts = 1
            spooldir = {json.dumps(str(self.disk / "spool"))}
            retryinterval = 1
            """,
        )
        self.addCleanup(self.daemon.stop)
        self.daemon.start(*self.shim.wrapper)

    def slowest_until(self, ready: object) -> float:
        """The longest time that an answer takes, until something is true."""
        slowest = 0.0
        deadline = time.monotonic() + 60
        while not ready():  # type: ignore[operator]
            self.assertLess(time.monotonic(), deadline)
            before = time.monotonic()
            self.daemon.request("GET", "/captures/none")
            slowest = max(slowest, time.monotonic() - before)
            time.sleep(0.02)
        return slowest

    def test_spool(self) -> None:
        """Captures are delivered from the spool, certificates are read, and every answer is prompt."""
        capture_id = self.daemon.capture(interface=["lo"], packets=1, timeout=30)
        self.daemon.until(
            lambda: True if list((self.disk / "spool").glob("*-cloudshark")) else None, "the spool"
        )
        self.shim.begin()
        self.server.start()
        self.assertLess(self.slowest_until(self.server.captures), _LONGEST_ANSWER_SECONDS)
        [name] = self.server.captures()
        self.assertIn(capture_id, str(name))
        # Removing it, and a new capture, touch the disk as well.
        self.daemon.capture(interface=["lo"], packets=1, timeout=30)
        slowest = self.slowest_until(lambda: len(self.server.captures()) == 2)
        self.assertLess(slowest, _LONGEST_ANSWER_SECONDS)


class FifoTests(SynchronousTestCase):
    """A file of the configuration that is a FIFO which nobody writes to."""

    def test_start(self) -> None:
        """The start is refused at once, for that reason."""
        fifo = Path(self.mktemp()).absolute()
        os.mkfifo(fifo)
        for configuration in (
            f"tokenfile = {json.dumps(str(fifo))}",
            f"[redis]\nlisten = true\nchannel = 'c'\ntls = true\ncafile = {json.dumps(str(fifo))}",
            f"[cloudshark]\nupload = true\ntokenfile = {json.dumps(str(fifo))}",
        ):
            daemon = Daemon(configuration)
            self.addCleanup(daemon.stop)
            before = time.monotonic()
            error = self.assertRaises(RuntimeError, daemon.start)
            self.assertLess(time.monotonic() - before, 20)
            self.assertIn("it is not a regular file", str(error))
