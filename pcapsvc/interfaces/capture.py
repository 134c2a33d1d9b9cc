"""What the pipeline needs of captures, and what captures need of the operating system."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.recording import PacketCounts, Recording
from pcapsvc.core.session import StopReason


class IPacketDumper(Interface):
    """Writes packets to a file, as they come."""

    def dump(header: Any, data: bytes) -> None:
        """Write one packet; to be handed to L{IPacketHandle.dispatch}. A failure to write is silent."""

    def close() -> None:
        """Write what is held back, and close the file."""


class IPacketHandle(Interface):
    """An interface that is being captured on."""

    link_type: int = Attribute("The link-layer type, a number of draft-ietf-opsawg-pcaplinktype.")

    def fileno() -> int:
        """The descriptor that is readable when packets are."""

    def open_dumper(path: str) -> IPacketDumper:
        """
        Begin a pcap file of this handle's link type and snap length; what was there is cut off.

        @raise OSError: where it can't be opened.
        """

    def dispatch(count: int, callback: Callable[[Any, bytes], object]) -> int:
        """
        Hand packets that have arrived to C{callback(header, data)}, and wait for none.
        What it raises ends the call, and is raised here.

        @param count: at most so many packets, 1 or more.

        @return: the number of packets handed over; 0 where there is none.

        @raise CaptureUnavailable: where the interface went down or away.
        """

    def dump(count: int, dumper: IPacketDumper) -> int:
        """
        Write packets that have arrived with a dumper of this handle, and wait for none:
        as L{dispatch} to its C{dump} would, and faster.

        @param count: at most so many packets, 1 or more.

        @return: the number of packets written; 0 where there is none.

        @raise CaptureUnavailable: where the interface went down or away.
        """

    def drain() -> None:
        """
        Throw away what has arrived.

        @raise CaptureUnavailable: where the interface went down or away.
        """

    def rearm(bpf: str) -> None:
        """
        Begin anew with another filter: what has arrived is thrown away, and not counted. A
        handle that waited is from here on as one that was opened to capture.

        @raise RequestRejected: where the filter can't be compiled.
        @raise CaptureUnavailable: where the interface went down or away.
        """

    def leave_out(bpf: str) -> None:
        """
        Go on without the packets that pass this filter, of those that pass the handle's own. What
        has arrived and is left out is not handed over, though it may be counted. To be
        called as often as that changes, and never within L{dispatch}.

        @param bpf: a filter of pcap-filter(7), in place of the one of the last call; empty to
            leave out none.

        @raise RequestRejected: where the filter can't be compiled; the one before stays.
        @raise CaptureUnavailable: where the interface went down or away.
        """

    def counts() -> PacketCounts | None:
        """What the kernel says of this capture so far; L{None} where it can't be asked."""

    def close() -> None:
        """Stop capturing. Never to be called within L{dispatch}. A second call does nothing."""


class IPacketSystem(Interface):
    """What the operating system knows of packets."""

    def open(interface: str, *, snap_length: int, bpf: str) -> IPacketHandle:
        """
        Begin to capture on an interface, by a filter.

        @param interface: its name, or C{any} for all.
        @param snap_length: how much of each packet to keep, in bytes: 1 to 262144.
        @param bpf: a filter of pcap-filter(7); empty for every packet.

        @raise RequestRejected: where the filter can't be compiled.
        @raise CaptureUnavailable: where the interface can't be captured on.
        @raise OSError: where there is no memory, or no descriptor, for it.
        """


class IPatientPacketSystem(IPacketSystem):
    """One with handles that can wait for a capture."""

    def wait(interface: str, *, snap_length: int) -> IPacketHandle:
        """
        Open a handle that lets no packet pass, and doesn't change what the interface takes in,
        until it is told to capture by L{IPacketHandle.rearm}. The rest is as in C{open}.
        """


class ICapture(Interface):
    """A capture whose handle is open, and whose packets wait to be read."""

    capture_id: str = Attribute("Unique among all captures, in ASCII letters and digits.")
    plan: CapturePlan = Attribute("What it does.")
    link_type: int = Attribute("The link-layer type of its file.")

    def start() -> Deferred[Recording]:
        """
        Read packets until the first of the limits.

        @return: fires with the recording; fails with L{CaptureUnavailable}; on cancel,
            the capture ends now, and the recording has what there is.
        """

    def end(reason: StopReason) -> None:
        """End now, with what there is. After the capture's end it does nothing."""

    def discard() -> None:
        """Give up, before L{start}: as if it had never been."""

    def progress() -> tuple[int, int]:
        """The packets that were captured by now, and the bytes in memory, which may lag by 4096."""


class ICapturer(Interface):
    """Captures by plan."""

    def prepare(plan: CapturePlan) -> ICapture:
        """
        Open what a capture needs. From here on, packets are kept for it.

        @raise RequestRejected: where the filter can't be compiled.
        @raise CaptureUnavailable: where the interface can't be captured on.
        @raise NodeBusy: where there is no memory, or no descriptor, for it.
        """
