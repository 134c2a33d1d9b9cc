"""
Requests in plain words on real interfaces, where the kernel runs filters, keeps tags apart, and knows the
direction of packets.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from mmap import mmap
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from pcapsvc.core.filter import FilterRejected
from pcapsvc.interfaces.capture import IPacketHandle
from peers.requirement import require_command
from peers.wire import Wire
from tests.contracts.generated import generated_packet, generated_request
from tests.contracts.plain_words_case import KEPT, NOTHING_MATCHES, PlainWordsCase, parsed
from tests.contracts.records import packets_of
from tests.contracts.reference import ETHERNET, LINUX_SLL, RAW, Decoded, decode, selects

REQUESTS = 1000
#: How many are captures at the same time, and get the same packets.
AT_ONCE = 50
#: How many packets those get in each direction.
PACKETS = 40
#: Long enough for a busy machine.
PATIENCE_SECONDS = 20
#: The kernel hands over a block of packets after 40 ms.
SETTLED_SECONDS = 0.06

# Has an interface receive or send a packet.
_Send = Callable[[bytes], Any]

_MACS = bytes.fromhex("020000000002 020000000001")
_SLL_HEADER_BYTES = 14


class LiveTests(PlainWordsCase):
    """A thousand requests."""

    # Each time-out that passes while packets are sent takes a block of the ring, which has eight.
    read_timeout_ms = 40

    def request(self) -> dict[str, Any]:
        """A request that says which direction it wants."""
        fields = generated_request(self.chance)
        return {**fields, "direction": self.chance.choice((["in"], "out", ["in", "out"]))}

    async def open(self, interface: str, link_type: int, fields: dict[str, Any]) -> IPacketHandle | None:
        """
        Begin to capture what a request wants; L{None} if no packet can be that. Without a link layer, every
        request for a VLAN is rejected.
        """
        request = parsed(fields)
        try:
            handle = await self.system.open(interface, snap_length=KEPT, bpf=request.filter)
        except FilterRejected as rejection:
            if link_type == RAW and "vlan" in fields:
                self.assert_without_vlans(rejection, request)
            else:
                self.assertIn(NOTHING_MATCHES, rejection.rule)
            return None
        self.assertFalse(link_type == RAW and "vlan" in fields, fields)
        return handle

    async def compare(
        self, interface: str, link_type: int, receive: _Send, send: _Send, requests: int = REQUESTS
    ) -> None:
        """
        Compare what handles of requests get with the reference.

        @param receive: has the interface receive a packet.
        @param send: sends a packet through the interface.
        """
        matched = 0
        for _ in range(requests // AT_ONCE):
            wishes = [self.request() for _ in range(AT_ONCE)]
            opening = [Deferred.fromCoroutine(self.open(interface, link_type, fields)) for fields in wishes]
            handles = await gatherResults(opening)
            ways = {"in": receive, "out": send}
            packets = [(way, self.packet(link_type, way)) for way in ways for _ in range(PACKETS)]
            decoded = [_decoded(data, link_type, way) for way, data in packets]
            # Quickly, as each 40 ms take a part of the ring of their own.
            for way, data in packets:
                ways[way](_MACS + data[_SLL_HEADER_BYTES:] if link_type == LINUX_SLL else data)
            time.sleep(SETTLED_SECONDS)
            for fields, handle in zip(wishes, handles, strict=True):
                wanted = [selects(fields, each["vlan" in fields]) for each in decoded]
                found = set() if handle is None else self.read(handle, sum(wanted))
                matched += any(wanted)
                wrong = [
                    (way, data.hex(), "is missing" if is_wanted else "is there")
                    for (way, data), is_wanted in zip(packets, wanted, strict=True)
                    if is_wanted != (_content(data, link_type) in found)
                ]
                self.assertEqual(wrong, [], (fields, parsed(fields).filter))
            # For each, the kernel waits a while.
            await gatherResults([self.threads.run(handle.close) for handle in handles if handle is not None])
        self.assertGreater(matched, requests // 5)

    def packet(self, link_type: int, way: str) -> bytes:
        """
        A packet as it is captured. A tag in what a host sends is left out on all interfaces: whether it is
        seen there depends on the version of Linux.
        """
        while True:
            data = generated_packet(self.chance, link_type)
            if link_type != LINUX_SLL or way == "in" or decode(data, link_type, sees_tags=True).vlan is None:
                return data

    def read(self, handle: IPacketHandle, least: int) -> set[bytes]:
        """What a handle has, once it has so many packets: the kernel hands them over after a while."""
        memory = mmap(-1, 1 << 20)
        writer = self.system.open_records(memory, 0, len(memory), link_type=handle.link_type)
        count, until = 0, time.monotonic() + PATIENCE_SECONDS
        while True:
            count += (read := handle.read(1000, writer))
            if read == 0 and (count >= least or time.monotonic() > until):
                break
            if read == 0:
                time.sleep(0.01)
        size = writer.size()
        writer.close()
        return {_content(data, handle.link_type) for data, _ in packets_of(memory[:size])}

    def wire(self) -> tuple[Wire, socket.socket]:
        """A wire, and a socket that sends from its near end."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        return wire, self.sender(wire.interface)

    def sender(self, interface: str) -> socket.socket:
        """A socket that sends packets through an interface."""
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.addCleanup(packets.close)
        packets.bind((interface, 0))
        return packets

    async def test_ethernet(self) -> None:
        """Ethernet. The kernel takes tags out of what it receives, not of what a host sends with one."""
        wire, near = self.wire()
        await self.compare(wire.interface, ETHERNET, lambda data: wire.send([data]), near.send)

    async def test_any(self) -> None:
        """All interfaces, in a namespace where there is no other traffic."""
        wire, near = self.wire()
        self.namespace = wire.namespace
        await self.compare("any", LINUX_SLL, near.send, lambda data: wire.send([data]))

    async def test_raw(self) -> None:
        """A tunnel, with fewer requests: what is special here is the direction."""
        tunnel = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        self.addCleanup(os.close, tunnel)
        interface = f"word{os.getpid():x}"
        # linux/if_tun.h: TUNSETIFF; IFF_TUN and IFF_NO_PI.
        fcntl.ioctl(tunnel, 0x400454CA, struct.pack("16sH22x", interface.encode(), 0x1001))
        ip = require_command("ip", "iproute2")
        subprocess.run([ip, "link", "set", interface, "up"], check=True, timeout=60)
        near = self.sender(interface)
        await self.compare(interface, RAW, lambda data: os.write(tunnel, data), near.send, REQUESTS // 4)


def _content(data: bytes, link_type: int) -> bytes:
    """What of a packet is the same, wherever it is captured: on all interfaces, without the first header."""
    return data[_SLL_HEADER_BYTES:] if link_type == LINUX_SLL else data


def _decoded(data: bytes, link_type: int, way: str) -> dict[bool, Decoded]:
    """What a packet is to requests that ask for a VLAN, and to others."""
    seen = {sees_tags: decode(data, link_type, sees_tags=sees_tags) for sees_tags in (True, False)}
    if way == "out" and seen[False].vlan is not None:
        seen[False] = Decoded()
    return {sees_tags: replace(packet, direction=way) for sees_tags, packet in seen.items()}
