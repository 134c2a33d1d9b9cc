"""Requests in plain words select exactly the packets that an independent reading of the packets selects."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from random import Random
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import maybeDeferred
from twisted.trial import unittest

from pcapsvc.core.filter import FilterRejected
from pcapsvc.core.request import CaptureRequest, RequestBounds, parse_request
from pcapsvc.packets.filter_compiler import FilterCompiler
from pcapsvc.packets.handle import libpcap_path
from pcapsvc.packets.pcapy_system import PcapySystem
from pcapsvc.threads import Threads
from tests.chance import chance
from tests.contracts.generated import generated_packet, generated_request
from tests.contracts.reference import ETHERNET, LINUX_SLL, RAW, decode, selects

reactor: Any = global_reactor

REQUESTS = 1000
PACKETS = 400
KEPT = 2000
#: How libpcap refuses a filter that no packet can match.
NOTHING_MATCHES = "expression rejects all packets"

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


class PlainWordsTests(unittest.TestCase):
    """A thousand requests, and packets of three kinds of link."""

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
                        packet = type(packet)(direction=packet.direction)
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
