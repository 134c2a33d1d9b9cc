"""pcapctl as an ordinary user without privileges, with a daemon of the same installation."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.requirement import require, require_command
from peers.tcpdump import read_packets
from peers.wire import Wire
from tests.integration.test_pcapctl import Traffic

# The user nobody on every distribution.
_USER = 65534


class OrdinaryUserTests(SynchronousTestCase):
    """A user with a home directory, and nothing else."""

    timeout = 200

    def setUp(self) -> None:
        """A daemon, traffic, and the user's home."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.daemon = Daemon(node="web-1", retain_bytes=1 << 24)
        self.addCleanup(self.daemon.stop)
        self.daemon.start()
        traffic = Traffic(self.wire)
        self.addCleanup(traffic.stop)
        home = tempfile.TemporaryDirectory(prefix="pcapsvc-home-")
        self.addCleanup(home.cleanup)
        os.chown(home.name, _USER, _USER)
        self.home = Path(home.name)
        can_start = self.run_as_user(sys.executable, "-c", "").returncode == 0
        require(can_start, f"other users can't run {sys.executable}")

    def run_as_user(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program as the user, without any capability."""
        setpriv = require_command("setpriv", "util-linux")
        no_caps = [f"--{name}=-all" for name in ("inh-caps", "ambient-caps", "bounding-set")]
        user = [f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups", "--no-new-privs", *no_caps]
        return subprocess.run(
            [setpriv, *user, *command],
            cwd=self.home,
            env={"HOME": str(self.home), "PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def test_capture(self) -> None:
        """With a profile, the user captures, has the file, and lets Wireshark list the node's interfaces."""
        pcapctl = str(Path(sys.executable).with_name("pcapctl"))
        (self.home / ".config").mkdir()
        (self.home / ".config" / "pcapctl.toml").write_text(
            f'default = "lab"\n[profiles.lab]\nvia = "{self.daemon.api}"\napis = "{self.daemon.api}"\n'
        )
        os.chown(self.home / ".config", _USER, _USER)
        words = ("capture", "-i", self.wire.interface, "-c", "20", "-w", "%n.pcap", "udp")
        done = self.run_as_user(pcapctl, *words)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done)
        self.assertEqual(len(read_packets(self.home / "web-1.pcap")), 20)
        installed = self.run_as_user(pcapctl, "install-extcap")
        self.assertEqual((installed.returncode, installed.stderr), (0, ""), installed)
        program = Path(installed.stdout.strip())
        self.assertTrue(program.is_relative_to(self.home), program)
        listed = self.run_as_user(str(program), "--extcap-interfaces")
        self.assertIn(f"{{value=pcapctl:lab:web-1:{self.wire.interface}}}", listed.stdout)
