"""
Merges pcap and pcapng files into one pcap file, in the order of their time stamps.

The format of pcap files is that of draft-ietf-opsawg-pcap: a header of 24 bytes, and 16 bytes before each
packet, in either byte order, with time stamps in microseconds or nanoseconds.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import msgspec

from pcapsvc.client.pcapng_packets import MAGIC, PcapngPackets, open_pcapng
from pcapsvc.client.status import ClientError
from pcapsvc.core.pcap_file import (
    FILE_HEADER_BYTES,
    LARGEST_SNAP_BYTES,
    MICROSECONDS,
    NANOSECONDS,
    PACKET_HEADER_BYTES,
)

# The rest of the field is about the frame check sequence.
_LINK_TYPE = 0xFFFF
# Of time stamps: the field has 32 bits.
_LAST_SECOND = 2**32 - 1


class _Input(msgspec.Struct, frozen=True, kw_only=True):
    """
    A file, behind its header.

    @ivar order: the byte order, as in L{struct}.
    @ivar scale: how many nanoseconds the fraction of a second counts.
    @ivar link: the link type, with what the field says about the frame check sequence.
    @ivar pcapng: reads its packets, if it is a pcapng file.
    """

    name: str
    file: BinaryIO
    order: str
    scale: int
    snap_length: int
    link: int
    pcapng: PcapngPackets | None = None

    def records(self, number: int) -> Iterator[tuple[int, int, int, bytes]]:
        """The time stamp in nanoseconds, C{number}, the original length and the data of each packet."""
        if self.pcapng is not None:
            for stamp, length, data in self.pcapng:
                yield stamp, number, length, data
            return
        layout = struct.Struct(f"{self.order}IIII")
        while header := self.file.read(PACKET_HEADER_BYTES):
            if len(header) < PACKET_HEADER_BYTES:
                raise ClientError(f"{self.name} ends within a packet")
            seconds, fraction, kept, length = layout.unpack(header)
            if kept > LARGEST_SNAP_BYTES:
                raise ClientError(f"{self.name} is broken: it has a packet of {kept} bytes")
            data = self.file.read(kept)
            if len(data) < kept:
                raise ClientError(f"{self.name} ends within a packet")
            yield seconds * 1_000_000_000 + fraction * self.scale, number, length, data


def merge(inputs: Sequence[tuple[str, BinaryIO]], output: BinaryIO) -> int:
    """
    Merge files. One packet of each is in memory at a time.

    @param inputs: their names, and the files, opened.

    @return: how many packets there are.

    @raise ClientError: if a file is broken, or their link types differ: a pcap file has only one.
    """
    files = [_open(name, file) for name, file in inputs]
    if not files:
        raise ClientError("there is nothing to merge")
    first = files[0]
    for other in files:
        if other.link & _LINK_TYPE != first.link & _LINK_TYPE:
            raise ClientError(
                f"can't be merged: the link type of {first.name} is {first.link & _LINK_TYPE}, and that of"
                f" {other.name} is {other.link & _LINK_TYPE}; a pcap file has only one"
            )
    scale = min(file.scale for file in files)
    magic = NANOSECONDS if scale == 1 else MICROSECONDS
    longest = max(file.snap_length for file in files)
    output.write(struct.pack("<IHHiIII", magic, 2, 4, 0, 0, longest, first.link))
    layout, packets = struct.Struct("<IIII"), 0
    streams = [file.records(number) for number, file in enumerate(files)]
    for stamp, number, length, data in heapq.merge(*streams, key=lambda record: record[:2]):
        seconds, rest = divmod(stamp, 1_000_000_000)
        if seconds > _LAST_SECOND:
            raise ClientError(f"{files[number].name} is broken: it has a packet from after the year 2105")
        output.write(layout.pack(seconds, rest // scale, len(data), length))
        output.write(data)
        packets += 1
    return packets


def _open(name: str, file: BinaryIO) -> _Input:
    header = file.read(FILE_HEADER_BYTES)
    if header.startswith(MAGIC):
        pcapng = open_pcapng(name, file, header)
        return _Input(
            name=name,
            file=file,
            order=pcapng.order,
            scale=1000 if pcapng.ticks >= 1000 else 1,
            snap_length=pcapng.snap_length,
            link=pcapng.link,
            pcapng=pcapng,
        )
    for order in "<>":
        if len(header) == FILE_HEADER_BYTES:
            magic, _, _, _, _, snap_length, link = struct.unpack(f"{order}IHHiIII", header)
            if magic in (MICROSECONDS, NANOSECONDS):
                scale = 1 if magic == NANOSECONDS else 1000
                return _Input(
                    name=name, file=file, order=order, scale=scale, snap_length=snap_length, link=link
                )
    raise ClientError(f"{name} is neither a pcap nor a pcapng file")
