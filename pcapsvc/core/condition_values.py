"""
The values of the fields of a request that say which packets it wants, each read from what the message says.

What is read is an address, a number or a word of a table, and a filter is written from that: no text of a
message gets into a filter this way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import msgspec

#: Words for protocols, and how pcap-filter(7) writes them. If it has no word that means both IPv4 and IPv6,
#: it is the number (IANA, Assigned Internet Protocol Numbers). As in tcpdump, icmp and igmp are IPv4's.
PROTOCOLS: Mapping[str, str] = {
    **{word: word for word in ("ip", "ip6", "arp", "rarp", "icmp", "icmp6", "igmp")},
    **{word: word for word in ("tcp", "udp", "sctp", "ah", "esp", "pim")},
    "ipip": "proto 4",
    "dccp": "proto 33",
    "rsvp": "proto 46",
    "gre": "proto 47",
    "eigrp": "proto 88",
    "ospf": "proto 89",
    "vrrp": "proto 112",
    "l2tp": "proto 115",
    "udplite": "proto 136",
}
#: TCP's flags, as pcap-filter(7) names them, and their bits (RFC 9293, section 3.1).
FLAGS: Mapping[str, tuple[str, int]] = {
    "fin": ("tcp-fin", 0x01),
    "syn": ("tcp-syn", 0x02),
    "rst": ("tcp-rst", 0x04),
    "psh": ("tcp-push", 0x08),
    "ack": ("tcp-ack", 0x10),
    "urg": ("tcp-urg", 0x20),
    "ece": ("tcp-ece", 0x40),
    "cwr": ("tcp-cwr", 0x80),
}
DIRECTIONS: Mapping[str, str] = {"in": "inbound", "out": "outbound"}

MOST_PORT = 65535
MOST_VLAN = 4095
MOST_PROTOCOL = 255

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# The longest way to write an address, with a prefix length and a port, is shorter.
_LONGEST = 64
_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_WITH_PORT = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([^:]*)", re.DOTALL)
_IPV4_MAPPED = IPv6Network("::ffff:0:0/96")


class BadValue(ValueError):
    """A value that breaks a rule. The message is a phrase that continues from the field's name."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """
    One end of a packet's way.

    @ivar place: an address or a network.
    @ivar port: L{None} for any.
    """

    place: Address | Network
    port: int | None = None


def read_address(text: str) -> Address:
    """
    Read an IPv4 or IPv6 address.

    @raise BadValue: if it is none.
    """
    rule = "must be an IPv4 or IPv6 address; host names are not looked up"
    if len(text) <= _LONGEST:
        if _is_address(text.partition("/")[0]) and "/" in text:
            raise BadValue("must be an address, and is a network: see 'net'")
        found = _WITH_PORT.fullmatch(text)
        if found and _is_address(found[1] or found[2] or ""):
            raise BadValue("must be an address without a port: see 'port', 'src' and 'dst'")
        if text.startswith("[") and text.endswith("]") and _is_address(text[1:-1]):
            raise BadValue("must be an address without brackets")
    return _address(text, rule)


def read_network(text: str) -> Network:
    """
    Read a network: an address and a prefix length.

    @raise BadValue: if it is none, or if the address has bits beyond the prefix.
    """
    rule = "must be a network, such as 192.0.2.0/24 or 2001:db8::/32"
    place, slash, prefix = text[: _LONGEST + 1].partition("/")
    if not slash:
        raise BadValue(rule)
    address = _address(place, rule)
    if not _NUMBER.fullmatch(prefix) or int(prefix) > address.max_prefixlen:
        raise BadValue(f"must have a prefix length of 0 to {address.max_prefixlen} after the slash")
    if isinstance(address, IPv4Address):
        network: Network = IPv4Network((address, int(prefix)), strict=False)
    else:
        network = IPv6Network((address, int(prefix)), strict=False)
    if network.network_address != address:
        raise BadValue(f"has bits beyond its prefix length; the network is {network}")
    return network


def read_end(text: str) -> End:
    """
    Read an address, a network, or an address with a port: C{192.0.2.1:443} or C{[2001:db8::1]:443}.

    @raise BadValue: if it is none of them.
    """
    rule = (
        "must be an address, a network such as 192.0.2.0/24, or an address and a port, such as 192.0.2.1:443"
        " or [2001:db8::1]:443; host names are not looked up"
    )
    if len(text) > _LONGEST:
        raise BadValue(rule)
    if found := _WITH_PORT.fullmatch(text):
        bracketed, plain, port = found.groups()
        address = _address(plain if bracketed is None else bracketed, rule)
        if (address.version == 6) != (bracketed is not None):
            raise BadValue(rule)
        return End(place=address, port=read_port(port))
    if "/" in text:
        return End(place=read_network(text))
    return End(place=_address(text, rule))


def read_port(text: str) -> int:
    """
    Read the number of a port.

    @raise BadValue: if it is none.
    """
    if not _NUMBER.fullmatch(text) or int(text) > MOST_PORT:
        raise BadValue(f"must have a port of 0 to {MOST_PORT}")
    return int(text)


def read_port_range(text: str) -> tuple[int, int]:
    """
    Read a range of ports, C{8000-8100}. Both ends are part of it.

    @raise BadValue: if it is none.
    """
    first, _, last = text[: _LONGEST + 1].partition("-")
    if not (_NUMBER.fullmatch(first) and _NUMBER.fullmatch(last)) or max(int(first), int(last)) > MOST_PORT:
        raise BadValue(f"must be two ports of 0 to {MOST_PORT} with a hyphen between them, such as 8000-8100")
    if int(first) > int(last):
        raise BadValue(f"must begin with the lower port: {last}-{first}")
    return int(first), int(last)


def read_word(text: str, words: Mapping[str, object], alternative: str = "") -> str:
    """
    Read one of several words, in any case.

    @param alternative: what it might be instead, for the error.

    @raise BadValue: if it is none of them.
    """
    word = text.lower() if text.isascii() else text
    if word not in words:
        raise BadValue(f"must be {alternative}one of {', '.join(words)}")
    return word


def check_number(number: int, most: int, what: str) -> int:
    """
    Check a number.

    @raise BadValue: if it is not in 0 to C{most}.
    """
    if not 0 <= number <= most:
        raise BadValue(f"must be {what}, 0 to {most}")
    return number


def _address(text: str, rule: str) -> Address:
    if len(text) > _LONGEST or not text.isascii():
        raise BadValue(rule)
    if "%" in text:
        # ipaddress accepts any text behind it.
        raise BadValue("must have no zone (%)")
    try:
        if ":" not in text:
            return IPv4Address(text)
        address = IPv6Address(text)
    except ValueError:
        raise BadValue(rule) from None
    if address in _IPV4_MAPPED:
        raise BadValue(f"is an IPv4 address in the notation of IPv6; packets have {address.ipv4_mapped}")
    return address


def _is_address(text: str) -> bool:
    try:
        _address(text, "")
    except BadValue:
        return False
    return True
