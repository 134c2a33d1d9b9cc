"""One line about a packet."""

from __future__ import annotations

import struct
from typing import Any

import dpkt
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.capture.decode import LINES_A_SECOND, DecodeFailed, PacketLog, describe
from peers.frames import udp_frame
from tests.chance import seeded
from tests.examples import given, settings
from tests.examples import strategies as st

IPV4 = udp_frame(1)[14:]
TCP = bytes.fromhex("4500002800010000400600 00c0000201c6336401".replace(" ", "")) + struct.pack(
    "!HHIIBBHHH", 1234, 80, 7, 0, 0x50, 0x12, 100, 0, 0
)
IPV6 = (
    bytes.fromhex("60000000 0008 11 40")
    + bytes.fromhex("20010db800000000000000000000000120010db8000000000000000000000002")
    + struct.pack("!HHHH", 53, 5353, 8, 0)
)
ARP = bytes.fromhex("0001080006040001020000000001c0000201000000000000c6336401")
ETHERNET = bytes.fromhex("020000000002020000000001")


class DescribeTests(unittest.SynchronousTestCase):
    """By link type."""

    def test_known(self) -> None:
        """Addresses, protocol and ports, on every link that has a decoder."""
        for link_type, data, line in (
            (1, ETHERNET + b"\x08\x00" + IPV4, "UDP 192.0.2.1:40000 > 198.51.100.1:9, 128 bytes"),
            (
                1,
                ETHERNET + b"\x08\x00" + TCP,
                "TCP 192.0.2.1:1234 > 198.51.100.1:80 flags SA seq 7, 54 bytes",
            ),
            (1, ETHERNET + b"\x86\xdd" + IPV6, "UDP [2001:db8::1]:53 > [2001:db8::2]:5353, 62 bytes"),
            (1, ETHERNET + b"\x08\x06" + ARP, "ARP operation 1 192.0.2.1 > 198.51.100.1, 42 bytes"),
            (
                1,
                ETHERNET + b"\x81\x00\x00\x05\x08\x00" + IPV4,
                "UDP 192.0.2.1:40000 > 198.51.100.1:9, 132 bytes",
            ),
            (1, ETHERNET + b"\x88\xb5abc", "02:00:00:00:00:01 > 02:00:00:00:00:02 type 0x88b5, 17 bytes"),
            (12, IPV4, "UDP 192.0.2.1:40000 > 198.51.100.1:9, 114 bytes"),
            (101, IPV6, "UDP [2001:db8::1]:53 > [2001:db8::2]:5353, 48 bytes"),
            (228, IPV4, "UDP 192.0.2.1:40000 > 198.51.100.1:9, 114 bytes"),
            (229, IPV6, "UDP [2001:db8::1]:53 > [2001:db8::2]:5353, 48 bytes"),
            (113, bytes(14) + b"\x08\x00" + IPV4, "UDP 192.0.2.1:40000 > 198.51.100.1:9, 130 bytes"),
            (147, b"abc", "link type 147, 3 bytes"),
        ):
            self.assertEqual(describe(link_type, data), line)

    def test_cut(self) -> None:
        """A packet cut within its network header can't be decoded."""
        for data in (
            b"",
            b"\x00",
            ETHERNET,
            ETHERNET + b"\x08\x00" + IPV4[:10],
            ETHERNET + b"\x86\xdd" + IPV6[:20],
        ):
            with self.assertRaises((dpkt.UnpackError, IndexError)):
                describe(1, data)


class PacketLogTests(unittest.SynchronousTestCase):
    """Lines, but not too many."""

    def setUp(self) -> None:
        """A log that is kept, and a clock."""
        self.lines: list[str] = []
        self.now = 100.0
        globalLogPublisher.addObserver(self._line)
        self.addCleanup(globalLogPublisher.removeObserver, self._line)

    def _line(self, event: Any) -> None:
        if event.get("log_namespace", "").startswith("pcapsvc."):
            self.lines.append(formatEvent(event))

    def log(self, *, link_type: int = 1, panic: bool = False) -> PacketLog:
        """A log of packets."""
        return PacketLog("abc", link_type, now=lambda: self.now, panic=panic)

    def test_line(self) -> None:
        """Each packet is a line that begins with the capture's id."""
        self.log().packet(udp_frame(1))
        self.assertEqual(self.lines, ["abc: packet: UDP 192.0.2.1:40000 > 198.51.100.1:9, 128 bytes"])

    def test_cut(self) -> None:
        """For a truncated packet, both its length on the wire and what was kept of it are logged."""
        log = self.log()
        log.packet(udp_frame(1), 1066)
        log.packet(udp_frame(1), 128)
        log.packet(b"\x00", 60)
        self.assertEqual(
            [line.rpartition(", ")[2] for line in self.lines[:2]], ["1066 bytes (128 captured)", "128 bytes"]
        )
        self.assertIn("abc: packet: 60 bytes (1 captured) that can't be decoded: ", self.lines[2])

    def test_braces(self) -> None:
        """A packet whose bytes look like a format is a line like any other."""
        self.log(link_type=147).packet(b"{capture_id!r}%s\n")
        self.assertEqual(self.lines, ["abc: packet: link type 147, 17 bytes"])

    def test_rate(self) -> None:
        """So many lines a second, and the others are counted, when the second is over or the capture."""
        log = self.log()
        for _ in range(LINES_A_SECOND + 7):
            log.packet(udp_frame(1))
        self.assertEqual(len(self.lines), LINES_A_SECOND)
        self.now = 101.0
        log.packet(udp_frame(1))
        self.assertEqual(self.lines[LINES_A_SECOND], "abc: 7 more packets")
        self.assertEqual(len(self.lines), LINES_A_SECOND + 2)
        for _ in range(LINES_A_SECOND + 1):
            log.packet(udp_frame(1))
        log.done()
        self.assertEqual(self.lines[-1], "abc: 2 more packets")
        self.assertEqual(len(self.lines), 2 * LINES_A_SECOND + 2)

    def test_rate_at_second_zero(self) -> None:
        """The first second counts as any other."""
        self.now = 0.0
        log = self.log()
        for _ in range(LINES_A_SECOND + 1):
            log.packet(udp_frame(1))
        self.assertEqual(len(self.lines), LINES_A_SECOND)

    def test_nothing_left_out(self) -> None:
        """If every packet was logged, nothing is added at the end."""
        log = self.log()
        log.packet(udp_frame(1))
        log.done()
        log.done()
        self.assertEqual(len(self.lines), 1)

    def test_broken(self) -> None:
        """A packet that can't be decoded is a line, and harms nothing."""
        self.log().packet(b"\x00")
        [line] = self.lines
        self.assertTrue(line.startswith("abc: packet: 1 bytes that can't be decoded: "), line)

    def test_panic(self) -> None:
        """With panic the error is raised, even if the limit of lines has been reached."""
        log = self.log(panic=True)
        for _ in range(LINES_A_SECOND + 1):
            log.packet(udp_frame(1))
        self.assertIn(
            "1 bytes that can't be decoded", str(self.assertRaises(DecodeFailed, log.packet, b"\x00"))
        )

    @seeded
    @settings(max_examples=500, deadline=None)
    @given(st.sampled_from([0, 1, 12, 101, 113, 228, 229, 276, 147]), st.data())
    def test_hostile(self, link_type: int, data: st.DataObject) -> None:
        """No packet raises anything, nor makes more than one line of printable text."""
        packet = bytearray(
            data.draw(st.sampled_from([udp_frame(1), IPV4, TCP, IPV6, ETHERNET + b"\x08\x06" + ARP]))
        )
        for _ in range(data.draw(st.integers(0, 6))):
            at = data.draw(st.integers(0, len(packet) - 1))
            packet[at] = data.draw(st.integers(0, 255))
        packet = packet[: data.draw(st.integers(0, len(packet)))]
        self.lines.clear()
        self.log(link_type=link_type).packet(bytes(packet) + data.draw(st.binary(max_size=40)))
        [line] = self.lines
        self.assertTrue(line.isprintable(), line)
        self.assertLess(len(line), 300)
