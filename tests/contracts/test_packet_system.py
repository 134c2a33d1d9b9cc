"""One suite for every packet system: ours in memory, and libpcap on a real wire."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, maybeDeferred
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.core.errors import CaptureUnavailable, RequestRejected
from pcapsvc.core.recording import PacketCounts
from pcapsvc.interfaces.capture import IPacketDumper, IPacketHandle, IStandbyPacketSystem
from pcapsvc.packets.filter_compiler import FilterCompiler
from pcapsvc.packets.handle import libpcap_path
from pcapsvc.packets.pcapy_system import PcapySystem
from pcapsvc.testing import MemoryPacketSystem
from pcapsvc.threads import Threads
from peers.frames import udp_frame
from peers.requirement import require_command
from peers.wire import Wire

reactor: Any = global_reactor


def ip(*words: str) -> None:
    """Call C{ip}."""
    subprocess.run([require_command("ip", "iproute2"), *words], check=True, capture_output=True, timeout=20)


def sockets() -> int:
    """How many sockets and memory files this process has open, which a handle or a dumper is."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith(("socket:", "/memfd:"))
    return found


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
        """Packets are written as they would be one by one, at most as many as asked for; the others wait."""
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
        """What had arrived when the interface went away is written; then that is told."""
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

    async def test_bad_filter(self) -> None:
        """A filter that can't be compiled is the sender's fault, in libpcap's own words."""
        error = await self.rejected("tcp prot 80")
        self.assertEqual([problem.path for problem in error.problems], ["bpf"])
        self.assertIn("syntax error", str(error))

    async def test_no_such_interface(self) -> None:
        """An interface that isn't there is told by its name."""
        error = await self.unavailable("nosuch0")
        self.assertEqual((error.interface, error.reason), ("nosuch0", "no such interface"))

    async def test_interface_lost(self) -> None:
        """What had arrived when the interface went away can still be read; then that is told."""
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
        """A standby handle outlasts that its interface is down; arming it meanwhile fails as opening does."""
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
        """Where what is to be left out is no filter, what was left out before still is."""
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


class MemoryPacketSystemTests(PacketSystemContract, unittest.TestCase):
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


class PcapySystemTests(PacketSystemContract, unittest.TestCase):
    """libpcap, on a wire of its own."""

    native = True

    def setUp(self) -> None:
        """A wire for each test."""
        self.sockets = sockets()
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.interface = self.wire.interface
        self.threads = Threads(reactor)
        self.compiler = FilterCompiler(reactor, libpcap_path())
        self.system = self.make(buffer_size_bytes=2 << 20)
        for service in (self.threads, self.compiler, self.system):
            service.startService()

    def make(self, *, buffer_size_bytes: int) -> PcapySystem:
        """A packet system of this kind."""
        return PcapySystem(
            compiler=self.compiler,
            run_in_thread=self.threads.run,
            buffer_size_bytes=buffer_size_bytes,
            read_timeout_ms=10,
            promiscuous=True,
            native=self.native,
        )

    async def tearDown(self) -> None:
        """No handle, no process and no descriptor is left."""
        self.doCleanups()
        for service in (self.system, self.compiler, self.threads):
            await maybeDeferred(service.stopService)
        self.assertEqual(sockets(), self.sockets)

    def send(self, *frames: bytes) -> None:
        """Put frames on the wire."""
        self.wire.send(frames)

    def is_promiscuous(self) -> bool:
        """IFF_PROMISC of linux/if.h; what netdevice(7) answers has it only where somebody set it by hand."""
        flags = Path(f"/sys/class/net/{self.interface}/flags").read_text()
        return bool(int(flags, 16) & 0x100)

    def lose_interface(self) -> None:
        """Delete the wire."""
        self.wire.delete()

    def take_down(self) -> None:
        """Take the near end down."""
        self.wire.down()

    def bring_up(self) -> None:
        """Bring the near end up again."""
        self.wire.up()

    def rename(self) -> str:
        """Rename the near end. Since Linux 6.2 that can be done while it is up."""
        name = f"{self.interface[:-1]}r"
        ip("link", "set", self.interface, "down")
        ip("link", "set", self.interface, "name", name)
        ip("link", "set", name, "up")
        self.wire.interface = name
        self.wire.wait_until_up()
        return name

    def take_name(self, other: Wire) -> None:
        """Give another wire's near end the name that this one's had."""
        ip("link", "set", other.interface, "down")
        ip("link", "set", other.interface, "name", self.interface)
        other.interface = self.interface
        other.up()

    async def test_interface_down(self) -> None:
        """An interface that is down is told as such."""
        self.wire.down()
        error = await self.unavailable()
        self.assertEqual(error.reason, "the interface is down")

    async def test_interface_goes_down_meanwhile(self) -> None:
        """A filter can be set on an interface that is down, and holds when it is up."""
        handle = await self.open(bpf="udp")
        self.wire.down()
        self.exclude(handle, "udp port 53")
        self.wire.up()
        self.send(udp_frame(1, port=53), udp_frame(2, port=9))
        self.assertEqual(self.read(handle, 1), [udp_frame(2, port=9)])

    async def test_gone_while_its_filter_is_set(self) -> None:
        """That an interface is gone when its filter is set is reported as such."""
        handle = await self.open(bpf="udp")
        self.wire.delete()
        error = self.assertRaises(CaptureUnavailable, self.exclude, handle, "udp port 53")
        self.assertEqual(error.reason, "the interface is gone")

    async def test_renamed_while_it_is_opened(self) -> None:
        """The interface that had the name at the time of the request is opened, and no other one."""
        other = Wire()
        self.addCleanup(other.stop)
        other.start()
        name = self.interface

        def run_later(work: Any, *args: Any) -> Any:
            if self.wire.interface == name:
                self.rename()
                self.take_name(other)
            return self.threads.run(work, *args)

        system = PcapySystem(
            compiler=self.compiler,
            run_in_thread=run_later,
            buffer_size_bytes=2 << 20,
            read_timeout_ms=10,
            promiscuous=True,
            native=self.native,
        )
        handle = await system.open(name, snap_length=512, bpf="udp")
        self.addCleanup(handle.close)
        other.send([udp_frame(1)])
        self.send(udp_frame(2))
        self.assertEqual(self.read(handle, 1), [udp_frame(2)])

    async def test_counts_of_the_capture_alone(self) -> None:
        """
        What the kernel has no use for, though it is captured, isn't counted as dropped by the interface; nor
        is anything that was counted for another interface.
        """
        tagged_lldp = bytes.fromhex("0180c200000e 020000000001 81000005 88cc") + bytes(50)
        handle = await self.open()
        self.send(*[tagged_lldp] * 60)
        self.assertEqual(len(self.read(handle, 60)), 60)
        dropped = Path("/sys/class/net", self.interface, "statistics/rx_dropped").read_text()
        self.assertGreaterEqual(int(dropped), 60)
        self.assertEqual(handle.counts(), PacketCounts(received=60, dropped=0, interface_dropped=0))
        self.rename()
        self.assertEqual(handle.counts(), PacketCounts(received=60, dropped=0, interface_dropped=0))
        other = Wire()
        self.addCleanup(other.stop)
        other.start()
        self.take_name(other)
        self.assertEqual(handle.counts(), PacketCounts(received=60, dropped=0, interface_dropped=0))
        ip("link", "delete", f"{self.interface[:-1]}r")
        self.assertEqual(handle.counts(), PacketCounts(received=60, dropped=0, interface_dropped=None))

    async def test_snap_length_in_the_ring(self) -> None:
        """
        The ring holds as many packets as the snap length allows for, whether there is a filter or not: 436 of
        512 bytes in a block of 256 KiB, where 239 of 1000 bytes would fit.
        """
        system = self.make(buffer_size_bytes=1 << 20)
        for bpf in ("", "udp", ""):
            handle = await system.open(self.interface, snap_length=512, bpf=bpf)
            self.addCleanup(handle.close)
            self.send(*[udp_frame(number, size=1000) for number in range(1500)])
            time.sleep(0.05)
            self.assertGreater(len(self.read(handle, 1500, most=1500)), 4 * 239)
            handle.close()

    async def test_counts_of_any(self) -> None:
        """What the interfaces have dropped is unknown if all of them are captured on."""
        handle = await self.system.open("any", snap_length=512, bpf="udp port 1 and udp port 2")
        self.addCleanup(handle.close)
        counts = handle.counts()
        assert counts is not None
        self.assertIsNone(counts.interface_dropped)

    async def test_alternative_names(self) -> None:
        """An interface can be opened by its alternative names, of up to 127 characters."""
        index = await self.system.find(self.interface)
        for name in (f"{self.interface}-alt", f"{self.interface}-{'x' * 100}"):
            try:
                ip("link", "property", "add", "dev", self.interface, "altname", name)
            except subprocess.CalledProcessError:
                raise unittest.SkipTest("this kernel has no alternative names") from None
            self.assertEqual(await self.system.find(name), index)
            handle = await self.system.open(name, snap_length=512, bpf="udp port 53")
            self.addCleanup(handle.close)
            self.send(udp_frame(1, port=53))
            self.assertEqual(self.read(handle, 1), [udp_frame(1, port=53)])
        error = await self.unavailable("x" * 100)
        self.assertEqual(error.reason, "no such interface")

    async def test_moved_to_another_namespace(self) -> None:
        """An interface that moves to another network namespace is gone."""
        handle = await self.open()
        self.send(udp_frame(1))
        time.sleep(0.05)
        ip("link", "set", self.interface, "netns", self.wire.namespace)
        read: list[bytes] = []
        with self.assertRaises(CaptureUnavailable):
            for _ in range(100):
                handle.read(2, lambda _, packet: read.append(packet))
        self.assertEqual(read, [udp_frame(1)])

    async def test_no_room_for_the_ring(self) -> None:
        """What else keeps an interface from being opened is told in libpcap's words, if they can be had."""
        (await self.open()).close()  # there is a thread from here on, and needs no memory any more
        system = self.make(buffer_size_bytes=64 << 20)
        before = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (32 << 20), before[1]))
        try:
            error = await self.assertFailure(
                system.open(self.interface, snap_length=512, bpf=""), CaptureUnavailable
            )
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        self.assertIn("can't mmap rx ring" if system.is_native else "libpcap error -1", error.reason)

    async def test_any(self) -> None:
        """The pseudo-interface for all of them works, with a link type of its own (LINUX_SLL)."""
        # Tests in other processes send to the same address.
        port = 10_000 + os.getpid() % 50_000
        handle = await self.system.open("any", snap_length=512, bpf=f"udp port {port} and host 198.51.100.1")
        self.addCleanup(handle.close)
        self.assertEqual(handle.link_type, 113)
        self.send(udp_frame(1, port=port))
        self.assertEqual(len(self.read(handle, 1)), 1)

    async def test_filter_not_for_the_kernel(self) -> None:
        """
        A filter that the kernel doesn't run is refused, whatever it is: within libpcap, packets that don't
        pass it would be read without end. The one before stays.
        """
        for interface, bpf in (
            (self.interface, "ip protochain 17"),
            ("any", "link[4] = 1"),
            ("any", "geneve"),
        ):
            error = await self.rejected(bpf, interface)
            self.assertIn(f"the kernel can't run it on {interface}", str(error))
        handle = await self.open(bpf="udp port 53")
        self.assertRaises(RequestRejected, self.exclude, handle, "ip protochain 17")
        self.send(udp_frame(1, port=9), udp_frame(2, port=53))
        self.assertEqual(self.read(handle, 1), [udp_frame(2, port=53)])

    async def test_no_leak_by_bad_filters(self) -> None:
        """Refused filters and interfaces leave no descriptor behind."""
        before = sockets()
        for _ in range(5):
            await self.rejected("tcp prot 80")
            await self.rejected("wlan type mgt")
            await self.unavailable("nosuch0")
        self.assertEqual(sockets(), before)

    async def test_opened_in_vain(self) -> None:
        """What a thread has opened for nobody is closed, and a stop waits for that."""
        before = sockets()
        standby = await self.system.open_standby(self.interface, snap_length=512)
        opening = [self.system.open(self.interface, snap_length=512, bpf="") for _ in range(3)]
        arming = standby.arm("")
        for one in (*opening, arming):
            one.addErrback(lambda failure: failure.trap(CancelledError))
            one.cancel()
            standby.close()
        await self.system.stopService()
        self.assertEqual(sockets(), before)

    async def test_unusual_link_type(self) -> None:
        """On an interface whose link type shows only once it is open, filters are compiled for that."""
        tunnel = f"{self.interface[:-1]}t"
        try:
            ip("link", "add", tunnel, "type", "sit", "local", "127.0.0.1")
        except subprocess.CalledProcessError:
            raise unittest.SkipTest("there are no tunnels here") from None
        self.addCleanup(ip, "link", "delete", tunnel)
        ip("link", "set", tunnel, "up")
        await self.rejected("ether host 02:00:00:00:00:01", tunnel)
        await self.rejected("tcp prot 80", tunnel)
        handle = await self.system.open(tunnel, snap_length=512, bpf="udp port 53")
        self.addCleanup(handle.close)
        self.assertEqual(handle.link_type, 12)
        live = self.system.compile_now(handle, "udp port 53")
        self.assertEqual(handle.program.bpf, "udp port 53")
        if self.native:
            self.assertEqual(handle.program, live)

    def test_fast_path(self) -> None:
        """That packets can't be written without Python is logged once, at the start; otherwise nothing is."""
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.make(buffer_size_bytes=2 << 20).startService()
        lines = [formatEvent(event) for event in events if event["log_level"] >= LogLevel.warn]
        self.assertEqual(len(lines), 0 if self.native else 1)
        if lines:
            self.assertIn("the internals of the installed pcapy-ng are unknown", lines[0])

    async def test_interface_that_libpcap_alone_knows(self) -> None:
        """What libpcap would open by name, though it is no network interface, isn't opened."""
        await self.unavailable("nflog")


class PlainPcapySystemTests(PcapySystemTests):
    """libpcap, where pcapy's objects are not known from within."""

    native = False
