"""The installed daemon with a low limit of open files."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon

_FILES = 64


class FewDescriptorsTests(SynchronousTestCase):
    """A hard limit of 64."""

    def setUp(self) -> None:
        """A daemon."""
        if shutil.which("prlimit") is None:
            raise SkipTest("needs prlimit(1)")
        self.daemon = Daemon()
        self.addCleanup(self.daemon.stop)
        self.daemon.start("prlimit", f"--nofile={_FILES}:{_FILES}")

    def test_strangers(self) -> None:
        """Connections that only take descriptors leave enough for captures, with a filter each."""
        client = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=60)
        self.addCleanup(client.close)
        for number in range(_FILES + 16):
            if number % 10 == 0:
                # A connection without requests is closed after a while.
                client.request("GET", "/captures/none")
                client.getresponse().read()
            stranger = socket.create_connection(("127.0.0.1", self.daemon.port), timeout=60)
            self.addCleanup(stranger.close)
        self.daemon.until(lambda: len(self.daemon.descriptors()) < _FILES // 2 or None, "free descriptors")
        for number in range(6):
            message = {
                "node": self.daemon.node,
                "interface": ["lo"],
                "bpf": f"udp port {number}",
                "duration": 9,
            }
            client.request("POST", "/captures", json.dumps(message).encode())
            answer = client.getresponse()
            self.assertEqual(answer.status, 202, answer.read())
            answer.read()
