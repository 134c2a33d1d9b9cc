"""
From the packets of a pcap file to blocks of a pcapng file, with little Python for each packet.

A block has what a packet's record has, in the same order, but for the time stamp; there is more in front of
it, and padding and a length behind it. So packets are not copied in Python. Once their sizes are known,
preadv(2) reads up to L{GROUP} of them to their places in finished blocks, and their headers to an array. What
is between two packets, the end of a block and the beginning of the next one, is a I{preamble}. All preambles
are made at once, and another preadv puts them in their places, from a file in memory.

What they need is calculated for all packets in one large integer, which has 32 or 64 bits for each packet (a
I{lane}), and put in its places by a slice of an array. Lanes that no packet needs have what was there before.
What is left to do for each packet is to find out its size, once.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from mmap import mmap
from typing import Final

from pcapsvc.core.pcap_file import PACKET_HEADER_BYTES
from pcapsvc.core.pcapng_file import ALIGNMENT, PACKET_BLOCK_BYTES, PACKET_TYPE, block_end
from pcapsvc.memory_file import MemoryFile
from pcapsvc.positioned_reader import PositionedReader, scatter

#: How many packets are read at once: preadv(2) has up to 1024 places (IOV_MAX), two for each packet.
GROUP = 512
#: How much is made at once, in bytes: room for the largest packet, and for L{GROUP} of 1,514 bytes.
PIECE_BYTES = 1 << 20
# How much is read at once to find sizes, in bytes: more than the largest packet, and so little that the
# processor's cache has it.
_READ_BYTES = 512 << 10

_KEPT = struct.Struct("=8xI")
# By the lowest byte of a packet's size.
_PADDINGS = bytes(-size % ALIGNMENT for size in range(256))

# A preamble, in words of four bytes: the length of the block before; then type, length, interface, the halves
# of the time stamp, the bytes that are kept, and the length on the wire.
_LENGTH_BEFORE, _TYPE, _LENGTH, _INTERFACE, _HIGH, _LOW, _KEPT_BYTES, _WIRE_BYTES, _WORDS = range(9)
_PREAMBLE_BYTES = 4 * _WORDS
# The header of a record: the seconds and the rest of its time stamp, and the last two as above.
_SECONDS, _FRACTION, _RECORD_KEPT_BYTES, _RECORD_WIRE_BYTES, _RECORD_WORDS = range(5)

_WORD: Final = "I"
# A place to read to is a struct iovec, of two unsigned longs: an address and a size.
_POINTER: Final = "L"
_PLACE = 2
# Which half of a lane of 64 bits has its lower bits, and which byte of a word has its lowest.
_LOWER, _UPPER, _LOWEST = (0, 1, 0) if sys.byteorder == "little" else (1, 0, 3)


def packet_sizes(reader: PositionedReader, start: int) -> Iterator[tuple[array[int], int]]:
    """
    The sizes of packets, in bytes: of all that are read at once; and where the last of these ends.

    @param reader: of the recording. Its position is set before each read.
    @param start: where the first packet begins.

    @raise OSError: if they can't be read.
    @raise ValueError: if the last packet is not whole.
    """
    memory, unpack = memoryview(mmap(-1, _READ_BYTES)), _KEPT.unpack_from
    reader.seek(start)
    while count := reader.readinto(memory):
        records, at, sizes = memory[:count], 0, array(_WORD)
        add = sizes.append
        try:
            while True:
                (kept,) = unpack(records, at)
                at += PACKET_HEADER_BYTES + kept
                add(kept)
        except struct.error:
            pass  # The next header is not complete.
        if at > count:
            at -= PACKET_HEADER_BYTES + sizes.pop()
        if not sizes:
            raise ValueError("the recording ends within a packet")
        start += at
        yield sizes, start
        reader.seek(start)


def added_bytes(sizes: array[int]) -> int:
    """By how much the blocks of packets with these sizes are larger than their records, in bytes."""
    paddings = sizes.tobytes()[_LOWEST :: sizes.itemsize].translate(_PADDINGS)
    padding = sum(size * paddings.count(size) for size in range(1, ALIGNMENT))
    return padding + (PACKET_BLOCK_BYTES - PACKET_HEADER_BYTES) * len(sizes)


class PacketBlocks:
    """
    Makes blocks of packets.

    @param reader: of the recording. Its position is not used.
    @param start: where the first packet begins.
    @param ticks_per_second: of the time stamps.
    @param length_before: the length of the block before the first packet, whose own end has not been written.
    @ivar at: where in the recording the packets end that were read.
    """

    def __init__(
        self, reader: PositionedReader, start: int, *, ticks_per_second: int, length_before: int
    ) -> None:
        self._reader = reader
        self.at = start
        self._ticks_per_second = ticks_per_second
        self._length_before = length_before
        self._scratch = MemoryFile("pcapsvc-preambles")
        memory = mmap(-1, PIECE_BYTES)
        self._blocks = memoryview(memory)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._sizes = array(_WORD, bytes(4 * GROUP))
        self._lanes = array(_WORD, bytes(8 * GROUP))
        self._headers = array(_WORD, bytes(4 * GROUP * _RECORD_WORDS))
        self._preambles = array(_WORD, bytes(4 * GROUP * _WORDS))
        self._preambles[_TYPE::_WORDS] = array(_WORD, [PACKET_TYPE]) * GROUP
        headers, _ = self._headers.buffer_info()
        self._record_places = array(_POINTER, [0, PACKET_HEADER_BYTES, 0, 0]) * GROUP
        self._record_places[:: 2 * _PLACE] = array(
            _POINTER, range(headers, headers + PACKET_HEADER_BYTES * GROUP, PACKET_HEADER_BYTES)
        )
        self._preamble_places = array(_POINTER, [0, _PREAMBLE_BYTES]) * GROUP
        each_word, each = _joined(array(_WORD, [1]) * GROUP), _joined(array("Q", [1]) * GROUP)
        # For the size of a block, which is a multiple of ALIGNMENT.
        self._block_and_padding_bytes = each_word * (PACKET_BLOCK_BYTES + ALIGNMENT - 1)
        self._aligned = each_word * (0x1_0000_0000 - ALIGNMENT)
        self._preamble_addresses = each * self._address
        self._preamble_bytes = each * _PREAMBLE_BYTES

    def make(self, sizes: array[int]) -> Iterator[memoryview]:
        """
        The blocks of the next packets, without the end of the last one: a piece at a time, in memory that the
        next piece is made in.

        @param sizes: of the packets, in bytes.

        @raise OSError: if they can't be read, or if there is no memory.
        """
        at = 0
        while at < len(sizes):
            count, piece = self._make(sizes[at : at + GROUP])
            at += count
            yield piece

    def end(self) -> bytes:
        """The end of the last block."""
        return block_end(self._length_before)

    def close(self) -> None:
        """Free the memory."""
        self._scratch.close()

    def _make(self, sizes: array[int]) -> tuple[int, memoryview]:
        """
        Make as much as there is room for.

        @return: the number of packets, and their blocks.
        """
        self._sizes[: len(sizes)] = sizes
        lengths = _words(_joined(self._sizes) + self._block_and_padding_bytes & self._aligned, 4)
        starts = array("Q", accumulate(lengths, initial=0))
        count = min(len(sizes), bisect_right(starts, PIECE_BYTES) - 1)
        blocks = self._blocks[: starts[count]]
        addresses = _joined(starts[:GROUP]) + self._preamble_addresses
        # What is not overwritten is padding.
        ctypes.memset(self._address, 0, len(blocks))
        self._read_packets(count, addresses + self._preamble_bytes)
        self._put_preambles(count, addresses, lengths)
        return count, blocks

    def _read_packets(self, count: int, addresses: int) -> None:
        places = self._record_places
        places[_PLACE :: 2 * _PLACE] = _pointers(addresses)
        places[_PLACE + 1 :: 2 * _PLACE] = _pointers(self._wide(self._sizes))
        self.at += self._reader.scatter(places, 2 * count, self.at)

    def _put_preambles(self, count: int, addresses: int, lengths: array[int]) -> None:
        headers, preambles = self._headers, self._preambles
        seconds, fractions = (self._wide(headers[at::_RECORD_WORDS]) for at in (_SECONDS, _FRACTION))
        halves = _words(seconds * self._ticks_per_second + fractions, 8)
        preambles[_LENGTH_BEFORE] = self._length_before
        preambles[_WORDS + _LENGTH_BEFORE :: _WORDS] = lengths[:-1]
        preambles[_LENGTH::_WORDS] = lengths
        preambles[_HIGH::_WORDS], preambles[_LOW::_WORDS] = halves[_UPPER::2], halves[_LOWER::2]
        preambles[_KEPT_BYTES::_WORDS] = headers[_RECORD_KEPT_BYTES::_RECORD_WORDS]
        preambles[_WIRE_BYTES::_WORDS] = headers[_RECORD_WIRE_BYTES::_RECORD_WORDS]
        self._length_before = lengths[count - 1]
        self._scratch.write_at(0, preambles.tobytes())
        places = self._preamble_places
        places[::_PLACE] = _pointers(addresses)
        scatter(self._scratch.descriptor, places, count, 0)

    def _wide(self, words: array[int]) -> int:
        """Lanes of 64 bits with numbers of 32."""
        self._lanes[_LOWER::2] = words
        return _joined(self._lanes)


def _joined(numbers: array[int]) -> int:
    """A lane for each number, as wide as it is."""
    return int.from_bytes(numbers, sys.byteorder)


def _words(lanes: int, size: int) -> array[int]:
    """Lanes of C{size} bytes each, in words."""
    return array(_WORD, lanes.to_bytes(size * GROUP, sys.byteorder))


def _pointers(lanes: int) -> array[int]:
    """Lanes of 64 bits, as pointers."""
    return array(_POINTER, lanes.to_bytes(8 * GROUP, sys.byteorder))
