"""
Which packets a request wants, in plain words: its fields, and their translation to pcap-filter(7).

The order of the parts is fixed. C{vlan} comes first, since in pcap-filter(7) it shifts the offsets of all
that follows it: so the other fields are about what is behind the tag. The request's own filter comes last, so
that a C{vlan} in it shifts nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pcapsvc.core.condition_values import (
    DIRECTIONS,
    FLAGS,
    MOST_PORT,
    MOST_PROTOCOL,
    MOST_VLAN,
    PROTOCOLS,
    BadValue,
    End,
    Network,
    check_number,
    read_address,
    read_end,
    read_network,
    read_port_range,
    read_word,
)
from pcapsvc.core.errors import Problem, shown
from pcapsvc.core.vlan_choice import vlan_text

# How many values a field may have.
_MOST = Meta(max_length=256)
# A value has one character, and " or " before it.
_LEAST_CHARACTERS = 5
# Up to this many bad values of a field are reported.
_MOST_REPORTED = 20

# A filter that begins with a number (perhaps in hexadecimal: 0x50), an address or a network alone: it would
# get the qualifier of the part before it.
_BARE = re.compile(r"(?:[\s(!]|not\b)*[0-9a-fA-FxX.:/-]+[\s)]*(?:\Z|and\b|or\b|mask\b|&&|\|\|)")
_ADDRESSES = (IPv4Address, IPv6Address)

_Texts = Annotated[tuple[str, ...], _MOST]
_Numbers = Annotated[tuple[int, ...], _MOST]


def _one_or_more(what: str) -> Meta:
    return Meta(description=f"{what}, or a list of up to {_MOST.max_length} of them")


class ConditionFields(msgspec.Struct, frozen=True, kw_only=True):
    """
    The fields, each one value or several, any of which may match. They are checked by
    L{condition_problems}: here, only their types are.
    """

    host: Annotated[str | _Texts, _one_or_more("an address")] | None = None
    net: Annotated[str | _Texts, _one_or_more("a network, such as 192.0.2.0/24")] | None = None
    port: Annotated[int | _Numbers, _one_or_more(f"a port number, 0 to {MOST_PORT}")] | None = None
    portrange: Annotated[str | _Texts, _one_or_more("a range of ports, such as 8000-8100")] | None = None
    protocol: (
        Annotated[
            str | int | Annotated[tuple[str | int, ...], _MOST],
            _one_or_more(f"a protocol's name or its number, 0 to {MOST_PROTOCOL}"),
        ]
        | None
    ) = None
    src: Annotated[str | _Texts, _one_or_more("an address, address:port or network")] | None = None
    dst: Annotated[str | _Texts, _one_or_more("an address, address:port or network")] | None = None
    flags: Annotated[str | _Texts, _one_or_more("a TCP flag, such as syn")] | None = None
    vlan: Annotated[int | _Numbers, _one_or_more(f"a VLAN ID, 0 to {MOST_VLAN}")] | None = None
    direction: Annotated[str | _Texts, _one_or_more("a direction, in or out")] | None = None


#: The names of the fields.
CONDITIONS: Sequence[str] = ConditionFields.__struct_fields__


def condition_problems(values: Mapping[str, Any], bpf: str, most: int) -> Iterator[Problem]:
    """
    What is wrong with the fields, by field.

    @param values: the fields that are given, of the right types.
    @param bpf: the request's own filter; empty if it has none.
    @param most: how many characters a filter may have.
    """
    given = {name: values[name] for name in CONDITIONS if name in values}
    counts = {name: len(set(_values(value))) for name, value in given.items()}
    if _LEAST_CHARACTERS * sum(counts.values()) > most:
        # To read them would take longer than the reactor can wait.
        name = max(counts, key=lambda name: counts[name])
        many = f"has {counts[name]} values, and the filter may have up to {most} characters on this node"
        yield Problem(path=name, rule=many)
        return
    is_valid = True
    for name, value in given.items():
        bad = [*_bad_values(name, value)]
        is_valid = is_valid and not bad
        yield from bad[:_MOST_REPORTED]
        if len(bad) > _MOST_REPORTED:
            yield Problem(path=name, rule=f"has {len(bad) - _MOST_REPORTED} more values that can't be used")
    if not given or len(bpf) > most:
        return
    if (rule := _why_not_beside(bpf)) is not None:
        yield Problem(path="bpf", value=shown(bpf), rule=rule)
        return
    if not is_valid:
        return
    parts = _parts(given, bpf)
    length = len(_joined(parts, bpf))
    if length > most:
        longest = max((*parts, "bpf"), key=lambda name: len(parts.get(name, bpf)))
        long = f"makes the filter {length} characters long, and it may have up to {most} on this node"
        yield Problem(path=longest, rule=long)


def filter_of(values: Mapping[str, Any], bpf: str) -> str:
    """
    The filter that the fields mean together.

    @param values: the fields that are given, without problems.
    @param bpf: the request's own filter; empty if it has none.
    """
    return _joined(_parts(values, bpf), bpf)


def _parts(values: Mapping[str, Any], bpf: str) -> dict[str, str]:
    """Each field as a part of a filter, in their order; empty if it matches every packet."""
    repeats = bool(bpf.strip()) or len(values.keys() & _WITH_NETWORKS) > 1
    parts: dict[str, str] = {}
    for name in _PARTS:
        if name in values:
            read = tuple(dict.fromkeys(map(_READERS[name], _values(values[name]))))
            make = _PARTS[name]
            parts[name] = make(read, repeats) if name in _WITH_NETWORKS else make(read)
    return parts


def _joined(parts: Mapping[str, str], bpf: str) -> str:
    ordered = [part for part in parts.values() if part]
    if not ordered:
        return bpf
    # White space alone is a filter that matches everything, but not in parentheses.
    if bpf.strip():
        ordered.append(f"({bpf})")
    return " and ".join(ordered) if len(ordered) > 1 else _without_parentheses(ordered[0])


def _without_parentheses(part: str) -> str:
    """A part that stands alone: it needs no parentheses around it."""
    inner = part[1:-1]
    return inner if part == f"({inner})" and _is_enclosed(inner) else part


def _why_not_beside(bpf: str) -> str | None:
    """The rule that a filter breaks if it would mean something else beside other parts."""
    if not _is_enclosed(bpf):
        return "must close each parenthesis that it opens, and no other"
    if _BARE.match(bpf):
        return "must say what its first value is, such as 'host 192.0.2.1' or 'port 80'"
    return None


def _is_enclosed(bpf: str) -> bool:
    """Whether a filter stays within the parentheses around it. There are no quotes in pcap-filter(7)."""
    depth = 0
    for character in bpf:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0


def _values(given: Any) -> Sequence[Any]:
    return given if isinstance(given, tuple) else (given,)


def _bad_values(name: str, given: Any) -> Iterator[Problem]:
    read = _READERS[name]
    for value in _values(given):
        try:
            read(value)
        except BadValue as bad:
            yield Problem(path=name, value=shown(value), rule=str(bad))


def _read_protocol(value: str | int) -> str:
    """How pcap-filter(7) writes a protocol."""
    if isinstance(value, int):
        return f"proto {check_number(value, MOST_PROTOCOL, 'a protocol number')}"
    return PROTOCOLS[read_word(value, PROTOCOLS, f"a number, 0 to {MOST_PROTOCOL}, or ")]


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "vlan": lambda value: check_number(value, MOST_VLAN, "a VLAN ID"),
    "host": read_address,
    "net": read_network,
    "src": read_end,
    "dst": read_end,
    "protocol": _read_protocol,
    "port": lambda value: check_number(value, MOST_PORT, "a port number"),
    "portrange": read_port_range,
    "flags": lambda value: read_word(value, FLAGS),
    "direction": lambda value: read_word(value, DIRECTIONS),
}


def _any(words: str, things: Iterable[object]) -> str:
    """A qualifier with one or several values: C{port 80}, C{port (80 or 443)}."""
    several = " or ".join(map(str, things))
    return f"{words} ({several})" if " or " in several else f"{words} {several}"


def _any_of(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"({' or '.join(parts)})"


def _ends(side: str, ends: Sequence[End], repeats: bool) -> str:
    parts: list[str] = []
    hosts = [end.place for end in ends if isinstance(end.place, _ADDRESSES) and end.port is None]
    if hosts:
        parts.append(_any(f"{side} host", hosts))
    networks = [end.place for end in ends if not isinstance(end.place, _ADDRESSES)]
    parts += _networks((side,), networks, repeats)
    sockets = [f"{side} host {end.place} and {side} port {end.port}" for end in ends if end.port is not None]
    if len(sockets) == 1 and not parts:
        return sockets[0]
    return _any_of([*parts, *(f"({socket})" for socket in sockets)])


def _networks(sides: Sequence[str], networks: Sequence[Network], repeats: bool) -> Iterator[str]:
    """
    Networks, of either end or of one.

    @param repeats: whether the filter may have one of them twice.

    If a filter has the same IPv6 network twice, for either end and for one, and compares some bits of a word
    with zero (2001:db8::/48: half of its second word), libpcap's optimizer makes of it that both ends must be
    in the network (1.9.1, and still 1.10.3). So those bits are compared in another way.
    """
    if others := [network for network in networks if not (repeats and _has_zero_bits(network))]:
        yield _any(f"{sides[0]} net" if len(sides) == 1 else "net", others)
    for network in networks:
        if repeats and _has_zero_bits(network):
            yield from (f"({_below(side, network)})" for side in sides)


def _has_zero_bits(network: Network) -> bool:
    """Whether some bits of a word of 32, and not all, are compared with zero."""
    if network.version == 4 or network.prefixlen % 32 == 0:
        return False
    return not int(network.network_address) >> (96 - network.prefixlen // 32 * 32) & 0xFFFFFFFF


def _below(side: str, network: Network) -> str:
    words, bits = divmod(network.prefixlen, 32)
    # Where an IPv6 header has the addresses (RFC 8200, section 3).
    at = {"src": 8, "dst": 24}[side] + 4 * words
    whole = f"{side} net {network.network_address}/{32 * words}" if words else "ip6"
    return f"{whole} and ip6[{at}:4] < {1 << (32 - bits):#x}"


def _flags(flags: Sequence[str]) -> str:
    """
    Any of these flags. libpcap has tcp[…] for IPv4 only. Of IPv6, TCP's header begins behind the header of 40
    bytes (RFC 8200, section 3), if no extension header is between them. The flags are in its byte 13.
    """
    names = [FLAGS[flag][0] for flag in flags]
    bits = sum(FLAGS[flag][1] for flag in flags)
    named = names[0] if len(names) == 1 else f"({'|'.join(names)})"
    return f"(tcp[tcpflags] & {named} != 0 or (ip6[6] = 6 and ip6[53] & {bits:#04x} != 0))"


def _direction(directions: Sequence[str]) -> str:
    return "" if len(directions) == len(DIRECTIONS) else DIRECTIONS[directions[0]]


# Those that may have the same network; so may the request's own filter.
_WITH_NETWORKS = frozenset({"net", "src", "dst"})
# In the order in which they are in a filter.
_PARTS: Mapping[str, Callable[..., str]] = {
    "vlan": vlan_text,
    "host": lambda addresses: _any("host", addresses),
    "net": lambda networks, repeats: _any_of([*_networks(("src", "dst"), networks, repeats)]),
    "src": lambda ends, repeats: _ends("src", ends, repeats),
    "dst": lambda ends, repeats: _ends("dst", ends, repeats),
    "protocol": _any_of,
    "port": lambda ports: _any("port", ports),
    "portrange": lambda ranges: _any("portrange", (f"{first}-{last}" for first, last in ranges)),
    "flags": _flags,
    "direction": _direction,
}
