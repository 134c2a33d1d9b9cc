"""What every dumper of a packet system must do."""

from __future__ import annotations

import os
import resource
import select
import struct
from pathlib import Path

from pcapsvc.core.errors import CaptureUnavailable
from peers.frames import udp_frame
from tests.contracts.packet_wire import PacketWire

MAGICS = {10**6: 0xA1B2C3D4, 10**9: 0xA1B23C4D}


class DumperContract(PacketWire):
    """What is written of the packets that a handle has."""

    async def test_dumper_of_a_descriptor(self) -> None:
        """A file may be given by its descriptor, which stays open: read at once, or packet by packet."""
        handle = await self.open(snap_length=60)
        descriptor = os.memfd_create("test")
        self.addCleanup(os.close, descriptor)
        dumper = self.system.open_dumper(descriptor, link_type=handle.link_type, snap_length=60)
        self.send(udp_frame(1, size=300), udp_frame(2, size=200))
        for sink in (dumper, dumper.dump):
            while not handle.read(1, sink):
                select.select([handle], [], [], 2)
        dumper.close()
        dumper.close()
        written = os.pread(descriptor, 1000, 0)
        self.assertEqual(len(written), 24 + 2 * (16 + 60))
        self.assertEqual(struct.unpack_from("=II", written, 16), (60, handle.link_type))
        self.assertEqual(struct.unpack_from("=II", written, 32), (60, 300))
        self.assertEqual(struct.unpack_from("=II", written, 24 + 76 + 8), (60, 200))

    async def test_time_stamps(self) -> None:
        """The header of a file says which unit its time stamps have, whichever way it was opened."""
        for ticks_per_second, magic in MAGICS.items():
            descriptor = os.memfd_create("test")
            self.addCleanup(os.close, descriptor)
            for file in (descriptor, self.memory_file()):
                self.system.open_dumper(
                    file, link_type=1, snap_length=60, ticks_per_second=ticks_per_second
                ).close()
                with open(file, "rb", closefd=file is not descriptor) as reader:
                    header = os.pread(reader.fileno(), 1000, 0)
                self.assertEqual(struct.unpack("=IHHiIII", header), (magic, 2, 4, 0, 0, 60, 1))

    async def test_flush(self) -> None:
        """What a dumper holds back is written on request, whichever way it was opened."""
        handle = await self.open(snap_length=60)
        descriptor = os.memfd_create("test")
        self.addCleanup(os.close, descriptor)
        path = self.memory_file()
        for file in (descriptor, path):
            dumper = self.system.open_dumper(file, link_type=handle.link_type, snap_length=60)
            for number in (1, 2):
                self.send(udp_frame(number, size=300))
                while not handle.read(1, dumper):
                    select.select([handle], [], [], 2)
                dumper.flush()
                with open(file, "rb", closefd=file is path) as reader:
                    self.assertEqual(len(os.pread(reader.fileno(), 1000, 0)), 24 + number * (16 + 60))
            dumper.close()

    async def test_size(self) -> None:
        """The size of a file includes what is held back, whichever way it was opened."""
        handle = await self.open(snap_length=60)
        descriptor = os.memfd_create("test")
        self.addCleanup(os.close, descriptor)
        for file in (descriptor, self.memory_file()):
            dumper = self.system.open_dumper(file, link_type=handle.link_type, snap_length=60)
            self.assertEqual(dumper.size(), 24)
            for number in range(1, 3):
                self.send(udp_frame(number, size=300))
                while not handle.read(1, dumper if number == 1 else dumper.dump):
                    select.select([handle], [], [], 2)
                self.assertEqual(dumper.size(), 24 + number * (16 + 60))
            dumper.close()
            with open(file, "rb", closefd=file is not descriptor) as reader:
                self.assertEqual(len(os.pread(reader.fileno(), 1000, 0)), 24 + 2 * (16 + 60))
            self.assertRaises(ValueError, dumper.size)

    async def test_failure_to_write(self) -> None:
        """A packet that can't be written is silent at first, and then fails the look at the size, if any."""
        handle = await self.open(snap_length=60)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        for as_sink in (lambda dumper: dumper, lambda dumper: dumper.dump):
            dumper = self.dumper(handle, self.memory_file(), snap_length=60)
            self.assertEqual(dumper.size(), 24)
            dumper.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (24, before[1]))
            try:
                written = 0
                # More than any buffer holds.
                while written < 2000:
                    self.send(*[udp_frame(number) for number in range(100)])
                    select.select([handle], [], [], 2)
                    written += handle.read(100, as_sink(dumper))
                if dumper.reports_failures:
                    self.assertRaises(OSError, dumper.size)
            finally:
                # The log of the tests has the same limit.
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                dumper.close()

    async def test_snap_length(self) -> None:
        """A packet is cut at the snap length, and its own length is kept in the file."""
        handle = await self.open(snap_length=60)
        path = self.memory_file()
        dumper = self.dumper(handle, path, snap_length=60)
        self.send(udp_frame(1, size=300), udp_frame(2, size=200))
        while not handle.read(1, dumper.dump):
            select.select([handle], [], [], 2)
        dumper.close()
        lengths: list[int] = []
        while not handle.read(1, lambda header, _: lengths.append(header.getlen())):
            select.select([handle], [], [], 2)
        self.assertEqual(lengths, [200])
        with open(path, "rb") as file:
            written = file.read()
        magic = MAGICS[handle.ticks_per_second]
        self.assertEqual(struct.unpack_from("=IHH", written), (magic, 2, 4))
        self.assertEqual(struct.unpack_from("=II", written, 16), (60, handle.link_type))
        self.assertEqual(struct.unpack_from("=II", written, 32), (60, 300))
        self.assertEqual(written[40:], udp_frame(1, size=300)[:60])

    async def test_dump(self) -> None:
        """Packets are written as they would be one by one, up to the number asked for; the others wait."""
        handle = await self.open(snap_length=60)
        one_by_one, at_once = self.memory_file(), self.memory_file()
        frames = [udp_frame(number, size=50 + number) for number in range(20)]
        self.send(*frames)
        written = 0
        dumper = self.dumper(handle, at_once, snap_length=60)
        while written < 7:
            select.select([handle], [], [], 2)
            written += handle.read(7 - written, dumper)
        dumper.close()
        self.assertEqual(written, 7)
        dumper = self.dumper(handle, one_by_one, snap_length=60)
        while written < 20:
            select.select([handle], [], [], 2)
            written += handle.read(20, dumper.dump)
        self.assertEqual(handle.read(10, dumper), 0)
        dumper.close()
        first, second = Path(at_once).read_bytes(), Path(one_by_one).read_bytes()
        self.assertEqual(first[:24], second[:24])
        at, found = 0, []
        packets = first[24:] + second[24:]
        while at < len(packets):
            kept, length = struct.unpack_from("=II", packets, at + 8)
            found.append((length, packets[at + 16 : at + 16 + kept]))
            at += 16 + kept
        self.assertEqual(found, [(len(frame), frame[:60]) for frame in frames])

    async def test_dump_of_a_lost_interface(self) -> None:
        """What had arrived when the interface went away is written; then the loss is reported."""
        handle = await self.open()
        self.send(*[udp_frame(number) for number in range(3)])
        self.await_packets(handle)
        self.lose_interface()
        dumper = self.dumper(handle, self.memory_file())
        self.addCleanup(dumper.close)
        written = 0
        with self.assertRaises(CaptureUnavailable) as caught:
            for _ in range(100):
                written += handle.read(2, dumper)
        self.assertEqual((written, caught.exception.interface), (3, self.interface))

    async def test_dump_after_the_end(self) -> None:
        """Nothing is written by a handle that is closed."""
        handle = await self.open()
        dumper = self.dumper(handle, self.memory_file())
        self.addCleanup(dumper.close)
        handle.close()
        self.assertRaises(ValueError, handle.read, 1, dumper)
