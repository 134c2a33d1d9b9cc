"""What is compiled apart from a capture, beside what libpcap compiles on the capture's own handle."""

from __future__ import annotations

import socket
import struct
from importlib.metadata import version
from typing import Any

import pcapy
from twisted.internet import reactor
from twisted.trial import unittest

from pcapsvc.core.filter import FilterRejected, everything
from pcapsvc.core.link_type import kept_length
from pcapsvc.core.vlan_choice import vlan_choice
from pcapsvc.packets.filter_compiler import FilterCompiler
from pcapsvc.packets.libpcap import BadFilter, find_libpcap, library_path
from peers.requirement import require_root
from peers.wire import Wire

FILTERS = (
    *("", " ", "ip", "ip6", "arp", "tcp", "udp port 53", "port 7 or port 9", "portrange 1000-2000"),
    *("host 192.0.2.1", "net 192.0.2.0/24", "net 192.0.2", "ip6 host 2001:db8::1", "src net 2001:db8::/32"),
    *(
        "vlan",
        "vlan 5",
        "vlan and ip",
        "ip and vlan",
        "vlan and vlan 7",
        "not vlan",
        "vlan 5 or ip",
        "vlan and tcp port 80",
    ),
    *("inbound", "outbound", "inbound and udp", "not outbound"),
    *("ip broadcast", "ether broadcast", "ip multicast", "ip6 multicast", "ip broadcast and vlan"),
    *("tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "ip[2:2] > 100", "greater 100", "less 60", "len = 60"),
    *("port http", "proto \\tcp", "icmp6", "icmp[icmptype] = icmp-echo", "ether host 02:00:00:00:00:01"),
    *("mpls", "pppoes", "mpls and ip", "ether proto 0x88cc", "link[0] = 1", "geneve", "ip proto 47"),
    *("1=2", "greater 2000000000", "tcp prot 80", "wlan type mgt", "ip protochain 17", "gateway 192.0.2.1"),
    " or ".join(f"port {number}" for number in range(35)),
    "not (tcp port 22 and host 192.0.2.9) and (vlan or ip)",
)
SNAP_LENGTHS = (1, 512, 262144)


class CompiledFilterTests(unittest.TestCase):
    """L{FilterCompiler}, beside handles that capture."""

    async def compare(self, interface: str) -> None:
        """Each filter, by both."""
        require_root("to capture")
        libpcap = find_libpcap(pcapy.__file__)
        if libpcap is None:
            raise unittest.SkipTest(f"pcapy-ng {version('pcapy-ng')} is not known from within")
        compiler = FilterCompiler(reactor, library_path(pcapy.__file__))  # type: ignore[arg-type]
        compiler.startService()
        self.addCleanup(compiler.stopService)
        for snap_length in SNAP_LENGTHS:
            reader = self.reader(interface, snap_length)
            (netmask,) = struct.unpack("=I", socket.inet_aton(reader.getmask()))
            kept = kept_length(reader.datalink(), snap_length)
            for bpf in FILTERS:
                if vlan_choice(bpf, reader.datalink()) is not None:
                    # libpcap knows no VLANs there.
                    continue
                live: bytes | str
                apart: bytes | str
                try:
                    live = libpcap.compile(reader, bpf)
                except BadFilter as error:
                    live = str(error)
                try:
                    program = await compiler.compile(
                        bpf, link_type=reader.datalink(), snap_length=kept, netmask=netmask
                    )
                    apart = program.instructions
                except FilterRejected as error:
                    apart = str(error).split("libpcap says: ", 1)[-1]
                self.assertEqual(apart, live, (interface, snap_length, bpf))
            self.assertEqual(everything(kept).instructions, libpcap.compile(reader, ""))
            reader.close()

    def reader(self, interface: str, snap_length: int) -> Any:
        """A handle of pcapy that captures."""
        reader = pcapy.create(interface)
        self.addCleanup(reader.close)
        reader.set_snaplen(snap_length)
        reader.set_timeout(10)
        reader.activate()
        return reader

    async def test_ethernet(self) -> None:
        """On Ethernet, every filter is compiled to the very same program, or refused in the same words."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        await self.compare(wire.interface)

    async def test_loopback(self) -> None:
        """Likewise on loopback, which has an address and a netmask."""
        await self.compare("lo")

    async def test_any(self) -> None:
        """Likewise on the pseudo-interface for all of them."""
        await self.compare("any")
