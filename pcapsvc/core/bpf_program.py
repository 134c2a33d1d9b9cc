"""Compiled filters of pcap-filter(7), put together."""

from __future__ import annotations

import struct
from collections.abc import Iterator

# struct sock_filter of linux/filter.h: what to do, where to go on if so and if not, and a number.
_INSTRUCTION = struct.Struct("=HBBI")
# linux/bpf_common.h
_GO_ON_AT = 0x05  # BPF_JMP | BPF_JA
_RETURN = 0x06  # BPF_RET | BPF_K


def without(left_out: bytes, program: bytes) -> bytes:
    """
    A filter that lets pass what C{program} does, but for what C{left_out} does.

    To put them together takes no time, while to compile filters takes the cube of their
    length. The one begins where the other ends, at any of its ends: neither knows what
    it finds in the registers, and all jumps are relative.

    @param left_out: as libpcap compiles it: all its ends are numbers.
    @param program: likewise; the result is both their lengths together.
    """
    return b"".join(_first(left_out)) + program


def _first(left_out: bytes) -> Iterator[bytes]:
    rest = len(left_out) // _INSTRUCTION.size
    for code, so, not_so, number in _INSTRUCTION.iter_unpack(left_out):
        rest -= 1
        if code != _RETURN:
            yield _INSTRUCTION.pack(code, so, not_so, number)
        elif number:
            yield _INSTRUCTION.pack(_RETURN, 0, 0, 0)
        else:
            yield _INSTRUCTION.pack(_GO_ON_AT, 0, 0, rest)
