"""A daemon that remembers a wire, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial import unittest

from peers.daemon import Daemon
from peers.frames import number_of, udp_frame
from peers.tcpdump import read_packets
from peers.wire import Wire


def histories_begun(daemon: Daemon) -> None:
    """Wait until all histories of a daemon have begun."""

    def have_begun() -> bool | None:
        _, answer = daemon.request("GET", "/interfaces")
        histories = [each["history"] for each in answer["interfaces"] if each["history"] is not None]
        return all(history["problem"] is None for history in histories) or None

    daemon.until(have_begun, "the histories")


class LookBackCase(unittest.SynchronousTestCase):
    """A daemon that remembers a wire."""

    def setUp(self) -> None:
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()

    def start(self, history: str = "history = 60", *, more: str = "", **options: Any) -> Daemon:
        """
        A daemon that records the wire, and what else it is configured to.

        @param more: more sections of its configuration.
        """
        interface = f'{more}[[interface]]\nname = "{self.wire.interface}"\n{history}\n'
        daemon = Daemon(interface, **options)
        self.addCleanup(daemon.stop)
        daemon.start()
        histories_begun(daemon)
        return daemon

    def history(self, daemon: Daemon, interface: str | None = None) -> dict[str, Any]:
        """What the daemon remembers of an interface, or of the wire."""
        name = interface or self.wire.interface
        _, answer = daemon.request("GET", "/interfaces")
        [found] = [each for each in answer["interfaces"] if each["name"] == name]
        history: dict[str, Any] = found["history"]
        return history

    def remembered(self, daemon: Daemon, packets: int, interface: str | None = None) -> None:
        """Wait until so many packets of an interface, or of the wire, are remembered."""
        daemon.until(lambda: self.history(daemon, interface)["packets"] >= packets or None, "the packets")

    def send(self, *numbers: int, port: int = 9) -> None:
        """Send packets over the wire."""
        self.wire.send([udp_frame(number, port=port) for number in numbers])

    def capture(self, daemon: Daemon, **message: Any) -> str:
        """A capture that looks back."""
        return daemon.capture(**{"interface": [self.wire.interface], "before": 30, **message})

    def numbers(self, path: Path) -> list[int]:
        """The numbers of the packets in a file."""
        return [number_of(packet.data) for packet in read_packets(path)]

    def past(self, daemon: Daemon) -> str:
        """A capture of the past, which is done."""
        capture = self.capture(daemon, pastonly=True)
        daemon.done(capture)
        return capture
