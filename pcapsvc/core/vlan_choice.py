"""
Filters for one of several VLANs, and for VLANs on all interfaces.

In pcap-filter(7), C{vlan 7 or vlan 8} means something else: the second C{vlan} looks for a tag behind the
first one. A list of VLANs can be written with the bytes of the tag, which is right for a file. But on an
interface, the kernel takes the tag out of a packet before a filter sees it, and no text of a filter leads to
where it is kept. And on all interfaces (LINUX_SLL), libpcap doesn't know C{vlan} at all.

So such a filter is recognized by its text, the rest of it is compiled by libpcap, and the comparison of
numbers is a program of a few instructions that runs before the rest.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence

import msgspec
from msgspec.structs import replace

from pcapsvc.core.filter import Program
from pcapsvc.core.link_type import ETHERNET, LINUX_SLL

# Not octal ones, as libpcap reads those that begin with 0.
_N = "(?:0|[1-9][0-9]{0,3})"
_TAG = "ether[14:2] & 0xfff = "
_VLAN = re.compile(rf"vlan ({_N})(?: and (.+))?", re.DOTALL | re.ASCII)
_VLANS = re.compile(
    rf"vlan and \(({re.escape(_TAG)}{_N}(?: or {re.escape(_TAG)}{_N})+)\)(?: and (.+))?",
    re.DOTALL | re.ASCII,
)
_ALTERNATIVE_OR_PARENTHESIS = re.compile(r"[()]|\|\||(?<![\w.:-])or(?![\w.:-])")

# struct sock_filter of linux/filter.h, and codes of linux/bpf_common.h.
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD_BYTE, _LOAD_HALF = 0x30, 0x28
_IF_EQUAL, _GO_ON_AT, _AND, _RETURN = 0x15, 0x05, 0x54, 0x06
# linux/filter.h: what the kernel knows of a packet (SKF_AD_OFF): its tag, and whether it has one. They are
# loaded as bytes, like libpcap does: it knows no other way when it runs a filter itself.
_VLAN_TAG, _VLAN_TAG_PRESENT = 0xFFFFF02C, 0xFFFFF030
# Where an Ethernet header says what follows, and the tag if that is one.
_TYPE_AT, _TAG_AT = 12, 14
# 802.1Q, 802.1ad, and what came before that: those that libpcap's vlan knows.
_TAG_TYPES = (0x8100, 0x88A8, 0x9100)
_NUMBER_BITS = 0xFFF


def vlan_text(numbers: Sequence[int]) -> str:
    """The beginning of a filter for packets of any of these VLANs."""
    if len(numbers) == 1:
        return f"vlan {numbers[0]}"
    return f"vlan and ({' or '.join(f'{_TAG}{number}' for number in numbers)})"


class VlanChoice(msgspec.Struct, frozen=True, kw_only=True):
    """
    A filter of which libpcap compiles one part only.

    @ivar numbers: the VLANs.
    @ivar bpf: the part that libpcap compiles; empty for every packet.
    @ivar has_bytes: whether the tag may be among the bytes of a packet, as in what this host sends with one.
    """

    numbers: tuple[int, ...]
    bpf: str
    has_bytes: bool

    def before(self, program: Program, bpf: str) -> Program:
        """
        The whole filter.

        @param program: what the part was compiled to.
        @param bpf: the text of the whole.
        """
        return replace(program, bpf=bpf, instructions=b"".join(self._comparison()) + program.instructions)

    def _comparison(self) -> Iterator[bytes]:
        yield _INSTRUCTION.pack(_LOAD_BYTE, 0, 0, _VLAN_TAG_PRESENT)
        yield _INSTRUCTION.pack(_IF_EQUAL, 1, 0, 1)
        if self.has_bytes:
            yield _INSTRUCTION.pack(_GO_ON_AT, 0, 0, 2)
        else:
            yield _INSTRUCTION.pack(_RETURN, 0, 0, 0)
        yield _INSTRUCTION.pack(_LOAD_BYTE, 0, 0, _VLAN_TAG)
        if self.has_bytes:
            yield _INSTRUCTION.pack(_GO_ON_AT, 0, 0, len(_TAG_TYPES) + 3)
            yield _INSTRUCTION.pack(_LOAD_HALF, 0, 0, _TYPE_AT)
            for left, kind in reversed([*enumerate(_TAG_TYPES)]):
                yield _INSTRUCTION.pack(_IF_EQUAL, left + 1, 0, kind)
            yield _INSTRUCTION.pack(_RETURN, 0, 0, 0)
            yield _INSTRUCTION.pack(_LOAD_HALF, 0, 0, _TAG_AT)
        yield _INSTRUCTION.pack(_AND, 0, 0, _NUMBER_BITS)
        for left, number in reversed([*enumerate(self.numbers)]):
            yield _INSTRUCTION.pack(_IF_EQUAL, 0, 1, number)
            yield _INSTRUCTION.pack(_GO_ON_AT, 0, 0, 2 * left + 1)
        yield _INSTRUCTION.pack(_RETURN, 0, 0, 0)


def vlan_choice(bpf: str, link_type: int) -> VlanChoice | None:
    """
    Recognize a filter that begins with what L{vlan_text} returns.

    @param link_type: of the packets, as libpcap numbers it.

    @return: L{None} if libpcap can compile all of it, or if it means something else.
    """
    found = _VLANS.fullmatch(bpf)
    if found is None and link_type == LINUX_SLL:
        found = _VLAN.fullmatch(bpf)
    if found is None or link_type not in (ETHERNET, LINUX_SLL):
        return None
    choice, rest = found[1], found[2] or ""
    numbers = tuple(int(word) for word in choice.replace(_TAG, "").split(" or "))
    if max(numbers) > _NUMBER_BITS or _has_alternatives(rest):
        return None
    if link_type == LINUX_SLL:
        return VlanChoice(numbers=numbers, bpf=rest, has_bytes=False)
    return VlanChoice(numbers=numbers, bpf=f"vlan and {rest}" if rest else "vlan", has_bytes=True)


def _has_alternatives(bpf: str) -> bool:
    """Whether an C{or} in a filter is not in parentheses: then it is one to all that precedes it."""
    depth = 0
    for found in _ALTERNATIVE_OR_PARENTHESIS.finditer(bpf):
        if found[0] in "()":
            depth += 1 if found[0] == "(" else -1
        elif depth <= 0:
            return True
    return depth != 0
