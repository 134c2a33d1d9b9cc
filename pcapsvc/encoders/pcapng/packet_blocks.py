"""
From the packets of a pcap file to blocks of a pcapng file, with little Python for each packet.

A block has what a packet's record has, in the same order: the bytes that are kept, the length on the wire,
and the packet. Only what is in front of that differs, and there is padding and a length behind it. So packets
are not copied in Python: writev(2) puts together the I{preamble} of each and the rest of its record. The
preamble begins with the end of the block before it. So there are two pieces for each packet, and not three.

The preambles of L{GROUP} packets are made at once. What they need is calculated for all of them in one large
integer, which has 64 bits for each packet (a I{lane}), and put in its places by a slice of an array. What is
left to do for each packet is to find the next one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from mmap import mmap
from typing import Final

from pcapsvc.core.pcap_file import PACKET_HEADER_BYTES
from pcapsvc.core.pcapng_file import ALIGNMENT, PACKET_BLOCK_BYTES, PACKET_TYPE, block_end

#: How many packets are written at once: writev(2) takes up to 1024 pieces (IOV_MAX).
GROUP = 512

# Of a packet's record: the seconds and the rest of its time stamp, and the bytes that are kept.
_START = struct.Struct("=III")
_KEPT = struct.Struct("=8xI")
# For the size of a block, which is a multiple of L{ALIGNMENT}.
_BLOCK_AND_PADDING_BYTES, _ALIGNED = PACKET_BLOCK_BYTES + ALIGNMENT - 1, -ALIGNMENT
# What a record has in front of what it shares with a block, in bytes.
_NOT_SHARED_BYTES = 8
_SHARED_HEADER_BYTES = PACKET_HEADER_BYTES - _NOT_SHARED_BYTES

# A preamble, in words of four bytes: padding of the block before, of which the last bytes are used, and its
# length; then type, length, interface, and the halves of the time stamp.
_PADDING, _LENGTH_BEFORE, _TYPE, _LENGTH, _INTERFACE, _HIGH, _LOW, _WORDS = range(8)
_PREAMBLE_BYTES = 4 * (_WORDS - _LENGTH_BEFORE)

# Which half of a lane has its lower bits.
_LOWER, _UPPER = (0, 1) if sys.byteorder == "little" else (1, 0)
_LANE_BYTES = 8
_LANES_BYTES = GROUP * _LANE_BYTES
# A piece is a struct iovec: an address and a size. An unsigned long is as wide as a pointer.
_PIECES, _POINTERS = 2, 4
_POINTER: Final = "L"
_IS_LANE = array(_POINTER).itemsize == _LANE_BYTES

_writev = ctypes.CDLL(None, use_errno=True).writev
_writev.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_writev.restype = ctypes.c_ssize_t


@dataclass(frozen=True, kw_only=True)
class Found:
    """
    Packets in memory, up to L{GROUP}.

    @ivar starts: where each begins.
    @ivar headers: the beginning of each one's header: the seconds and the rest of its time stamp, and how
        many bytes are kept.
    @ivar end: where the last one ends.
    """

    starts: list[int]
    headers: list[tuple[int, int, int]]
    end: int


def find_packets(records: memoryview, start: int) -> Found:
    """
    Find the next packets.

    @param records: what has been read. Its last packet may be incomplete, and is left out then.
    @param start: where the first packet begins.
    """
    starts: list[int] = []
    headers: list[tuple[int, int, int]] = []
    add_start, add_header, unpack, at = starts.append, headers.append, _START.unpack_from, start
    try:
        for _ in repeat(None, GROUP):
            header = unpack(records, at)
            add_header(header)
            add_start(at)
            at += PACKET_HEADER_BYTES + header[2]
    except struct.error:
        pass  # The next header is not complete.
    if at > len(records):
        headers.pop()
        at = starts.pop()
    return Found(starts=starts, headers=headers, end=at)


def measure_packets(records: memoryview) -> tuple[int, int]:
    """
    How large packets become.

    @param records: as in L{find_packets}.

    @return: where the last packet ends that is complete; and the size of the blocks, in bytes.
    """
    at = size = kept = 0
    unpack = _KEPT.unpack_from
    try:
        while True:
            (kept,) = unpack(records, at)
            at += PACKET_HEADER_BYTES + kept
            size += _BLOCK_AND_PADDING_BYTES + kept & _ALIGNED
    except struct.error:
        pass  # The next header is not complete.
    if at > len(records):
        at -= PACKET_HEADER_BYTES + kept
        size -= _BLOCK_AND_PADDING_BYTES + kept & _ALIGNED
    return at, size


class PacketBlocks:
    """
    Writes packets as blocks.

    @param records: the memory in which they are.
    @param ticks_per_second: of the time stamps.
    @param length_before: the length of the block before the first packet, whose own end has not been written.
    """

    def __init__(self, records: mmap, *, ticks_per_second: int, length_before: int) -> None:
        # Held as long as its address is used.
        self._memory = ctypes.c_char.from_buffer(records)
        self._ticks_per_second = ticks_per_second
        self._length_before = length_before
        self._padding_before = 0
        self._lanes = array("I", bytes(_LANES_BYTES))
        each = _joined([1] * GROUP)
        self._each = each
        self._round_up = each * (ALIGNMENT - 1)
        self._whole = each * (0xFFFFFFFF - (ALIGNMENT - 1))
        self._block_bytes = each * PACKET_BLOCK_BYTES
        self._preamble_bytes = each * _PREAMBLE_BYTES
        self._shared_header_bytes = each * _SHARED_HEADER_BYTES
        self._shared_address = each * (ctypes.addressof(self._memory) + _NOT_SHARED_BYTES)
        self._preambles = array("I", bytes(4 * _WORDS * GROUP))
        self._preambles[_TYPE::_WORDS] = array("I", [PACKET_TYPE]) * GROUP
        first, words = self._preambles.buffer_info()
        # Without padding, which is in front of that.
        self._preamble_addresses = _joined(range(first + 4 * _LENGTH_BEFORE, first + 4 * words, 4 * _WORDS))
        self._pieces = array(_POINTER, [0]) * (_POINTERS * GROUP)
        self._count = self._size = 0

    def prepare(self, found: Found) -> int:
        """
        Prepare to write packets. There has to be one, at least.

        @return: how many bytes will be written.
        """
        count = len(found.starts)
        seconds, fractions, kept = zip(*found.headers, strict=True)
        ticks = self._lane_each(seconds) * self._ticks_per_second + self._lane_each(fractions)
        kept_bytes = self._lane_each(kept)
        padded = (kept_bytes + self._round_up) & self._whole
        halves = array("I", _bytes(ticks))
        lengths = array("I", _bytes(padded + self._block_bytes))[_LOWER::2]
        paddings = array("Q", _bytes(padded - kept_bytes))
        preambles = self._preambles
        preambles[_HIGH::_WORDS], preambles[_LOW::_WORDS] = halves[_UPPER::2], halves[_LOWER::2]
        preambles[_LENGTH::_WORDS] = lengths
        # The end of each block is in front of the next one.
        preambles[_LENGTH_BEFORE] = self._length_before
        preambles[_WORDS + _LENGTH_BEFORE :: _WORDS] = lengths[:-1]
        before = _joined(array("Q", [self._padding_before]) + paddings[:-1])
        self._length_before, self._padding_before = lengths[count - 1], paddings[count - 1]
        pieces = self._pieces
        pieces[0::_POINTERS] = _pointers(self._preamble_addresses - before)
        pieces[1::_POINTERS] = _pointers(self._preamble_bytes + before)
        starts = _joined(array("Q", found.starts) + array("Q", bytes(_LANE_BYTES * (GROUP - count))))
        pieces[2::_POINTERS] = _pointers(self._shared_address + starts)
        pieces[3::_POINTERS] = _pointers(self._shared_header_bytes + kept_bytes)
        self._count = count
        self._size = found.end - found.starts[0] + count * (PACKET_BLOCK_BYTES - PACKET_HEADER_BYTES)
        self._size += self._sum_of_paddings(before, count)
        return self._size

    def write(self, descriptor: int) -> None:
        """
        Write what was prepared at the offset of a descriptor: all but the end of the last packet's block.

        @raise OSError: if not all of it could be written.
        """
        address, _ = self._pieces.buffer_info()
        written = _writev(descriptor, address, _PIECES * self._count)
        if written != self._size:
            code = ctypes.get_errno() if written < 0 else errno.ENOSPC
            raise OSError(code, os.strerror(code))

    def end(self) -> bytes:
        """The end of the last block."""
        return bytes(self._padding_before) + block_end(self._length_before)

    def _lane_each(self, numbers: Sequence[int]) -> int:
        """A lane for each of these numbers of 32 bits. Lanes without a number are 0."""
        column = array("I", numbers)
        self._lanes[_LOWER::2] = column if len(column) == GROUP else column + _NOTHING[len(column) :]
        return int.from_bytes(self._lanes, sys.byteorder)

    def _sum_of_paddings(self, paddings: int, count: int) -> int:
        """The sum of the first lanes, each of which is less than L{ALIGNMENT}."""
        if count < GROUP:
            return sum(array("Q", _bytes(paddings))[:count])
        return (paddings & self._each).bit_count() + 2 * (paddings & 2 * self._each).bit_count()


_NOTHING = array("I", bytes(4 * GROUP))


def _joined(numbers: Iterable[int]) -> int:
    """A lane for each of L{GROUP} numbers of 64 bits."""
    return int.from_bytes(array("Q", numbers), sys.byteorder)


def _bytes(lanes: int) -> bytes:
    return lanes.to_bytes(_LANES_BYTES, sys.byteorder)


def _pointers(lanes: int) -> array[int]:
    data = _bytes(lanes)
    return array(_POINTER, data if _IS_LANE else array("Q", data))
