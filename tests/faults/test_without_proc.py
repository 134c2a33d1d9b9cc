"""The installed daemon where proc(5) is not mounted."""

from __future__ import annotations

import os
import shutil
import subprocess
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.wire import Wire

_HIDE = 'mount -t tmpfs none /proc && exec "$@"'


class WithoutProcTests(SynchronousTestCase):
    """An empty file system covers /proc, in a mount namespace of the daemon."""

    def setUp(self) -> None:
        """A wire, and how to run something without /proc."""
        self.wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _HIDE, "sh"]
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            raise SkipTest("mount namespaces need root, and unshare(1)")
        if subprocess.run([*self.wrapper, "true"], check=False, capture_output=True).returncode != 0:
            raise SkipTest("mount namespaces are not possible here")
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()

    def test_captures(self) -> None:
        """Captures work, with a filter, with a limit of bytes, and delivered whole."""
        daemon = Daemon()
        self.addCleanup(daemon.stop)
        daemon.start(*self.wrapper)
        for limits in ({"packets": 20}, {"packets": 50, "bytes": 24 + 20 * (16 + 100)}):
            capture = daemon.capture(interface=[self.wire.interface], bpf="udp", **limits)
            self.wire.send([udp_frame(number, size=100) for number in range(30)])
            state = daemon.done(capture)
            self.assertEqual((state["state"], state["packets"]), ("done", 20), daemon.log)
            self.assertEqual(daemon.file_of(capture).stat().st_size, state["bytes"])
            self.assertEqual(state["bytes"], 24 + 20 * (16 + 100))
