"""What the pipeline needs of captures, and what captures need of the operating system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from mmap import mmap
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from pcapsvc.core.filter import Program
from pcapsvc.core.history import HistoryState, PastPackets
from pcapsvc.core.network_interface import NetworkInterface
from pcapsvc.core.pcap_file import MICROSECOND_TICKS
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.read_pace import Ring
from pcapsvc.core.recording import Content, PacketCounts, Progress, Recording
from pcapsvc.core.session import StopReason


class IPacketDumper(Interface):
    """Writes packets to a pcap file."""

    reports_failures: bool = Attribute("Whether C{size} fails once a packet could not be written.")

    def dump(header: Any, data: bytes) -> None:
        """Write one packet, of L{IPacketHandle.read}. A failure to write is silent."""

    def size() -> int:
        """
        The size of the file, in bytes, including what is held back.

        @raise OSError: if C{reports_failures}, and not all packets could be written.
        @raise ValueError: if it is closed.
        """

    def write(records: memoryview, packets: int) -> None:
        """
        Write packets as they are in a pcap file of this link type.

        @param records: the packets, each with its header, without the header of the file.
        @param packets: how many there are.

        @raise OSError: if they can't be written.
        """

    def flush() -> None:
        """
        Write what is held back: then the file ends with a whole packet. Never to be called within
        L{IPacketHandle.read}. A failure to write is silent.
        """

    def close() -> None:
        """Write what is held back, and close the file. A failure to write is silent."""


#: What packets are read into: a dumper, or C{callback(header, data)}. A dumper is faster: libpcap itself
#: calls it, and no Python runs for each packet.
PacketSink: TypeAlias = "IPacketDumper | IRecordWriter | Callable[[Any, bytes], object]"


class IPacketReader(Interface):
    """Where the packets of a capture come from."""

    link_type: int = Attribute("The link-layer type, as libpcap numbers it (DLT_).")
    ticks_per_second: int = Attribute("The unit of its packets' time stamps, besides seconds.")
    program: Program = Attribute("The filter that it was opened with, compiled.")
    ring: Ring = Attribute("Where packets are until they are read.")
    is_behind: bool = Attribute(
        "Whether there may be more packets, though the last read found fewer than were wanted."
    )

    def fileno() -> int:
        """The descriptor that is readable when there are packets."""

    def read(count: int, sink: PacketSink) -> int:
        """
        Read packets that have arrived, without waiting. What the sink raises ends the call, and is raised
        here. While the interface is down there are none.

        @param count: how many packets, at most; 1 or more.

        @return: the number of packets read; 0 if there are none.

        @raise CaptureUnavailable: if the interface is gone. What had arrived may be read after that.
        @raise ValueError: if it is closed.
        """

    def counts(*, hardware: bool = True) -> PacketCounts | None:
        """
        The kernel's counts of this capture so far.

        @param hardware: whether to find out C{interface_dropped}, which takes 0.2 ms; if not, it is L{None}.

        @return: L{None} if the kernel has none any more.
        """

    def close() -> None:
        """Stop capturing. Never to be called within L{read}. A second call does nothing."""


class IPacketHandle(IPacketReader):
    """An interface that is being captured on."""

    index: int = Attribute("The index of the interface, as L{IStandbyPacketSystem.find} finds it.")
    snap_length: int = Attribute("How much it keeps of each packet, in bytes: at least what was asked for.")

    is_named: bool | None = Attribute(
        "Whether the interface has the name that was asked for; L{None} if it is gone, or looking takes long."
    )

    def is_up() -> bool:
        """Whether the interface exists and is up."""

    def set_filter(program: Program) -> None:
        """
        Continue with another filter. Packets that have arrived and don't pass it are not read, though they
        may be counted. Never to be called within L{read}.

        @param program: compiled for this handle.

        @raise RequestRejected: if the filter can't be used on this interface; the one before stays.
        @raise CaptureUnavailable: if the interface is gone. That may only show in the next read.
        """


class IRecordWriter(Interface):
    """
    Writes packets into memory, as they are in a pcap file, without the header of the file.
    L{IPacketHandle.read} writes into it; there must be room for as many packets as it may read.
    """

    def size() -> int:
        """How many bytes were written."""

    def close() -> None:
        """Write no more: the memory can be used for something else. A second call does nothing."""


class ISieve(Interface):
    """
    Lets those packets of a recording pass that match a filter, cut to a snap length.

    @ivar looks_beyond: whether the filter looks at bytes that the packets don't have, as they were cut.
    """

    looks_beyond: bool

    def sift(records: memoryview) -> tuple[int, memoryview]:
        """
        Sift packets. It may be called in any thread, by one at a time.

        @param records: the packets as they are in a pcap file, without its header.

        @return: the number of packets that pass; and the packets, which are valid until the next call.

        @raise OSError: if there is no memory for it.
        """

    def close() -> None:
        """Free its memory. A second call does nothing."""


class IPacketSystem(Interface):
    """The operating system, as far as packets are concerned."""

    def open(interface: str, *, snap_length: int, bpf: str) -> Deferred[IPacketHandle]:
        """
        Start to capture on an interface, with a filter.

        @param interface: its name, or C{any} for all.
        @param snap_length: how much of each packet to keep, in bytes: 1 to 262144.
        @param bpf: a filter of pcap-filter(7); empty for every packet.

        @return: fires with the handle. Fails with L{RequestRejected} if the filter can't be used, with
            L{CaptureUnavailable} if the interface can't be captured on, with L{NodeBusy} or L{OSError} if
            there is no memory, descriptor or process for it. On cancel, nothing is left open.
        """

    def compile_now(handle: IPacketHandle, bpf: str) -> Program:
        """
        Compile a filter for a handle of this system, while everything waits. Only for filters of our own:
        what others ask for may take forever.

        @raise RequestRejected: if the filter can't be compiled for this link type.
        """

    def open_dumper(
        file: str | int, *, link_type: int, snap_length: int, ticks_per_second: int = MICROSECOND_TICKS
    ) -> IPacketDumper:
        """
        Create a pcap file; an existing file is truncated.

        @param file: its path; or the descriptor of an open, empty file, which stays open.
        @param link_type: as libpcap numbers it.
        @param snap_length: in bytes.
        @param ticks_per_second: of the packets that will be written, as in L{IPacketReader}.

        @raise OSError: if it can't be opened.
        """

    def open_records(memory: mmap, start: int, end: int, *, link_type: int) -> IRecordWriter:
        """
        Write packets of a handle into memory, which is not to be closed before.

        @param start: where the first byte goes; C{end} is one beyond the last: a page later, or more.

        @raise OSError: if it can't be done.
        """

    def open_sieve(
        interface: str, *, link_type: int, kept: int, snap_length: int, bpf: str
    ) -> Deferred[ISieve]:
        """
        Filter packets that were recorded as a live handle would have filtered them.

        @param interface: the name of the interface that they were recorded on. It may be gone.
        @param kept: the snap length with which they were recorded, in bytes.
        @param snap_length: to which they are cut, in bytes.
        @param bpf: a filter of pcap-filter(7); empty for every packet.

        @return: fires with the sieve. Fails with L{RequestRejected} if the filter can't be used, with
            L{NodeBusy} or L{OSError} if there is no memory, descriptor or process for it.
        """


class IHostInterfaces(Interface):
    """What can be captured on here, without anything being captured."""

    def check() -> Deferred[None]:
        """
        See whether this process may capture at all.

        @return: fails with L{OSError} if it may not.
        """

    def list_interfaces() -> Deferred[Sequence[NetworkInterface]]:
        """
        The network interfaces, and C{any} if that can be captured on.

        @return: fires with them, in the order of their index. Fails with L{OSError}.
        """

    def compile_filter(interface: str | None, *, snap_length: int, bpf: str) -> Deferred[Program]:
        """
        Compile a filter as L{IPacketSystem.open} would, and open nothing.

        @param interface: its name; L{None} is any Ethernet.

        @return: fires with the program, and fails, as L{IPacketSystem.open} does. On cancel, it is no longer
            compiled.
        """


class IStandbyHandle(Interface):
    """A handle that lets no packet pass, until it is armed."""

    index: int = Attribute("The index of the interface, as L{IStandbyPacketSystem.find} finds it.")

    def check() -> None:
        """
        See whether the interface is still there.

        @raise CaptureUnavailable: if it is gone.
        """

    def arm(bpf: str) -> Deferred[IPacketHandle]:
        """
        Start to capture. Whatever comes of it, this handle is used up.

        @return: as that of L{IPacketSystem.open}.
        """

    def close() -> None:
        """Give it up. A second call does nothing."""


class IStandbyPacketSystem(IPacketSystem, IHostInterfaces):
    """A packet system that can prepare handles."""

    def find(interface: str) -> Deferred[int | None]:
        """
        Find an interface by one of its names.

        @return: fires with its index, which stays when it is renamed; L{None} if there is none. Fails with
            L{OSError}.
        """

    def open_standby(interface: str, *, snap_length: int) -> Deferred[IStandbyHandle]:
        """
        Open a handle that lets no packet pass, and leaves the interface out of promiscuous mode.

        @return: fires with the handle; the rest is as in C{open}.
        """


class IReadHook(Interface):
    """What happens before a capture begins, and before each read of its handle."""

    def before_read(handle: IPacketHandle) -> None:
        """
        The handle is about to be read.

        @raise CaptureUnavailable: if the interface is gone.
        """

    def close() -> None:
        """The handle will not be read again. A second call does nothing."""


class ISnapshot(Interface):
    """What a rolling capture held at some time. The capture may go on, and end."""

    size: int = Attribute("How many bytes a file with it has.")

    def copy() -> Content:
        """
        Copy it, in a thread, once. What the capture has released in the meantime is left out: whole packets
        at the beginning.

        @return: a file, which the caller closes.

        @raise OSError: if there is no memory or no descriptor for it.
        """

    def close() -> None:
        """It is not needed any more. Never to be called within L{copy}. A second call does nothing."""


class ICapture(Interface):
    """A capture that has begun: its handle is open, and its packets are kept."""

    capture_id: str = Attribute("Unique among all captures, in ASCII letters and digits.")
    plan: CapturePlan = Attribute("What it does.")
    link_type: int = Attribute("The link-layer type of its file, a number of draft-ietf-opsawg-pcaplinktype.")
    started: float = Attribute("Since when packets are kept, in seconds since the Unix epoch.")
    compile_seconds: float = Attribute("How long another process was busy with its filter.")
    past: PastPackets | None = Attribute("What it got of the past; L{None} if it didn't ask for any.")

    def start() -> Deferred[Recording]:
        """
        Have the recording, once the first of the limits is met.

        @return: fires with the recording; fails with L{CaptureUnavailable}; on cancel, the capture ends
            now, and the recording has what there is.
        """

    def end(reason: StopReason) -> None:
        """End now, with what there is. After the capture's end it does nothing."""

    def discard() -> None:
        """Give up, before L{start}: as if it had never been."""

    def held_bytes() -> int:
        """The bytes of the file that are in memory of its own by now. What libpcap holds back is not."""

    def whole_bytes() -> int:
        """
        The size of the file up to the last packet that was read, in bytes. Up to there it can be read. What
        libpcap holds back is written for this. Not to be called for a rolling capture, which has no file that
        only grows; nor is L{read_at}.
        """

    def read_at(offset: int, count: int) -> bytes:
        """
        Read the file, while the capture is running.

        @param count: how many bytes, at most. There may be fewer, but none only at the end.
        """

    def snapshot() -> ISnapshot:
        """
        What a rolling capture holds now.

        @return: what it holds. The caller closes it.

        @raise OSError: if there is no descriptor for it.
        """

    def progress() -> Progress:
        """
        What it has so far. To ask costs some 10 us, for the kernel's counts; of a rolling capture, 0.3 ms, to
        find the first packet that it holds.
        """


class IHistories(Interface):
    """The recent past of some interfaces."""

    def states() -> Sequence[HistoryState]:
        """How far back each of them reaches, in the order of the configuration."""


class ICapturer(Interface):
    """Captures by plan."""

    def keep_up() -> None:
        """
        Have captures read what has arrived, unless they just did. To be called before each piece of other
        work of which there may be a lot in one turn of the reactor: captures come first.
        """

    def prepare(plan: CapturePlan) -> Deferred[ICapture]:
        """
        Open what a capture needs. Once it fires, packets are kept.

        @return: fires with the capture. Fails with L{RequestRejected} if the filter can't be used, with
            L{CaptureUnavailable} if the interface can't be captured on, with L{NodeBusy} if there is no
            memory, descriptor or process for it. On cancel, nothing is left open.
        """
