"""The result of a capture."""

from __future__ import annotations

from typing import Any, BinaryIO, Protocol

import msgspec
from msgspec.structs import replace

from pcapsvc.core.history import PastPackets
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.rolling import RollingPackets
from pcapsvc.core.session import StopReason


class Content(Protocol):
    """The bytes of a file, in memory or on disk."""

    @property
    def size(self) -> int:
        """The number of bytes."""

    def open(self) -> BinaryIO:
        """
        A reader of its own, at the first byte. The caller closes it. This does not block; reading and closing
        may, if the content is on disk.
        """

    def close(self) -> None:
        """Free the memory. Readers that are open stay readable. A second call does nothing."""


class PacketCounts(msgspec.Struct, frozen=True, kw_only=True):
    """
    What the kernel counted during a capture.

    @ivar received: packets that matched the filter, including those that were dropped.
    @ivar dropped: by the kernel, because its buffer was full.
    @ivar interface_dropped: those that the interface's hardware missed; L{None} if that is unknown.
    """

    received: int
    dropped: int
    interface_dropped: int | None

    def with_at_least(self, packets: int) -> PacketCounts:
        """
        These counts, raised so that they cover the packets that were read. What the kernel had counted
        before the first query is left out of them, and may include packets of this capture.
        """
        return replace(self, received=max(self.received, packets + self.dropped))


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a running capture has so far.

    @ivar packets: how many are in the file.
    @ivar bytes: the size of the file.
    @ivar seconds: how long the capture has been running.
    @ivar received: as in L{PacketCounts}; L{None} if it is unknown, likewise C{dropped}.
    @ivar rolling: what a rolling capture holds; L{None} if it is another one.
    """

    packets: int
    bytes: int
    seconds: float
    received: int | None = None
    dropped: int | None = None
    rolling: RollingPackets | None = None

    def values(self) -> dict[str, Any]:
        """It in values that JSON has; what is unknown, or isn't there, is L{None}."""
        return {
            "packets": self.packets,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "received": self.received,
            "dropped": self.dropped,
            "rolling": None if self.rolling is None else self.rolling.values(),
        }


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """
    A capture that has ended.

    @ivar capture_id: unique among all captures, in ASCII letters and digits.
    @ivar started: when, in seconds since the Unix epoch.
    @ivar ended: likewise; L{None} if that is unknown.
    @ivar link_type: the link-layer type of the file, a number of draft-ietf-opsawg-pcaplinktype.
    @ivar packets: the number of packets in the file.
    @ivar counts: L{None} if the interface was gone before they could be read.
    @ivar content: the pcap file. The owner of the recording closes it.
    @ivar past: what it got of the past; L{None} if the request didn't ask for any.
    @ivar rolling: as in L{Progress}.
    """

    capture_id: str
    plan: CapturePlan
    started: float
    link_type: int
    reason: StopReason
    packets: int
    counts: PacketCounts | None
    content: Content
    past: PastPackets | None = None
    rolling: RollingPackets | None = None
    ended: float | None = None
