"""The wall clock is set while the daemon runs: time limits in seconds are not affected."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.cloudshark import CloudSharkServer, accept, refuse
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.wire import Wire

DAY = 86_400.0


class ClockTests(SynchronousTestCase):
    """The daemon in its own process, with its own wall clock."""

    def setUp(self) -> None:
        """A link, a server that refuses uploads, and a daemon with a spool."""
        self.wire, self.server = Wire(), CloudSharkServer()
        for peer in (self.wire, self.server):
            self.addCleanup(peer.stop)
            peer.start()
        self.server.behave(refuse(503, "later"))
        self.path = Path(self.mktemp()).absolute()
        self.path.mkdir()
        self.spool = self.path / "spool"
        self.spool.mkdir()
        self.step(0)
        self.daemon = Daemon(
            f'[delivery]\nspooldir = "{self.spool}"\nattempts = 1\nretryinterval = 1\n'
            f'[cloudshark]\nupload = true\nhost = "localhost"\nport = {self.server.port}\n'
            f'token = "{self.server.token}"\nverify = "{self.server.ca_file}"\n',
        )
        self.addCleanup(self.daemon.stop)
        program = Path(__file__).with_name("stepped_process.py")
        self.daemon.start(sys.executable, str(program), str(self.offset))

    @property
    def offset(self) -> Path:
        return self.path / "offset"

    def step(self, seconds: float) -> None:
        """Set the clock ahead of the true time by some seconds."""
        draft = self.path / "draft"
        draft.write_text(str(seconds))
        draft.rename(self.offset)

    def test_ahead(self) -> None:
        """Two days ahead, no capture ends, and nothing in the spool is too old."""
        spooled = self.daemon.capture(interface=[self.wire.interface], packets=1)
        self.wire.send([udp_frame(1)])
        self.daemon.logged(f"{spooled}: not delivered to cloudshark yet, and kept in the spool")
        running = self.daemon.capture(interface=[self.wire.interface], packets=2, timeout=60, duration=600)
        self.step(2 * DAY)
        attempts = len(self.server.uploads())
        # Two rounds through the spool, each of which would remove what is too old.
        self.daemon.until(lambda: len(self.server.uploads()) > attempts + 1 or None, "two more attempts")
        self.wire.send([udp_frame(2), udp_frame(3)])
        self.assertEqual(self.daemon.done(running)["reason"], "packets")
        self.server.behave(accept())
        self.daemon.logged(f"{spooled}: delivered to cloudshark")
        self.assertNotIn("failed for good", self.daemon.log)

    def test_back(self) -> None:
        """A day back, captures end on time, and so does the daemon."""
        began = time.monotonic()
        capture = self.daemon.capture(interface=[self.wire.interface], timeout=60, duration=1)
        self.step(-DAY)
        self.assertEqual(self.daemon.done(capture)["reason"], "duration")
        self.assertGreater(time.monotonic() - began, 0.9)
        self.daemon.signal(signal.SIGTERM)
        self.step(-2 * DAY)
        self.assertEqual(self.daemon.wait(), 0)
