"""Requests in plain words, and packets for them to tell apart: both at random, from the same few values."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from random import Random
from typing import Any

from tests.contracts.reference import ETHERNET, FILTERS, LINUX_SLL, RAW

_IPV4 = ("192.0.2.1", "192.0.2.2", "192.0.2.200", "198.51.100.1", "10.0.0.1", "255.255.255.255", "0.0.0.0")
_IPV6 = ("2001:db8::1", "2001:db8::2", "2001:db8:1::1", "fe80::1", "ff02::1", "::1", "::")
_NETWORKS = (
    *("192.0.2.0/24", "192.0.2.0/31", "192.0.2.2/32", "10.0.0.0/8", "0.0.0.0/0", "128.0.0.0/1"),
    *("2001:db8::/32", "2001:db8::/64", "2001:db8:1::1/128", "fe80::/10", "::/0", "2001:db8::/47", "::/3"),
)
_PORTS = (0, 1, 53, 80, 81, 443, 8000, 8099, 40_000, 65535)
_RANGES = ("0-0", "53-80", "80-80", "81-8000", "8000-8100", "1-65535", "0-65535", "65535-65535")
_PROTOCOLS = (
    *("ip", "ip6", "arp", "rarp", "icmp", "icmp6", "igmp", "tcp", "udp", "sctp", "ah", "esp", "gre", "pim"),
    *("ospf", "vrrp", "ipip", "dccp", "rsvp", "eigrp", "l2tp", "udplite", "TCP", "Udp"),
    *(0, 1, 2, 6, 17, 41, 44, 47, 50, 58, 89, 112, 132, 255),
)
_NUMBERS = (
    0,
    1,
    2,
    4,
    6,
    6,
    6,
    17,
    17,
    17,
    33,
    41,
    46,
    47,
    50,
    51,
    58,
    59,
    88,
    89,
    103,
    112,
    115,
    132,
    136,
    255,
)
_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "SYN")
_VLANS = (0, 7, 8, 100, 4094, 4095)
_EXTENSIONS = (0, 43, 60)


def _end(chance: Random) -> str:
    """One end of a packet's way, as C{src} and C{dst} have it."""
    port = chance.choice(_PORTS)
    kind = chance.randrange(5)
    if kind == 0:
        return chance.choice(_NETWORKS)
    if kind == 1:
        return f"{chance.choice(_IPV4)}:{port}"
    if kind == 2:
        return f"[{chance.choice(_IPV6)}]:{port}"
    return chance.choice(_IPV4 + _IPV6)


_VALUES: Mapping[str, Callable[[Random], Any]] = {
    "host": lambda chance: chance.choice(_IPV4 + _IPV6),
    "net": lambda chance: chance.choice(_NETWORKS),
    "port": lambda chance: chance.choice(_PORTS),
    "portrange": lambda chance: chance.choice(_RANGES),
    "protocol": lambda chance: chance.choice(_PROTOCOLS),
    "src": _end,
    "dst": _end,
    "flags": lambda chance: chance.choice(_FLAGS),
    "vlan": lambda chance: chance.choice(_VLANS),
    "direction": lambda chance: chance.choice(("in", "out")),
}


def generated_request(chance: Random) -> dict[str, Any]:
    """The fields of a request that say which packets: some of them, and of each one value or several."""
    request: dict[str, Any] = {}
    for name in chance.sample(sorted(_VALUES), chance.choice((1, 1, 1, 2, 2, 2, 3, 4))):
        values = [_VALUES[name](chance) for _ in range(chance.choice((1, 1, 2, 2, 3, 4)))]
        request[name] = values[0] if len(values) == 1 and chance.random() < 0.7 else values
    if chance.random() < 0.15:
        request["bpf"] = chance.choice(sorted(FILTERS))
    return request


def generated_packet(chance: Random, link_type: int) -> bytes:
    """A whole packet."""
    if link_type == RAW:
        return _network(chance)[1]
    kind, payload = _arp(chance) if chance.random() < 0.1 else _network(chance)
    if chance.random() < 0.05:
        kind, payload = 0x88B5, chance.randbytes(60)
    content = kind.to_bytes(2, "big") + payload
    if chance.random() < 0.4:
        content = _tag(chance, (0x8100, 0x8100, 0x88A8)) + content
        if link_type == ETHERNET and chance.random() < 0.2:
            # Two tags. How they look on all interfaces depends on the version of Linux.
            content = _tag(chance, (0x8100, 0x88A8)) + content
    elif link_type == ETHERNET and chance.random() < 0.05:
        content = _tag(chance, (0x9100,)) + content
    if link_type == LINUX_SLL:
        way = chance.choice((0, 0, 1, 2, 3, 4, 4))
        return struct.pack("!HHH", way, 1, 6) + bytes.fromhex("0200000000010000") + content
    return bytes.fromhex("020000000002 020000000001") + content


def _tag(chance: Random, kinds: tuple[int, ...]) -> bytes:
    return struct.pack("!HH", chance.choice(kinds), chance.randrange(16) << 12 | chance.choice(_VLANS))


def _arp(chance: Random) -> tuple[int, bytes]:
    header = struct.pack("!HHBBH", 1, 0x0800, 6, 4, chance.choice((1, 2)))
    ends = [chance.randbytes(6) + ip_address(chance.choice(_IPV4)).packed for _ in range(2)]
    return chance.choice((0x0806, 0x0806, 0x8035)), (header + b"".join(ends)).ljust(46, b"\0")


def _network(chance: Random) -> tuple[int, bytes]:
    protocol = chance.choice(_NUMBERS)
    return _ip(chance, protocol) if chance.random() < 0.5 else _ip6(chance, protocol)


def _ip(chance: Random, protocol: int) -> tuple[int, bytes]:
    payload = _transport(chance, protocol)
    options = b"\x01" * (4 * chance.choice((0, 0, 0, 1, 10)))
    fragment = chance.choice((0, 0, 0, 0x4000, 0x2000, 0x2008, 0x0010))
    ends = [ip_address(chance.choice(_IPV4)).packed for _ in range(2)]
    length = 20 + len(options) + len(payload)
    start = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, length, 7, fragment, 64, protocol, 0)
    return 0x0800, start + ends[0] + ends[1] + options + payload


def _ip6(chance: Random, protocol: int) -> tuple[int, bytes]:
    payload = _transport(chance, protocol)
    if chance.random() < 0.1:
        payload, protocol = bytes([protocol, 0]) + bytes(6) + payload, chance.choice(_EXTENSIONS)
    if chance.random() < 0.15:
        fragment = chance.choice((0, 1, 8, 9))
        payload, protocol = struct.pack("!BBHI", protocol, 0, fragment, 9) + payload, 44
    ends = [ip_address(chance.choice(_IPV6)).packed for _ in range(2)]
    return 0x86DD, struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + ends[0] + ends[1] + payload


def _transport(chance: Random, protocol: int) -> bytes:
    ports = chance.choice(_PORTS), chance.choice(_PORTS)
    if protocol == 6:
        flags = chance.choice((0, 1 << chance.randrange(8), chance.randrange(256)))
        return struct.pack("!HHIIBBHHH", *ports, 1, 2, 0x50, flags, 9, 0, 0) + chance.randbytes(20)
    return struct.pack("!HHHH", *ports, 40, 0) + chance.randbytes(32)
