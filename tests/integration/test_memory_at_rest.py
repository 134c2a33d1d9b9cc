"""The memory of a daemon that has nothing to do."""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.process import OwnProcess

# Twisted alone, with what a daemon without TLS uses of it.
_BARE = """\
import sys

sys.modules["OpenSSL"] = None

from twisted.application import internet, service
from twisted.web.http import HTTPFactory

application = service.Application("bare")
internet.TCPServer(0, HTTPFactory(), interface="127.0.0.1").setServiceParent(application)
"""
# Measured: 11.5 MB, of which the metrics are 1.4 MB.
_MOST_KILOBYTES = 14_000


def _resident_kilobytes(pid: int) -> int:
    """What C{VmRSS} in proc(5) says."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


class MemoryAtRestTests(SynchronousTestCase):
    """HTTP and a local directory, before the first request."""

    def test_beside_twisted(self) -> None:
        """
        The daemon adds at most 14 MB to what a bare C{twistd} needs, which depends on the versions of Python,
        Twisted and the C library, so no absolute number is expected.
        """
        bare, daemon = OwnProcess("bare"), Daemon()
        self.addCleanup(bare.clean_up)
        self.addCleanup(daemon.stop)
        file = bare.directory / "bare.tac"
        file.write_text(_BARE)
        twistd = str(Path(sys.executable).with_name("twistd"))
        bare.start(
            [twistd, "-n", "--pidfile=", "--python", str(file)],
            lambda: "HTTPFactory starting on" in bare.log,
        )
        daemon.start()
        added = _resident_kilobytes(daemon.pid) - _resident_kilobytes(bare.pid)
        self.assertLess(added, _MOST_KILOBYTES)
