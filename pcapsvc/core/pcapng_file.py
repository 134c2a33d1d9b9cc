"""
The blocks of a pcapng file (draft-ietf-opsawg-pcapng), in this machine's byte order.

The file has one section and one interface: a section header, an interface description, the packets, and the
statistics of the interface. Each block begins with its type and its length, and ends with its length again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from pcapsvc.core.recording import PacketCounts

# Section 4.1: the magic that tells the byte order, the version, and a length of the section that isn't given.
_SECTION_HEADER = struct.Struct("=IHHq")
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_UNKNOWN_LENGTH = -1
# Section 4.2: the link type, a reserved field, and the snap length.
_INTERFACE_DESCRIPTION = struct.Struct("=HHI")
# Section 4.6: the interface, and the two halves of a time stamp.
_INTERFACE_STATISTICS = struct.Struct("=III")
_BLOCK_START = struct.Struct("=II")
_BLOCK_END = struct.Struct("=I")
# Section 3.5: the code of an option, and the length of its value.
_OPTION = struct.Struct("=HH")
_HALVES = struct.Struct("=II")
_COUNT = struct.Struct("=Q")

_SECTION_HEADER_TYPE = 0x0A0D0D0A
_INTERFACE_DESCRIPTION_TYPE = 1
_INTERFACE_STATISTICS_TYPE = 5
#: The type of a block with one packet (section 4.3).
PACKET_TYPE = 6
#: What such a block has besides the packet, in bytes: type, length, interface, time stamp, the bytes that are
#: kept, the length on the wire, and the length again. The packet is padded to a multiple of L{ALIGNMENT}.
PACKET_BLOCK_BYTES = 32
ALIGNMENT = 4
#: The size of the length at the end of a block.
BLOCK_END_BYTES = _BLOCK_END.size

#: The largest length of an option's value, in bytes.
MOST_OPTION_BYTES = 65535

_END_OF_OPTIONS = _OPTION.pack(0, 0)
_COMMENT = 1
# Of a section header.
_HARDWARE, _OPERATING_SYSTEM, _APPLICATION = 2, 3, 4
# Of an interface description.
_NAME, _DESCRIPTION, _RESOLUTION, _FILTER = 2, 3, 9, 11
# The first byte of a filter: it is a string for libpcap.
_FILTER_STRING = b"\0"
# Of interface statistics.
_STARTED, _ENDED, _RECEIVED, _DROPPED = 2, 3, 4, 5
_ACCEPTED, _SYSTEM_DROPPED, _DELIVERED = 6, 7, 8

Option = tuple[int, bytes | None]


def section_header(*, hardware: str, operating_system: str, application: str, comment: str) -> bytes:
    """
    The first block.

    @param application: the program that wrote the file, and its version.
    """
    options = (
        (_COMMENT, text(comment)),
        (_HARDWARE, text(hardware)),
        (_OPERATING_SYSTEM, text(operating_system)),
        (_APPLICATION, text(application)),
    )
    body = _SECTION_HEADER.pack(_BYTE_ORDER_MAGIC, 1, 0, _UNKNOWN_LENGTH)
    return _block(_SECTION_HEADER_TYPE, body, options)


def interface_description(
    *,
    link_type: int,
    snap_length: int,
    name: str,
    description: str | None,
    bpf: str,
    digits: int,
    comment: str,
) -> bytes:
    """
    The description of the interface.

    @param link_type: as in a file (LINKTYPE_).
    @param snap_length: in bytes.
    @param description: another name of it; L{None} if there is none.
    @param bpf: the filter; empty if there is none.
    @param digits: how many decimal digits a time stamp has after the second.
    """
    options = (
        (_COMMENT, text(comment)),
        (_NAME, text(name)),
        (_DESCRIPTION, None if description is None else text(description)),
        (_RESOLUTION, bytes([digits])),
        (_FILTER, _FILTER_STRING + text(bpf, most=MOST_OPTION_BYTES - 1) if bpf else None),
    )
    body = _INTERFACE_DESCRIPTION.pack(link_type, 0, snap_length)
    return _block(_INTERFACE_DESCRIPTION_TYPE, body, options)


def interface_statistics(
    *,
    started: int,
    ended: int | None,
    counts: PacketCounts | None,
    packets: int,
    comment: str | None,
) -> bytes:
    """
    What was counted during the capture, as far as it is known.

    @param started: in units of the time stamps since the Unix epoch, as is C{ended}.
    @param packets: how many are in the file.
    """
    received = dropped = system_dropped = None
    if counts is not None:
        received, system_dropped = counts.received, counts.dropped
        dropped = system_dropped + (counts.interface_dropped or 0)
    options = (
        (_COMMENT, None if comment is None else text(comment)),
        (_STARTED, _time(started)),
        (_ENDED, None if ended is None else _time(ended)),
        # libpcap's "received", as Wireshark's own dumpcap has it: on Linux, what passes the filter.
        (_RECEIVED, _count(received)),
        # By the draft, what the interface dropped. But dumpcap has the kernel's drops here, and Wireshark's
        # window shows no others: with the interface's alone, it would say that nothing is missing.
        (_DROPPED, _count(dropped)),
        (_ACCEPTED, _count(received)),
        (_SYSTEM_DROPPED, _count(system_dropped)),
        (_DELIVERED, _count(packets)),
    )
    body = _INTERFACE_STATISTICS.pack(0, *_split(started if ended is None else ended))
    return _block(_INTERFACE_STATISTICS_TYPE, body, options)


def block_end(length: int) -> bytes:
    """The end of a block of this length, in bytes."""
    return _BLOCK_END.pack(length)


def text(words: str, *, most: int = MOST_OPTION_BYTES) -> bytes:
    """
    A text as the value of an option: in UTF-8, and no longer than an option may be.

    @param most: how many bytes there may be. What is more is cut off, in whole characters.
    """
    encoded = words.encode("utf-8", "replace")
    return encoded if len(encoded) <= most else encoded[:most].decode("utf-8", "ignore").encode()


def _time(ticks: int) -> bytes:
    return _HALVES.pack(*_split(ticks))


def _split(ticks: int) -> tuple[int, int]:
    """The upper half of a time stamp, which comes first in any byte order, and the lower."""
    return ticks >> 32 & 0xFFFFFFFF, ticks & 0xFFFFFFFF


def _count(number: int | None) -> bytes | None:
    return None if number is None else _COUNT.pack(number)


def _block(kind: int, body: bytes, options: Iterable[Option]) -> bytes:
    body += b"".join(_options(options))
    length = _BLOCK_START.size + len(body) + BLOCK_END_BYTES
    return _BLOCK_START.pack(kind, length) + body + block_end(length)


def _options(options: Iterable[Option]) -> Iterator[bytes]:
    for code, value in options:
        # An option that is not there has no empty value: it is left out.
        if value is not None:
            yield _OPTION.pack(code, len(value)) + value + bytes(-len(value) % ALIGNMENT)
    yield _END_OF_OPTIONS
