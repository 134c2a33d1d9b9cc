"""The four limits of a capture: what may be read next, and when it is over."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

#: The header of a pcap file, in bytes (draft-ietf-opsawg-pcap, section 4).
FILE_HEADER_BYTES = 24
#: The header of each packet in it, in bytes (the same, section 5).
PACKET_HEADER_BYTES = 16

# Batches are bounded so that a flood never blocks the reactor for long: 4096 packets take 2 ms.
_LARGEST_BATCH = 4096
# If fewer packets than this certainly fit, a batch without counting costs more than counting.
_SMALLEST_UNCOUNTED_BATCH = 16


class StopReason(Enum):
    """Why a capture ended."""

    PACKETS = "packets"
    BYTES = "bytes"
    DURATION = "duration"
    IDLE = "idle"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    DEVICE_LOST = "device_lost"


@dataclass(frozen=True, kw_only=True)
class CaptureLimits:
    """
    The limits of a capture. It ends when the first of them is reached.

    @ivar max_bytes: of the pcap file, headers included. The packet with which the file reaches
        or exceeds this size is the last.
    @ivar idle_seconds: how long the capture waits for the next packet.
    """

    max_packets: int
    max_bytes: int
    idle_seconds: float
    duration_seconds: float


@dataclass(frozen=True, kw_only=True)
class Batch:
    """
    What may be read next.

    @ivar packets: how many packets may be read.
    @ivar stop_at_bytes: read no further packet once the file has this size, in bytes;
        L{None} if the batch can't reach it, so that nothing needs to be counted.
    """

    packets: int
    stop_at_bytes: int | None


class CaptureSession:
    """
    Checks one capture against its limits. Does no I/O, and knows no clock: C{now}
    is a time in seconds of any monotonic clock.
    """

    def __init__(self, limits: CaptureLimits, *, snap_length: int, now: float) -> None:
        self._limits = limits
        self._largest_packet = PACKET_HEADER_BYTES + snap_length
        self._ends = now + limits.duration_seconds
        self._last_packet = now
        self._size = FILE_HEADER_BYTES
        self._counting = False
        self.packets = 0

    def next_batch(self) -> Batch:
        """
        What may be read next without exceeding a limit.

        Far from the limit of bytes, a batch is no larger than what certainly fits, and
        nothing is counted. Close to it, and from then on, each packet is counted.
        """
        packets = min(_LARGEST_BATCH, self._limits.max_packets - self.packets)
        fitting = (self._limits.max_bytes - self._size - 1) // self._largest_packet
        if fitting < min(packets, _SMALLEST_UNCOUNTED_BATCH):
            self._counting = True
        if self._counting:
            return Batch(packets=packets, stop_at_bytes=self._limits.max_bytes)
        return Batch(packets=min(packets, fitting), stop_at_bytes=None)

    def recorded(self, packets: int, size: int, now: float) -> StopReason | None:
        """
        Take note of a batch that was read.

        @param packets: the number of packets in it.
        @param size: the file's size after it, in bytes: exact after a counted batch;
            after any other it may be an overestimate, never an underestimate.

        @return: why the capture is over, or L{None} if it continues.
        """
        self.packets += packets
        self._size = size
        if packets:
            self._last_packet = now
        if packets and self._counting and size >= self._limits.max_bytes:
            return StopReason.BYTES
        if self.packets >= self._limits.max_packets:
            return StopReason.PACKETS
        return None

    def time_passed(self, now: float) -> StopReason | None:
        """
        Why the capture is over at this time, given that all earlier packets are recorded;
        L{None} if it continues.
        """
        if now >= self._ends:
            return StopReason.DURATION
        if now >= self._last_packet + self._limits.idle_seconds:
            return StopReason.IDLE
        return None

    def next_deadline(self) -> float:
        """When a time limit is reached if no packet arrives."""
        return min(self._ends, self._last_packet + self._limits.idle_seconds)
