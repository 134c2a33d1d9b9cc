"""Requests in plain words select exactly the packets that an independent reading of the packets selects."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from pcapsvc.core.filter import FilterRejected
from tests.contracts.generated import generated_packet, generated_request
from tests.contracts.plain_words_case import KEPT, NOTHING_MATCHES, PlainWordsCase, parsed
from tests.contracts.reference import ETHERNET, LINUX_SLL, RAW, Decoded, Recorded, decode

REQUESTS = 1000
PACKETS = 400


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


def _without_tagged(packet: Decoded) -> Decoded:
    """A packet as a filter sees it that doesn't know about tags: nothing is known of what is behind one."""
    return packet if packet.vlan is None else Decoded(direction=packet.direction)


class RecordedTests(PlainWordsCase):
    """A thousand requests, and packets of three kinds of link that were recorded."""

    async def selected(self, bpf: str, link_type: int, records: bytes) -> list[int] | FilterRejected:
        """What a filter selects of what an interface has recorded, or that it can't be used."""
        try:
            sieve = await self.system.open_sieve(
                "lo", link_type=link_type, kept=KEPT, snap_length=KEPT, bpf=bpf
            )
        except FilterRejected as rejection:
            return rejection
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
            tags: Recorded([decode(each, link_type, sees_tags=tags) for each in packets])
            for tags in (True, False)
        }
        records, matched = _records(packets), 0
        for _ in range(REQUESTS):
            fields = generated_request(self.chance)
            request = parsed(fields)
            found = await self.selected(request.filter, link_type, records)
            if "vlan" in impossible & fields.keys():
                self.assert_without_vlans(found, request)
                continue
            if "direction" in impossible & fields.keys() and isinstance(found, FilterRejected):
                [problem] = found.problems_of(request.filter_fields)
                if NOTHING_MATCHES not in problem.rule:
                    self.assertEqual(problem.path, "direction")
                    self.assertIn("their direction is not recorded on this interface", problem.rule)
                continue
            possible = {name: value for name, value in fields.items() if name not in impossible}
            wanted = decoded["vlan" in fields].selected(possible)
            matched += bool(wanted) and len(wanted) < len(packets)
            if isinstance(found, FilterRejected) and NOTHING_MATCHES in found.rule:
                found = []
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
        """Packets without a link layer, and so without VLANs: whatever asks for one is rejected."""
        await self.compare(RAW, {"direction", "vlan"})

    def test_files(self) -> None:
        """
        In a file, tags are where they were. There the text of the filter selects the same packets, and those
        without C{vlan} are about frames without a tag, as with tcpdump. C{vlan} is rejected if there is no
        link layer, or if it is that of all interfaces.
        """
        for link_type, knows_direction, knows_vlans in (
            (ETHERNET, False, True),
            (LINUX_SLL, True, False),
            (RAW, False, False),
        ):
            packets = [generated_packet(self.chance, link_type) for _ in range(PACKETS)]
            decoded = {
                True: Recorded([decode(each, link_type, sees_tags=True) for each in packets]),
                False: Recorded(
                    [_without_tagged(decode(each, link_type, sees_tags=False)) for each in packets]
                ),
            }
            requests: list[dict[str, Any]] = []
            while len(requests) < REQUESTS:
                fields = generated_request(self.chance)
                if knows_direction or "direction" not in fields:
                    requests.append(fields)
            filters = [parsed(fields).filter for fields in requests]
            selected = self.offline(link_type, packets, filters)
            for fields, text, found in zip(requests, filters, selected, strict=True):
                if "vlan" in fields and not knows_vlans:
                    self.assertIn("no VLAN support", found)
                    continue
                wanted = decoded["vlan" in fields].selected(fields)
                found = [] if isinstance(found, str) and NOTHING_MATCHES in found else found
                self.assertEqual(found, wanted, (fields, text))

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
