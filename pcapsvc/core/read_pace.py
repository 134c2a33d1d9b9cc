"""When a capture is read next: each read costs as much as a few hundred packets, so one should find many."""

from __future__ import annotations

import msgspec

from pcapsvc.core.session import EXACT_SECONDS

# A read that finds fewer packets than this is not worth a pause.
_MANY_PACKETS = 64
# The part of the ring that may fill up during a pause, at the highest rate that was just seen. The rest is
# for what else keeps the reactor busy, and for a rate that rises.
_SHARE_OF_RING = 1 / 5
# How long the first pause is, at most, in seconds, and how many times as long the next one may be: the first
# packets of a burst say little about its rate.
_FIRST_SECONDS = 0.002
_TIMES = 2
# What was seen counts half after so many seconds: packets come in bursts.
_HALF_LIFE_SECONDS = 0.25
# How long a pause is at most, in seconds. A longer one hardly saves anything more, unless there are many
# captures, whose reads take the same thread: then it may be so long for each of them.
_LONGEST_SECONDS = 0.025
_SECONDS_FOR_EACH = 0.002
# How long it is at least. A timer is not more exact.
_SHORTEST_SECONDS = 0.001
# What a packet takes up in the ring beside its data, and how much that is more than in a pcap file, in bytes
# (tpacket_rcv() of Linux: struct tpacket3_hdr, struct sockaddr_ll, and alignment).
_RING_HEADER_BYTES = 88
_MORE_THAN_IN_FILE_BYTES = _RING_HEADER_BYTES - 16


class Ring(msgspec.Struct, frozen=True, kw_only=True):
    """
    Where the kernel keeps packets until they are read.

    @ivar blocks: how many blocks it has, each of C{block_bytes}.
    @ivar block_seconds: after how long a block that isn't full is handed over. It is used up then.
    """

    blocks: int
    block_bytes: int
    block_seconds: float

    def lasts(self, bytes_per_second: float) -> float:
        """For how many seconds it holds what arrives, at this rate."""
        slowest = self.blocks * self.block_seconds
        size = self.blocks * self.block_bytes
        return slowest if bytes_per_second * slowest <= size else size / bytes_per_second


class ReadPace:
    """
    Says after each read whether to pause. Does no I/O, and knows no clock: C{now} is a time in seconds of
    any monotonic clock.

    A pause lets more packets arrive, which are then read at once. Idle time may be noticed late by it, and by
    the time for which the kernel holds back packets, twice: all that is within the exactness of limits.

    @param hand_over_seconds: how long the kernel may hold back a packet that has arrived.
    """

    def __init__(self, ring: Ring, *, hand_over_seconds: float, now: float) -> None:
        self._ring = ring
        self._most = EXACT_SECONDS - 2 * hand_over_seconds
        self._last_read = now
        self._pause = 0.0
        self._rate = 0.0

    def pause_after(self, packets: int, size: int, now: float, *, captures: int = 1) -> float | None:
        """
        How long to pause after a read, in seconds; L{None} if the next packet is to be read at once.

        @param packets: how many packets were read.
        @param size: how many bytes they have in the file.
        @param captures: how many captures the same thread reads with pauses.
        """
        elapsed = now - self._last_read
        # Unless there was a pause, they were read when they were handed over, however long it was quiet. A
        # pause may last a little longer than it was to.
        most = max(_TIMES * self._pause, self._ring.block_seconds)
        within = max(min(elapsed, most), _SHORTEST_SECONDS)
        rate = (size + packets * _MORE_THAN_IN_FILE_BYTES) / within
        self._rate = max(rate, self._rate * 0.5 ** (elapsed / _HALF_LIFE_SECONDS))
        longest = min(
            max(_LONGEST_SECONDS, captures * _SECONDS_FOR_EACH),
            self._most,
            _TIMES * self._pause or _FIRST_SECONDS,
        )
        self._last_read, self._pause = now, 0.0
        if packets < _MANY_PACKETS:
            return None
        pause = min(longest, self._ring.lasts(self._rate) * _SHARE_OF_RING)
        if pause < _SHORTEST_SECONDS:
            return None
        self._pause = pause
        return pause
