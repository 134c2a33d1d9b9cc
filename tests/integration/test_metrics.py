"""The metrics of the installed daemon, after real captures."""

from __future__ import annotations

import urllib.request

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.wire import Wire
from tests.unit.test_metrics import SERIES, parse


class MetricsTests(SynchronousTestCase):
    """A capture on a wire, delivered to a local directory."""

    def setUp(self) -> None:
        """A wire, and a daemon."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.daemon = Daemon()
        self.addCleanup(self.daemon.stop)
        self.daemon.start()

    def text(self) -> str:
        """All metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.daemon.port}/metrics", timeout=60) as answer:
            return str(answer.read().decode())

    def test_capture(self) -> None:
        """What was captured and delivered is counted, to the packet and the byte, and while it runs."""
        capture_id = self.daemon.capture(interface=[self.wire.interface], bpf="udp port 9", packets=60)
        self.wire.send([udp_frame(number, port=9) for number in range(50)])
        self.wait_for("capture_packets_total", 50)
        self.assertEqual(self.found("captures_running"), 1)
        self.wire.send([udp_frame(number, port=9) for number in range(50, 60)])
        state = self.daemon.done(capture_id)
        self.wait_for("captures_running", 0)
        self.assertEqual(state["packets"], 60)
        for name, labels, value in (
            ("requests_total", {"source": "http", "verdict": "accepted"}, 1),
            ("captures_total", {"reason": "packets"}, 1),
            ("capture_packets_total", {}, 60),
            ("capture_bytes_total", {}, state["bytes"]),
            ("packets_dropped_total", {"where": "kernel"}, 0),
            ("delivery_attempts_total", {"destination": "local", "outcome": "delivered"}, 1),
            ("delivery_seconds_count", {"destination": "local"}, 1),
            ("source_connected", {"source": "http"}, 1),
        ):
            self.assertEqual(self.found(name, **labels), value, name)
        self.assertGreater(self.found("reactor_lag_seconds_count"), 0)
        self.assertLessEqual({name for name, _ in parse(self.text())}, set(SERIES))

    def wait_for(self, name: str, value: float) -> None:
        """Wait until a series has a value. An answer is good for half a second."""
        self.daemon.until(lambda: True if self.found(name) == value else None, f"{name} to be {value}")

    def found(self, name: str, **labels: str) -> float:
        """The value of a series now."""
        return parse(self.text())[f"pcapsvc_{name}", tuple(sorted(labels.items()))]
