"""Packets that were made to break their reader, logged: none does more than a line."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.capture.decode import DecodeFailed, PacketLog
from peers.frames import udp_frame
from tests.chance import chance as chance_of
from tests.cost import takes_less

# Others in each run.
_PACKETS = 60_000
_IN_PANIC = 10_000
_LONGEST_LINE = 300
# Of CPU time. The usual packet takes a thousandth of it.
_ONE_PACKET_SECONDS = 0.5
# Those of which a decoder is known, and one more.
_LINK_TYPES = (0, 1, 12, 101, 113, 228, 229, 276, 147)

_MACS = bytes.fromhex("020000000002020000000001")
_IPV4_ADDRESSES = bytes.fromhex("c0000201c6336401")
_IPV6_ADDRESSES = bytes.fromhex("20010db8000000000000000000000001") + bytes.fromhex(
    "20010db8000000000000000000000002"
)


def _ipv4(protocol: int, payload: bytes, options: bytes = b"") -> bytes:
    """RFC 791, section 3.1."""
    words, size = 5 + len(options) // 4, 20 + len(options) + len(payload)
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, size & 0xFFFF, 7, 0, 64, protocol, 0)
    return head + _IPV4_ADDRESSES + options + payload


def _ipv6(following: int, payload: bytes) -> bytes:
    """RFC 8200, section 3."""
    return struct.pack("!IHBB", 6 << 28, len(payload) & 0xFFFF, following, 64) + _IPV6_ADDRESSES + payload


def _ethernet(kind: int, payload: bytes) -> bytes:
    return _MACS + struct.pack("!H", kind) + payload


_UDP = struct.pack("!HHHH", 53, 5353, 24, 0) + bytes(16)
# With a maximum segment size (RFC 9293), a window scale and time stamps (RFC 7323), and SACK (RFC 2018).
_TCP = struct.pack("!HHIIBBHHH", 1234, 80, 7, 0, 0xA0, 0x12, 100, 0, 0) + bytes.fromhex(
    "020405b4 01 030307 0402 080a0000000100000000"
)
_ICMP = bytes.fromhex("0800000000010001") + bytes(16)
_ICMP_ERROR = bytes.fromhex("0301000000000000") + _ipv4(17, _UDP)
_ICMP6 = bytes.fromhex("8700000000000000") + _IPV6_ADDRESSES[:16] + bytes.fromhex("0101020000000001")
_ARP = bytes.fromhex("0001080006040001020000000001c0000201000000000000c6336401")
_IPV6_OPTIONS = bytes.fromhex("2b00010400000000") + bytes.fromhex("2c02000100000000") + bytes(16)
_IPV6_FRAGMENT = bytes.fromhex("1100000100000007")

_NETWORK: tuple[tuple[int, bytes], ...] = (
    (0x0800, udp_frame(1)[14:]),
    (0x0800, _ipv4(6, _TCP)),
    (0x0800, _ipv4(17, _UDP, options=bytes.fromhex("94040000"))),
    (0x0800, _ipv4(1, _ICMP)),
    (0x0800, _ipv4(1, _ICMP_ERROR)),
    (0x0800, _ipv4(4, _ipv4(4, _ipv4(41, _ipv6(17, _UDP))))),
    (0x0800, _ipv4(47, bytes.fromhex("00000800") + _ipv4(6, _TCP))),
    (0x0800, _ipv4(132, struct.pack("!HHII", 1, 2, 3, 4) + bytes.fromhex("0100001400000001") + bytes(12))),
    (0x86DD, _ipv6(6, _TCP)),
    (0x86DD, _ipv6(17, _UDP)),
    (0x86DD, _ipv6(58, _ICMP6)),
    (0x86DD, _ipv6(0, _IPV6_OPTIONS + _IPV6_FRAGMENT + _UDP)),
    (0x86DD, _ipv6(44, _IPV6_FRAGMENT + _UDP)),
    (0x86DD, _ipv6(51, bytes.fromhex("1104000000000001000000010000000000000000") + bytes(4) + _UDP)),
    (0x0806, _ARP),
)


def _frames(link_type: int) -> list[bytes]:
    """Well-formed packets of a link type, by draft-ietf-opsawg-pcaplinktype."""
    if link_type == 0:
        return [struct.pack("=I", 2 if kind == 0x0800 else 10) + data for kind, data in _NETWORK]
    if link_type in (12, 101, 228, 229):
        return [data for kind, data in _NETWORK if kind != 0x0806]
    if link_type == 113:
        head = struct.pack("!HHH8s", 0, 1, 6, _MACS[:6])
        return [head + struct.pack("!H", kind) + data for kind, data in _NETWORK]
    if link_type == 276:
        head = struct.pack("!HIHBB8s", 0, 3, 1, 0, 6, _MACS[:6])
        return [struct.pack("!H", kind) + head + data for kind, data in _NETWORK]
    return [
        *(_ethernet(kind, data) for kind, data in _NETWORK),
        *(_ethernet(0x8100, struct.pack("!HH", 5, kind) + data) for kind, data in _NETWORK),
        _ethernet(0x88A8, bytes.fromhex("000581000006 0800") + _ipv4(6, _TCP)),
        _ethernet(0x8100, bytes.fromhex("00018100") * 100 + _ipv4(6, _TCP)),
        _ethernet(0x8847, bytes.fromhex("0001004000020140") + _ipv4(17, _UDP)),
        _ethernet(0x8864, bytes.fromhex("110000010040 0021") + _ipv4(17, _UDP)),
        _ethernet(0x88CC, bytes.fromhex("0207040200000000010403050601060200780000")),
        _ethernet(0x0026, bytes.fromhex("424203000000000080000200000000010000000080000200000000018001")),
    ]


def _flip_bits(packet: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        packet[chance.randrange(len(packet))] ^= 1 << chance.randrange(8)


def _set_bytes(packet: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 4)):
        packet[chance.randrange(len(packet))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))


def _set_head(packet: bytearray, chance: random.Random) -> None:
    """Among the headers, where lengths and types are."""
    packet[chance.randrange(min(len(packet), 64))] = chance.randrange(256)


def _set_length(packet: bytearray, chance: random.Random) -> None:
    """Two bytes, in the order of the network, as a length: none, too little, too much."""
    if len(packet) > 1:
        at = chance.randrange(min(len(packet) - 1, 80))
        value = chance.choice((0, 1, 4, 7, 8, 19, 20, len(packet), len(packet) + 1, 0x7FFF, 0xFFFF))
        packet[at : at + 2] = struct.pack("!H", value & 0xFFFF)


def _cut(packet: bytearray, chance: random.Random) -> None:
    del packet[chance.randrange(len(packet)) :]


def _cut_out(packet: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(packet))
    del packet[at : at + chance.randint(1, 20)]


def _repeat(packet: bytearray, chance: random.Random) -> None:
    """A piece of it again and again: headers in headers."""
    at = chance.randrange(len(packet))
    piece = packet[at : at + chance.choice((1, 2, 4, 8, 20, 40))]
    packet[at:at] = piece * chance.choice((1, 2, 8, 100))


def _append(packet: bytearray, chance: random.Random) -> None:
    packet += chance.randbytes(chance.choice((1, 8, 64, 1500)))


def _fill(packet: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(packet))
    packet[at:] = chance.randbytes(len(packet) - at)


_MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip_bits,
    _set_bytes,
    _set_head,
    _set_head,
    _set_length,
    _set_length,
    _cut,
    _cut_out,
    _repeat,
    _append,
    _fill,
)


def _mutated(frame: bytes, chance: random.Random) -> bytes:
    packet = bytearray(frame)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        if packet:
            chance.choice(_MUTATIONS)(packet, chance)
    return bytes(packet)


class HostilePacketTests(SynchronousTestCase):
    """The log of packets, by a clock that leaves each its line."""

    timeout = 900

    def setUp(self) -> None:
        """A log of our own: the publisher's observers would write all of it to the disk."""
        self.events: list[Any] = []
        self.seconds = 0
        events = self.events

        class ObservedLog(PacketLog):
            _log = Logger(namespace="pcapsvc.capture.decode", observer=events.append)

        self.log = ObservedLog
        self.frames = {link_type: _frames(link_type) for link_type in _LINK_TYPES}

    def now(self) -> float:
        """A second later than before."""
        self.seconds += 1
        return float(self.seconds)

    def packets(self, count: int) -> Any:
        """Mutated packets, each with the link type that it is taken for: mostly its own."""
        chance = chance_of(self.id())
        for number in range(count):
            link_type = _LINK_TYPES[number % len(_LINK_TYPES)]
            kind = link_type if chance.random() < 0.9 else chance.choice(_LINK_TYPES)
            yield link_type, _mutated(chance.choice(self.frames[kind]), chance)

    def test_well_formed(self) -> None:
        """What is mutated is what a decoder understands: else it would be broken too early."""
        for link_type, frames in self.frames.items():
            log = self.log("abc", link_type, now=self.now, panic=False)
            for frame in frames:
                log.packet(frame)
        lines = [event["line"] for event in self.events]
        broken = [line for line in lines if "can't be decoded" in line]
        self.assertLess(len(broken) / len(lines), 0.25, broken)
        for word in ("TCP ", "UDP ", "ICMP ", "ICMP6 ", "ARP ", "IP ", "type 0x", "link type 147"):
            self.assertTrue(any(line.startswith(word) or word in line for line in lines), word)

    def test_one_line_each(self) -> None:
        """Each packet is one line of printable text, soon; nothing is raised."""
        logs = {kind: self.log("abc", kind, now=self.now, panic=False) for kind in _LINK_TYPES}
        for link_type, packet in self.packets(_PACKETS):
            described = f"link type {link_type}: {packet.hex()}"
            start = time.thread_time()
            try:
                logs[link_type].packet(packet)
            except BaseException as error:
                raise AssertionError(described) from error
            took = time.thread_time() - start
            [event] = self.events
            self.events.clear()
            line = event["line"]
            if not line.isprintable() or len(line) > _LONGEST_LINE:
                self.fail(f"{line!r}, {described}")
            if formatEvent(event) != f"abc: packet: {line}":
                self.fail(f"{formatEvent(event)!r}, {described}")
            if took >= _ONE_PACKET_SECONDS:
                self.assertTrue(takes_less(_ONE_PACKET_SECONDS, logs[link_type].packet, packet), described)
                self.events.clear()

    def test_panic(self) -> None:
        """With panic, what can't be decoded is that, and nothing else is raised; it is logged no worse."""
        logs = {kind: self.log("abc", kind, now=self.now, panic=True) for kind in _LINK_TYPES}
        failed = 0
        for link_type, packet in self.packets(_IN_PANIC):
            try:
                logs[link_type].packet(packet)
            except DecodeFailed as error:
                failed += 1
                self.assertTrue(str(error).isprintable(), f"{error}, {packet.hex()}")
        self.assertTrue(all(event["line"].isprintable() for event in self.events))
        self.assertEqual(failed + len(self.events), _IN_PANIC)
        self.assertGreater(failed, _IN_PANIC // 100)
