"""
Filters for packets that were recorded, which match what they would have matched on the wire.

The kernel takes the VLAN tag out of a packet before a filter sees it, and libpcap puts it back into what is
recorded. So a filter of a live handle doesn't fit: behind the tag, each byte is 4 bytes further on. It is
rewritten for packets that have a tag, and a look at the packet decides which of the two programs runs.

A tag that the kernel has not taken out, since this host sent the packet as it is, can't be told from others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

from pcapsvc.core.filter import FilterRejected, Program

# struct sock_filter of linux/filter.h: code, jump if true, jump if false, and a constant.
_Instruction = tuple[int, int, int, int]
_INSTRUCTION = struct.Struct("=HBBI")

# linux/bpf_common.h
_CLASS, _MODE = 0x07, 0xE0
_LD, _LDX, _JMP = 0x00, 0x01, 0x05
_ABS, _IND, _MSH = 0x20, 0x40, 0xA0
_LD_HALF_ABS = 0x28
_LD_IMM = 0x00
_LD_LEN = 0x80
_SUB = 0x14
_GO_ON_AT, _IF_EQUAL = 0x05, 0x15

# linux/filter.h: loads from here on are not of the packet's bytes (SKF_AD_OFF), but of what the kernel knows.
_ANCILLARY = 0xFFFFF000
_VLAN_TAG = _ANCILLARY + 44
_VLAN_TAG_PRESENT = _ANCILLARY + 48

# Where libpcap puts the tag back, by link type (pcap-linux.c): into Ethernet and into LINUX_SLL headers.
_TAG_OFFSETS = {1: 12, 113: 14}
_TAG_BYTES = 4
# What the kernel takes out: 802.1Q and 802.1ad (linux/if_ether.h).
_TAG_TYPES = (0x8100, 0x88A8)
_LONGEST_JUMP = 255


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
    plain = list(_INSTRUCTION.iter_unpack(program.instructions))
    untagged = list(_laid_out([_on_untagged(each) for each in plain], program.bpf))
    offset = _TAG_OFFSETS.get(link_type)
    if offset is None:
        return replace(program, instructions=_packed(untagged))
    tagged = list(_laid_out([list(_on_tagged(each, offset)) for each in plain], program.bpf))
    choice: list[_Instruction] = [
        (_LD_HALF_ABS, 0, 0, offset),
        (_IF_EQUAL, 1, 0, _TAG_TYPES[0]),
        (_IF_EQUAL, 0, 1, _TAG_TYPES[1]),
        (_GO_ON_AT, 0, 0, len(untagged)),
    ]
    return replace(program, instructions=_packed([*choice, *untagged, *tagged]))


def _packed(instructions: list[_Instruction]) -> bytes:
    return b"".join(_INSTRUCTION.pack(*each) for each in instructions)


def _on_untagged(instruction: _Instruction) -> list[_Instruction]:
    code, _, _, number = instruction
    if _is_load_at(code, _ABS) and number in (_VLAN_TAG, _VLAN_TAG_PRESENT):
        return [(_LD_IMM, 0, 0, 0)]
    return [instruction]


def _on_tagged(instruction: _Instruction, offset: int) -> Iterator[_Instruction]:
    """What an instruction becomes for packets with a tag at this offset."""
    code, true, false, number = instruction
    if _is_load_at(code, _ABS) and number >= _ANCILLARY:
        if number == _VLAN_TAG_PRESENT:
            yield _LD_IMM, 0, 0, 1
        elif number == _VLAN_TAG:
            yield _LD_HALF_ABS, 0, 0, offset + 2
        else:
            yield instruction
    elif number >= offset and (_is_load_at(code, _ABS) or _is_load_at(code, _IND) or _is_header_length(code)):
        yield code, true, false, number + _TAG_BYTES
    else:
        yield instruction
        if code == _LD_LEN:
            yield _SUB, 0, 0, _TAG_BYTES


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
        for code, true, false, number in part:
            if code & _CLASS != _JMP:
                yield code, true, false, number
                continue
            # A jump is a part of its own. Its offsets count from the next instruction on.
            base = begins[index + 1]
            if code == _GO_ON_AT:
                yield code, 0, 0, begins[index + 1 + number] - base
                continue
            true, false = begins[index + 1 + true] - base, begins[index + 1 + false] - base
            if max(true, false) > _LONGEST_JUMP:
                raise FilterRejected(bpf, "is too long for packets of the past")
            yield code, true, false, number
