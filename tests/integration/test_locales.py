"""The daemon in a locale whose encoding isn't UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.wire import Wire
from tests.contracts.test_pcapy_system import ip

# Otherwise Python uses UTF-8 in the locale C (PEP 538, PEP 540).
_ASCII = ("env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0")


class LocaleTests(SynchronousTestCase):
    """File names and the log are in ASCII."""

    def test_interfaces(self) -> None:
        """The names of interfaces are in UTF-8 all the same, as in messages."""
        wire, daemon = Wire(), Daemon()
        self.addCleanup(wire.stop)
        wire.start()
        try:
            ip("link", "property", "add", "dev", wire.interface, "altname", f"{wire.interface}-é")
        except subprocess.CalledProcessError:
            raise SkipTest("this kernel has no alternative names") from None
        self.addCleanup(daemon.stop)
        daemon.start(*_ASCII)
        capture = daemon.capture(interface=[f"{wire.interface}-é"], packets=1, bpf="udp port 9")
        wire.send([udp_frame(1)])
        self.assertEqual(daemon.done(capture)["packets"], 1)
        body = json.dumps({"node": "any", "interface": ["é€"]}).encode()
        status, answer = daemon.request("POST", "/captures", body)
        self.assertEqual((status, answer["problems"][0]["rule"]), (400, "no such interface"))
        self.assertNotIn("Traceback", daemon.log)

    def test_paths(self) -> None:
        """A path that can't be encoded is a problem of the configuration."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        spool = Path(folder.name, "é")
        os.mkdir(spool, 0o700)
        daemon = Daemon(f"[delivery]\nspooldir = {json.dumps(str(spool), ensure_ascii=False)}\n")
        self.addCleanup(daemon.stop)
        error = self.assertRaises(RuntimeError, daemon.start, *_ASCII)
        self.assertIn("must be a path in the encoding of the locale, which is ascii", str(error))
