"""Whoever may send requests or packets can't fill the disk with lines of the log."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from itertools import count
from threading import Event, Thread

from twisted.trial import unittest

from pcapsvc.core.log_budget import BURST_BYTES, BYTES_A_SECOND
from peers.daemon import Daemon
from peers.process import free_port

#: Half of the burst, and some more for what becomes of captures.
_MAX_BYTES = BURST_BYTES // 2 + 100_000
#: How much would be logged at least, if it were not bounded.
_FLOOD_BYTES = 3 * _MAX_BYTES
#: How long the line of a request, and that of a packet, is at least.
_REQUEST_BYTES = 4000
_PACKET_BYTES = 100
_PATIENCE_SECONDS = 180.0


class LogFloodTests(unittest.SynchronousTestCase):
    """The daemon, whose log is measured."""

    def start(self, general: str) -> Daemon:
        """A daemon."""
        daemon = Daemon("[capture]\nbuffersize = 1048576", general=general)
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def assert_bounded(self, daemon: Daemon, stop_floods: Callable[[], None], name: str) -> None:
        """
        During a flood the log is small, and has all that became of a capture. Later, it has the number of
        lines that it lacks.

        @param stop_floods: the lines are counted after it, without more of them.
        @param name: what the lines were about.
        """
        port = free_port()
        capture = daemon.capture(interface=["lo"], bpf=f"udp port {port}", packets=1, timeout=60)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"packet", ("127.0.0.1", port))
        daemon.done(capture)
        daemon.logged(f"{capture}: capturing on lo")
        daemon.logged(f"{capture}: delivered to")
        size = len(daemon.log)
        self.assertLess(size, _MAX_BYTES + BYTES_A_SECOND * (time.monotonic() - self.began))
        stop_floods()
        self.assertIn(name, daemon.logged("lines were not logged, to bound the log"))

    def test_requests(self) -> None:
        """A flood of requests that are logged and refused."""
        daemon = self.start("logrequests = true")
        body = json.dumps({"node": "any", "mistake": "x" * 20_000}).encode()
        done = Event()
        self.addCleanup(done.set)
        answered, enough = count(), Event()

        def flood() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=_PATIENCE_SECONDS)
            while not done.is_set():
                connection.request("POST", "/captures", body)
                connection.getresponse().read()
                if next(answered) * _REQUEST_BYTES > _FLOOD_BYTES:
                    enough.set()
            connection.close()

        floods = [Thread(target=flood, daemon=True) for _ in range(2)]

        def stop() -> None:
            done.set()
            for each in floods:
                each.join()

        self.began = time.monotonic()
        for each in floods:
            each.start()
        self.assertTrue(enough.wait(_PATIENCE_SECONDS))
        self.assert_bounded(daemon, stop, "pcapsvc.judge")

    def test_packets(self) -> None:
        """A flood of packets, each of which is logged for each of many captures."""
        daemon = self.start("packetdebug = true")
        port = free_port()
        captures = [
            daemon.capture(interface=["lo"], bpf=f"udp port {port}", packets=50_000, timeout=300)
            for _ in range(24)
        ]
        done = Event()
        self.addCleanup(done.set)

        def flood() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                while not done.wait(0.002):
                    sender.sendto(b"packet", ("127.0.0.1", port))

        def has_enough() -> bool | None:
            packets = daemon.request("GET", f"/captures/{captures[-1]}")[1]["packets"]
            return packets * len(captures) * _PACKET_BYTES > _FLOOD_BYTES or None

        thread = Thread(target=flood, daemon=True)

        def stop() -> None:
            done.set()
            thread.join()

        self.began = time.monotonic()
        thread.start()
        daemon.until(has_enough, "the flood")
        self.assert_bounded(daemon, stop, "pcapsvc.capture.decode")
