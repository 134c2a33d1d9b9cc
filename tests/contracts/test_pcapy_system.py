"""libpcap on a real wire, against the suite that the packet system in memory passes."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import time
from mmap import mmap
from pathlib import Path
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.core.errors import CaptureUnavailable, RequestRejected
from pcapsvc.core.recording import PacketCounts
from pcapsvc.packets.filter_compiler import FilterCompiler
from pcapsvc.packets.handle import libpcap_path
from pcapsvc.packets.pcapy_system import PcapySystem
from pcapsvc.threads import Threads
from peers.frames import number_of, udp_frame
from peers.requirement import require_command
from peers.wire import Wire
from tests.contracts.busy_interface import BusyInterfaceContract
from tests.contracts.packet_wire import read_all
from tests.contracts.records import RecordContract, packets_of, record
from tests.integration.traffic import generate

reactor: Any = global_reactor

# libpcap 1.9.1's optimizer never ends on this one (its issue 112).
_ENDLESS = "ip and (dst host 1.2.3.4 or host 10.0.0.1) and (dst host 1.2.3.4 or host 10.0.0.2)"


def ip(*words: str) -> None:
    """Call C{ip}."""
    subprocess.run([require_command("ip", "iproute2"), *words], check=True, capture_output=True, timeout=60)


def sockets() -> int:
    """How many sockets and memory files this process has open, which a handle or a dumper is."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith(("socket:", "/memfd:"))
    return found


class PcapySystemContract(BusyInterfaceContract):
    """libpcap, on a wire of its own."""

    native = True
    nanoseconds = False

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

    def make(self, *, buffer_size_bytes: int, read_timeout_ms: int = 10) -> PcapySystem:
        """A packet system of this kind."""
        return PcapySystem(
            compiler=self.compiler,
            run_in_thread=self.threads.run,
            buffer_size_bytes=buffer_size_bytes,
            read_timeout_ms=read_timeout_ms,
            promiscuous=True,
            native=self.native,
            nanoseconds=self.nanoseconds,
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
        """An interface that is down is reported as such."""
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
        """That an interface is gone when its filter is set is reported once, and what it received is read."""
        handle = await self.open(bpf="udp")
        self.send(udp_frame(1))
        self.await_packets(handle)
        self.wire.delete()
        self.exclude(handle, "udp port 53")
        read: list[bytes] = []
        with self.assertRaises(CaptureUnavailable) as caught:
            for _ in range(10):
                handle.read(1, lambda _, packet: read.append(packet))
        error: Any = caught.exception
        self.assertEqual(read, [udp_frame(1)])
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
        # No block is handed over before it is full, however slowly a busy machine fills it.
        system = self.make(buffer_size_bytes=1 << 20, read_timeout_ms=1000)
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

    async def test_replaced_filters(self) -> None:
        """While a filter is replaced by another one that they pass as well, no packet is lost."""
        handle = await self.open(bpf="udp")
        sending = self.threads.run(lambda: generate(self.wire, 40_000, rate=40_000))
        read = replaced = 0
        while not sending.called:
            for port in (65534, 65535):
                self.exclude(handle, f"tcp port {port}")
                replaced += 1
            read += handle.read(4096, lambda *_: None)
            await deferLater(reactor, 0)
        sent = await sending
        self.assertGreater(replaced, 10)
        while (counts := handle.counts()) and read + counts.dropped < counts.received:
            read += handle.read(4096, lambda *_: None)
        assert counts is not None
        # A ring that was full on a busy machine was counted.
        self.assertEqual((counts.received, read + counts.dropped), (sent, sent))

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
        self.await_packets(handle)
        ip("link", "set", self.interface, "netns", self.wire.namespace)
        read: list[bytes] = []
        with self.assertRaises(CaptureUnavailable):
            for _ in range(100):
                handle.read(2, lambda _, packet: read.append(packet))
        self.assertEqual(read, [udp_frame(1)])

    async def test_no_room_for_the_ring(self) -> None:
        """
        If there is no memory for the ring, that is the node's fault for now, in libpcap's words. Without
        libpcap's words the reason is unknown.
        """
        (await self.open()).close()  # there is a thread from here on, and needs no memory any more
        system = self.make(buffer_size_bytes=64 << 20)
        before = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (32 << 20), before[1]))
        try:
            opening = system.open(self.interface, snap_length=512, bpf="")
            error: Any = await self.assertFailure(opening, OSError, CaptureUnavailable)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        if system.is_native:
            self.assertIsInstance(error, OSError)
            self.assertEqual(error.errno, errno.ENOMEM)
            self.assertIn("can't mmap rx ring", error.strerror)
        else:
            self.assertEqual(error.reason, "libpcap error -1")

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

    async def test_compile_filter_not_for_the_kernel(self) -> None:
        """What can't be used on all interfaces is found out without opening them; nothing else is refused."""
        for bpf in (
            *(
                "",
                "tcp port 80",
                "inbound",
                "udp or arp",
                "vlan 5 and ip6",
                "link[0:2] = 1",
                "ether proto 0x88cc",
            ),
            *("link[4] = 1", "geneve", "ether[2] = 1", "link[15] = 1", "link[20] = 1", "ip[link[3]] = 1"),
        ):
            refused: list[str | None] = []
            for begin in (self.system.open, self.system.compile_filter):
                try:
                    result = await begin("any", snap_length=512, bpf=bpf)
                except RequestRejected as error:
                    refused.append(error.problems[0].rule)
                else:
                    refused.append(None)
                    getattr(result, "close", lambda: None)()
            self.assertEqual(refused[0], refused[1], bpf)

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
        ip("tuntap", "add", "dev", tunnel, "mode", "tun")
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
            self.assertEqual(handle.program.instructions, live.instructions)

    async def test_compile_filter_for_an_unusual_link_type(self) -> None:
        """A filter is compiled for the link type that shows only once the interface is open."""
        tunnel = f"{self.interface[:-1]}t"
        ip("tuntap", "add", "dev", tunnel, "mode", "tun")
        self.addCleanup(ip, "link", "delete", tunnel)
        ip("link", "set", tunnel, "up")
        before = sockets()
        ethernet, raw = [
            (await self.system.compile_filter(each, snap_length=512, bpf="udp port 53")).instructions
            for each in (self.interface, tunnel)
        ]
        self.assertNotEqual(ethernet, raw)
        self.assertEqual(sockets(), before)

    async def test_compile_filter_cancelled(self) -> None:
        """A filter that nobody waits for any more is not compiled."""
        compiling = self.system.compile_filter(self.interface, snap_length=512, bpf=_ENDLESS)
        compiling.cancel()
        await self.assertFailure(compiling, CancelledError)

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


class PcapySystemTests(PcapySystemContract, RecordContract, unittest.TestCase):
    """libpcap, with pcapy's internals."""

    async def test_direction(self) -> None:
        """A filter by direction lets pass what it should from the first packet on, also on standby."""
        for bpf, wanted in (("inbound", 300), ("outbound", 0), ("inbound and udp port 53", 0)):
            standby = await self.system.open_standby(self.interface, snap_length=512)
            armed = await standby.arm(bpf)
            self.addCleanup(armed.close)
            # The first time it is compiled, the second time it is known before the interface is opened.
            for handle in (await self.open(bpf=bpf), await self.open(bpf=bpf), armed):
                self.send(*[udp_frame(number) for number in range(300)])
                read: list[bytes] = []
                read_all(handle, lambda _, packet: read.append(packet))  # noqa: B023
                self.assertEqual([number_of(each) for each in read[-300:]], list(range(wanted)), bpf)
                handle.close()

    async def test_sieve_by_direction(self) -> None:
        """The direction of recorded packets is known on all interfaces only; and no loop is run."""
        for bpf in ("inbound", "outbound and udp", "ip6 protochain 17"):
            await self.assertFailure(self.sieve_of(bpf), RequestRejected)
        sieve = await self.system.open_sieve("any", link_type=113, kept=512, snap_length=512, bpf="inbound")
        self.addCleanup(sieve.close)
        cooked = [record(kind.to_bytes(2, "big") + bytes(12) + b"\x08\x00" + bytes(30)) for kind in (0, 4, 1)]
        self.assertEqual(sieve.sift(memoryview(b"".join(cooked)))[0], 2)

    async def test_snap_length_on_all_interfaces(self) -> None:
        """A cooked handle keeps at least the header that libpcap adds, and says so; a sieve does, too."""
        handle = await self.system.open("any", snap_length=5, bpf="")
        self.addCleanup(handle.close)
        self.assertEqual(handle.snap_length, 21)
        sieve = await self.system.open_sieve("any", link_type=113, kept=512, snap_length=5, bpf="")
        self.addCleanup(sieve.close)
        self.assertEqual(packets_of(sieve.sift(memoryview(record(bytes(60))))[1]), [(bytes(21), 60)])

    async def test_excluded_by_direction(self) -> None:
        """Nothing is lost if what is excluded changes; from then on that is left out."""
        handle = await self.open(bpf="inbound")
        self.send(udp_frame(1))
        self.await_packets(handle)
        self.exclude(handle, "udp port 53")
        self.send(udp_frame(2, port=53), udp_frame(3))
        self.assertEqual(self.read(handle, 2), [udp_frame(1), udp_frame(3)])


class PlainPcapySystemTests(PcapySystemContract, unittest.TestCase):
    """libpcap, if pcapy's internals are unknown: then filters by direction miss the first block."""

    native = False

    async def test_microseconds(self) -> None:
        """Then time stamps are in microseconds, and that is logged if they should not be."""
        self.nanoseconds = True
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        system = self.make(buffer_size_bytes=2 << 20)
        system.startService()
        self.assertIn("therefore, time stamps are in microseconds", [formatEvent(each) for each in events])
        handle = await system.open(self.interface, snap_length=512, bpf="")
        handle.close()
        self.assertEqual(handle.ticks_per_second, 10**6)

    async def test_no_records(self) -> None:
        """Then there is no history, and it is said why."""
        memory = mmap(-1, 4096)
        with self.assertRaises(OSError) as caught:
            self.system.open_records(memory, 0, 4096, link_type=1)
        self.assertIn("internals of the installed pcapy-ng are unknown", str(caught.exception))
        opening = self.system.open_sieve(self.interface, link_type=1, kept=512, snap_length=512, bpf="")
        await self.assertFailure(opening, OSError)
