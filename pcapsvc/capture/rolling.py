"""
The newest packets of a capture, within a size and an age.

They are written into a file in memory like those of any capture. Its offsets only grow; the memory at its
beginning is freed as newer packets arrive. When the capture ends, the header is written in front of the first
packet that is kept, and the file begins there. So nothing is copied, however large it is.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from typing import Any

import msgspec
from zope.interface import implementer

from pcapsvc.capture.buffer import Held, RecordingBuffer
from pcapsvc.capture.clocks import both_clocks
from pcapsvc.core.pcap_file import FILE_HEADER_BYTES, PACKET_HEADER_BYTES, packet_header, time_stamp
from pcapsvc.core.recording import Content
from pcapsvc.core.rolling import RollingPackets
from pcapsvc.interfaces.capture import ISnapshot
from pcapsvc.memory_file import MemoryFile

# Packets are released in segments: so large, in bytes, or so long, as a part of how old packets may be. Only
# the packets of the oldest one are ever looked at.
_SEGMENT_BYTES = 64 << 10
_SEGMENT_SHARE = 1 / 64
# How much memory is reserved for one call of libpcap, and freed at once, in bytes. In all, no more than what
# any capture may need beside its limit of bytes (L{MOST_BEYOND_BYTES<pcapsvc.capture.buffer>}).
_AHEAD_BYTES = 128 << 10
_FREE_BYTES = 64 << 10
# How much of a snapshot is copied at once, in bytes.
_COPY_BYTES = 1 << 20


class _Segment(msgspec.Struct, kw_only=True):
    """
    Packets that follow one another.

    @ivar start: where they begin in the file, in bytes.
    @ivar number: how many packets were captured before.
    @ivar began: when the first one was read, in seconds of the monotonic clock; C{read} is when the last one
        was.
    @ivar ahead: how far the wall clock was ahead of the monotonic one then.
    """

    start: int
    number: int
    began: float
    read: float
    ahead: float


class _Cut(msgspec.Struct, frozen=True, kw_only=True):
    """
    The place before the first packet that is kept.

    @ivar start: in the file, in bytes.
    @ivar number: how many packets were captured before.
    @ivar first: the time stamp of that packet, in seconds since the Unix epoch; L{None} if none is kept.
    """

    start: int
    number: int
    first: float | None


class RollingBuffer(RecordingBuffer):
    """
    Writes the packets of a handle into memory, and keeps the newest.

    What it L{holds<held>} is exact. The memory that it needs is a little more: whole segments.

    @param max_bytes: the size of a file with what is kept, header included.
    @param kept_seconds: how long ago packets may have arrived; L{None} is no limit.
    @param now: the time in seconds of a monotonic clock.
    @param wall_clock: the time in seconds since the Unix epoch.
    @param options: those of L{RecordingBuffer}.
    """

    def __init__(
        self,
        *arguments: Any,
        max_bytes: int,
        kept_seconds: float | None,
        now: Callable[[], float],
        wall_clock: Callable[[], float],
        **options: Any,
    ) -> None:
        super().__init__(*arguments, most_ahead_bytes=_AHEAD_BYTES, **options)
        self._room = max(0, max_bytes - FILE_HEADER_BYTES)
        self._kept_seconds = kept_seconds
        self._now = now
        self._wall_clock = wall_clock
        self.flush()
        self._header = self._file.read_at(0, FILE_HEADER_BYTES)
        self._segments: deque[_Segment] = deque()
        # What precedes this is freed, sooner or later. Snapshots look at it from other threads.
        self._front = FILE_HEADER_BYTES
        self._final: Held | None = None

    @property
    def held(self) -> Held:
        """What is kept by now, or was at the end."""
        return self._held(self._cut()) if self._final is None else self._final

    def _held(self, cut: _Cut) -> Held:
        return Held(
            packets=self.packets - cut.number,
            bytes=FILE_HEADER_BYTES + self.size - cut.start,
            rolling=RollingPackets(
                seconds=self._kept_seconds,
                first=cut.first,
                captured=self.packets,
                captured_bytes=self.size,
                released=cut.number,
            ),
        )

    def _added(self, packets: int, size: int) -> None:
        if self.size == size:
            return
        # Nothing is cut from it, but what is released can't be shown any more.
        self.show()
        now = self._now()
        last = self._segments[-1] if self._segments else None
        if (
            last is not None
            and size - last.start < _SEGMENT_BYTES
            and (self._kept_seconds is None or now - last.began < self._kept_seconds * _SEGMENT_SHARE)
        ):
            last.read = now
        else:
            looked, wall = both_clocks(self._now, self._wall_clock)
            self._segments.append(
                _Segment(start=size, number=packets, began=now, read=now, ahead=wall - looked)
            )
        self._release(now)

    def _release(self, now: float) -> None:
        """Release the segments of which no packet can be kept."""
        least = self.size - self._room
        # They arrived before they were read.
        oldest = -1.0 if self._kept_seconds is None else now - self._kept_seconds
        segments = self._segments
        while len(segments) > 1 and (segments[1].start <= least or segments[0].read < oldest):
            segments.popleft()
        self._front = segments[0].start if segments else self.size
        # What stdio holds back has no memory in the file yet.
        if self._front - self._file.freed >= _FREE_BYTES:
            self._file.free(min(self._front, self._file.size))

    def _cut(self) -> _Cut:
        """Where what is kept begins. To find it takes a look at each packet of a segment, or of a few."""
        now = self._now()
        self._release(now)
        if self._dumper is not None:
            self._dumper.flush()
        least = self.size - self._room
        for segment, following in zip_longest(self._segments, islice(self._segments, 1, None)):
            end = self.size if following is None else following.start
            if end <= least:
                continue
            # By the wall clock as it was: it may have been set since.
            since = None if self._kept_seconds is None else now - self._kept_seconds + segment.ahead
            if following is not None and since is not None and self._time_stamp_at(end) < since:
                continue
            number = segment.number
            for start, stamp in self._packets(segment.start, end):
                if start >= least and (since is None or stamp >= since):
                    return _Cut(start=start, number=number, first=stamp)
                number += 1
        return _Cut(start=self.size, number=self.packets, first=None)

    def _time_stamp_at(self, offset: int) -> float:
        header = memoryview(self._file.read_at(offset, PACKET_HEADER_BYTES))
        return time_stamp(header, 0, ticks_per_second=self._ticks_per_second)

    def _packets(self, start: int, end: int) -> Iterator[tuple[int, float]]:
        """Where each packet of a part of the file begins, and its time stamp."""
        records = memoryview(self._file.read_at(start, end - start))
        at, length = 0, len(records)
        while at < length:
            seconds, ticks, kept, _ = packet_header(records, at)
            yield start + at, seconds + ticks / self._ticks_per_second
            at += PACKET_HEADER_BYTES + kept

    def finish(self) -> MemoryFile:
        """Close the file: see L{RecordingBuffer.finish}. It has what is kept."""
        cut = self._cut()
        self._final = self._held(cut)
        file = super().finish()
        try:
            self._front = cut.start
            _begin_at(file, cut.start, self._header)
        except BaseException:
            file.close()
            raise
        return file

    def discard(self) -> None:
        """Discard the file: see L{RecordingBuffer.discard}."""
        if self._final is None:
            nothing = _Cut(start=self.size, number=self.packets, first=None)
            self._final = self._held(nothing)
        super().discard()

    def snapshot(self) -> Snapshot:
        """What is kept by now: see L{ICapture.snapshot<pcapsvc.interfaces.capture.ICapture.snapshot>}."""
        cut = self._cut()
        starts = [cut.start, *(each.start for each in self._segments if each.start > cut.start)]
        return Snapshot(
            self._file.duplicate(),
            self._header,
            lambda: self._front,
            starts,
            end=self.size,
            close_descriptor=self._close_descriptor,
        )


@implementer(ISnapshot)
class Snapshot:
    """
    What a rolling capture holds at some time: see L{ISnapshot}.

    @param descriptor: of its file, owned from here on.
    @param header: that of the file.
    @param front: says what may have been freed in the meantime: what precedes this in the file.
    @param starts: where some packets begin in the file, and first of all, the first one.
    @param end: one beyond the last byte.
    @param close_descriptor: closes the descriptor of a copy: to free much memory takes a while.
    """

    def __init__(
        self,
        descriptor: int,
        header: bytes,
        front: Callable[[], int],
        starts: list[int],
        *,
        end: int,
        close_descriptor: Callable[[int], object] = os.close,
    ) -> None:
        self._descriptor = descriptor
        self._close_descriptor = close_descriptor
        self._header = header
        self._front = front
        self._starts, self._end = starts, end
        self.size = FILE_HEADER_BYTES + end - starts[0]

    def copy(self) -> Content:
        """Copy it: see L{ISnapshot.copy}."""
        file = MemoryFile("pcapsvc-snapshot")
        # By how much further to the front everything is in the copy.
        moved = self._starts[0] - FILE_HEADER_BYTES
        begins = self._end
        try:
            file.reserve(self.size, more=0)
            # The newest first: the others may be freed at any time, while the capture goes on.
            for start, end in self._pieces():
                file.write_at(start - moved, _read(self._descriptor, start, end))
                # What was freed before it was read is not used.
                begins = min(end, max(start, self._front()))
                if begins > start:
                    break
            _begin_at(file, begins - moved, self._header)
        except BaseException:
            file.close()
            raise
        # Whoever fetched it frees it on the reactor.
        file.close_descriptor = self._close_descriptor
        return file

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Where each piece begins and ends, which is between two packets. The newest comes first."""
        end = self._end
        for start in reversed(self._starts):
            if end - start >= _COPY_BYTES or start == self._starts[0]:
                yield start, end
                end = start

    def close(self) -> None:
        """It is not needed any more: see L{ISnapshot.close}."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read(descriptor: int, start: int, end: int) -> bytes:
    data = os.pread(descriptor, end - start, start)
    if len(data) < end - start:
        raise OSError("a capture has less than was written")
    return data


def _begin_at(file: MemoryFile, start: int, header: bytes) -> None:
    """Have a file begin with its header, and then with the packet that is there."""
    file.write_at(start - FILE_HEADER_BYTES, header)
    file.begin_at(start - FILE_HEADER_BYTES)
