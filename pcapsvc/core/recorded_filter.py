"""
Filters for packets that were recorded, which match what they would have matched on the wire.

The kernel takes the VLAN tag out of a packet before a filter sees it, and libpcap puts it back into what is
recorded. So a filter of a live handle doesn't fit: behind the tag, each byte is 4 bytes further on. It is
rewritten for packets that have a tag, and a look at the packet decides which of the two programs runs.

A cooked handle's filter doesn't see the header that libpcap adds to a packet: the length is without it.

A tag that the kernel has not taken out, since this host sent the packet as it is, can't be told from others.
Nor can it be told whether a read of several bytes, from where the packet itself says, crosses the tag's
place; and on all interfaces, which frames had two tags.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from pcapsvc.core.filter import FilterRejected, Program
from pcapsvc.core.link_type import COOKED_HEADER_BYTES, ETHERNET, LINUX_SLL, is_cooked

# struct sock_filter of linux/filter.h: code, jump if true, jump if false, and a constant.
_Instruction = tuple[int, int, int, int]


class _Within(NamedTuple):
    """An instruction whose jumps lead to others of the same part."""

    code: int
    true: int
    false: int
    number: int


_INSTRUCTION = struct.Struct("=HBBI")

# linux/bpf_common.h
_CLASS, _MODE = 0x07, 0xE0
_LD, _LDX, _JMP = 0x00, 0x01, 0x05
_ABS, _IND, _MSH = 0x20, 0x40, 0xA0
_LD_HALF_ABS = 0x28
_LD_IMM = 0x00
_LD_LEN, _LDX_LEN = 0x80, 0x81
_SUB, _TXA = 0x14, 0x87
_GO_ON_AT, _IF_EQUAL, _IF_NOT_LESS = 0x05, 0x15, 0x35
# How many bytes are loaded, by the size in a code (BPF_W, BPF_H, BPF_B).
_SIZE, _SIZES = 0x18, {0x00: 4, 0x08: 2, 0x10: 1}
_MASK = 0xFFFFFFFF
# Constants from here on are negative, if they are added to something.
_NEGATIVE = 0x80000000

# linux/filter.h: loads from here on are not of the packet's bytes (SKF_AD_OFF), but of what the kernel knows.
_ANCILLARY = 0xFFFFF000
_VLAN_TAG = _ANCILLARY + 44
_VLAN_TAG_PRESENT = _ANCILLARY + 48

# Where libpcap puts the tag back, by link type (pcap-linux.c): into Ethernet and into LINUX_SLL headers.
_TAG_OFFSETS = {ETHERNET: 12, LINUX_SLL: 14}
_TAG_BYTES = 4
# What the kernel takes out: 802.1Q and 802.1ad (linux/if_ether.h).
_TAG_TYPES = (0x8100, 0x88A8)
_LONGEST_JUMP = 255
# The shortest header of IPv4 (RFC 791, section 3.1).
_IPV4_BYTES = 20


def for_recorded(program: Program, link_type: int) -> Program:
    """
    Rewrite a filter for packets that were recorded.

    @param program: compiled for a live handle.
    @param link_type: of that handle, as libpcap numbers it.

    @raise FilterRejected: if the filter depends on what isn't recorded.
    """
    if program.reads_packet_type:
        raise FilterRejected(
            program.bpf,
            "can't be used for packets of the past: their direction is not recorded on this interface",
        )
    plain: list[_Instruction] = list(_INSTRUCTION.iter_unpack(program.instructions))
    if any(code == _LDX_LEN for code, _, _, _ in plain):
        raise FilterRejected(program.bpf, "can't be used for packets of the past")
    cooked = COOKED_HEADER_BYTES if is_cooked(link_type) else 0
    untagged = list(_laid_out([list(_on_untagged(each, cooked)) for each in plain], program.bpf))
    offset = _TAG_OFFSETS.get(link_type)
    if offset is None:
        return replace(program, instructions=_packed(untagged))
    if any(_crosses(each, offset) for each in plain):
        raise FilterRejected(program.bpf, "can't be used for packets of the past: it reads across VLAN tags")
    tagged = list(_laid_out([list(_on_tagged(each, offset, cooked)) for each in plain], program.bpf))
    choice: list[_Instruction] = [
        (_LD_HALF_ABS, 0, 0, offset),
        (_IF_EQUAL, 1, 0, _TAG_TYPES[0]),
        (_IF_EQUAL, 0, 1, _TAG_TYPES[1]),
        (_GO_ON_AT, 0, 0, len(untagged)),
    ]
    return replace(program, instructions=_packed([*choice, *untagged, *tagged]))


def looked_at_bytes(program: Program) -> int:
    """
    How many bytes of a packet a filter looks at. Where that depends on the packet, as the length of an IPv4
    header does, the least number counts.
    """
    most = 0
    instructions: list[_Instruction] = list(_INSTRUCTION.iter_unpack(program.instructions))
    least = _IPV4_BYTES if any(_is_header_length(code) for code, _, _, _ in instructions) else 0
    for code, _, _, number in instructions:
        if _is_header_length(code):
            most = max(most, number + 1)
        elif _is_load_at(code, _ABS) and number < _ANCILLARY:
            most = max(most, number + _SIZES[code & _SIZE])
        elif _is_load_at(code, _IND) and number < _NEGATIVE:
            most = max(most, number + _SIZES[code & _SIZE] + least)
    return most


def _packed(instructions: list[_Instruction]) -> bytes:
    return b"".join(_INSTRUCTION.pack(*each) for each in instructions)


def _on_untagged(instruction: _Instruction, cooked: int) -> Iterator[_Instruction]:
    """
    What an instruction becomes for packets without a tag.

    @param cooked: the size of the header that the filter doesn't see, in bytes.
    """
    code, _, _, number = instruction
    if _is_load_at(code, _ABS) and number in (_VLAN_TAG, _VLAN_TAG_PRESENT):
        yield _LD_IMM, 0, 0, 0
        return
    yield instruction
    if code == _LD_LEN and cooked:
        yield _SUB, 0, 0, cooked


def _on_tagged(instruction: _Instruction, offset: int, cooked: int) -> Iterator[_Instruction]:
    """What an instruction becomes for packets with a tag at this offset."""
    code, true, false, number = instruction
    if _is_load_at(code, _ABS) and number >= _ANCILLARY:
        if number == _VLAN_TAG_PRESENT:
            yield _LD_IMM, 0, 0, 1
        elif number == _VLAN_TAG:
            yield _LD_HALF_ABS, 0, 0, offset + 2
        else:
            yield instruction
    elif _is_load_at(code, _IND) and not offset <= number < _NEGATIVE:
        # Whether it is behind the tag shows when it runs. It loads into A, so that A can be used.
        yield _TXA, 0, 0, 0
        yield _Within(_IF_NOT_LESS, 0, 2, (offset - number) & _MASK)
        yield code, 0, 0, (number + _TAG_BYTES) & _MASK
        yield _Within(_GO_ON_AT, 0, 0, 1)
        yield instruction
    elif number >= offset and (_is_load_at(code, _ABS) or _is_load_at(code, _IND) or _is_header_length(code)):
        yield code, true, false, number + _TAG_BYTES
    else:
        yield instruction
        if code == _LD_LEN:
            yield _SUB, 0, 0, _TAG_BYTES + cooked


def _crosses(instruction: _Instruction, offset: int) -> bool:
    """Whether an instruction loads bytes before and behind this offset at once."""
    code, _, _, number = instruction
    return _is_load_at(code, _ABS) and number < offset < number + _SIZES[code & _SIZE]


def _is_load_at(code: int, mode: int) -> bool:
    return code & _CLASS == _LD and code & _MODE == mode


def _is_header_length(code: int) -> bool:
    """Whether it loads the length of an IP header from a byte of it."""
    return code & _CLASS == _LDX and code & _MODE == _MSH


def _laid_out(parts: list[list[_Instruction]], bpf: str) -> Iterator[_Instruction]:
    """The parts as one program: jumps lead to the part that they led to, wherever it begins now."""
    begins = [0]
    for part in parts:
        begins.append(begins[-1] + len(part))
    for index, part in enumerate(parts):
        for instruction in part:
            code, true, false, number = instruction
            if code & _CLASS != _JMP or isinstance(instruction, _Within):
                yield code, true, false, number
                continue
            # A jump is a part of its own. Its offsets count from the next instruction on.
            base = begins[index + 1]
            if code == _GO_ON_AT:
                if number >= _NEGATIVE:
                    raise FilterRejected(bpf, "can't be used for packets of the past: it has a loop")
                yield code, 0, 0, begins[index + 1 + number] - base
                continue
            true, false = begins[index + 1 + true] - base, begins[index + 1 + false] - base
            if max(true, false) > _LONGEST_JUMP:
                raise FilterRejected(bpf, "is too long for packets of the past")
            yield code, true, false, number
