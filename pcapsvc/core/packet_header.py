"""The header of a packet that was not read by libpcap just now."""

from __future__ import annotations


class PacketHeader:
    """
    A header that has what is used of pcapy's.

    @param seconds: of the time stamp, since the Unix epoch.
    @param ticks: the rest of it, in the unit of where it is read from.
    @param length: on the wire, in bytes.
    """

    __slots__ = ("_length", "_time")

    def __init__(self, seconds: int, ticks: int, length: int) -> None:
        self._time = seconds, ticks
        self._length = length

    def getts(self) -> tuple[int, int]:
        """The time stamp: seconds since the Unix epoch, and ticks."""
        return self._time

    def getlen(self) -> int:
        """The length on the wire, in bytes."""
        return self._length
