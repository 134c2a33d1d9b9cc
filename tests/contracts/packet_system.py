"""What every packet system must do: one suite for ours in memory, and for libpcap on a real wire."""

from __future__ import annotations

import os
import resource
import select
import struct
import time
from dataclasses import replace
from pathlib import Path

from twisted.internet.defer import CancelledError

from pcapsvc.core.errors import CaptureUnavailable, RequestRejected
from pcapsvc.core.network_interface import NetworkInterface
from pcapsvc.interfaces.capture import IPacketDumper, IPacketHandle, IStandbyPacketSystem
from peers.frames import udp_frame


class PacketSystemContract:
    """What an L{IStandbyPacketSystem} owes, whichever it is."""

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
        return self.system.open_dumper(path, link_type=handle.link_type, snap_length=snap_length)

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
        """The data of the next packets, as many as are wanted, or as come within two seconds."""
        data: list[bytes] = []
        until = time.monotonic() + 2
        while len(data) < count and time.monotonic() < until:
            select.select([handle], [], [], 0.05)
            handle.read(min(most, count - len(data)), lambda _, packet: data.append(packet))
        return data

    def memory_file(self) -> str:
        """The path of an empty file in memory."""
        descriptor = os.memfd_create("test")
        self.addCleanup(os.close, descriptor)
        return f"/proc/self/fd/{descriptor}"

    async def test_packets_in_order(self) -> None:
        """Packets are handed over in the order in which they came, and each once."""
        handle = await self.open()
        frames = [udp_frame(number) for number in range(20)]
        self.send(*frames)
        self.assertEqual(self.read(handle, 20, most=7), frames)
        self.assertEqual(handle.read(10, lambda *_: self.fail("there was no more")), 0)

    async def listed(self) -> NetworkInterface | None:
        """The interface in the list of all, found by its index; L{None} if it is not there."""
        found = await self.system.list_interfaces()
        indexes = [interface.index for interface in found]
        self.assertEqual(indexes, sorted(set(indexes)))
        return next((each for each in found if each.index == self.index), None)

    async def test_list(self) -> None:
        """The interface is in the list of all, as it is now, until it is gone."""
        self.index = await self.system.find(self.interface)
        found = await self.listed()
        self.assertEqual((found.name, found.is_up, found.link_type), (self.interface, True, "ether"))
        self.take_down()
        self.assertFalse((await self.listed()).is_up)
        self.bring_up()
        name = self.rename()
        found = await self.listed()
        self.assertEqual((found.name, found.is_up), (name, True))

    async def test_list_without(self) -> None:
        """An interface that is gone is not in the list."""
        self.index = await self.system.find(self.interface)
        self.lose_interface()
        self.assertIsNone(await self.listed())

    async def test_check(self) -> None:
        """This process may capture."""
        await self.system.check()

    async def test_compile_filter(self) -> None:
        """A filter is compiled as it is for a handle, and nothing is opened."""
        handle = await self.open(bpf="udp port 9")
        for interface in (self.interface, None):
            program = await self.system.compile_filter(interface, snap_length=512, bpf="udp port 9")
            self.assertEqual(program.instructions, handle.program.instructions)

    async def test_compile_filter_in_vain(self) -> None:
        """A filter that can't be compiled is rejected, and an unknown interface can't be captured on."""
        for interface in (self.interface, None):
            compiling = self.system.compile_filter(interface, snap_length=512, bpf="udp and (")
            await self.assertFailure(compiling, RequestRejected)
        compiling = self.system.compile_filter("nosuch0", snap_length=512, bpf="udp")
        await self.assertFailure(compiling, CaptureUnavailable)

    async def test_at_most(self) -> None:
        """No more packets are handed over than were asked for; the others wait."""
        handle = await self.open()
        self.send(*[udp_frame(number) for number in range(5)])
        self.assertEqual(len(self.read(handle, 2)), 2)
        self.assertEqual(len(self.read(handle, 3)), 3)

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
                self.system.flush_dumper(dumper)
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
            self.system.flush_dumper(dumper)
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
        self.assertEqual(struct.unpack_from("=IHH", written), (0xA1B2C3D4, 2, 4))
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
        time.sleep(0.05)  # the kernel hands over a block that isn't full after its time-out
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

    async def test_filter(self) -> None:
        """Only what passes the filter is handed over, and counted."""
        handle = await self.open(bpf="udp port 53")
        self.send(udp_frame(1, port=9), udp_frame(2, port=53), udp_frame(3, port=9), udp_frame(4, port=53))
        self.assertEqual(self.read(handle, 2), [udp_frame(2, port=53), udp_frame(4, port=53)])
        counts = handle.counts()
        assert counts is not None
        self.assertEqual((counts.received, counts.dropped), (2, 0))
        self.assertEqual(handle.counts(hardware=False), replace(counts, interface_dropped=None))

    async def test_bad_filter(self) -> None:
        """A filter that can't be compiled is the sender's fault, in libpcap's own words."""
        error = await self.rejected("tcp prot 80")
        self.assertEqual([problem.path for problem in error.problems], ["bpf"])
        self.assertIn("syntax error", str(error))

    async def test_no_such_interface(self) -> None:
        """An interface that doesn't exist is reported by its name."""
        error = await self.unavailable("nosuch0")
        self.assertEqual((error.interface, error.reason), ("nosuch0", "no such interface"))

    async def test_interface_lost(self) -> None:
        """What had arrived when the interface went away can still be read; then the loss is reported."""
        handle = await self.open()
        frames = [udp_frame(number) for number in range(3)]
        self.send(*frames)
        time.sleep(0.05)  # the kernel hands over a block that isn't full after its time-out
        self.lose_interface()
        read: list[bytes] = []

        def read_on() -> None:
            for _ in range(100):
                handle.read(2, lambda _, packet: read.append(packet))

        self.assertRaises(CaptureUnavailable, read_on)
        self.assertEqual(read, frames)

    async def test_interface_down_briefly(self) -> None:
        """While its interface is down, a handle has no packets; after that it goes on."""
        handle = await self.open()
        self.send(udp_frame(1), udp_frame(2))
        time.sleep(0.05)
        self.take_down()
        self.assertEqual(self.read(handle, 2), [udp_frame(1), udp_frame(2)])
        for _ in range(5):
            self.assertEqual(handle.read(10, lambda *_: self.fail("it is down")), 0)
        self.bring_up()
        self.send(udp_frame(3))
        self.assertEqual(self.read(handle, 1), [udp_frame(3)])

    async def test_down_and_then_gone(self) -> None:
        """That an interface is gone shows also if it was down, and was read, before."""
        handle = await self.open()
        self.take_down()
        for _ in range(5):
            self.assertEqual(handle.read(10, lambda *_: self.fail("it is down")), 0)
        self.lose_interface()
        with self.assertRaises(CaptureUnavailable):
            for _ in range(5):
                handle.read(10, lambda *_: self.fail("it is gone"))

    async def test_renamed(self) -> None:
        """A handle stays with its interface, whatever that is called; the index stays as well."""
        handle = await self.open()
        index = await self.system.find(self.interface)
        name = self.rename()
        self.send(udp_frame(1))
        self.assertEqual(self.read(handle, 1), [udp_frame(1)])
        self.assertEqual([await self.system.find(one) for one in (name, self.interface)], [index, None])
        self.assertEqual((await self.unavailable()).reason, "no such interface")

    async def test_standby_on_an_interface_that_is_down(self) -> None:
        """A standby handle survives that its interface is down; arming it fails as opening does."""
        standby = await self.system.open_standby(self.interface, snap_length=60)
        self.addCleanup(standby.close)
        self.assertEqual(standby.index, await self.system.find(self.interface))
        self.take_down()
        standby.check()
        standby.check()
        error = await self.assertFailure(standby.arm(""), CaptureUnavailable)
        self.assertEqual(error.reason, "the interface is down")

    async def test_callback_fails(self) -> None:
        """What the callback raises ends the dispatch, and is raised; the packets behind it wait."""
        handle = await self.open()
        self.send(udp_frame(1), udp_frame(2))
        self.assertEqual(self.read(handle, 1), [udp_frame(1)])

        def refuse(header: object, data: bytes) -> None:
            raise ZeroDivisionError

        with self.assertRaises(ZeroDivisionError):
            while True:
                handle.read(10, refuse)
                select.select([handle], [], [], 2)

    async def test_standby(self) -> None:
        """
        A standby handle lets nothing pass, and the interface receives no more than before. Once it is
        armed it is like any other, for what arrives from then on.
        """
        standby = await self.system.open_standby(self.interface, snap_length=60)
        self.addCleanup(standby.close)
        self.assertFalse(self.is_promiscuous())
        self.send(udp_frame(1, port=53))
        time.sleep(0.05)
        standby.check()
        handle = await standby.arm("udp port 53")
        self.addCleanup(handle.close)
        standby.close()
        self.assertTrue(self.is_promiscuous())
        self.send(udp_frame(2, port=9), udp_frame(3, port=53))
        self.assertEqual(self.read(handle, 1), [udp_frame(3, port=53)[:60]])
        counts = handle.counts()
        assert counts is not None
        self.assertEqual(counts.received, 1)
        handle.close()
        self.assertFalse(self.is_promiscuous())

    async def test_standby_without_a_filter(self) -> None:
        """Armed without a filter, a handle lets everything pass, and goes on as any other."""
        standby = await self.system.open_standby(self.interface, snap_length=512)
        handle = await standby.arm("")
        self.addCleanup(handle.close)
        self.send(udp_frame(1), udp_frame(2, port=53))
        self.assertEqual(self.read(handle, 2), [udp_frame(1), udp_frame(2, port=53)])
        self.exclude(handle, "udp port 53")
        self.send(udp_frame(3, port=53), udp_frame(4))
        self.assertEqual(self.read(handle, 1), [udp_frame(4)])

    async def test_standby_refused(self) -> None:
        """That a filter can't be compiled is the sender's fault, too; that an interface is lost is not."""
        standby = await self.system.open_standby(self.interface, snap_length=60)
        await self.assertFailure(standby.arm("tcp prot 80"), RequestRejected)
        standby = await self.system.open_standby(self.interface, snap_length=60)
        self.lose_interface()
        await self.assertFailure(standby.arm(""), CaptureUnavailable)

    async def test_standby_lost(self) -> None:
        """That its interface is gone shows when a standby handle is checked."""
        standby = await self.system.open_standby(self.interface, snap_length=60)
        self.addCleanup(standby.close)
        self.lose_interface()
        self.assertRaises(CaptureUnavailable, standby.check)

    async def test_cancel(self) -> None:
        """An open that is cancelled leaves nothing."""
        opening = self.system.open(self.interface, snap_length=512, bpf="udp")
        if not opening.called:
            opening.cancel()
            await self.assertFailure(opening, CancelledError)
        else:
            (await opening).close()
        standby = await self.system.open_standby(self.interface, snap_length=512)
        arming = standby.arm("udp")
        if not arming.called:
            arming.cancel()
            await self.assertFailure(arming, CancelledError)
        else:
            (await arming).close()

    async def test_leave_out(self) -> None:
        """A handle goes on without what passes a filter, of what had arrived as well; then of another."""
        handle = await self.open(bpf="udp")
        self.send(udp_frame(1, port=53), udp_frame(2, port=9))
        time.sleep(0.05)
        self.exclude(handle, "udp port 53")
        self.send(udp_frame(3, port=53), udp_frame(4, port=9))
        self.assertEqual(self.read(handle, 2), [udp_frame(2, port=9), udp_frame(4, port=9)])
        self.assertEqual(handle.read(10, lambda *_: self.fail("there was no more")), 0)
        self.exclude(handle, "udp port 9")
        self.send(udp_frame(5, port=9), udp_frame(6, port=53))
        self.assertEqual(self.read(handle, 1), [udp_frame(6, port=53)])
        self.exclude(handle, "")
        self.send(udp_frame(7, port=9))
        self.assertEqual(self.read(handle, 1), [udp_frame(7, port=9)])

    async def test_leave_out_of_a_filter(self) -> None:
        """Of a handle with a filter, no more is handed over than before; of one without, all else is."""
        for bpf, wanted in (("udp port 53", [53]), ("", [7, 53])):
            handle = await self.open(bpf=bpf)
            self.exclude(handle, "udp port 9")
            self.send(udp_frame(1, port=7), udp_frame(2, port=9), udp_frame(3, port=53))
            ports = [int.from_bytes(data[36:38], "big") for data in self.read(handle, len(wanted))]
            self.assertEqual(ports, wanted)
            handle.close()

    async def test_leave_out_refused(self) -> None:
        """If the new exclusion is not a valid filter, the previous one remains in effect."""
        handle = await self.open()
        self.exclude(handle, "udp port 53")
        self.assertRaises(RequestRejected, self.exclude, handle, "tcp prot 80")
        self.send(udp_frame(1, port=53), udp_frame(2, port=9))
        self.assertEqual(self.read(handle, 1), [udp_frame(2, port=9)])

    async def test_leave_out_of_a_lost_interface(self) -> None:
        """That an interface went away is not the filter's fault; a filter that is none is, there as well."""
        handle = await self.open(bpf="udp")
        self.lose_interface()
        self.assertRaises(RequestRejected, self.exclude, handle, "tcp prot 80")
        error = self.assertRaises(CaptureUnavailable, self.exclude, handle, "udp port 53")
        self.assertEqual(error.interface, self.interface)

    async def test_close_twice(self) -> None:
        """A handle may be closed again."""
        handle = await self.open()
        handle.close()
        handle.close()
