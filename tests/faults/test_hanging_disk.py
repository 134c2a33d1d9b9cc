"""A daemon whose disk hangs: it goes on answering."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from twisted.trial.unittest import SynchronousTestCase

from peers.cloudshark import CloudSharkServer
from peers.daemon import Daemon
from tests.faults.shim import Shim

_HANGS_SECONDS = 1.2
# Most answers come long before that, also on a busy machine.
_SOON_SECONDS = 0.9


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

    def answers_until(self, ready: Callable[[], object]) -> None:
        """The daemon answers, until something is true; no access to the disk holds it up."""
        took = []
        deadline = time.monotonic() + 60
        while not ready():
            self.assertLess(time.monotonic(), deadline)
            before = time.monotonic()
            self.daemon.request("GET", "/captures/none")
            took.append(time.monotonic() - before)
            time.sleep(0.02)
        self.assertEqual(self.shim.held(), [])
        # Nor does a thread that waits for the disk.
        self.assertLess(median(took), _SOON_SECONDS)

    def test_spool(self) -> None:
        """Captures are delivered from the spool, and certificates are read, in no turn of the reactor."""
        capture_id = self.daemon.capture(interface=["lo"], packets=1, timeout=30)
        self.daemon.until(
            lambda: True if list((self.disk / "spool").glob("*-cloudshark")) else None, "the spool"
        )
        self.shim.begin()
        self.server.start()
        self.answers_until(self.server.captures)
        [name] = self.server.captures()
        self.assertIn(capture_id, str(name))
        # Removing it, and a new capture, touch the disk as well.
        self.daemon.capture(interface=["lo"], packets=1, timeout=30)
        self.answers_until(lambda: len(self.server.captures()) == 2)


class HangingSpoolTests(SynchronousTestCase):
    """The spool's disk hangs for longer than a stop may take; the local directory is on another disk."""

    def test_stop(self) -> None:
        """
        What has ended, and what ends because of the stop, is delivered from memory: a stop waits for the
        spool for a quarter of its time.
        """
        self.assert_delivered(stop_seconds=20, is_hurried=False)

    def test_hurried(self) -> None:
        """So it is if a second signal leaves a quarter of the time: half of that is for the spool."""
        self.assert_delivered(stop_seconds=40, is_hurried=True)

    def assert_delivered(self, *, stop_seconds: int, is_hurried: bool) -> None:
        """A daemon that is stopped delivers everything, and exits."""
        path = Path(self.mktemp()).absolute()
        spool = path / "disk" / "spool"
        spool.mkdir(parents=True)
        shim = Shim(path, path / "disk", SHIM_DELAY="60000")
        daemon = Daemon(
            f"[delivery]\nspooldir = {json.dumps(str(spool))}\n",
            general=f"stoptimeout = {stop_seconds}",
        )
        self.addCleanup(daemon.stop)
        daemon.start(*shim.wrapper)
        running = daemon.capture(interface=["lo"], timeout=30)
        shim.begin()
        ended = daemon.capture(interface=["lo"], packets=1, timeout=30)
        daemon.logged(f"{ended}: stopped")
        daemon.signal(signal.SIGTERM)
        if is_hurried:
            daemon.logged(f"{running}: stopped")
            daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        for capture in (ended, running):
            self.assertIn(f"{capture}: delivered to local", daemon.log)
            self.assertEqual(len(list(daemon.captures.glob(f"*-{capture}.pcap"))), 1)


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
            # A start that hangs is given up after 60 s.
            self.assertLess(time.monotonic() - before, 50)
            self.assertIn("it is not a regular file", str(error))
