"""Whoever may send requests or packets can't fill the disk with lines of the log."""

from __future__ import annotations

import http.client
import json
import socket
import time
from threading import Event, Thread

from twisted.trial import unittest

from pcapsvc.core.log_budget import BURST_BYTES, BYTES_A_SECOND
from peers.daemon import Daemon
from peers.process import free_port

_SECONDS = 5.0
#: Half of the burst, and some more for what becomes of captures.
_MAX_BYTES = BURST_BYTES // 2 + 100_000


class LogFloodTests(unittest.SynchronousTestCase):
    """The daemon, whose log is measured."""

    def start(self, general: str) -> Daemon:
        """A daemon."""
        daemon = Daemon("[capture]\nbuffersize = 1048576", general=general)
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def during(self, *floods: Thread) -> None:
        """Let floods run for a while."""
        self.began = time.monotonic()
        for flood in floods:
            flood.start()
        time.sleep(_SECONDS)

    def assert_bounded(self, daemon: Daemon, *names: str) -> None:
        """The log is small, has the number of lines that it lacks, and all that became of a capture."""
        port = free_port()
        capture = daemon.capture(interface=["lo"], bpf=f"udp port {port}", packets=1, timeout=60)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"packet", ("127.0.0.1", port))
        daemon.done(capture)
        daemon.logged(f"{capture}: capturing on lo")
        daemon.logged(f"{capture}: delivered to")
        size = len(daemon.log)
        self.assertLess(size, _MAX_BYTES + BYTES_A_SECOND * (time.monotonic() - self.began))
        line = daemon.logged("lines were not logged, to bound the log")
        for name in names:
            self.assertIn(name, line)

    def test_requests(self) -> None:
        """A flood of requests that are logged and refused."""
        daemon = self.start("logrequests = true")
        body = json.dumps({"node": "any", "mistake": "x" * 20_000}).encode()
        done = Event()
        self.addCleanup(done.set)

        def flood() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
            while not done.is_set():
                connection.request("POST", "/captures", body)
                connection.getresponse().read()
            connection.close()

        floods = [Thread(target=flood, daemon=True) for _ in range(2)]
        self.during(*floods)
        self.assert_bounded(daemon, "pcapsvc.judge")
        done.set()
        for each in floods:
            each.join()

    def test_packets(self) -> None:
        """A flood of packets, each of which is logged for each of many captures."""
        daemon = self.start("packetdebug = true")
        port = free_port()
        for _ in range(24):
            daemon.capture(interface=["lo"], bpf=f"udp port {port}", packets=50_000, timeout=60)
        done = Event()
        self.addCleanup(done.set)

        def flood() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                while not done.wait(0.002):
                    sender.sendto(b"packet", ("127.0.0.1", port))

        thread = Thread(target=flood, daemon=True)
        self.during(thread)
        self.assert_bounded(daemon, "pcapsvc.capture.decode")
        done.set()
        thread.join()
