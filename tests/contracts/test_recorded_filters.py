"""A filter selects of the packets that were recorded what it selects of those that arrive."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from mmap import mmap

from pcapsvc.core.errors import RequestRejected
from pcapsvc.interfaces.capture import IPacketHandle
from peers.requirement import require_command
from peers.wire import Wire, no_ipv6, within
from tests.contracts.packet_wire import read_all
from tests.contracts.real_packets_case import RealPacketsCase
from tests.contracts.records import packets_of, record
from tests.contracts.various_frames import frames, frames_with_a_tag, network_packets

# What a packet is here: its data, and its length on the wire.
_Packet = tuple[bytes, int]

# After this long without a packet, all have been handed over.
_QUIET_SECONDS = 0.1
KEPT = 2000
SNAP = 70

#: Filters for any link type.
NETWORK = """
udp
udp port 9
udp dst port 53
udp portrange 5000-5010
tcp
tcp port 80
tcp[tcpflags] & (tcp-syn|tcp-fin) != 0
tcp[13] = 0x12
tcp[(tcp[12] >> 2) & 0x3c:4] = 0x47455420
port 9 or port 80
not port 9
host 192.0.2.1
src host 192.0.2.1 and dst net 198.51.100.0/24
dst host 224.0.0.1
ip
ip6
ip6 host 2001:db8::1
ip6 and udp port 53
ip6 proto 44
ip6[6] = 0
icmp
icmp[icmptype] = icmp-echo
icmp6
ip proto 50
ip[0] & 0xf > 5
ip[6:2] & 0x1fff != 0
ip[6:2] & 0x3fff = 0x2000
ip[2:2] > 100
ip[8] = 64 and udp[4:2] > 60
less 100
greater 100
greater 101
len = 102
udp and less 120
not less 300
udp[udp[4:2] - 1] = 19
ip multicast
ip broadcast
not (tcp or udp)
ip and not udp
""".strip().splitlines()
#: Filters that look at an Ethernet header as well.
ETHERNET = """
ether host 02:00:00:00:00:01
ether src 02:00:00:00:00:03
ether broadcast
ether multicast
ether proto 0x88b5
ether[6:4] = 0x02000000
ether[12:2] = 0x0800
ether[14] = 0x45
ether[len - 1] = 99
ether[ether[0] + 10:2] = 0x0800
arp
not arp
stp
llc
mpls
mpls 100
mpls 100 and mpls 200
mpls 100 and udp port 9
pppoes
pppoes and udp port 9
vlan
vlan 100
vlan 200
not vlan
not vlan 100
vlan 100 and udp port 9
vlan and tcp[tcpflags] & tcp-syn != 0
vlan and ip6
vlan 100 and vlan 300
vlan 200 and vlan 100 and udp
vlan and arp
vlan 100 and less 120
udp or (vlan and udp)
(vlan 100 or vlan 300) and host 192.0.2.1
vlan and mpls 100
vlan and greater 200
ip or vlan
udp port 9 or vlan 4094
vlan 0
vlan and (ether[14:2] & 0xfff = 100 or ether[14:2] & 0xfff = 200) and udp port 9
vlan and (ether[14:2] & 0xfff = 0 or ether[14:2] & 0xfff = 4094)
vlan 100 and host (192.0.2.1 or 2001:db8::1) and (udp or tcp)
""".strip().splitlines()
#: Those for VLANs that can be used on all interfaces.
VLANS = ("vlan 100", "vlan 0", "vlan 100 and udp port 9", *ETHERNET[-3:])


class _Case(RealPacketsCase):
    """
    A packet system, and a device that packets are put on.

    @cvar counts_twice: whether the kernel counts some packets twice that are handed over once: those on
        loopback, of which libpcap leaves out what is sent.
    """

    interface: str
    counts_twice = False
    # Each time-out that passes while packets are sent takes a block of the ring, which has eight.
    read_timeout_ms = 40

    def send(self) -> None:
        """Send all kinds of packets."""
        raise NotImplementedError

    async def live(self, bpf: str, snap_length: int) -> IPacketHandle | None:
        """A handle with a filter; L{None} if it is rejected."""
        try:
            handle = await self.system.open(self.interface, snap_length=snap_length, bpf=bpf)
        except RequestRejected:
            return None
        self.addCleanup(handle.close)
        return handle

    def recorded(self, handle: IPacketHandle) -> memoryview:
        """What a handle has, as it is recorded."""
        memory = mmap(-1, 8 << 20)
        writer = self.system.open_records(memory, 0, len(memory), link_type=handle.link_type)
        if self.counts_twice:
            while handle.read(1000, writer) or select.select([handle], [], [], _QUIET_SECONDS)[0]:
                pass
        else:
            read_all(handle, writer)
        size = writer.size()
        writer.close()
        return memoryview(memory)[:size]

    async def sifted(self, bpf: str, snap_length: int, link_type: int, records: memoryview) -> list[_Packet]:
        """What a filter selects of what was recorded."""
        sieve = await self.system.open_sieve(
            self.interface, link_type=link_type, kept=KEPT, snap_length=snap_length, bpf=bpf
        )
        try:
            count, passed = sieve.sift(records)
            packets = packets_of(passed)
            self.assertEqual(len(packets), count)
            return packets
        finally:
            sieve.close()

    async def compare(self, filters: Sequence[str]) -> dict[str, int]:
        """
        Compare what filters select of recorded packets with what live handles select, and how it is cut.

        @return: how many packets each filter has selected.
        """
        recording = await self.live("", KEPT)
        assert recording is not None
        handles = {bpf: await self.live(bpf, KEPT) for bpf in filters}
        self.send()
        time.sleep(0.1)
        records = self.recorded(recording)
        lives = [(bpf, each, packets_of(self.recorded(each))) for bpf, each in handles.items() if each]
        found, wrong = {"": len(packets_of(records))}, {}
        for bpf, handle, wanted in lives:
            found[bpf] = len(wanted)
            for snap_length in (KEPT, SNAP):
                packets = await self.sifted(bpf, snap_length, handle.link_type, records)
                if packets != [(data[:snap_length], length) for data, length in wanted]:
                    wrong[bpf, snap_length] = f"{len(packets)} packets, {len(wanted)} live"
        self.assertEqual(wrong, {})
        return found


class WireTests(_Case):
    """Ethernet: tags are taken out of packets by the kernel, and put back by libpcap."""

    def setUp(self) -> None:
        """A wire."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.interface = self.wire.interface
        super().setUp()

    def send(self) -> None:
        """Send all frames."""
        self.wire.send(frames())

    async def test_network(self) -> None:
        """Filters for what is above the link layer."""
        found = await self.compare(NETWORK)
        self.assertEqual(found[""], len(frames()))
        self.assertEqual([bpf for bpf in NETWORK if not found.get(bpf)], [])

    async def test_beyond(self) -> None:
        """It is known whether a filter looks at bytes that were cut off."""
        for kept, bpf, expected in (
            (96, "udp[100] = 1", True),
            (96, "ip[100:4] = 1", True),
            (96, "tcp port 80 or ether[96] = 1", True),
            (96, "udp[60:4] = 1", True),
            (96, "ether[95] = 1", False),
            (96, "greater 1000", False),
            (96, "tcp port 80", False),
            (96, "ip6 and udp port 53 and src host 2001:db8::1", False),
            (96, "vlan 7 and tcp[tcpflags] & tcp-syn != 0", False),
            (40, "ip6 host 2001:db8::1", True),
        ):
            sieve = await self.system.open_sieve(
                self.interface, link_type=1, kept=kept, snap_length=kept, bpf=bpf
            )
            sieve.close()
            self.assertEqual(sieve.looks_beyond, expected, bpf)

    async def test_ethernet(self) -> None:
        """Filters for the link layer, and for VLANs."""
        found = await self.compare(ETHERNET)
        self.assertEqual([bpf for bpf in ETHERNET if not found.get(bpf)], [])


class AnyTests(_Case):
    """All interfaces of a namespace: cooked packets, which have a header that the kernel doesn't know."""

    counts_twice = True

    def setUp(self) -> None:
        """A wire, seen from its far end; and what a host sends itself."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.interface, self.namespace = "any", self.wire.namespace
        ip = require_command("ip", "iproute2")
        subprocess.run([ip, "-n", self.namespace, "link", "set", "lo", "up"], check=True, timeout=60)
        self.near = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.addCleanup(self.near.close)
        self.near.bind((self.wire.interface, 0))
        super().setUp()

    def send(self) -> None:
        """
        Send all frames to the far end, and some to the host itself. Of frames with two tags, Linux 6.10 and
        later tells other protocols in a cooked header than to a filter: they can't be told from others.
        """
        for frame in frames_with_a_tag():
            self.near.send(frame)
        within(str(self.namespace), _talk_to_itself)

    async def test_any(self) -> None:
        """Filters for what is above the link layer, for VLANs by number, and what else the kernel can run."""
        filters = [*NETWORK, *ETHERNET, "inbound", "outbound", "inbound and udp"]
        found = await self.compare(filters)
        self.assertGreater(found[""], len(frames_with_a_tag()))
        self.assertEqual([bpf for bpf in VLANS if not found.get(bpf)], [])
        self.assertEqual([bpf for bpf in (*NETWORK[:10], "less 100", "inbound") if not found.get(bpf)], [])

    async def test_own_traffic_once(self) -> None:
        """What a host sends itself is recorded once."""
        self.interface = "lo"
        found = await self.compare(["udp port 9", "udp", "tcp", "not udp", "ip6", "greater 60", "less 60"])
        self.assertEqual((found["udp port 9"], found["udp"]), (3, 3))
        self.assertTrue(found["tcp"])


def _talk_to_itself() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for size in (0, 10, 100):
            sender.sendto(bytes(size), ("127.0.0.1", 9))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as caller:
        caller.connect_ex(("127.0.0.1", 80))


class _TunnelCase(_Case):
    """
    A tunnel that the kernel receives from.

    @ivar hardware: the type of hardware that it seems to be (linux/if_arp.h); L{None} if it isn't changed.
    """

    hardware: int | None = None

    def setUp(self) -> None:
        """It is up."""
        self.tunnel = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        self.addCleanup(os.close, self.tunnel)
        self.interface = f"tun{os.getpid():x}"
        # linux/if_tun.h: TUNSETIFF; IFF_TUN and IFF_NO_PI.
        fcntl.ioctl(self.tunnel, 0x400454CA, struct.pack("16sH22x", self.interface.encode(), 0x1001))
        if self.hardware is not None:
            # TUNSETLINK
            fcntl.ioctl(self.tunnel, 0x400454CD, self.hardware)
        # The kernel would look for routers on it, at times of its own.
        no_ipv6(self.interface)
        ip = require_command("ip", "iproute2")
        subprocess.run([ip, "link", "set", self.interface, "up"], check=True, timeout=60)
        super().setUp()

    def send(self) -> None:
        """Send all packets."""
        for packet in network_packets():
            os.write(self.tunnel, packet)


class TunnelTests(_TunnelCase):
    """A tunnel: packets have no link layer."""

    async def test_raw(self) -> None:
        """Filters for what is above the link layer; those for what is not there are refused, live as well."""
        found = await self.compare(NETWORK)
        self.assertEqual(found[""], len(network_packets()))
        self.assertEqual([bpf for bpf in NETWORK[:20] if not found.get(bpf)], [])
        for bpf in ("vlan", "ether host 02:00:00:00:00:01"):
            self.assertIsNone(await self.live(bpf, KEPT))
            opening = self.system.open_sieve(
                self.interface, link_type=12, kept=KEPT, snap_length=KEPT, bpf=bpf
            )
            await self.assertFailure(opening, RequestRejected)


class CookedTests(_TunnelCase):
    """An interface that is cooked, with a link type of its own: nlmon, of which this has the type."""

    hardware = 824
    link_type = 253

    async def test_lengths(self) -> None:
        """The header that libpcap adds does not count for a filter."""
        lengths = ("", "less 100", "greater 100", "greater 101", "not less 300")
        found = await self.compare(lengths)
        self.assertEqual([bpf for bpf in lengths if not found.get(bpf)], [])

    async def test_snap_length(self) -> None:
        """It is at least as long as the header that libpcap adds, live and recorded."""
        handle = await self.live("", 5)
        assert handle is not None
        self.assertEqual((handle.link_type, handle.snap_length), (self.link_type, 21))
        self.send()
        time.sleep(0.1)
        self.assertEqual({len(data) for data, _ in packets_of(self.recorded(handle))}, {21})
        sieve = await self.system.open_sieve(
            self.interface, link_type=self.link_type, kept=KEPT, snap_length=5, bpf=""
        )
        self.addCleanup(sieve.close)
        self.assertEqual(packets_of(sieve.sift(memoryview(record(bytes(60))))[1]), [(bytes(21), 60)])
