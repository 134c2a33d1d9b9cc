"""The seams of the house: what each room needs of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.recording import PacketCounts, Recording
from pcapsvc.core.result import Event, Receipt, Verdict
from pcapsvc.core.session import StopReason


class RunInThread(Protocol):
    """Runs a function that blocks, in a thread that may."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """
        @return: fires with what the function returns, and fails with what it raises.
        """


class IRequestSink(Interface):
    """Where a source puts the requests that it hears."""

    def submit(source: str, body: bytes, sent_at: float | None = None) -> Verdict:
        """
        Judge a request, and begin the captures that it asks for. Never raises, and
        returns at once: a source acknowledges a message after this.

        @param source: the source's name, for the log.
        @param body: the message, as it came.
        @param sent_at: when its broker took it, in seconds since the Unix epoch, by the
            broker's clock; L{None} where the broker doesn't say.
        """


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


class IDestination(Interface):
    """Somewhere a capture can be delivered to."""

    name: str = Attribute("For the log and the events: C{local}, C{cloudshark}, C{s3}.")
    ways: tuple[str, ...] = Attribute("The ways there, one or more: what hangs on one holds up no other.")

    def way(s3: Mapping[str, Any]) -> str:
        """
        Which of the C{ways} a capture goes. Never raises.

        @param s3: what its request says of S3, as in L{Artifact}.
        """

    def store(artifact: Artifact) -> Deferred[Receipt]:
        """
        Deliver a capture, once. To deliver the same artifact again, after an attempt
        that may have arrived, is a success, and should leave one capture there.

        @return: fires with the receipt; fails with L{DestinationError}; on cancel, the
            attempt ends, and may or may not have arrived.
        """


class IDelivery(Interface):
    """Brings captures to all destinations."""

    def deliver(artifact: Artifact, let_go: Callable[[], object]) -> Deferred[None]:
        """
        Deliver a capture to every destination, side by side.

        @param let_go: called once the content is no longer needed, where that is before
            the Deferred fires: it is on the disk.

        @return: fires when each has had its turn: it has the capture, or will not get
            it, or it is kept in the spool for it. Never fails. On cancel, what goes on is
            given up, and told to be.
        """


class ISpool(Interface):
    """Keeps captures on disk for destinations that don't have them yet."""

    def put(
        artifact: Artifact, destination: str, problem: str, asked_seconds: float | None = None
    ) -> Deferred[None]:
        """
        Keep a capture, and deliver it from here.

        @param destination: the name of the destination that it is for.
        @param problem: why it isn't there yet, in words.
        @param asked_seconds: how long the destination asks to be left alone.

        @return: fires when it is on the disk, whole; fails with L{SpoolError}; on
            cancel, it may or may not be kept. Until then its content must stay open.
        """

    def hold(artifact: Artifact, destination: str, problem: str) -> Deferred[IHeldCapture]:
        """
        Keep a capture that somebody else is about to deliver: as L{put}, and fires with it.
        On cancel it is not kept, so that it may be delivered otherwise; where it was just
        being written, it is taken out as soon as the disk is done with it.

        @param problem: what is known of it if the process ends before it is delivered.
        """


class IHeldCapture(Interface):
    """A capture that is kept in the spool, and that the spool itself doesn't deliver."""

    artifact: Artifact = Attribute("The capture, with the content that is on the disk.")

    def delivered() -> Deferred[None]:
        """
        Take it out of the spool.

        @return: fires when no restart will find it again, or when that can't be had for
            now, which is told.
        """

    def release(problem: str, asked_seconds: float | None = None) -> bool:
        """
        Leave it to the spool to deliver it: see L{ISpool.put}.

        @return: whether it will; not where it is gone, as the spool's folder went away.
        """


class IHurriable(Interface):
    """A part that can be told, while the service stops, that time is getting short."""

    def hurry() -> None:
        """Cut short what can be done later, and keep it."""


class IReporter(Interface):
    """Somebody who wants to hear what becomes of requests."""

    def report(event: Event) -> None:
        """Take note of an event. Never raises."""
