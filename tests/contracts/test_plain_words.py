"""Requests in plain words select exactly the packets that an independent reading of the packets selects."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from mmap import mmap
from random import Random
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import maybeDeferred
from twisted.trial import unittest

from pcapsvc.core.filter import FilterRejected
from pcapsvc.core.request import CaptureRequest, RequestBounds, parse_request
from pcapsvc.interfaces.capture import IPacketHandle
from pcapsvc.packets.filter_compiler import FilterCompiler
from pcapsvc.packets.handle import libpcap_path
from pcapsvc.packets.pcapy_system import PcapySystem
from pcapsvc.threads import Threads
from peers.requirement import require_command
from peers.wire import Wire
from tests.chance import chance
from tests.contracts.generated import generated_packet, generated_request
from tests.contracts.records import packets_of
from tests.contracts.reference import ETHERNET, LINUX_SLL, RAW, Decoded, decode, selects

reactor: Any = global_reactor

REQUESTS = 1000
LIVE_REQUESTS = 60
#: Long enough for a busy machine.
PATIENCE_SECONDS = 20
PACKETS = 400
KEPT = 2000
#: How libpcap refuses a filter that no packet can match.
NOTHING_MATCHES = "expression rejects all packets"

# Has an interface receive or send a packet.
_Send = Callable[[bytes], Any]

_BOUNDS = RequestBounds(
    max_packets=1,
    max_bytes=1000,
    max_timeout_seconds=1,
    max_duration_seconds=1,
    max_snap_length=KEPT,
    max_filter_characters=4096,
)


def _parsed(fields: dict[str, Any]) -> CaptureRequest:
    request = parse_request(json.dumps({"node": "any", "interface": ["any"], **fields}).encode(), _BOUNDS)
    assert isinstance(request, CaptureRequest)
    return request


def _records(packets: Sequence[bytes]) -> bytes:
    """The packets as in a pcap file, numbered by the seconds of their time stamps."""
    return b"".join(
        struct.pack("=IIII", number, 0, len(data), len(data)) + data for number, data in enumerate(packets)
    )


def _numbers(records: bytes | memoryview) -> list[int]:
    found, at = [], 0
    while at < len(records):
        number, kept = struct.unpack_from("=I4xI", records, at)
        found.append(number)
        at += 16 + kept
    return found


class _Case(unittest.TestCase):
    """A packet system."""

    maxDiff = None

    def setUp(self) -> None:
        """The parts of the daemon that compile filters, and run them on packets that were recorded."""
        self.threads = Threads(reactor)
        self.compiler = FilterCompiler(reactor, libpcap_path())
        self.system = PcapySystem(
            compiler=self.compiler,
            run_in_thread=self.threads.run,
            buffer_size_bytes=2 << 20,
            read_timeout_ms=10,
            promiscuous=True,
        )
        for service in (self.threads, self.compiler, self.system):
            service.startService()
        self.chance: Random = chance(self.id())

    async def tearDown(self) -> None:
        """Stop them."""
        for service in (self.system, self.compiler, self.threads):
            await maybeDeferred(service.stopService)


class RecordedTests(_Case):
    """A thousand requests, and packets of three kinds of link that were recorded."""

    async def selected(self, bpf: str, link_type: int, records: bytes) -> list[int] | str:
        """What a filter selects of what an interface has recorded, or why it can't be used."""
        try:
            sieve = await self.system.open_sieve(
                "lo", link_type=link_type, kept=KEPT, snap_length=KEPT, bpf=bpf
            )
        except FilterRejected as rejection:
            return rejection.rule
        try:
            return _numbers(sieve.sift(memoryview(records))[1])
        finally:
            sieve.close()

    async def compare(self, link_type: int, impossible: set[str]) -> None:
        """
        As an interface sees packets: the kernel takes the tag of a VLAN out of them, so all fields are about
        what is behind it.

        @param impossible: the fields that can't be used with this kind of link.
        """
        packets = [generated_packet(self.chance, link_type) for _ in range(PACKETS)]
        decoded = {
            tags: [decode(each, link_type, sees_tags=tags) for each in packets] for tags in (True, False)
        }
        records, matched = _records(packets), 0
        for _ in range(REQUESTS):
            fields = generated_request(self.chance)
            request = _parsed(fields)
            found = await self.selected(request.filter, link_type, records)
            if impossible & fields.keys() and isinstance(found, str):
                self.assertRegex(found, f"no VLAN support|direction is not recorded|{NOTHING_MATCHES}")
                continue
            wanted = [
                number
                for number, packet in enumerate(decoded["vlan" in fields])
                if selects({n: v for n, v in fields.items() if n not in impossible}, packet)
            ]
            matched += bool(wanted) and len(wanted) < len(packets)
            found = [] if isinstance(found, str) and NOTHING_MATCHES in found else found
            self.assertEqual(found, wanted, (fields, request.filter))
        # It would be no test if requests hardly ever told packets apart.
        self.assertGreater(matched, REQUESTS // 5)

    async def test_ethernet(self) -> None:
        """Ethernet, also with tags of VLANs. Whether a packet was sent or received is not recorded."""
        await self.compare(ETHERNET, {"direction"})

    async def test_any(self) -> None:
        """All interfaces."""
        await self.compare(LINUX_SLL, set())

    async def test_raw(self) -> None:
        """Packets without a link layer, and so without VLANs."""
        await self.compare(RAW, {"direction", "vlan"})

    def test_files(self) -> None:
        """
        In a file, tags are where they were. There the text of the filter selects the same packets, and those
        without C{vlan} are about frames without a tag, as with tcpdump.
        """
        for link_type, impossible in (
            (ETHERNET, {"direction"}),
            (LINUX_SLL, {"vlan"}),
            (RAW, {"direction", "vlan"}),
        ):
            packets = [generated_packet(self.chance, link_type) for _ in range(PACKETS)]
            requests: list[dict[str, Any]] = []
            while len(requests) < REQUESTS:
                fields = generated_request(self.chance)
                if not impossible & fields.keys():
                    requests.append(fields)
            selected = self.offline(link_type, packets, [_parsed(fields).filter for fields in requests])
            for fields, found in zip(requests, selected, strict=True):
                wanted = []
                for number, data in enumerate(packets):
                    packet = decode(data, link_type, sees_tags="vlan" in fields)
                    if packet.vlan is not None and "vlan" not in fields:
                        packet = Decoded(direction=packet.direction)
                    if selects(fields, packet):
                        wanted.append(number)
                found = [] if isinstance(found, str) and NOTHING_MATCHES in found else found
                self.assertEqual(found, wanted, (fields, _parsed(fields).filter))

    def offline(self, link_type: int, packets: Sequence[bytes], filters: list[str]) -> list[Any]:
        """What filters select of a file."""
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, KEPT, link_type) + _records(packets))
        ran = subprocess.run(
            [sys.executable, "-m", "tests.contracts.offline_process"],
            input=json.dumps({"path": path, "filters": filters}),
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        found: list[Any] = json.loads(ran.stdout)
        return found


class LiveTests(_Case):
    """Real interfaces, where the kernel runs filters, keeps tags apart, and knows the direction."""

    async def compare(self, interface: str, link_type: int, receive: _Send, send: _Send) -> None:
        """
        Compare what handles of requests get with the reference.

        @param receive: has the interface receive a packet.
        @param send: sends a packet through the interface.
        """
        handles: list[tuple[dict[str, Any], IPacketHandle | None]] = []
        while len(handles) < LIVE_REQUESTS:
            fields = generated_request(self.chance)
            fields["direction"] = self.chance.choice((["in"], "out", ["in", "out"]))
            if link_type == RAW and "vlan" in fields:
                continue
            try:
                handle = await self.system.open(interface, snap_length=KEPT, bpf=_parsed(fields).filter)
            except FilterRejected as rejection:
                self.assertIn(NOTHING_MATCHES, rejection.rule)
                handle = None
            else:
                self.addCleanup(handle.close)
            handles.append((fields, handle))
        ways: dict[str, list[bytes]] = {"in": [], "out": []}
        for way, transmit in (("in", receive), ("out", send)):
            ways[way] = [generated_packet(self.chance, link_type) for _ in range(PACKETS)]
            for data in ways[way]:
                transmit(data)
        everything = [(way, data) for way, packets in ways.items() for data in packets]
        matched = 0
        for fields, handle in handles:
            wanted = [_is_wanted(fields, data, link_type, way) for way, data in everything]
            found = set() if handle is None else {*self.read(handle, sum(wanted))}
            matched += any(wanted)
            wrong = [
                (way, data.hex(), "is missing" if is_wanted else "is there")
                for (way, data), is_wanted in zip(everything, wanted, strict=True)
                if is_wanted != (data in found)
            ]
            self.assertEqual(wrong, [], (fields, _parsed(fields).filter))
        self.assertGreater(matched, LIVE_REQUESTS // 5)

    def read(self, handle: IPacketHandle, least: int) -> list[bytes]:
        """What a handle has, once it has so many packets: the kernel hands them over after a while."""
        memory = mmap(-1, 1 << 20)
        writer = self.system.open_records(memory, 0, len(memory), link_type=handle.link_type)
        count, until = 0, time.monotonic() + PATIENCE_SECONDS
        while True:
            count += (read := handle.read(1000, writer))
            if read == 0 and (count >= least or time.monotonic() > until):
                break
            time.sleep(0.01)
        size = writer.size()
        writer.close()
        return [data for data, _ in packets_of(memory[:size])]

    async def test_ethernet(self) -> None:
        """Ethernet. The kernel takes tags out of what it receives, not of what a host sends with one."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        near = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.addCleanup(near.close)
        near.bind((wire.interface, 0))
        await self.compare(wire.interface, ETHERNET, lambda data: wire.send([data]), near.send)

    async def test_raw(self) -> None:
        """A tunnel."""
        tunnel = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        self.addCleanup(os.close, tunnel)
        interface = f"word{os.getpid():x}"
        # linux/if_tun.h: TUNSETIFF; IFF_TUN and IFF_NO_PI.
        fcntl.ioctl(tunnel, 0x400454CA, struct.pack("16sH22x", interface.encode(), 0x1001))
        ip = require_command("ip", "iproute2")
        subprocess.run([ip, "link", "set", interface, "up"], check=True, timeout=20)
        near = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.addCleanup(near.close)
        near.bind((interface, 0))
        await self.compare(interface, RAW, lambda data: os.write(tunnel, data), near.send)


def _is_wanted(fields: dict[str, Any], data: bytes, link_type: int, way: str) -> bool:
    packet = decode(data, link_type, sees_tags="vlan" in fields)
    if way == "out" and packet.vlan is not None and "vlan" not in fields:
        packet = Decoded()
    packet.direction = way
    return selects(fields, packet)
