"""No signal but SIGKILL and SIGSTOP costs a running capture."""

from __future__ import annotations

import errno
import signal
import socket
from pathlib import Path

from twisted.trial import unittest

from peers.daemon import Daemon
from peers.process import free_port
from tests.faults.shim import Shim

# By default each of them ends a process (signal(7)). The last two are real-time signals.
IGNORED = (
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGSTKFLT,
    signal.SIGTRAP,
    signal.SIGSYS,
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGRTMIN,
    signal.SIGRTMIN + 5,
)
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGPWR, signal.SIGXCPU)


class SignalTests(unittest.SynchronousTestCase):
    """The daemon, with a capture that runs."""

    def start(self, *wrapper: str) -> tuple[Daemon, str, int]:
        """A daemon with a capture that has a packet, its id, and the port whose packets it captures."""
        daemon = Daemon()
        self.addCleanup(daemon.stop)
        daemon.start(*wrapper)
        port = free_port()
        capture = daemon.capture(interface=["lo"], bpf=f"udp port {port}", packets=100, timeout=60)
        self.send(port)
        return daemon, capture, port

    def send(self, port: int) -> None:
        """Send a packet."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"packet", ("127.0.0.1", port))

    def test_ignored(self) -> None:
        """A signal that means nothing to the daemon changes nothing; that it was ignored is logged."""
        daemon, capture, port = self.start()
        for number in IGNORED:
            daemon.signal(number)
            self.assertEqual("capturing", daemon.request("GET", f"/captures/{capture}")[1]["state"], number)
        for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGTRAP", "SIGSYS"):
            daemon.logged(f"{name}: ignored")
        self.send(port)
        daemon.signal(signal.SIGTERM)
        self.assertEqual(0, daemon.wait())
        self.assertEqual(1, len([daemon.file_of(capture)]))

    def test_stopping(self) -> None:
        """SIGQUIT, SIGPWR and SIGXCPU stop the daemon as SIGTERM and SIGINT do; captures are delivered."""
        for number in STOPPING:
            daemon, capture, _ = self.start()
            daemon.signal(number)
            self.assertEqual(0, daemon.wait(), number)
            self.assertGreater(daemon.file_of(capture).stat().st_size, 24)

    def test_during_reservation(self) -> None:
        """A signal that interrupts a reservation of memory, as fallocate(2) permits, fails no capture."""
        path = Path(self.mktemp()).absolute()
        path.mkdir()
        shim = Shim(path, Path("/memfd:"), SHIM_FALLOCATE=str(int(errno.EINTR)))
        shim.begin()
        daemon, capture, port = self.start(*shim.wrapper)
        self.send(port)
        daemon.until(lambda: daemon.request("GET", f"/captures/{capture}")[1]["packets"] == 2 or None, "both")
        self.assertEqual(200, daemon.request("DELETE", f"/captures/{capture}")[0])
        self.assertEqual("delivered", daemon.done(capture)["deliveries"][0]["state"])
