"""Small rings, compared with tcpdump's of the same size."""

from __future__ import annotations

import signal
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.tcpdump import Tcpdump
from peers.wire import Wire
from tests.integration.traffic import generate

# Packets are lost if the daemon is not scheduled for long enough.
needs_machine_alone = True

_RINGS = (64 << 10, 512 << 10, 1024 << 10)
_PACKETS = 20_000
_SNAP_LENGTH = 2048
_ROUNDS = 3


class SmallRingTests(SynchronousTestCase):
    """A burst of packets, captured by the daemon and by tcpdump at once, with the same C{buffersize}."""

    def wire(self) -> Wire:
        """
        A wire of its own: tcpdump reads the last packets a second late, and other bursts follow. All are
        collected after the last one, so that only that one is waited for.
        """
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        return wire

    def daemon(self, buffer_bytes: int) -> Daemon:
        """A daemon with this ring."""
        daemon = Daemon(f"[capture]\nbuffersize = {buffer_bytes}\n", general=f"maxpackets = {_PACKETS}")
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def burst(
        self, daemon: Daemon, buffer_bytes: int, *, size: int, rate: int | None, stopped: bool
    ) -> Callable[[], tuple[int, int]]:
        """
        Send a burst.

        @param size: of each packet, in bytes.
        @param rate: packets a second; L{None} is as fast as possible.
        @param stopped: whether nobody reads the rings until it is over.

        @return: waits until all is read, and returns how many packets the daemon has kept, and how many
            tcpdump.
        """
        wire = self.wire()
        tcpdump = Tcpdump(wire.interface, snaplen=_SNAP_LENGTH, filter="udp", buffer_bytes=buffer_bytes)
        self.addCleanup(tcpdump.stop)
        tcpdump.start()
        capture = daemon.capture(interface=[wire.interface], bpf="udp", timeout=60, snap=_SNAP_LENGTH)
        readers = (daemon, tcpdump) if stopped else ()
        for reader in readers:
            reader.signal(signal.SIGSTOP)
        try:
            generate(wire, _PACKETS, rate=rate, size=size)
        finally:
            for reader in readers:
                reader.signal(signal.SIGCONT)

        def collect() -> tuple[int, int]:
            kept: int = daemon.read(capture)["packets"]
            tcpdump.catch_up()
            return kept, len(tcpdump.finish())

        return collect

    def test_late_reader(self) -> None:
        """What is in the ring after a burst that nobody has read is no less than in tcpdump's."""
        bursts = {}
        for buffer_bytes in _RINGS:
            daemon = self.daemon(buffer_bytes)
            bursts |= {
                f"{buffer_bytes} bytes: {size} bytes, {rate}/s": self.burst(
                    daemon, buffer_bytes, size=size, rate=rate, stopped=True
                )
                for size, rate in ((100, None), (100, 100_000), (1000, None), (1000, 100_000))
            }
        for name, collect in bursts.items():
            kept, theirs = collect()
            self.assertGreater(theirs, 0)
            self.assertGreaterEqual(kept, theirs, name)

    def test_reader(self) -> None:
        """Nor does a burst that is read meanwhile lose more than tcpdump does."""
        bursts = {}
        for buffer_bytes in _RINGS:
            daemon = self.daemon(buffer_bytes)
            bursts |= {
                f"{buffer_bytes} bytes: {size} bytes": [
                    self.burst(daemon, buffer_bytes, size=size, rate=None, stopped=False)
                    for _ in range(_ROUNDS)
                ]
                for size in (100, 1000)
            }
        for name, those in bursts.items():
            found = [collect() for collect in those]
            kept, theirs = sum(ours for ours, _ in found), sum(each for _, each in found)
            self.assertGreaterEqual(kept, theirs, f"{name}: {found}")
