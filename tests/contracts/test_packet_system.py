"""The packet system in memory, against the suite that the real one passes."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.testing_packets import MemoryPacketSystem
from tests.contracts.packet_system import PacketSystemContract
from tests.contracts.records import RecordContract


class MemoryPacketSystemTests(PacketSystemContract, RecordContract, unittest.TestCase):
    """Our fake."""

    def setUp(self) -> None:
        """One interface, and the one filter that the suite uses."""
        self.memory = MemoryPacketSystem("mem0")
        self.memory.filters["udp"] = lambda data: True
        self.memory.filters["udp port 9"] = lambda data: data[36:38] == (9).to_bytes(2, "big")
        self.memory.filters["udp port 53"] = lambda data: data[36:38] == (53).to_bytes(2, "big")
        self.system = self.memory
        self.interface = self.sending_to = "mem0"

    def send(self, *frames: bytes) -> None:
        """Put frames on the interface."""
        self.memory.deliver(self.sending_to, *frames)

    def is_promiscuous(self) -> bool:
        """Whether any handle asks for it."""
        return any(handle.promiscuous for handle in self.memory.interfaces["mem0"].handles)

    def lose_interface(self) -> None:
        """Take the interface away."""
        self.memory.lose("mem0")

    def take_down(self) -> None:
        """Take the interface down."""
        self.memory.down("mem0")

    def bring_up(self) -> None:
        """Bring the interface up again."""
        self.memory.up("mem0")

    def rename(self) -> str:
        """Rename the interface. Frames are sent to it by its new name."""
        self.memory.rename("mem0", "mem1")
        self.sending_to = "mem1"
        return "mem1"
