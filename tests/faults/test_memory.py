"""A destination that hangs, and the memory and the descriptors that captures need."""

from __future__ import annotations

import signal
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.cloudshark import CloudSharkServer, accept, hang
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.wire import Wire

_CAPTURES = 40
_PACKETS = 20


class HangingDestinationTests(SynchronousTestCase):
    """CloudShark hangs, and there is a spool."""

    def setUp(self) -> None:
        """A wire, a server, a spool, and a daemon with memory for three captures."""
        self.wire, self.server = Wire(), CloudSharkServer()
        for peer in (self.wire, self.server):
            self.addCleanup(peer.stop)
            peer.start()
        self.spool = Path(self.mktemp()).absolute()
        self.spool.mkdir(mode=0o700)
        self.server.behave(hang())

    def daemon(self) -> Daemon:
        """A daemon, started."""
        daemon = Daemon(
            f'[delivery]\nspooldir = "{self.spool}"\nconcurrency = 2\n'
            f'[cloudshark]\nupload = true\nhost = "localhost"\nport = {self.server.port}\n'
            f'token = "{self.server.token}"\nverify = "{self.server.ca_file}"\n',
            general="maxmemory = 100000\nmaxbytes = 32000\nstoptimeout = 4",
        )
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def capture(self, daemon: Daemon) -> str:
        """A capture that has ended, and that the directory and the spool have."""
        before = len(self.spooled())
        capture = daemon.capture(interface=[self.wire.interface], packets=_PACKETS, snap=2000)
        self.wire.send([udp_frame(number, size=1400) for number in range(_PACKETS)])
        daemon.logged(f"{capture}: delivered to local")
        daemon.until(lambda: len(self.spooled()) > before or None, "the spool to have the capture")
        return capture

    def spooled(self) -> list[Path]:
        """What the spool has for CloudShark."""
        return list(self.spool.glob("[0-9]*-cloudshark"))

    def test_no_capture_is_refused(self) -> None:
        """Many captures that wait for it take no memory from the next ones, and few descriptors."""
        daemon = self.daemon()
        self.capture(daemon)
        before = len(daemon.descriptors())
        captures = [self.capture(daemon) for _ in range(_CAPTURES)]
        # What writes the last ones to the spool closes its files.
        daemon.until(lambda: len(daemon.descriptors()) - before < 5 or None, "few descriptors")
        self.assertEqual(len(self.spooled()), _CAPTURES + 1)
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        for capture in captures:
            self.assertIn(f"{capture}: not delivered to cloudshark yet, and kept in the spool", daemon.log)

    def test_killed(self) -> None:
        """Of what had ended when the process is killed nothing is lost, and each arrives once."""
        daemon = self.daemon()
        captures = [self.capture(daemon) for _ in range(_CAPTURES)]
        daemon.signal(signal.SIGKILL)
        self.assertEqual(daemon.wait(), -signal.SIGKILL)
        files = {path.name: path.read_bytes() for path in daemon.captures.iterdir()}
        self.server.behave(accept())
        again = self.daemon()
        for capture in captures:
            again.logged(f"{capture}: delivered to cloudshark")
        uploads = [upload for upload in self.server.uploads() if upload.filename is not None]
        # Those that hung had been sent whole: nobody knows what became of them.
        hung = len(uploads) - len(files)
        self.assertLessEqual(hung, 2)
        self.assertEqual({upload.filename: upload.data for upload in uploads}, files)
        self.assertEqual(self.spooled(), [])
