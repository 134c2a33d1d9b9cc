"""The packets of a history, for one capture: those of the past, and then those that follow."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import msgspec
from zope.interface import implementer

from pcapsvc.capture.buffer import RecordingBuffer
from pcapsvc.capture.packet_memory import (
    PacketMemory,
    Piece,
    Position,
    copy_records,
)
from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.core.filter import Program
from pcapsvc.core.packet_header import PacketHeader
from pcapsvc.core.pcap_file import (
    FILE_HEADER_BYTES,
    PACKET_HEADER_BYTES,
    packet_header,
    record_offsets,
    time_stamp,
)
from pcapsvc.core.read_pace import Ring
from pcapsvc.core.recording import PacketCounts
from pcapsvc.core.session import StopReason
from pcapsvc.interfaces.capture import IPacketDumper, IPacketReader, ISieve, PacketSink


class Taken(msgspec.Struct, kw_only=True):
    """
    Packets of the past.

    @ivar parts: as in a pcap file, without its header, in their order; each with how many there are.
    @ivar packets: how many there are in all.
    @ivar size: the size of a file with them, in bytes.
    @ivar first: the time stamp of the first one, in seconds since the Unix epoch; L{None} if there is none.
    @ivar reason: the limit that left room for the newest only; L{None} if all are there.
    @ivar is_overtaken: whether some were overwritten before they could be copied.
    """

    parts: list[tuple[int, memoryview]]
    packets: int = 0
    size: int = FILE_HEADER_BYTES
    first: float | None = None
    reason: StopReason | None = None
    is_overtaken: bool = False


class NotWanted(Exception):
    """Nobody waits for the packets any more."""


def take_newest(
    memory: PacketMemory,
    pieces: Sequence[Piece],
    sieve: ISieve | None,
    *,
    max_packets: int,
    max_bytes: int,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Taken:
    """
    Copy packets, the newest first, until there is no room for more. To be called in a thread, while more are
    being recorded: 1.5 million take some tenths of a second, in which libpcap runs without Python's lock.

    @param sieve: which of them are wanted; L{None} is all.
    @param max_packets: how many there is room for.
    @param max_bytes: the size that a file with them may have.
    @param is_wanted: whether anybody still waits for them.

    @raise NotWanted: if nobody does.
    """
    taken = Taken(parts=[])
    for piece in reversed(pieces):
        if not is_wanted():
            raise NotWanted
        found = _take(memory, piece, sieve)
        if found is None:
            taken.is_overtaken = True
            break
        packets, records = found
        room = max_packets - taken.packets, max_bytes - taken.size
        if packets and (packets > room[0] or len(records) > room[1]):
            packets, records, taken.reason = _newest(records, packets, *room)
        if packets:
            taken.parts.append((packets, records))
            taken.packets += packets
            taken.size += len(records)
        if taken.reason is not None:
            break
    taken.parts.reverse()
    if taken.parts:
        taken.first = time_stamp(taken.parts[0][1], 0, ticks_per_second=memory.ticks_per_second)
    return taken


def _take(memory: PacketMemory, piece: Piece, sieve: ISieve | None) -> tuple[int, memoryview] | None:
    """
    Those packets of a piece that are wanted, and how many there are.

    @return: L{None} if they are not kept any more.
    """
    if sieve is None:
        copied = memory.copy(piece)
        return None if copied is None else (piece.packets, copied)
    sifted = _sift(memory, piece, sieve)
    return None if sifted is None else (sifted[0], copy_records(sifted[1]))


def _sift(memory: PacketMemory, piece: Piece, sieve: ISieve) -> tuple[int, memoryview] | None:
    """The same, until the sieve is used again."""
    records = memory.records(piece)
    if records is None:
        return None
    try:
        sifted = sieve.sift(records)
    except OSError:
        # They may have been overwritten in the meantime.
        if memory.has(piece):
            raise
        return None
    return sifted if memory.has(piece) else None


def _newest(
    records: memoryview, packets: int, max_packets: int, max_bytes: int
) -> tuple[int, memoryview, StopReason]:
    """The newest packets for which there is room, and which limit left out the others."""
    reason = StopReason.PACKETS
    at = 0
    for at in record_offsets(records):
        if packets <= max_packets:
            if len(records) - at <= max_bytes:
                break
            reason = StopReason.BYTES
        packets -= 1
    else:
        at = len(records)
    return packets, records[at:], reason


def fill(buffer: RecordingBuffer, taken: Taken, is_wanted: Callable[[], bool] = lambda: True) -> None:
    """
    Write packets of the past into the buffer of a capture, in any thread.

    @param is_wanted: whether anybody still waits for them.

    @raise OSError: if there is no memory for them.
    @raise NotWanted: if nobody waits.
    """
    parts, taken.parts = taken.parts[::-1], []
    while parts:
        if not is_wanted():
            raise NotWanted
        packets, records = parts.pop()
        buffer.append(records, packets)


@implementer(IPacketReader)
class PastReader:
    """
    Reads what is recorded of an interface, from some place on.

    @param position: where.
    @param sieve: which packets are wanted; L{None} is all. It is owned from here on.
    @param pull: has the recorder read what has arrived.
    @param is_behind: whether there may be more than the recorder has read.
    @param dropped: how many packets the kernel has dropped so far, for the recorder.
    @param detach: called when this is closed.
    """

    def __init__(
        self,
        interface: str,
        memory: PacketMemory,
        position: Position,
        *,
        link_type: int,
        program: Program,
        sieve: ISieve | None,
        pull: Callable[[], object],
        is_behind: Callable[[], bool] = lambda: False,
        dropped: Callable[[], int],
        detach: Callable[[PastReader], object],
    ) -> None:
        self.link_type = link_type
        self.ticks_per_second = memory.ticks_per_second
        # Nothing is lost by reading late: the pace is the recorder's.
        self.ring = Ring(blocks=1, block_bytes=1, block_seconds=0.0)
        self.program = program
        self._interface = interface
        self._memory = memory
        self._position = position
        self._sieve = sieve
        self._pull = pull
        self._is_behind = is_behind
        self._dropped = dropped
        self._dropped_before = dropped()
        self._detach = detach
        self._end: Position | None = None
        self._gone: str | None = None
        # What was sifted, and has not been read.
        self._packets, self._records = 0, memoryview(b"")
        self._received = 0
        # How many packets were overwritten before they were read.
        self._overtaken = 0
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """The descriptor that is readable when there are packets: see L{IPacketReader.fileno}."""
        return self._event

    @property
    def looks_beyond(self) -> bool:
        """Whether the filter looks at bytes that aren't recorded."""
        return self._sieve is not None and self._sieve.looks_beyond

    @property
    def is_behind(self) -> bool:
        """Whether there may be more: see L{IPacketReader.is_behind}."""
        return self._gone is None and self._is_behind()

    def notify(self) -> None:
        """There are more packets."""
        with suppress(BlockingIOError):
            os.eventfd_write(self._event, 1)

    def lose(self, reason: str) -> None:
        """There will be no more packets: the interface is gone."""
        self._end, self._gone = self._memory.end, reason
        self.notify()

    def take(
        self, since: Position, until: Position | None = None, *, max_packets: int, max_bytes: int
    ) -> Callable[..., Taken]:
        """
        Take the packets between two places. It is not to be read before the function that this returns is
        done.

        @param until: L{None} is the place where this reads on.

        @return: does it, in a thread: L{take_newest}, which lacks C{is_wanted}.
        """
        pieces = self._memory.pieces(since, self._position if until is None else until)
        return partial(
            take_newest, self._memory, pieces, self._sieve, max_packets=max_packets, max_bytes=max_bytes
        )

    def read(self, count: int, sink: PacketSink) -> int:
        """Read packets: see L{IPacketReader.read}."""
        if self._event < 0:
            raise ValueError("it is closed")
        read = 0
        if self._packets < count and self._gone is None:
            self._pull()
        # What arrives from here on waits for the next call: it might come faster than it can be sifted.
        end = self._memory.end if self._end is None else self._end
        while read < count and self._load(end):
            read += self._read(count - read, sink)
        if not read and self._gone is not None:
            raise CaptureUnavailable(self._interface, self._gone)
        return read

    def _load(self, end: Position) -> bool:
        """Sift the next packets, if none are waiting. Return whether there are any before C{end}."""
        while not self._packets:
            piece = self._memory.next_piece(self._position, end)
            if piece is None:
                if self._gone is None:
                    with suppress(BlockingIOError):
                        os.eventfd_read(self._event)
                # Otherwise it stays readable: that there will be no more is reported by the next read.
                return False
            self._overtaken += piece.start.number - self._position.number
            self._position = piece.end
            found = self._loaded(piece)
            if found is None:
                self._overtaken += piece.packets
            else:
                self._packets, self._records = found
        return True

    def _loaded(self, piece: Piece) -> tuple[int, memoryview] | None:
        if self._sieve is not None:
            return _sift(self._memory, piece, self._sieve)
        copied = self._memory.copy(piece)
        return None if copied is None else (piece.packets, copied)

    def _read(self, count: int, sink: PacketSink) -> int:
        """Read some of the packets that are waiting."""
        if callable(sink):
            return self._read_each(count, sink)
        packets, records = self._packets, self._records
        if packets > count:
            packets, at = count, _after(records, count)
            self._packets, self._records = self._packets - count, records[at:]
            records = records[:at]
        else:
            self._packets, self._records = 0, memoryview(b"")
        self._received += packets
        cast(IPacketDumper, sink).write(records, packets)
        return packets

    def _read_each(self, count: int, callback: Callable[[Any, bytes], object]) -> int:
        read = 0
        while read < count and self._packets:
            records = self._records
            seconds, ticks, kept, length = packet_header(records, 0)
            end = PACKET_HEADER_BYTES + kept
            self._packets, self._records = self._packets - 1, records[end:]
            self._received += 1
            read += 1
            callback(PacketHeader(seconds, ticks, length), bytes(records[PACKET_HEADER_BYTES:end]))
        return read

    def counts(self, *, hardware: bool = True) -> PacketCounts | None:
        """The counts since the past ended: see L{IPacketReader.counts}."""
        dropped = self._dropped() - self._dropped_before + self._overtaken
        return PacketCounts(received=self._received + dropped, dropped=dropped, interface_dropped=None)

    def close(self) -> None:
        """Stop capturing: see L{IPacketReader.close}."""
        if self._event < 0:
            return
        self._detach(self)
        self._packets, self._records = 0, memoryview(b"")
        if self._sieve is not None:
            self._sieve.close()
        os.close(self._event)
        self._event = -1


def _after(records: memoryview, packets: int) -> int:
    """Where the packets after the first ones begin, in bytes."""
    offsets = record_offsets(records)
    for _ in range(packets):
        next(offsets)
    return next(offsets, len(records))
