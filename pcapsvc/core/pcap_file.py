"""The format of a pcap file (draft-ietf-opsawg-pcap), as libpcap writes it on this machine."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from pcapsvc.core.link_type import file_link_type

# Section 4: the magic number, the version, two fields that are always 0, the snap length and the link type.
_FILE_HEADER = struct.Struct("=IHHiIII")
# The rest of the field is about the frame check sequence.
_LINK_TYPE = 0xFFFF
# Section 5: the seconds of the time stamp, its ticks, the bytes that are kept, and the length on the wire.
_PACKET_HEADER = struct.Struct("=IIII")
_KEPT = struct.Struct("=8xI")

#: The magic numbers of files whose time stamps are in microseconds, and in nanoseconds.
MICROSECONDS, NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D
_DIGITS = {MICROSECONDS: 6, NANOSECONDS: 9}
#: How many ticks a second has: the unit of what a time stamp has besides its seconds.
MICROSECOND_TICKS, NANOSECOND_TICKS = 10**6, 10**9
_MAGICS = {10**digits: magic for magic, digits in _DIGITS.items()}

#: The header of a file, in bytes.
FILE_HEADER_BYTES = _FILE_HEADER.size
#: The header of each packet in it, in bytes.
PACKET_HEADER_BYTES = _PACKET_HEADER.size
#: The largest snap length, in bytes: libpcap's own (C{MAXIMUM_SNAPLEN}).
LARGEST_SNAP_BYTES = 262144


class FileHeader(msgspec.Struct, frozen=True, kw_only=True):
    """
    The header of a file.

    @ivar digits: how many decimal digits its time stamps have after the second.
    @ivar snap_length: in bytes.
    @ivar link_type: as in a file (LINKTYPE_).
    """

    digits: int
    snap_length: int
    link_type: int


def read_file_header(data: bytes) -> FileHeader:
    """
    Read the header of a file that was written on this machine.

    @raise ValueError: if it isn't one.
    """
    if len(data) != FILE_HEADER_BYTES:
        raise ValueError("the file ends within its header")
    magic, _, _, _, _, snap_length, link_type = _FILE_HEADER.unpack(data)
    if magic not in _DIGITS:
        raise ValueError("it is not a pcap file")
    return FileHeader(digits=_DIGITS[magic], snap_length=snap_length, link_type=link_type & _LINK_TYPE)


def file_header(link_type: int, snap_length: int, *, ticks_per_second: int = MICROSECOND_TICKS) -> bytes:
    """
    The header of a file.

    @param link_type: as libpcap numbers it.
    @param snap_length: in bytes.
    @param ticks_per_second: of its time stamps.
    """
    return _FILE_HEADER.pack(_MAGICS[ticks_per_second], 2, 4, 0, 0, snap_length, file_link_type(link_type))


def record_offsets(records: memoryview) -> Iterator[int]:
    """Where each packet begins in a part of a file, in bytes."""
    at, end, unpack = 0, len(records), _KEPT.unpack_from
    while at < end:
        yield at
        at += PACKET_HEADER_BYTES + unpack(records, at)[0]


def count_packets(records: memoryview) -> int:
    """How many packets there are in a part of a file."""
    packets, at, end, unpack = 0, 0, len(records), _KEPT.unpack_from
    # As above, but for hundreds of thousands, in a thread that has Python's lock.
    while at < end:
        at += PACKET_HEADER_BYTES + unpack(records, at)[0]
        packets += 1
    return packets


def packet_header(records: memoryview, at: int) -> tuple[int, int, int, int]:
    """
    The header of the packet at this offset: the seconds and the ticks of its time stamp, and how many bytes
    are kept of how many.
    """
    seconds, ticks, kept, length = _PACKET_HEADER.unpack_from(records, at)
    return seconds, ticks, kept, length


def time_stamp(records: memoryview, at: int, *, ticks_per_second: int) -> float:
    """When the packet at this offset arrived, in seconds since the Unix epoch."""
    seconds, ticks, _, _ = packet_header(records, at)
    return seconds + ticks / ticks_per_second


def each_packet(records: memoryview) -> Iterator[tuple[bytes, int]]:
    """Each packet in a part of a file: what is kept of it, and its length on the wire, in bytes."""
    for at in record_offsets(records):
        _, _, kept, length = packet_header(records, at)
        start = at + PACKET_HEADER_BYTES
        yield bytes(records[start : start + kept]), length
