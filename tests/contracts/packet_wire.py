"""What the suites of packet systems send and read with."""

from __future__ import annotations

import os
import select
import time
from typing import Any

from pcapsvc.core.errors import CaptureUnavailable, RequestRejected
from pcapsvc.core.network_interface import NetworkInterface
from pcapsvc.interfaces.capture import IPacketDumper, IPacketHandle, IStandbyPacketSystem

_PATIENCE_SECONDS = 20.0


def read_all(handle: IPacketHandle, sink: Any) -> int:
    """
    Read all packets that have arrived, until now, on a handle that nothing was read from before. The kernel
    hands over those in a block that isn't full after a time-out, or later on a busy machine.

    @param sink: as L{IPacketHandle.read} has it.
    @return: how many there are.
    """
    read, until = 0, time.monotonic() + _PATIENCE_SECONDS
    while True:
        read += handle.read(1000, sink)
        counts = handle.counts(hardware=False)
        assert counts is not None
        if read + counts.dropped >= counts.received:
            return read
        assert time.monotonic() < until, f"{read} of {counts} packets were handed over"
        select.select([handle], [], [], 0.05)


class PacketWire:
    """A packet system, and an interface that frames can be put on."""

    system: IStandbyPacketSystem
    interface: str

    def send(self, *frames: bytes) -> None:
        """Put frames on the interface."""
        raise NotImplementedError

    def is_promiscuous(self) -> bool:
        """Whether the interface takes in what is for others."""
        raise NotImplementedError

    def lose_interface(self) -> None:
        """Take the interface away."""
        raise NotImplementedError

    def take_down(self) -> None:
        """Take the interface down."""
        raise NotImplementedError

    def bring_up(self) -> None:
        """Bring the interface up again."""
        raise NotImplementedError

    def rename(self) -> str:
        """Rename the interface, and return its new name."""
        raise NotImplementedError

    async def open(self, *, snap_length: int = 512, bpf: str = "") -> IPacketHandle:
        """A handle that is closed at the end of the test."""
        handle = await self.system.open(self.interface, snap_length=snap_length, bpf=bpf)
        self.addCleanup(handle.close)
        return handle

    def exclude(self, handle: IPacketHandle, bpf: str) -> None:
        """Continue without the packets that pass a filter, of those that pass the handle's own."""
        program = handle.program
        handle.set_filter(program.without(self.system.compile_now(handle, bpf)) if bpf else program)

    def dumper(self, handle: IPacketHandle, path: str, *, snap_length: int = 512) -> IPacketDumper:
        """A file for the packets of a handle."""
        return self.system.open_dumper(
            path,
            link_type=handle.link_type,
            snap_length=snap_length,
            ticks_per_second=handle.ticks_per_second,
        )

    async def rejected(self, bpf: str, interface: str | None = None) -> RequestRejected:
        """Why a filter is rejected."""
        opening = self.system.open(interface or self.interface, snap_length=512, bpf=bpf)
        error: RequestRejected = await self.assertFailure(opening, RequestRejected)
        return error

    async def unavailable(self, interface: str | None = None) -> CaptureUnavailable:
        """Why an interface can't be captured on."""
        opening = self.system.open(interface or self.interface, snap_length=512, bpf="")
        error: CaptureUnavailable = await self.assertFailure(opening, CaptureUnavailable)
        return error

    def read(self, handle: IPacketHandle, count: int, most: int = 100) -> list[bytes]:
        """
        The data of the next packets, as many as are wanted, or as come within two seconds. What has come by
        then is among them, even if this process was not run in the meantime.
        """
        data: list[bytes] = []
        until = time.monotonic() + 2
        while len(data) < count:
            is_late = time.monotonic() > until
            select.select([handle], [], [], 0.05)
            read = handle.read(min(most, count - len(data)), lambda _, packet: data.append(packet))
            if is_late and read == 0:
                break
        return data

    def await_packets(self, handle: IPacketHandle) -> None:
        """Wait until the kernel has handed over what was sent: a block that isn't full after a time-out."""
        select.select([handle], [], [], _PATIENCE_SECONDS)
        # What was sent late, on a busy machine, is in another block.
        time.sleep(0.05)

    def memory_file(self) -> str:
        """The path of an empty file in memory."""
        descriptor = os.memfd_create("test")
        self.addCleanup(os.close, descriptor)
        return f"/proc/self/fd/{descriptor}"

    async def listed(self) -> NetworkInterface | None:
        """The interface in the list of all, found by its index; L{None} if it is not there."""
        found = await self.system.list_interfaces()
        indexes = [interface.index for interface in found]
        self.assertEqual(indexes, sorted(set(indexes)))
        return next((each for each in found if each.index == self.index), None)
