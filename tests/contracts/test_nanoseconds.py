"""libpcap on a real wire, with time stamps in nanoseconds, against the suite of all packet systems."""

from __future__ import annotations

import select
import struct
import time
from pathlib import Path

from twisted.trial import unittest

from pcapsvc.interfaces.capture import IPacketHandle
from peers.frames import udp_frame
from peers.tcpdump import read_packets
from tests.contracts.records import RecordContract
from tests.contracts.test_pcapy_system import PcapySystemContract

# How far the two may be apart, in nanoseconds.
_APART_NS = 20_000_000


class NanosecondPcapySystemTests(PcapySystemContract, RecordContract, unittest.TestCase):
    """libpcap, with time stamps in nanoseconds."""

    nanoseconds = True

    async def stamps(self, handle: IPacketHandle) -> list[int]:
        """The time stamps of a hundred packets, in nanoseconds, which were sent and written just now."""
        path = self.memory_file()
        dumper = self.dumper(handle, path)
        before = time.time_ns()
        self.send(*[udp_frame(number) for number in range(100)])
        read = 0
        # At once, and one by one.
        for most, sink in ((50, dumper), (100, dumper.dump)):
            while read < most and select.select([handle], [], [], 2)[0]:
                read += handle.read(most - read, sink)
        after = time.time_ns()
        dumper.close()
        packets = read_packets(Path(path))
        stamps = [packet.seconds * 10**9 + packet.fraction for packet in packets]
        self.assertEqual(len(stamps), 100)
        # The kernel and this process don't read the clock in the same way.
        self.assertTrue(before - _APART_NS < min(stamps), (before, stamps))
        self.assertTrue(max(stamps) < after + _APART_NS, (stamps, after))
        return stamps

    async def test_precise(self) -> None:
        """They are as precise as the kernel's, also on a handle that waited, and on all interfaces."""
        standby = await self.system.open_standby(self.interface, snap_length=512)
        for opening in (
            lambda: standby.arm(""),
            lambda: self.system.open(self.interface, snap_length=512, bpf=""),
            lambda: self.system.open("any", snap_length=512, bpf="udp and host 192.0.2.1"),
        ):
            handle = await opening()
            self.addCleanup(handle.close)
            self.assertEqual(handle.ticks_per_second, 10**9)
            stamps = await self.stamps(handle)
            # Nine of ten don't end with 0.
            self.assertGreater(sum(stamp % 1000 != 0 for stamp in stamps), 50)
            handle.close()

    async def test_sieve_keeps_them(self) -> None:
        """They stay as they are when recorded packets are filtered and cut."""
        times = [(1, 999_999_999), (2**32 - 1, 1), (1_700_000_000, 123_456_789)]
        records = b"".join(struct.pack("=IIII", *each, 60, 60) + udp_frame(1, size=60) for each in times)
        for bpf, snap_length in (("udp", 512), ("", 30), ("udp", 30)):
            sieve = await self.sieve(bpf, snap_length=snap_length)
            packets, passed = sieve.sift(memoryview(records))
            size = 16 + min(60, snap_length)
            found = [struct.unpack_from("=II", passed, at * size) for at in range(packets)]
            self.assertEqual(found, times)
