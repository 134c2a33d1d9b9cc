"""
Which packets a request in plain words selects, by an independent reading of the packets.

It shares nothing with pcapsvc: addresses, networks, protocols and flags are read here once more, and packets
are decoded field by field, as RFC 791, 8200, 826, 9293 and IEEE 802.1Q describe them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

ETHERNET, LINUX_SLL, RAW = 1, 113, 12

_IP, _IP6, _ARP, _RARP = 0x0800, 0x86DD, 0x0806, 0x8035
# IANA, Assigned Internet Protocol Numbers. What has a version is meant with that one only.
_NUMBERS: Mapping[str, tuple[int, int | None]] = {
    "icmp": (1, 4),
    "igmp": (2, 4),
    "icmp6": (58, 6),
    "tcp": (6, None),
    "udp": (17, None),
    "ipip": (4, None),
    "dccp": (33, None),
    "rsvp": (46, None),
    "gre": (47, None),
    "esp": (50, None),
    "ah": (51, None),
    "eigrp": (88, None),
    "ospf": (89, None),
    "pim": (103, None),
    "vrrp": (112, None),
    "l2tp": (115, None),
    "sctp": (132, None),
    "udplite": (136, None),
}
_TYPES = {"ip": _IP, "ip6": _IP6, "arp": _ARP, "rarp": _RARP}
_FLAG_NAMES = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
_WITH_PORTS = (6, 17, 132)


# The same few are read millions of times.
_address: Callable[[str | bytes], IPv4Address | IPv6Address] = cache(ip_address)
_network: Callable[[str], IPv4Network | IPv6Network] = cache(ip_network)


@dataclass(kw_only=True)
class Decoded:
    """
    What a packet is.

    @ivar vlan: the number in its outermost tag; L{None} if it has none.
    @ivar kind: the EtherType of what it contains; 0 if that is unknown.
    @ivar sources: addresses that it is from. A packet of ARP is from its sender's and to its target's.
    @ivar protocols: the protocol, and the one behind a fragment header.
    @ivar ports: the source and the destination, if it has them where libpcap looks for them.
    """

    vlan: int | None = None
    kind: int = 0
    sources: list[Any] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    version: int = 0
    protocols: list[int] = field(default_factory=list)
    ports: tuple[int, int] | None = None
    flags: frozenset[str] = frozenset()
    direction: str | None = None


def decode(data: bytes, link_type: int, *, sees_tags: bool) -> Decoded:
    """
    Decode a packet.

    @param sees_tags: whether what follows a tag is examined, whichever kind of tag it is: if the request asks
        for a VLAN. Otherwise, it is examined behind those that the kernel takes out.
    """
    packet = Decoded()
    if link_type == RAW:
        packet.kind = _IP if data[0] >> 4 == 4 else _IP6
        payload = data
    else:
        at = 14 if link_type == LINUX_SLL else 12
        if link_type == LINUX_SLL:
            packet.direction = "out" if data[0:2] == b"\x00\x04" else "in"
        kind, payload = int.from_bytes(data[at : at + 2], "big"), data[at + 2 :]
        if kind in (0x8100, 0x88A8, 0x9100):
            packet.vlan = (payload[0] & 0x0F) << 8 | payload[1]
            if sees_tags or kind != 0x9100:
                kind, payload = int.from_bytes(payload[2:4], "big"), payload[4:]
        packet.kind = kind
    if packet.kind == _IP:
        _read_ip(packet, payload)
    elif packet.kind == _IP6:
        _read_ip6(packet, payload)
    elif packet.kind in (_ARP, _RARP):
        packet.sources, packet.targets = [_address(payload[14:18])], [_address(payload[24:28])]
    return packet


def _read_ip(packet: Decoded, data: bytes) -> None:
    packet.version, packet.protocols = 4, [data[9]]
    packet.sources, packet.targets = [_address(data[12:16])], [_address(data[16:20])]
    if struct.unpack("!H", data[6:8])[0] & 0x1FFF == 0:
        _read_transport(packet, data[9], data[4 * (data[0] & 0x0F) :])


def _read_ip6(packet: Decoded, data: bytes) -> None:
    packet.version, packet.protocols = 6, [data[6]]
    packet.sources, packet.targets = [_address(data[8:24])], [_address(data[24:40])]
    if data[6] == 44:
        packet.protocols.append(data[40])
    _read_transport(packet, data[6], data[40:])


def _read_transport(packet: Decoded, protocol: int, data: bytes) -> None:
    if protocol in _WITH_PORTS:
        packet.ports = struct.unpack("!HH", data[:4])
    if protocol == 6:
        packet.flags = frozenset(name for bit, name in enumerate(_FLAG_NAMES) if data[13] >> bit & 1)


def selects(request: Mapping[str, Any], packet: Decoded) -> bool:
    """Whether a request in plain words selects a packet: each of its fields does, by any of its values."""
    # Millions of packets are compared: loops take half the time of generators.
    for name, given in request.items():
        check = _CHECKS[name]
        for value in given if isinstance(given, list) else (given,):
            if check(packet, value):
                break
        else:
            return False
    return True


class Recorded:
    """Packets that many requests are compared with."""

    def __init__(self, packets: Sequence[Decoded]) -> None:
        self._packets = packets
        # Requests have few different values: by the field and the value.
        self._by_value: dict[tuple[str, Any], frozenset[int]] = {}

    def selected(self, request: Mapping[str, Any]) -> list[int]:
        """The numbers of those that a request selects: see L{selects}."""
        found = frozenset(range(len(self._packets)))
        for name, given in request.items():
            values = given if isinstance(given, list) else [given]
            found &= frozenset[int]().union(*(self._with(name, value) for value in values))
        return sorted(found)

    def _with(self, name: str, value: Any) -> frozenset[int]:
        known = self._by_value.get((name, value))
        if known is None:
            check = _CHECKS[name]
            known = frozenset(at for at, packet in enumerate(self._packets) if check(packet, value))
            self._by_value[name, value] = known
        return known


def _is_in(addresses: Iterable[Any], network: str) -> bool:
    found = _network(network)
    return any(address.version == found.version and address in found for address in addresses)


def _is_end(addresses: list[Any], port: int | None, wanted: str) -> bool:
    if "/" in wanted:
        return _is_in(addresses, wanted)
    text, has_port = wanted, False
    if wanted.startswith("["):
        text, _, number = wanted[1:].rpartition("]:")
        has_port = True
    elif wanted.count(":") == 1:
        text, _, number = wanted.rpartition(":")
        has_port = True
    return _address(text) in addresses and (not has_port or port == int(number))


def _is_protocol(packet: Decoded, wanted: str | int) -> bool:
    if isinstance(wanted, int):
        return wanted in packet.protocols
    if wanted.lower() in _TYPES:
        return packet.kind == _TYPES[wanted.lower()]
    number, version = _NUMBERS[wanted.lower()]
    return number in packet.protocols and version in (None, packet.version)


def _is_in_range(packet: Decoded, wanted: str) -> bool:
    first, last = map(int, wanted.split("-"))
    return packet.ports is not None and any(first <= port <= last for port in packet.ports)


#: What the filters are that requests have besides.
FILTERS: Mapping[str, Callable[[Decoded], bool]] = {
    "udp or icmp": lambda packet: _is_protocol(packet, "udp") or _is_protocol(packet, "icmp"),
    "not tcp": lambda packet: not _is_protocol(packet, "tcp"),
    "(ip6) and not port 53": lambda packet: packet.version == 6 and 53 not in (packet.ports or ()),
}

_CHECKS: Mapping[str, Callable[[Decoded, Any], bool]] = {
    "host": lambda packet, wanted: _address(wanted) in [*packet.sources, *packet.targets],
    "net": lambda packet, wanted: _is_in([*packet.sources, *packet.targets], wanted),
    "port": lambda packet, wanted: wanted in (packet.ports or ()),
    "portrange": _is_in_range,
    "protocol": _is_protocol,
    "src": lambda packet, wanted: _is_end(packet.sources, packet.ports and packet.ports[0], wanted),
    "dst": lambda packet, wanted: _is_end(packet.targets, packet.ports and packet.ports[1], wanted),
    "flags": lambda packet, wanted: wanted.lower() in packet.flags,
    "vlan": lambda packet, wanted: packet.vlan == wanted,
    "direction": lambda packet, wanted: packet.direction == wanted,
    "bpf": lambda packet, wanted: FILTERS[wanted](packet),
}
