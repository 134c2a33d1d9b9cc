"""What every packet system must do for packets that are recorded in memory."""

from __future__ import annotations

import os
import select
import struct
from mmap import PAGESIZE, mmap

from twisted.internet.defer import Deferred

from pcapsvc.core.errors import RequestRejected
from pcapsvc.interfaces.capture import IPacketHandle, IRecordWriter, ISieve
from peers.frames import udp_frame
from tests.contracts.packet_wire import PacketWire

ETHERNET = 1


def record(data: bytes, length: int | None = None, number: int = 0) -> bytes:
    """A packet as it is in a pcap file."""
    return struct.pack("=IIII", 1_700_000_000, number, len(data), length or len(data)) + data


def packets_of(records: bytes | memoryview) -> list[tuple[bytes, int]]:
    """The data of each packet in a part of a pcap file, and its length on the wire."""
    found, at = [], 0
    while at < len(records):
        kept, length = struct.unpack_from("=8xII", records, at)
        found.append((bytes(records[at + 16 : at + 16 + kept]), length))
        at += 16 + kept
    return found


class RecordContract(PacketWire):
    """Packets in memory, as they are written there and sifted."""

    def writer(self, memory: mmap, start: int, end: int) -> IRecordWriter:
        """Write into a part of the memory."""
        writer = self.system.open_records(memory, start, end, link_type=ETHERNET)
        self.addCleanup(writer.close)
        return writer

    def read_into(self, handle: IPacketHandle, count: int, writer: IRecordWriter) -> None:
        """Read as many packets, no more."""
        read = 0
        while read < count and select.select([handle], [], [], 2)[0]:
            read += handle.read(count - read, writer)
        self.assertEqual(read, count)

    async def sieve(self, bpf: str = "", *, kept: int = 512, snap_length: int = 512) -> ISieve:
        """A sieve that is closed in the end."""
        sieve = await self.system.open_sieve(
            self.interface, link_type=ETHERNET, kept=kept, snap_length=snap_length, bpf=bpf
        )
        self.addCleanup(sieve.close)
        return sieve

    async def test_records(self) -> None:
        """Packets are written where they are to be, as in a file, and nothing else is."""
        handle = await self.open(snap_length=60)
        memory = mmap(-1, 3 * PAGESIZE)
        writer = self.writer(memory, PAGESIZE, 2 * PAGESIZE)
        self.assertEqual(writer.size(), 0)
        frames = [udp_frame(number, size=50 + number) for number in range(50)]
        self.send(*frames)
        self.read_into(handle, 20, writer)
        size = writer.size()
        self.read_into(handle, 30, writer)
        self.assertEqual(
            packets_of(memory[PAGESIZE : PAGESIZE + size]), [(each[:60], len(each)) for each in frames[:20]]
        )
        written = memory[PAGESIZE : PAGESIZE + writer.size()]
        self.assertEqual(packets_of(written), [(each[:60], len(each)) for each in frames])
        self.assertEqual(
            memory[:PAGESIZE] + memory[PAGESIZE + writer.size() :], bytes(3 * PAGESIZE - len(written))
        )

    async def test_records_fill_a_slot(self) -> None:
        """A part of the memory may be filled to its last byte, and others at the same time."""
        handle = await self.open(snap_length=112)
        memory = mmap(-1, 2 * PAGESIZE)
        writers = [self.writer(memory, slot * PAGESIZE, (slot + 1) * PAGESIZE) for slot in range(2)]
        self.send(*[udp_frame(number) for number in range(64)])
        for _ in range(2):
            for writer in writers:
                self.read_into(handle, 16, writer)
        self.assertEqual([writer.size() for writer in writers], [PAGESIZE, PAGESIZE])
        numbers = [[*range(16), *range(32, 48)], [*range(16, 32), *range(48, 64)]]
        wanted = [(udp_frame(number)[:112], 128) for slot in numbers for number in slot]
        self.assertEqual(packets_of(memory[:]), wanted)

    async def test_records_closed(self) -> None:
        """What was written stays. No descriptor is open, before or after."""
        before = len(os.listdir("/proc/self/fd"))
        memory = mmap(-1, PAGESIZE)
        after_mapping = len(os.listdir("/proc/self/fd"))
        writer = self.system.open_records(memory, 0, PAGESIZE, link_type=ETHERNET)
        self.assertEqual((after_mapping, len(os.listdir("/proc/self/fd"))), (before, before))
        handle = await self.open()
        self.send(udp_frame(1))
        self.read_into(handle, 1, writer)
        size = writer.size()
        writer.close()
        writer.close()
        self.assertEqual(packets_of(memory[:size]), [(udp_frame(1), 128)])
        self.assertEqual(memory[size:], bytes(PAGESIZE - size))

    async def test_sieve(self) -> None:
        """What matches the filter passes, and is cut; the filter sees what is cut off."""
        records = b"".join(record(udp_frame(n, size=100, port=(9, 53)[n % 2]), 300, n) for n in range(40))
        for bpf, snap_length, wanted in (
            ("", 512, range(40)),
            ("", 30, range(40)),
            ("udp port 53", 512, range(1, 40, 2)),
            ("udp port 53", 30, range(1, 40, 2)),
        ):
            sieve = await self.sieve(bpf, snap_length=snap_length)
            packets, passed = sieve.sift(memoryview(records))
            frames = [udp_frame(n, size=100, port=(9, 53)[n % 2])[:snap_length] for n in wanted]
            self.assertEqual(packets, len(frames))
            self.assertEqual(
                bytes(passed), b"".join(record(f, 300, n) for f, n in zip(frames, wanted, strict=True))
            )

    async def test_sieve_again(self) -> None:
        """Each call has its own packets, many or few, whether they match or not."""
        for snap_length in (512, 30):
            sieve = await self.sieve("udp port 53", snap_length=snap_length)
            for count in (0, 1, 5, 1, 0, 1023, 1024, 1025, 3000, 3, 2048, 0):
                for ports in ((53, 53), (9, 9), (9, 53)):
                    frames = [udp_frame(n + count, port=ports[n % 2]) for n in range(count)]
                    packets, passed = sieve.sift(memoryview(b"".join(record(f) for f in frames)))
                    wanted = [(f[:snap_length], 128) for f in frames if f[36:38] == (53).to_bytes(2, "big")]
                    self.assertEqual(packets, len(wanted))
                    self.assertEqual(packets_of(passed), wanted)

    async def test_sieve_refused(self) -> None:
        """A filter that can't be compiled is the sender's fault, here as well."""
        for bpf in ("tcp prot 80", "udp and ("):
            await self.assertFailure(self.sieve_of(bpf), RequestRejected)

    def sieve_of(self, bpf: str) -> Deferred[ISieve]:
        """Open a sieve."""
        return self.system.open_sieve(self.interface, link_type=ETHERNET, kept=512, snap_length=512, bpf=bpf)

    async def test_sieve_closed(self) -> None:
        """Nothing is left open by a sieve."""
        # Whatever is opened once for all of them is open now.
        (await self.sieve("udp port 53", snap_length=30)).close()
        before = len(os.listdir("/proc/self/fd"))
        sieve = await self.sieve("udp port 53", snap_length=30)
        sieve.sift(memoryview(record(udp_frame(1))))
        sieve.close()
        sieve.close()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    async def test_index(self) -> None:
        """A handle has the index of its interface, and says whether that is up, until it is gone."""
        handle = await self.open(snap_length=60)
        self.assertEqual((handle.index, handle.snap_length), (await self.system.find(self.interface), 60))
        self.assertTrue(handle.is_up())
        self.take_down()
        self.assertFalse(handle.is_up())
        self.bring_up()
        self.assertTrue(handle.is_up())
        self.lose_interface()
        self.assertFalse(handle.is_up())

    async def test_write(self) -> None:
        """Packets that are in memory are written as they are, between others."""
        handle = await self.open()
        path = self.memory_file()
        dumper = self.dumper(handle, path)
        self.send(udp_frame(1), udp_frame(4))
        past = bytearray(b"".join(record(udp_frame(n)) for n in (2, 3)))
        for step in (lambda: handle.read(1, dumper), lambda: dumper.write(memoryview(past), 2)):
            while step() == 0:
                select.select([handle], [], [], 2)
        dumper.write(memoryview(b""), 0)
        while not handle.read(1, dumper):
            select.select([handle], [], [], 2)
        self.assertEqual(dumper.size(), 24 + 4 * 144)
        dumper.close()
        with open(path, "rb") as file:
            written = file.read()[24:]
        self.assertEqual(packets_of(written), [(udp_frame(n), 128) for n in (1, 2, 3, 4)])
