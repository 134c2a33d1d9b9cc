"""One suite for every packet system: ours in memory, and libpcap on a real wire."""

from __future__ import annotations

import os
import resource
import select
import struct
import time
from pathlib import Path
from typing import Any

from twisted.trial import unittest

from pcapsvc.core.errors import CaptureUnavailable, RequestRejected
from pcapsvc.interfaces.capture import IPacketHandle, IPatientPacketSystem
from pcapsvc.packets.libpcap import Libpcap
from pcapsvc.packets.pcapy_system import PcapySystem
from pcapsvc.testing import MemoryPacketSystem
from peers.frames import udp_frame
from peers.requirement import require_root
from peers.wire import Wire


class PacketSystemContract:
    """What an L{IPatientPacketSystem} owes, whichever it is."""

    system: IPatientPacketSystem
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

    def open(self, *, snap_length: int = 512, bpf: str = "") -> IPacketHandle:
        """A handle that is closed at the end of the test."""
        handle = self.system.open(self.interface, snap_length=snap_length, bpf=bpf)
        self.addCleanup(handle.close)
        return handle

    def read(self, handle: IPacketHandle, count: int, most: int = 100) -> list[bytes]:
        """The data of the next packets, as many as are wanted, or as come within two seconds."""
        data: list[bytes] = []
        until = time.monotonic() + 2
        while len(data) < count and time.monotonic() < until:
            select.select([handle], [], [], 0.05)
            handle.dispatch(min(most, count - len(data)), lambda _, packet: data.append(packet))
        return data

    def memory_file(self) -> str:
        """The path of an empty file in memory."""
        descriptor = os.memfd_create("test")
        self.addCleanup(os.close, descriptor)
        return f"/proc/self/fd/{descriptor}"

    def test_packets_in_order(self) -> None:
        """Packets are handed over in the order in which they came, and each once."""
        handle = self.open()
        frames = [udp_frame(number) for number in range(20)]
        self.send(*frames)
        self.assertEqual(self.read(handle, 20, most=7), frames)
        self.assertEqual(handle.dispatch(10, lambda *_: self.fail("there was no more")), 0)

    def test_at_most(self) -> None:
        """No more packets are handed over than were asked for; the others wait."""
        handle = self.open()
        self.send(*[udp_frame(number) for number in range(5)])
        self.assertEqual(len(self.read(handle, 2)), 2)
        self.assertEqual(len(self.read(handle, 3)), 3)

    def test_snap_length(self) -> None:
        """A packet is cut at the snap length, and its own length is kept in the file."""
        handle = self.open(snap_length=60)
        path = self.memory_file()
        dumper = handle.open_dumper(path)
        self.send(udp_frame(1, size=300), udp_frame(2, size=200))
        while not handle.dispatch(1, dumper.dump):
            select.select([handle], [], [], 2)
        dumper.close()
        lengths: list[int] = []
        while not handle.dispatch(1, lambda header, _: lengths.append(header.getlen())):
            select.select([handle], [], [], 2)
        self.assertEqual(lengths, [200])
        with open(path, "rb") as file:
            written = file.read()
        self.assertEqual(struct.unpack_from("=IHH", written), (0xA1B2C3D4, 2, 4))
        self.assertEqual(struct.unpack_from("=II", written, 16), (60, handle.link_type))
        self.assertEqual(struct.unpack_from("=II", written, 32), (60, 300))
        self.assertEqual(written[40:], udp_frame(1, size=300)[:60])

    def test_dump(self) -> None:
        """Packets are written as they would be one by one, at most as many as asked for; the others wait."""
        handle = self.open(snap_length=60)
        one_by_one, at_once = self.memory_file(), self.memory_file()
        frames = [udp_frame(number, size=50 + number) for number in range(20)]
        self.send(*frames)
        written = 0
        dumper = handle.open_dumper(at_once)
        while written < 7:
            select.select([handle], [], [], 2)
            written += handle.dump(7 - written, dumper)
        dumper.close()
        self.assertEqual(written, 7)
        dumper = handle.open_dumper(one_by_one)
        while written < 20:
            select.select([handle], [], [], 2)
            written += handle.dispatch(20, dumper.dump)
        self.assertEqual(handle.dump(10, dumper), 0)
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

    def test_dump_of_a_lost_interface(self) -> None:
        """What had arrived when the interface went away is written; then that is told."""
        handle = self.open()
        self.send(*[udp_frame(number) for number in range(3)])
        time.sleep(0.05)  # the kernel hands over a block that isn't full after its time-out
        self.lose_interface()
        dumper = handle.open_dumper(self.memory_file())
        self.addCleanup(dumper.close)
        written = 0
        with self.assertRaises(CaptureUnavailable) as caught:
            for _ in range(100):
                written += handle.dump(2, dumper)
        self.assertEqual((written, caught.exception.interface), (3, self.interface))

    def test_dump_after_the_end(self) -> None:
        """Nothing is written by a handle that is closed."""
        handle = self.open()
        dumper = handle.open_dumper(self.memory_file())
        self.addCleanup(dumper.close)
        handle.close()
        self.assertRaises(ValueError, handle.dump, 1, dumper)

    def test_filter(self) -> None:
        """Only what passes the filter is handed over, and counted."""
        handle = self.open(bpf="udp port 53")
        self.send(udp_frame(1, port=9), udp_frame(2, port=53), udp_frame(3, port=9), udp_frame(4, port=53))
        self.assertEqual(self.read(handle, 2), [udp_frame(2, port=53), udp_frame(4, port=53)])
        counts = handle.counts()
        assert counts is not None
        self.assertEqual((counts.received, counts.dropped), (2, 0))

    def test_bad_filter(self) -> None:
        """A filter that can't be compiled is the sender's fault, in libpcap's own words."""
        error = self.assertRaises(
            RequestRejected, self.system.open, self.interface, snap_length=512, bpf="tcp prot 80"
        )
        self.assertEqual([problem.path for problem in error.problems], ["bpf"])
        self.assertIn("syntax error", str(error))

    def test_no_such_interface(self) -> None:
        """An interface that isn't there is told by its name."""
        error = self.assertRaises(CaptureUnavailable, self.system.open, "nosuch0", snap_length=512, bpf="")
        self.assertEqual((error.interface, error.reason), ("nosuch0", "no such interface"))

    def test_interface_lost(self) -> None:
        """What had arrived when the interface went away can still be read; then that is told."""
        handle = self.open()
        frames = [udp_frame(number) for number in range(3)]
        self.send(*frames)
        time.sleep(0.05)  # the kernel hands over a block that isn't full after its time-out
        self.lose_interface()
        read: list[bytes] = []

        def read_on() -> None:
            for _ in range(100):
                handle.dispatch(2, lambda _, packet: read.append(packet))

        self.assertRaises(CaptureUnavailable, read_on)
        self.assertEqual(read, frames)

    def test_callback_fails(self) -> None:
        """What the callback raises ends the dispatch, and is raised; the packets behind it wait."""
        handle = self.open()
        self.send(udp_frame(1), udp_frame(2))
        self.assertEqual(self.read(handle, 1), [udp_frame(1)])

        def refuse(header: object, data: bytes) -> None:
            raise ZeroDivisionError

        with self.assertRaises(ZeroDivisionError):
            while True:
                handle.dispatch(10, refuse)
                select.select([handle], [], [], 2)

    def test_rearm(self) -> None:
        """With another filter a handle begins anew: what had arrived is neither handed over nor counted."""
        handle = self.open()
        self.send(udp_frame(1, port=53), udp_frame(2, port=53))
        time.sleep(0.05)
        handle.rearm("udp port 53")
        self.send(udp_frame(3, port=9), udp_frame(4, port=53))
        self.assertEqual(self.read(handle, 1), [udp_frame(4, port=53)])
        counts = handle.counts()
        assert counts is not None
        self.assertEqual(counts.received, 1)

    def test_wait(self) -> None:
        """
        A handle that waits lets nothing pass, and the interface takes in no more than before. Then it is
        as any other, with what comes from there on.
        """
        handle = self.system.wait(self.interface, snap_length=60)
        self.addCleanup(handle.close)
        self.assertFalse(self.is_promiscuous())
        self.send(udp_frame(1, port=53))
        time.sleep(0.05)
        self.assertEqual(handle.dispatch(10, lambda *_: self.fail("nothing was to pass")), 0)
        handle.rearm("udp port 53")
        self.assertTrue(self.is_promiscuous())
        self.send(udp_frame(2, port=9), udp_frame(3, port=53))
        self.assertEqual(self.read(handle, 1), [udp_frame(3, port=53)[:60]])
        counts = handle.counts()
        assert counts is not None
        self.assertEqual(counts.received, 1)
        handle.close()
        self.assertFalse(self.is_promiscuous())

    def test_rearm_refused(self) -> None:
        """A filter that can't be compiled is the sender's fault, too; an interface that is lost is not."""
        handle = self.open()
        self.assertRaises(RequestRejected, handle.rearm, "tcp prot 80")
        self.lose_interface()
        self.assertRaises(CaptureUnavailable, handle.rearm, "")

    def test_leave_out(self) -> None:
        """A handle goes on without what passes a filter, of what had arrived as well; then of another."""
        handle = self.open(bpf="udp")
        self.send(udp_frame(1, port=53), udp_frame(2, port=9))
        time.sleep(0.05)
        handle.leave_out("udp port 53")
        self.send(udp_frame(3, port=53), udp_frame(4, port=9))
        self.assertEqual(self.read(handle, 2), [udp_frame(2, port=9), udp_frame(4, port=9)])
        self.assertEqual(handle.dispatch(10, lambda *_: self.fail("there was no more")), 0)
        handle.leave_out("udp port 9")
        self.send(udp_frame(5, port=9), udp_frame(6, port=53))
        self.assertEqual(self.read(handle, 1), [udp_frame(6, port=53)])
        handle.leave_out("")
        self.send(udp_frame(7, port=9))
        self.assertEqual(self.read(handle, 1), [udp_frame(7, port=9)])

    def test_leave_out_of_a_filter(self) -> None:
        """Of a handle with a filter, no more is handed over than before; of one without, all else is."""
        for bpf, wanted in (("udp port 53", [53]), ("", [7, 53])):
            handle = self.open(bpf=bpf)
            handle.leave_out("udp port 9")
            self.send(udp_frame(1, port=7), udp_frame(2, port=9), udp_frame(3, port=53))
            ports = [int.from_bytes(data[36:38], "big") for data in self.read(handle, len(wanted))]
            self.assertEqual(ports, wanted)
            handle.close()

    def test_leave_out_until_rearmed(self) -> None:
        """Begun anew, a handle leaves nothing out."""
        handle = self.open()
        handle.leave_out("udp port 53")
        handle.rearm("udp")
        self.send(udp_frame(1, port=53))
        self.assertEqual(self.read(handle, 1), [udp_frame(1, port=53)])

    def test_leave_out_refused(self) -> None:
        """Where what is to be left out is no filter, what was left out before still is."""
        handle = self.open()
        handle.leave_out("udp port 53")
        self.assertRaises(RequestRejected, handle.leave_out, "tcp prot 80")
        self.send(udp_frame(1, port=53), udp_frame(2, port=9))
        self.assertEqual(self.read(handle, 1), [udp_frame(2, port=9)])

    def test_leave_out_of_a_lost_interface(self) -> None:
        """That an interface went away is not the filter's fault; a filter that is none is, there as well."""
        handle = self.open(bpf="udp")
        self.lose_interface()
        self.assertRaises(RequestRejected, handle.leave_out, "tcp prot 80")
        error = self.assertRaises(CaptureUnavailable, handle.leave_out, "udp port 53")
        self.assertEqual(error.interface, self.interface)

    def test_close_twice(self) -> None:
        """A handle may be closed again."""
        handle = self.open()
        handle.close()
        handle.close()


class MemoryPacketSystemTests(PacketSystemContract, unittest.SynchronousTestCase):
    """Our fake."""

    def setUp(self) -> None:
        """One interface, and the one filter that the suite uses."""
        self.memory = MemoryPacketSystem("mem0")
        self.memory.filters["udp"] = lambda data: True
        self.memory.filters["udp port 9"] = lambda data: data[36:38] == (9).to_bytes(2, "big")
        self.memory.filters["udp port 53"] = lambda data: data[36:38] == (53).to_bytes(2, "big")
        self.system = self.memory
        self.interface = "mem0"

    def send(self, *frames: bytes) -> None:
        """Put frames on the interface."""
        self.memory.deliver("mem0", *frames)

    def is_promiscuous(self) -> bool:
        """Whether any handle asks for it."""
        return any(handle.promiscuous for handle in self.memory.interfaces["mem0"].handles)

    def lose_interface(self) -> None:
        """Take the interface away."""
        self.memory.lose("mem0")


class PcapySystemTests(PacketSystemContract, unittest.SynchronousTestCase):
    """libpcap, on a wire of its own."""

    native = True

    def setUp(self) -> None:
        """A wire for each test."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.system = PcapySystem(
            buffer_size_bytes=2 << 20, read_timeout_ms=10, promiscuous=True, native=self.native
        )
        self.interface = self.wire.interface

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

    def test_interface_down(self) -> None:
        """An interface that is down is told as such."""
        self.wire.down()
        error = self.assertRaises(CaptureUnavailable, self.open)
        self.assertEqual(error.reason, "the interface is down")

    def test_interface_goes_down_meanwhile(self) -> None:
        """One that goes down while its filter is set is told as such, and is no fault of the filter's."""
        handle = self.open(bpf="udp")
        self.wire.down()
        error = self.assertRaises(CaptureUnavailable, handle.leave_out, "udp port 53")
        self.assertIn("Network is down", error.reason)

    def test_no_room_for_the_ring(self) -> None:
        """What else keeps an interface from being opened is told in libpcap's words, if they can be had."""
        system = PcapySystem(
            buffer_size_bytes=64 << 20, read_timeout_ms=10, promiscuous=True, native=self.native
        )
        before = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (32 << 20), before[1]))
        try:
            error = self.assertRaises(
                CaptureUnavailable, system.open, self.interface, snap_length=512, bpf=""
            )
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        self.assertIn("can't mmap rx ring" if system._libpcap else "libpcap error -1", error.reason)

    def test_any(self) -> None:
        """The pseudo-interface for all of them works, with a link type of its own (LINUX_SLL)."""
        # Tests in other processes send to the same address.
        port = 10_000 + os.getpid() % 50_000
        handle = self.system.open("any", snap_length=512, bpf=f"udp port {port} and host 198.51.100.1")
        self.addCleanup(handle.close)
        self.assertEqual(handle.link_type, 113)
        self.send(udp_frame(1, port=port))
        self.assertEqual(len(self.read(handle, 1)), 1)

    def test_filter_not_for_the_kernel(self) -> None:
        """
        A filter that the kernel doesn't run is refused, whatever it is: within libpcap, packets that don't
        pass it would be read without end. The one before stays.
        """
        for interface, bpf in (
            (self.interface, "ip protochain 17"),
            ("any", "link[4] = 1"),
            ("any", "geneve"),
        ):
            error = self.assertRaises(RequestRejected, self.system.open, interface, snap_length=512, bpf=bpf)
            self.assertIn(f"the kernel can't run it on {interface}", str(error))
        handle = self.open(bpf="udp port 53")
        self.assertRaises(RequestRejected, handle.leave_out, "ip protochain 17")
        self.send(udp_frame(1, port=9), udp_frame(2, port=53))
        self.assertEqual(self.read(handle, 1), [udp_frame(2, port=53)])

    def test_no_leak_by_bad_filters(self) -> None:
        """Refused filters and interfaces leave no descriptor behind."""
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            self.assertRaises(RequestRejected, self.open, bpf="tcp prot 80")
            self.assertRaises(CaptureUnavailable, self.system.open, "nosuch0", snap_length=512, bpf="")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_interface_that_libpcap_alone_knows(self) -> None:
        """What libpcap would open by name, though it is no network interface, isn't opened."""
        self.assertRaises(CaptureUnavailable, self.system.open, "nflog", snap_length=512, bpf="")


class _Counting:
    """libpcap, and the filters that it has compiled."""

    def __init__(self, libpcap: Libpcap) -> None:
        self._libpcap = libpcap
        self.compiled: list[str] = []

    def compile(self, reader: object, bpf: str) -> bytes:
        """Take note."""
        self.compiled.append(bpf)
        return self._libpcap.compile(reader, bpf)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._libpcap, name)


class CompiledFilterTests(unittest.SynchronousTestCase):
    """What is left out changes all the time."""

    def test_once(self) -> None:
        """However often that changes, the filter of a capture, which may take long, is compiled once."""
        require_root("to capture")
        system = PcapySystem(buffer_size_bytes=2 << 20, read_timeout_ms=10, promiscuous=True)
        if system._libpcap is None:
            raise unittest.SkipTest("the pcapy that is installed is not the one that is known")
        counting = system._libpcap = _Counting(system._libpcap)  # type: ignore[assignment]
        handle = system.open("lo", snap_length=512, bpf="udp port 53")
        self.addCleanup(handle.close)
        for port in range(3):
            handle.leave_out(f"tcp port {port}")
        handle.leave_out("")
        compiled = [bpf for bpf in counting.compiled if bpf]
        self.assertEqual(compiled, ["udp port 53", "tcp port 0", "tcp port 1", "tcp port 2"])


class PlainPcapySystemTests(PcapySystemTests):
    """libpcap, where pcapy's objects are not known from within."""

    native = False
