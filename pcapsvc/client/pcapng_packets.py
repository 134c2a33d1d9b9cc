"""
The packets of a pcapng file (draft-ietf-opsawg-pcapng) with one section and one interface, as nodes write it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from pcapsvc.client.status import ClientError
from pcapsvc.core.pcap_file import LARGEST_SNAP_BYTES
from pcapsvc.core.pcapng_file import PACKET_TYPE

#: The first bytes of such a file, in either byte order: the type of a section header.
MAGIC = b"\x0a\x0d\x0d\x0a"

# Section 4.1.
_BYTE_ORDER = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}
_SECTION_TYPE, _INTERFACE_TYPE = 0x0A0D0D0A, 1
# Section 3.1: what a block has besides its body, and how long it is at most: a packet with 64 KiB of options.
_FRAME_BYTES = 12
_MOST_BLOCK_BYTES = LARGEST_SNAP_BYTES + 128 * 1024
# Section 4.2: the option that says how many decimal digits a time stamp has after the second; 6 without it.
_RESOLUTION, _USUAL_DIGITS, _MOST_DIGITS = 9, 6, 9
_PACKET = "IIIII"


class PcapngPackets(msgspec.Struct, frozen=True, kw_only=True):
    """
    A file, behind the description of its interface.

    @ivar order: the byte order, as in L{struct}.
    @ivar ticks: how many nanoseconds a time stamp counts.
    @ivar snap_length: in bytes.
    @ivar link: the link type.
    """

    name: str
    file: BinaryIO
    order: str
    ticks: int
    snap_length: int
    link: int

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """The time stamp in nanoseconds, the original length and the data of each packet."""
        layout = struct.Struct(self.order + _PACKET)
        for kind, body in _blocks(self.name, self.file, self.order):
            if kind in (_SECTION_TYPE, _INTERFACE_TYPE):
                raise ClientError(f"{self.name} has more than one interface")
            if kind == PACKET_TYPE:
                if len(body) < layout.size:
                    raise _broken(self.name)
                _, high, low, kept, length = layout.unpack_from(body)
                data = body[layout.size : layout.size + kept]
                if len(data) < kept:
                    raise _broken(self.name)
                yield (high << 32 | low) * self.ticks, length, data


def open_pcapng(name: str, file: BinaryIO, start: bytes) -> PcapngPackets:
    """
    Open a file.

    @param start: its first bytes, which were read already: a section header has more.

    @raise ClientError: if it is broken.
    """
    order = _BYTE_ORDER.get(start[8:12])
    if order is None:
        raise _broken(name)
    [size] = struct.unpack(f"{order}I", start[4:8])
    rest = size - len(start)
    if not 0 <= rest <= _MOST_BLOCK_BYTES or len(file.read(rest)) < rest:
        raise _broken(name)
    for kind, body in _blocks(name, file, order):
        if kind == _INTERFACE_TYPE and len(body) >= 8:
            link, snap_length = struct.unpack_from(f"{order}HxxI", body)
            digits = _digits(body[8:], order)
            if digits > _MOST_DIGITS:
                break
            return PcapngPackets(
                name=name,
                file=file,
                order=order,
                ticks=10 ** (_MOST_DIGITS - digits),
                snap_length=snap_length,
                link=link,
            )
    raise _broken(name)


def _digits(options: bytes, order: str) -> int:
    """How many digits time stamps have after the second. Powers of two, which nobody writes, are too many."""
    at = 0
    while at + 4 <= len(options):
        code, size = struct.unpack_from(f"{order}HH", options, at)
        if code == _RESOLUTION and size == 1 and at + 4 < len(options):
            return options[at + 4]
        if code == 0:
            break
        at += 4 + size + -size % 4
    return _USUAL_DIGITS


def _blocks(name: str, file: BinaryIO, order: str) -> Iterator[tuple[int, bytes]]:
    """The type and the body of each block."""
    layout = struct.Struct(f"{order}II")
    while start := file.read(layout.size):
        if len(start) < layout.size:
            raise _broken(name)
        kind, size = layout.unpack(start)
        rest = size - layout.size
        if not _FRAME_BYTES <= size <= _MOST_BLOCK_BYTES or len(body := file.read(rest)) < rest:
            raise _broken(name)
        yield kind, body[:-4]


def _broken(name: str) -> ClientError:
    return ClientError(f"{name} is broken: it is not a whole pcapng file")
