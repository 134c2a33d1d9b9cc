"""The newest packets of an interface, in a bounded piece of memory."""

from __future__ import annotations

import mmap
import struct
from collections import deque
from collections.abc import Callable

import msgspec

from pcapsvc.core.pcap_file import MICROSECOND_TICKS, PACKET_HEADER_BYTES, count_packets, time_stamp
from pcapsvc.interfaces.capture import IPacketHandle, IRecordWriter

# In how many slots the memory is divided. A new packet overwrites the oldest slot.
_SLOTS = 64
# A slot has room for so many packets of the snap length, or more; and there are so many slots, or more.
_LEAST_PACKETS = 4
_LEAST_SLOTS = 4
# What is left of a slot when the next one begins, as a part of it: reads become small towards its end.
_REST = 1 / 256
# In how many segments a slot is divided, by size, and how many packets begin a new one. A segment is what is
# looked up, and copied, at once.
_SEGMENTS = 16
_SEGMENT_PACKETS = 4096
# A slot and a segment begin no later than so many parts of the history's seconds after the one before: so
# that old packets are released although few arrive. No slot that is in use is released for that: half of them
# are enough for the history's seconds.
_SLOT_SECONDS = 1 / 16
_SLOTS_BY_TIME = 1 / 2
_SEGMENT_SECONDS = 1 / 256
# How many packets are read in one call of libpcap.
_STEP_PACKETS = 4096
# How much memory is returned at once, in bytes: the system takes a millisecond or two for it.
_RETURN_BYTES = 16 << 20

# By how much the wall clock may seem to have been set, in seconds, though it was not: two clocks are never
# read at once.
_CLOCKS_SECONDS = 0.25

# From this size on, a copy has memory of its own, in bytes.
_LARGE_BYTES = 64 << 10

# The first fields of a packet's header: see L{packet_header<pcapsvc.core.pcap_file.packet_header>}.
_TIME_AND_KEPT = struct.Struct("=III")


class Segment(msgspec.Struct, kw_only=True):
    """
    Packets that follow one another in memory.

    @ivar slot: the number of the slot that they are in, counted from the first one that was ever used.
    @ivar start: where they begin in it, in bytes; C{end} is one beyond their last byte.
    @ivar number: how many packets were recorded before.
    @ivar packets: how many there are.
    @ivar first: the time stamp of the first one, in seconds since the Unix epoch.
    @ivar began: when the first one was read, in seconds of the reactor's clock.
    @ivar read: when the last one was read, likewise.
    @ivar ahead: how far the clock of their time stamps was ahead of the reactor's, in seconds.
    @ivar dropped: how many packets the kernel had dropped before.
    """

    slot: int
    start: int
    end: int
    number: int
    packets: int
    first: float
    began: float
    read: float
    ahead: float
    dropped: int

    def was_set(self, ahead: float) -> float:
        """
        By how much the clock of the time stamps was set since, in seconds.

        @param ahead: how far it is ahead of the reactor's now.
        """
        difference = ahead - self.ahead
        return difference if abs(difference) > _CLOCKS_SECONDS else 0.0


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """
    A place between two packets.

    @ivar slot: as in L{Segment}.
    @ivar offset: in the slot, in bytes.
    @ivar number: how many packets were recorded before.
    """

    slot: int
    offset: int
    number: int


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Packets that follow one another in memory, from one place to another in the same slot."""

    start: Position
    end: Position

    @property
    def packets(self) -> int:
        """How many there are."""
        return self.end.number - self.start.number


class PacketMemory:
    """
    Keeps packets until the memory is needed for newer ones, or until they are too old.

    libpcap writes them there itself, as they are in a pcap file. What is in memory stays where it is until it
    is released.

    @param size_bytes: how much memory there is: room for four packets, or more.
    @param seconds: how old packets become.
    @param snap_length: how much of each packet there may be, in bytes.
    @param open_writer: writes packets into a part of the memory, from its first byte to one beyond its last.

    @ivar ticks_per_second: of their time stamps.

    @raise OSError: if there is not enough memory, or if C{open_writer} fails.
    """

    def __init__(
        self,
        *,
        size_bytes: int,
        seconds: float,
        snap_length: int,
        open_writer: Callable[[mmap.mmap, int, int], IRecordWriter],
        ticks_per_second: int = MICROSECOND_TICKS,
    ) -> None:
        self.ticks_per_second = ticks_per_second
        self._largest = PACKET_HEADER_BYTES + snap_length
        # The writer begins with the header of a file, and leaves it out.
        least = _LEAST_PACKETS * self._largest
        wanted = max(size_bytes // _SLOTS, min(least, size_bytes // _LEAST_SLOTS))
        self._slot_bytes = max(mmap.PAGESIZE, wanted // mmap.PAGESIZE * mmap.PAGESIZE)
        self._seconds = seconds
        self._open_writer = open_writer
        count = max(_LEAST_SLOTS, size_bytes // self._slot_bytes)
        self._slot_seconds = seconds * max(_SLOT_SECONDS, 1 / (_SLOTS_BY_TIME * count))
        self._memory = mmap.mmap(-1, count * self._slot_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Where each slot is in memory, by its number: those in use, oldest first; and the places that are not
        # in use. Some of these have old packets in them, from so many bytes on.
        self._places: dict[int, int] = {}
        self._free = list(range(count))
        self._soiled: dict[int, int] = {}
        self._segments: deque[Segment] = deque()
        self._writer: IRecordWriter | None = None
        self._slot = -1
        self._slot_began = 0.0
        self._size = 0
        # How many packets were recorded so far, and how many bytes they had.
        self._number = self._recorded_bytes = 0
        # The oldest packets that are kept since others were overwritten; L{None} if none were.
        self._released: Segment | None = None
        self._begin_slot()

    @property
    def packets(self) -> int:
        """How many packets are kept."""
        return self._number - self._segments[0].number if self._segments else 0

    @property
    def recorded_bytes(self) -> int:
        """How many bytes of packets were recorded so far."""
        return self._recorded_bytes

    @property
    def bytes(self) -> int:
        """How many bytes of packets are kept."""
        return sum(segment.end - segment.start for segment in self._segments)

    @property
    def end(self) -> Position:
        """The place after the last packet."""
        return Position(slot=self._slot, offset=self._size, number=self._number)

    def released(self, ahead: float) -> float | None:
        """
        When the oldest packet arrived that is kept since others were overwritten, in seconds since the Unix
        epoch; L{None} if none were.

        @param ahead: as in L{find}.
        """
        return None if self._released is None else self._released.first + self._released.was_set(ahead)

    def read(self, handle: IPacketHandle, most: int, *, now: float, ahead: float, dropped: int) -> int:
        """
        Read packets that have arrived.

        @param most: how many, at most.
        @param now: the time in seconds of the reactor's clock.
        @param ahead: how far the clock of the time stamps is ahead of that, in seconds.
        @param dropped: how many packets the kernel has dropped so far.

        @return: the number of packets read.

        @raise CaptureUnavailable: as L{IPacketHandle.read} does. What was read before is kept.
        @raise OSError: if C{open_writer} fails.
        """
        read = 0
        while read < most:
            writer = self._writer_for_next(now)
            count = min((self._slot_bytes - self._size) // self._largest, most - read, _STEP_PACKETS)
            got = 0
            try:
                got = handle.read(count, writer)
            finally:
                self._note(got, writer.size(), now=now, ahead=ahead, dropped=dropped)
            read += got
            if got < count:
                break
        return read

    def _writer_for_next(self, now: float) -> IRecordWriter:
        """The writer of a slot that has room for a packet."""
        rest = self._slot_bytes - self._size
        has_room = rest >= max(self._largest, int(self._slot_bytes * _REST))
        is_new = not self._size or now - self._slot_began < self._slot_seconds
        if self._writer is not None and has_room and is_new:
            return self._writer
        # On a busy interface, memory that was just used is best. On others, what is old is not to stay there.
        return self._begin_slot(self._clean_place() if has_room else None)

    def _clean_place(self) -> int | None:
        """A place that is not in use, and has no old packets in it; L{None} if there is none."""
        return next((place for place in self._free if place not in self._soiled), None)

    def _begin_slot(self, place: int | None = None) -> IRecordWriter:
        """
        Write the next packets into another slot, and overwrite the oldest if all are in use.

        @param place: which is not in use; L{None} is any.
        """
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if not self._free:
            self._release_oldest()
            if self._segments:
                self._released = self._segments[0]
        if place is None:
            place = self._free[-1]
        start = place * self._slot_bytes
        # If it fails, nothing has changed.
        self._writer = self._open_writer(self._memory, start, start + self._slot_bytes)
        self._free.remove(place)
        self._soiled.pop(place, None)
        self._slot += 1
        self._places[self._slot] = place
        self._size = 0
        return self._writer

    def _note(self, packets: int, size: int, *, now: float, ahead: float, dropped: int) -> None:
        if size == self._size:
            return
        if not packets:
            # The interface failed while it was being read.
            packets = count_packets(self._view(self._slot, self._size, size))
        if not self._size:
            self._slot_began = now
        last = self._segments[-1] if self._segments else None
        if (
            last is not None
            and last.slot == self._slot
            and last.end - last.start < self._slot_bytes // _SEGMENTS
            and last.packets < _SEGMENT_PACKETS
            and now - last.began < self._seconds * _SEGMENT_SECONDS
            and not last.was_set(ahead)
        ):
            last.end, last.packets, last.read = size, last.packets + packets, now
        else:
            records = self._view(self._slot, self._size, size)
            first = time_stamp(records, 0, ticks_per_second=self.ticks_per_second)
            if last is not None and abs(first - now - last.ahead) < abs(first - now - ahead):
                # It arrived before the clock was set.
                ahead = last.ahead
            self._segments.append(
                Segment(
                    slot=self._slot,
                    start=self._size,
                    end=size,
                    number=self._number,
                    packets=packets,
                    first=first,
                    began=now,
                    read=now,
                    ahead=ahead,
                    dropped=dropped,
                )
            )
        self._recorded_bytes += size - self._size
        self._number += packets
        self._size = size

    def _view(self, slot: int, start: int, end: int) -> memoryview:
        base = self._places[slot] * self._slot_bytes
        return memoryview(self._memory)[base + start : base + end]

    def expire(self, now: float) -> bool:
        """
        Release what is too old, and return memory that has not been used since the last call.

        @return: whether there is more to be returned, by another call: at once, it would take too long.
        """
        is_more = self._return_memory()
        while self._segments and self._segments[0].read < now - self._seconds:
            self._segments.popleft()
        oldest = self._segments[0].slot if self._segments else self._slot
        while next(iter(self._places), oldest) < oldest:
            self._release_oldest()
        if not self._segments and self._size and (place := self._clean_place()) is not None:
            self._begin_slot(place)
            self._release_oldest()
        return is_more

    def _return_memory(self) -> bool:
        """Return some of the memory that is not used. Return whether there is more."""
        left = _RETURN_BYTES
        while self._soiled and left:
            place, start = self._soiled.popitem()
            end = min(self._slot_bytes, start + left)
            # The system gives it back filled with zeros.
            self._memory.madvise(mmap.MADV_DONTNEED, place * self._slot_bytes + start, end - start)
            left -= end - start
            if end < self._slot_bytes:
                self._soiled[place] = end
        return bool(self._soiled)

    def _release_oldest(self) -> None:
        slot = next(iter(self._places))
        # First of all: a thread that copies it has to notice.
        place = self._places.pop(slot)
        while self._segments and self._segments[0].slot == slot:
            self._segments.popleft()
        self._free.append(place)
        self._soiled[place] = 0

    def find(self, since: float, *, ahead: float) -> tuple[Position, int | None]:
        """
        The place of the first packet that is no older than a time. If the clock of the time stamps was set,
        what they would be by the clock as it is now counts.

        @param since: in seconds since the Unix epoch.
        @param ahead: how far the clock of the time stamps is ahead of the reactor's now, in seconds.

        @return: the place, and how many packets the kernel had dropped before the segment that it is in;
            L{None} if there are no packets.
        """
        found: Segment | None = None
        for segment in reversed(self._segments):
            found = segment
            if segment.first < since - segment.was_set(ahead):
                break
        if found is None:
            return self.end, None
        stamp = since - found.was_set(ahead)
        packets, size = _older(self._view(found.slot, found.start, found.end), stamp, self.ticks_per_second)
        start = Position(slot=found.slot, offset=found.start + size, number=found.number + packets)
        return start, found.dropped

    def pieces(self, start: Position, end: Position) -> list[Piece]:
        """The packets between two places, in their order. Those that are not kept any more are left out."""
        found = []
        for segment in reversed(self._segments):
            first = Position(slot=segment.slot, offset=segment.start, number=segment.number)
            last = Position(slot=segment.slot, offset=segment.end, number=segment.number + segment.packets)
            if last.number <= start.number:
                break
            if first.number < end.number:
                piece = Piece(
                    start=start if start.number > first.number else first,
                    end=end if end.number < last.number else last,
                )
                found.append(piece)
        return found[::-1]

    def next_piece(self, start: Position, end: Position) -> Piece | None:
        """The first of the packets between two places; L{None} if there are none."""
        pieces = self.pieces(start, end)
        return pieces[0] if pieces else None

    def records(self, piece: Piece) -> memoryview | None:
        """
        The packets of a piece, in any thread. They may be overwritten at any time: see L{has}.

        @return: L{None} if they are not kept any more.
        """
        place = self._places.get(piece.start.slot)
        if place is None:
            return None
        base = place * self._slot_bytes
        return memoryview(self._memory)[base + piece.start.offset : base + piece.end.offset]

    def has(self, piece: Piece) -> bool:
        """Whether the packets of a piece are still kept. Then what was done with them until now is right."""
        return piece.start.slot in self._places

    def copy(self, piece: Piece) -> memoryview | None:
        """
        A copy of the packets of a piece, in any thread.

        @return: L{None} if they are not kept any more.
        """
        records = self.records(piece)
        if records is None:
            return None
        copied = copy_records(records)
        return copied if self.has(piece) else None

    def close(self) -> None:
        """Write no more. The memory is free when nobody reads it any more."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def copy_records(records: memoryview) -> memoryview:
    """
    A copy of packets. If it is large, its memory is the kernel's again as soon as it is freed: what malloc(3)
    has given to one thread, it keeps.
    """
    if len(records) < _LARGE_BYTES:
        return memoryview(bytearray(records))
    copied = mmap.mmap(-1, len(records), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    copied[:] = records
    return memoryview(copied)


def _older(records: memoryview, since: float, ticks_per_second: int) -> tuple[int, int]:
    """The packets before the first one with this time stamp or a later one: how many, and how many bytes."""
    packets, at, end, unpack = 0, 0, len(records), _TIME_AND_KEPT.unpack_from
    # In this thread, there may be thousands of them: it is kept short.
    while at < end:
        seconds, ticks, kept = unpack(records, at)
        if seconds + ticks / ticks_per_second >= since:
            break
        at += PACKET_HEADER_BYTES + kept
        packets += 1
    return packets, at
