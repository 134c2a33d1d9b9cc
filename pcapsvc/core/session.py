"""The four limits of a capture: what may be read next, and when it is over."""

from __future__ import annotations

import math
from enum import Enum

import msgspec
from msgspec.structs import replace

from pcapsvc.core.pcap_file import FILE_HEADER_BYTES, PACKET_HEADER_BYTES

# Batches are bounded so that a flood never blocks the reactor for long: 8192 small packets take 1 to 2 ms,
# and so does this much of larger ones, of the size of those before. There are a few in any batch.
_LARGEST_BATCH = 8192
_LARGEST_BATCH_BYTES = 4 << 20
_ANY_BATCH = 64
# If fewer packets than this certainly fit, a batch without counting costs more than counting.
_SMALLEST_UNCOUNTED_BATCH = 16

#: Times hold within this, in seconds. So packets may have arrived that long ago when they are read: the
#: kernel holds them back for less.
EXACT_SECONDS = 0.1
# How many late packets are compared with the time limits in one batch: that takes ten times as long as to
# write them. If no limit can have passed, it is only done to see how late they are.
_LARGEST_LATE_BATCH = 256
_LARGEST_SAMPLE = 32
# By how much the difference between two clocks may seem to change, in seconds, since they are read one after
# the other.
_STEP_SECONDS = 0.05


class StopReason(Enum):
    """Why a capture ended."""

    PACKETS = "packets"
    BYTES = "bytes"
    DURATION = "duration"
    IDLE = "idle"
    #: It was to have the past only, and has it.
    PAST = "past"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    DEVICE_LOST = "device_lost"


class CaptureLimits(msgspec.Struct, frozen=True, kw_only=True):
    """
    The limits of a capture. It ends when the first of them is reached.

    @ivar max_packets: L{None} is no limit.
    @ivar max_bytes: of the pcap file, headers included. The packet with which the file reaches
        or exceeds this size is the last.
    @ivar idle_seconds: how long the capture waits for the next packet; L{None} is no limit.
    @ivar is_rolling: whether the capture releases its oldest packets to stay within C{max_bytes}, rather than
        end: then the file has no more.
    @ivar kept_seconds: how old packets of a rolling capture may be at its end; L{None} is no limit.
    """

    max_packets: int | None
    max_bytes: int
    idle_seconds: float | None
    duration_seconds: float
    is_rolling: bool = False
    kept_seconds: float | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """
    What may be read next.

    @ivar packets: how many packets may be read.
    @ivar stop_at_bytes: read no further packet once the file has this size, in bytes;
        L{None} if the batch can't reach it, so that nothing needs to be counted.
    @ivar late: decides on each packet, as it may have arrived long ago; L{None} if none has.
    """

    packets: int
    stop_at_bytes: int | None
    late: LatePackets | None = None


class LatePackets:
    """
    Checks packets against the time limits by their time stamps, when they are read long after they arrived:
    the process was stopped, or had no processor.

    A time stamp that can't be right ends nothing. Times are in seconds of the session's clock.

    @param offset: how far the clock of the time stamps is ahead.
    @param earliest: when the first of the packets may have arrived.
    @param now: when the last of them may have arrived.
    @param ends: when the duration of the capture is over.
    @param last_packet: when the packet before them arrived.

    @ivar last_packet: from when on the idle time counts, after the last one that belongs to the capture.
    @ivar arrived: when that one arrived.
    @ivar reason: why the capture ended before a packet; L{None} if it did not.
    """

    def __init__(
        self,
        *,
        offset: float,
        earliest: float,
        now: float,
        ends: float,
        last_packet: float,
        idle_seconds: float,
    ) -> None:
        self._offset = offset
        self._earliest = earliest
        self._now = now
        self._ends = ends
        self._idle_seconds = idle_seconds
        self.last_packet = last_packet
        self.arrived = earliest
        self.reason: StopReason | None = None

    def belongs(self, stamp: float) -> bool:
        """
        Whether the next packet belongs to the capture.

        @param stamp: its time stamp, in seconds since the Unix epoch.
        """
        arrived = stamp - self._offset
        if not self._earliest <= arrived <= self._now + _STEP_SECONDS:
            arrived = self._now
        else:
            self.reason = _first_limit(self._ends, self.last_packet + self._idle_seconds, now=arrived)
        if self.reason is None:
            self.arrived = arrived
            self.last_packet = max(self.last_packet, arrived)
        return self.reason is None


class CaptureSession:
    """
    Checks one capture against its limits. Does no I/O, and knows no clock: C{now}
    is a time in seconds of any monotonic clock.

    @param wall: the time at C{now}, in seconds since the Unix epoch.
    """

    def __init__(self, limits: CaptureLimits, *, snap_length: int, now: float, wall: float) -> None:
        self._limits = limits
        self._largest_packet = PACKET_HEADER_BYTES + snap_length
        self._ends = now + limits.duration_seconds
        self._idle_seconds = math.inf if limits.idle_seconds is None else limits.idle_seconds
        self._last_packet = now
        self._size = FILE_HEADER_BYTES
        self._largest_batch = _LARGEST_BATCH
        self._counting = False
        # Everything that arrived before this time was read. By how much the wall clock was ahead then.
        self._complete_until = now
        self._offset = wall - now
        self._batch: Batch | None = None
        self._batch_began = now
        # Whether the last batch had time stamps, and there is more.
        self._is_sampled = False
        self._batch_offset = self._offset
        self._dropped = 0
        self.packets = 0

    def next_batch(self, now: float, wall: float) -> Batch:
        """
        What may be read next without exceeding a limit.

        Far from the limit of bytes, a batch is no larger than what certainly fits, and
        nothing is counted. Close to it, and from then on, each packet is counted.

        @param wall: the time at C{now}, in seconds since the Unix epoch.
        """
        self._batch_began, self._batch_offset = now, wall - now
        late = self._late_packets(now)
        largest = self._largest_batch
        if late is not None:
            largest = _LARGEST_LATE_BATCH if now >= self.next_deadline() else _LARGEST_SAMPLE
        packets = largest
        if self._limits.max_packets is not None:
            packets = min(packets, self._limits.max_packets - self.packets)
        fitting = packets
        if not self._limits.is_rolling:
            fitting = (self._limits.max_bytes - self._size - 1) // self._largest_packet
            self._counting = self._counting or fitting < min(packets, _SMALLEST_UNCOUNTED_BATCH)
        self._batch = Batch(
            packets=packets if self._counting else min(packets, fitting),
            stop_at_bytes=self._limits.max_bytes if self._counting else None,
            late=late,
        )
        return self._batch

    def _late_packets(self, now: float) -> LatePackets | None:
        if now - self._complete_until <= EXACT_SECONDS or self._was_clock_set:
            return None
        if self._is_sampled and now < self.next_deadline():
            return None
        return self._late(now)

    def _late(self, now: float) -> LatePackets:
        return LatePackets(
            offset=self._offset,
            earliest=self._complete_until - EXACT_SECONDS,
            now=now,
            ends=self._ends,
            last_packet=self._last_packet,
            idle_seconds=self._idle_seconds,
        )

    def stalled(self, now: float, wall: float) -> LatePackets | None:
        """
        What checks the packets of the batch that was just read, before it is L{recorded}, if the process had
        no processor meanwhile: some may have arrived after a time limit.

        @param wall: the time at C{now}, in seconds since the Unix epoch.

        @return: L{None} if that can't be.
        """
        batch = self._batch
        if batch is None or self._limits.is_rolling or (batch.late and batch.late.reason):
            return None
        if now - self._batch_began <= EXACT_SECONDS or now < self.next_deadline():
            return None
        self._batch_offset = wall - now
        if self._was_clock_set:
            return None
        late = self._late(now)
        self._batch = replace(batch, late=late)
        return late

    @property
    def _was_clock_set(self) -> bool:
        """Whether the wall clock was set since, so that time stamps say nothing."""
        return abs(self._batch_offset - self._offset) > _STEP_SECONDS

    def begins_with(self, packets: int, size: int, now: float) -> StopReason | None:
        """
        Take note of packets that were in the file before the capture began.

        @param size: the file's size with them, in bytes.

        @return: why the capture is over, or L{None} if it continues.
        """
        self._counting = size >= self._limits.max_bytes and not self._limits.is_rolling
        return self.recorded(packets, size, now)

    def recorded(self, packets: int, size: int, now: float, *, is_behind: bool = False) -> StopReason | None:
        """
        Take note of a batch that was read.

        @param packets: the number of packets in it.
        @param size: the file's size after it, in bytes; including what a rolling capture has released.
        @param is_behind: whether there may be more that has arrived, though the batch was not used up.

        @return: why the capture is over, or L{None} if it continues.
        """
        self.packets += packets
        if packets:
            mean = max(1, (size - self._size) // packets)
            self._largest_batch = min(_LARGEST_BATCH, max(_ANY_BATCH, _LARGEST_BATCH_BYTES // mean))
        self._size = size
        batch, self._batch = self._batch, None
        late = None if batch is None else batch.late
        if packets:
            self._last_packet = now if late is None else late.last_packet
        if batch is None or (packets < batch.packets and not is_behind):
            # Reading may have taken long, and what arrived meanwhile need not have been read.
            self._complete_until = now if batch is None else self._batch_began
            self._offset = self._batch_offset
        elif late is not None:
            self._complete_until = max(self._complete_until, late.arrived)
        self._is_sampled = late is not None
        if packets and self._counting and size >= self._limits.max_bytes:
            return StopReason.BYTES
        if self._limits.max_packets is not None and self.packets >= self._limits.max_packets:
            return StopReason.PACKETS
        return None if late is None else late.reason

    def dropped(self, packets: int, now: float) -> None:
        """
        Take note of how many packets the kernel has dropped so far. Some have arrived as well if they have
        become more, and nobody knows when: perhaps just now.
        """
        if packets > self._dropped:
            self._last_packet = now
        self._dropped = packets

    def is_behind(self) -> bool:
        """Whether there may be packets to read that arrived before the next deadline."""
        return self._complete_until < self.next_deadline() and not self._was_clock_set

    def time_passed(self, now: float) -> StopReason | None:
        """
        Why the capture is over at this time, given that all earlier packets are recorded;
        L{None} if it continues.
        """
        return _first_limit(self._ends, self._last_packet + self._idle_seconds, now=now)

    def next_deadline(self) -> float:
        """When a time limit is reached if no packet arrives."""
        return min(self._ends, self._last_packet + self._idle_seconds)


def _first_limit(ends: float, idle_ends: float, *, now: float) -> StopReason | None:
    """Which of the time limits was reached first; L{None} if neither was reached by now."""
    if now < min(ends, idle_ends):
        return None
    return StopReason.IDLE if idle_ends < ends else StopReason.DURATION
