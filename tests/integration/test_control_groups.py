"""The installed daemon in a control group of the kernel's that has a memory limit."""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.control_group import ControlGroup
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.process import OwnProcess
from peers.wire import Wire

_MIB = 1 << 20
_LIMIT_BYTES = 100 * _MIB
_TOO_LARGE_BYTES = 112 * _MIB
# 36 MiB are left for captures: the process itself is reckoned with 64. The ring comes on top.
_CAPTURE_BYTES = 24 * _MIB
# Beside the daemon's own memory, this leaves too little for such a capture.
_OTHERS_BYTES = 40 * _MIB
_FRAME_BYTES = 1400


class MemoryLimitTests(SynchronousTestCase):
    """A group that may use 100 MiB."""

    def setUp(self) -> None:
        """The group."""
        self.group = ControlGroup(_LIMIT_BYTES)
        self.addCleanup(self.group.remove)

    def daemon(self) -> Daemon:
        """A daemon in the group, started, whose settings would allow captures that are too large."""
        daemon = Daemon(general=f"maxmemory = {1024 * _MIB}\nmaxbytes = {1024 * _MIB}")
        self.addCleanup(daemon.stop)
        daemon.start(*self.group.wrapper)
        return daemon

    def ask(self, daemon: Daemon, **fields: Any) -> tuple[int, str]:
        """The status and the text of the answer to a request."""
        body = json.dumps({"node": daemon.node, "duration": 1, "snap": 65535, **fields}).encode()
        status, answer = daemon.request("POST", "/captures", body)
        return status, str(answer)

    def test_start(self) -> None:
        """That more is configured than the group allows is a warning at the start."""
        daemon = self.daemon()
        self.assertIn(daemon.pid, self.group.processes())
        daemon.logged(
            f"maxmemory is {1024 * _MIB}, but this process may use {_LIMIT_BYTES} bytes of memory (control"
            f" groups, and the host's memory): captures may use {36 * _MIB}"
        )

    def test_too_large(self) -> None:
        """A capture that could exceed the limit is refused, and the daemon carries on."""
        daemon = self.daemon()
        status, text = self.ask(daemon, interface=["lo"], bytes=_TOO_LARGE_BYTES)
        self.assertEqual(400, status, text)
        self.assertEqual(202, self.ask(daemon, interface=["lo"], bytes=1000)[0])

    def test_others_in_the_group(self) -> None:
        """While another process uses the group's memory, the daemon is busy; afterwards, it is not."""
        daemon = self.daemon()
        other = OwnProcess("other")
        self.addCleanup(other.clean_up)
        use = f"import time; used = b'x' * {_OTHERS_BYTES}; print('used', flush=True); time.sleep(600)"
        other.start([*self.group.wrapper, sys.executable, "-c", use], lambda: "used" in other.log)
        status, text = self.ask(daemon, interface=["lo"], bytes=_CAPTURE_BYTES)
        self.assertEqual(503, status, text)
        self.assertIn("bytes of memory are free for this process", text)
        other.end()
        self.assertEqual(202, self.ask(daemon, interface=["lo"], bytes=_CAPTURE_BYTES)[0])

    def test_within_the_limit(self) -> None:
        """A capture that fills what it may use is delivered, and nothing is killed."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        daemon = self.daemon()
        before = self.group.most_bytes()
        capture = daemon.capture(interface=[wire.interface], bytes=_CAPTURE_BYTES, snap=2000)
        enough = _CAPTURE_BYTES // _FRAME_BYTES
        daemon.send(wire, [udp_frame(number, size=_FRAME_BYTES) for number in range(enough)], capture)
        self.assertEqual("done", daemon.done(capture)["state"])
        size = daemon.file_of(capture).stat().st_size
        self.assertApproximates(_CAPTURE_BYTES, size, 2 * _FRAME_BYTES)
        if before is not None:
            self.assertGreater((self.group.most_bytes() or 0) - before, _CAPTURE_BYTES // 2)
        self.assertEqual(0, self.group.kills())
