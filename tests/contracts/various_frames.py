"""Frames of many kinds, for filters to tell apart."""

from __future__ import annotations

import struct

_ADDRESSES = bytes.fromhex("020000000002 020000000001")
_BROADCAST = bytes.fromhex("ffffffffffff 020000000003")
_MULTICAST = bytes.fromhex("01005e000001 020000000001")
_FROM, _TO = bytes([192, 0, 2, 1]), bytes([198, 51, 100, 1])
_FROM6, _TO6 = bytes.fromhex("20010db8" + 23 * "0" + "1"), bytes.fromhex("20010db8" + 23 * "0" + "2")
_UDP, _TCP, _ICMP, _ICMP6 = 17, 6, 1, 58
_IP, _IP6, _ARP, _MPLS, _QINQ, _VLAN = 0x0800, 0x86DD, 0x0806, 0x8847, 0x88A8, 0x8100


def _ethernet(kind: int, payload: bytes, addresses: bytes = _ADDRESSES) -> bytes:
    return addresses + kind.to_bytes(2, "big") + payload


def _tagged(kind: int, tag: int, frame: bytes) -> bytes:
    """A frame with a VLAN tag: priority, drop indicator and number."""
    return frame[:12] + struct.pack("!HH", kind, tag) + frame[12:]


def _ip(protocol: int, payload: bytes, *, fragment: int = 0, options: bytes = b"", to: bytes = _TO) -> bytes:
    first = 0x45 + len(options) // 4
    length = 20 + len(options) + len(payload)
    header = struct.pack("!BBHHHBBH", first, 0, length, 7, fragment, 64, protocol, 0)
    return header + _FROM + to + options + payload


def _ip6(protocol: int, payload: bytes) -> bytes:
    return struct.pack("!IHBB", 0x60000000, len(payload), protocol, 64) + _FROM6 + _TO6 + payload


def _udp(port: int, size: int = 20, source: int = 40_000) -> bytes:
    return struct.pack("!HHHH", source, port, 8 + size, 0) + bytes(each % 256 for each in range(size))


def _tcp(port: int, flags: int, data: bytes = b"") -> bytes:
    return struct.pack("!HHIIBBHHH", 40_000, port, 1, 2, 0x50, flags, 1000, 0, 0) + data


def network_packets() -> list[bytes]:
    """IPv4 and IPv6 packets, without a link layer."""
    return [
        *(_ip(_UDP, _udp(port)) for port in (9, 53, 67, 5000, 5010)),
        *(_ip(_UDP, _udp(9, size)) for size in (0, 60, 90, 200, 1000)),
        *(_ip(_TCP, _tcp(80, flags)) for flags in (0x02, 0x12, 0x10, 0x18, 0x11, 0x04)),
        _ip(_TCP, _tcp(443, 0x18, b"GET / HTTP/1.1")),
        _ip(_TCP, _tcp(80, 0x18, b"GET / HTTP/1.1"), options=bytes([1, 1, 1, 0])),
        _ip(_UDP, _udp(9), options=bytes([1, 1, 1, 1, 1, 1, 1, 0])),
        _ip(_UDP, _udp(9), fragment=0x2000),
        _ip(_UDP, bytes(64), fragment=0x2008),
        _ip(_UDP, bytes(30), fragment=0x0010),
        _ip(_ICMP, bytes([8, 0, 0, 0, 0, 1, 0, 1])),
        _ip(_ICMP, bytes([3, 1, 0, 0, 0, 0, 0, 0])),
        _ip(_UDP, _udp(9), to=bytes([255, 255, 255, 255])),
        _ip(_UDP, _udp(9), to=bytes([224, 0, 0, 1])),
        _ip(50, bytes(32)),
        *(_ip6(_UDP, _udp(port)) for port in (9, 53)),
        _ip6(_TCP, _tcp(80, 0x02)),
        _ip6(_ICMP6, bytes([128, 0, 0, 0, 0, 1, 0, 1])),
        _ip6(0, bytes([_UDP, 0, 1, 4, 0, 0, 0, 0]) + _udp(9)),
        _ip6(44, bytes([_UDP, 0, 0, 1, 0, 0, 0, 9]) + _udp(9)),
    ]


def _plain_frames() -> list[bytes]:
    """Frames without a tag."""
    frames = [
        _ethernet(_IP6 if packet[0] >> 4 == 6 else _IP, packet).ljust(60, b"\x00")
        for packet in network_packets()
    ]
    arp = struct.pack("!HHBBH", 1, _IP, 6, 4, 1) + _ADDRESSES[6:] + _FROM + bytes(6) + _TO
    return [
        *frames,
        _ethernet(_ARP, arp, _BROADCAST).ljust(60, b"\x00"),
        _ethernet(_IP, _ip(_UDP, _udp(9), to=bytes([255, 255, 255, 255])), _BROADCAST),
        _ethernet(_IP, _ip(_UDP, _udp(9), to=bytes([224, 0, 0, 1])), _MULTICAST),
        _ethernet(_MPLS, (100 << 12 | 0x100 | 64).to_bytes(4, "big") + _ip(_UDP, _udp(9))),
        _ethernet(
            _MPLS,
            (100 << 12 | 64).to_bytes(4, "big")
            + (200 << 12 | 0x100 | 64).to_bytes(4, "big")
            + _ip(_UDP, _udp(9)),
        ),
        _ethernet(0x88B5, bytes(range(100))),
        # The length of an 802.3 frame, and LLC: spanning tree.
        _ethernet(38, bytes([0x42, 0x42, 3]) + bytes(35), bytes.fromhex("0180c2000000 020000000001")).ljust(
            60, b"\0"
        ),
        # PPPoE with IPv4.
        _ethernet(0x8864, bytes([0x11, 0, 0, 1, 0, 50, 0, 0x21]) + _ip(_UDP, _udp(9))),
    ]


def frames() -> list[bytes]:
    """Each kind of frame without a tag, with 802.1Q, with 802.1ad, and with two tags."""
    plain = _plain_frames()
    return [
        *frames_with_a_tag(),
        *(_tagged(_QINQ, 200, _tagged(_VLAN, 100, frame)) for frame in plain),
        *(_tagged(_VLAN, 100, _tagged(_VLAN, 300, frame)) for frame in plain[::2]),
    ]


def frames_with_a_tag() -> list[bytes]:
    """Each kind of frame without a tag, with 802.1Q, and with 802.1ad."""
    plain = _plain_frames()
    return [
        *plain,
        *(_tagged(_VLAN, 100, frame) for frame in plain),
        *(_tagged(_VLAN, 0x7000 | 4094, frame) for frame in plain[::3]),
        # A tag with the number 0 has a priority only; and the bit between them may be set.
        *(_tagged(_VLAN, 0xA000, frame) for frame in plain[::5]),
        *(_tagged(_VLAN, 0x1000 | 100, frame) for frame in plain[::4]),
        *(_tagged(_QINQ, 200, frame) for frame in plain[::2]),
    ]
