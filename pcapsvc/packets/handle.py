"""Handles of libpcap, through pcapy-ng."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, cast

import pcapy
from zope.interface import implementer

from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.core.filter import NOTHING, FilterRejected, Program, everything
from pcapsvc.core.link_type import LINUX_SLL, kept_length
from pcapsvc.core.pcap_file import MICROSECOND_TICKS, file_header
from pcapsvc.core.read_pace import Ring
from pcapsvc.core.recording import PacketCounts
from pcapsvc.core.text import one_line
from pcapsvc.interfaces.capture import IPacketDumper, IPacketHandle, PacketSink
from pcapsvc.packets import network_interfaces
from pcapsvc.packets.filter_compiler import uses_netmask
from pcapsvc.packets.handle_filters import CompiledHandleFilters, HandleFilters, Kind, netmask_of
from pcapsvc.packets.kernel_filter import attach
from pcapsvc.packets.libpcap import (
    BadFilter,
    Libpcap,
    LibpcapError,
    find_libpcap,
    flush_all_streams,
    library_path,
)
from pcapsvc.packets.network_interfaces import (
    ANY_INDEX,
    Interface,
    bound_index,
    missed_packets,
)
from pcapsvc.packets.socket_counts import SOL_PACKET, SocketCounts

#: libpcap, if the internals of the installed pcapy are known; else L{None}.
LIBPCAP = find_libpcap(pcapy.__file__)

# A membership in what an interface receives, of linux/if_packet.h: struct packet_mreq (packet(7)). It
# ends with the socket.
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_PROMISC = 1
_MEMBERSHIP = struct.Struct("iHH8s")

# What libpcap says if an interface went down (pcap-linux.c), and what we say if it is gone.
_WENT_DOWN = "went down"
_GONE = "the interface is gone"

# Packets are discarded in steps of this many.
_STEP_PACKETS = 4096


def libpcap_path() -> str:
    """
    The path of the libpcap that captures, for L{FilterCompiler}; empty if it is in no shared library, so that
    filters can't be compiled apart.
    """
    try:
        return library_path(pcapy.__file__)
    except OSError:
        return ""


@implementer(IPacketDumper)
class PlainDumper:
    """
    A dumper of pcapy's whose internals are unknown.

    @ivar dump: writes one packet: see L{IPacketDumper.dump}.
    """

    reports_failures = False

    def __init__(self, dumper: Any, path: str) -> None:
        self.dump = dumper.dump
        self._close = dumper.close
        self._path = path
        self._is_closed = False

    def size(self) -> int:
        """The size of the file: see L{IPacketDumper.size}."""
        if self._is_closed:
            raise ValueError("it is closed")
        self.flush()
        return os.stat(self._path).st_size

    def write(self, records: memoryview, packets: int) -> None:
        """Write packets as they are in a file: see L{IPacketDumper.write}."""
        raise OSError("this version of pcapy can't do that")

    def flush(self) -> None:
        """Write what is buffered, here and in all other streams: see L{IPacketDumper.flush}."""
        flush_all_streams()

    def close(self) -> None:
        """Write what is buffered, and close the file: see L{IPacketDumper.close}."""
        self._is_closed = True
        self._close()


def open_dumper(
    file: str | int,
    *,
    link_type: int,
    snap_length: int,
    ticks_per_second: int = MICROSECOND_TICKS,
    libpcap: Libpcap | None = LIBPCAP,
) -> IPacketDumper:
    """
    Create a pcap file: see L{pcapsvc.interfaces.capture.IPacketSystem.open_dumper}.

    @param libpcap: is called directly if that is better; with L{None}, only if nothing else is possible.
    """
    if isinstance(file, int):
        # Slower than pcapy's for packets that are counted one by one, but it needs no path.
        if LIBPCAP is None:
            raise OSError("proc(5) is not mounted at /proc, and this version of pcapy can't do without")
        return LIBPCAP.open_dumper(
            file, link_type=link_type, snap_length=snap_length, ticks_per_second=ticks_per_second
        )
    if ticks_per_second != MICROSECOND_TICKS:
        # pcapy knows of microseconds only.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            return open_dumper(
                descriptor, link_type=link_type, snap_length=snap_length, ticks_per_second=ticks_per_second
            )
        finally:
            os.close(descriptor)
    # pcapy's dumpers come from its readers, and take the link type and the snap length from there.
    descriptor = os.memfd_create("pcapsvc-header", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, file_header(link_type, snap_length))
        reader = pcapy.open_offline(f"/proc/self/fd/{descriptor}")
        dumper = reader.dump_open(file)
    except pcapy.PcapError as error:
        raise OSError(str(error)) from None
    finally:
        os.close(descriptor)
    return PlainDumper(dumper, file) if libpcap is None else libpcap.buffered(dumper)


@implementer(IPacketHandle)
class PcapyHandle:
    """
    A handle of pcapy's.

    @ivar interface: the name by which it was asked for.
    @ivar index: the interface's index; L{ANY_INDEX} for all of them.
    @ivar snap_length: how much it keeps of each packet, in bytes.
    """

    is_behind = False

    def __init__(
        self,
        reader: Any,
        interface: Interface,
        snap_length: int,
        close_descriptor: Callable[[int], None],
        libpcap: Libpcap | None,
        ring: Ring,
    ) -> None:
        self.ring = ring
        self.interface = interface.name
        self.index = interface.index
        # An alternative name would have to be looked up, which may take long.
        self._knows_its_name = interface.index != ANY_INDEX and interface.has_own_name
        self.link_type: int = reader.datalink()
        self.ticks_per_second = MICROSECOND_TICKS if libpcap is None else libpcap.ticks_per_second(reader)
        self._reader = reader
        self.snap_length = kept_length(self.link_type, snap_length)
        self._close_descriptor = close_descriptor
        self._libpcap = libpcap
        self._closed = False
        self._packets = self._discarded = 0
        # When its filter was set, in seconds since the Unix epoch; and how many packets from before that may
        # yet be handed over, at most.
        self._began, self._stale = 0.0, 0
        self._filters = HandleFilters(reader) if libpcap is None else CompiledHandleFilters(reader, libpcap)
        self.program = self._in_force = everything(self.snap_length)
        # libpcap 1.9 opens its socket on all interfaces, and binds it then: what came between is counted. So
        # counting begins with the first filter.
        self._counts = SocketCounts()
        self._before = PacketCounts(received=0, dropped=0, interface_dropped=None)

    def kind(self, bpf: str) -> Kind:
        """What a filter for this handle is compiled for."""
        netmask = netmask_of(self._reader) if uses_netmask(bpf) else 0
        return Kind(link_type=self.link_type, snap_length=self.snap_length, netmask=netmask)

    def fileno(self) -> int:
        return int(self._reader.getfd())

    def is_up(self) -> bool:
        """Whether the interface exists and is up: see L{IPacketHandle.is_up}."""
        try:
            return self.index == ANY_INDEX or network_interfaces.is_up(self.index)
        except OSError:
            # It can't be found out now. If it isn't up, the next read says so.
            return True

    @property
    def is_named(self) -> bool | None:
        """Whether the interface has the name by which it was asked for: see L{IPacketHandle.is_named}."""
        try:
            now = network_interfaces.name_of(self.index) if self._knows_its_name else None
        except OSError:
            now = None
        return None if now is None else now == self.interface

    @property
    def is_gone(self) -> bool:
        """Whether the interface doesn't exist any more. Under its name there may be another one."""
        return bound_index(self.fileno()) != self.index

    def read(self, count: int, sink: PacketSink) -> int:
        read = self._read(count, sink)
        self._packets += read
        return read

    def _read(self, count: int, sink: PacketSink) -> int:
        try:
            read = self._dispatch(count, sink)
        except (pcapy.PcapError, LibpcapError) as error:
            # libpcap reports once that an interface went down. Its socket receives again when it is up.
            if self.is_gone or _WENT_DOWN not in str(error):
                raise self._unavailable(error) from None
            return 0
        # Nothing is reported if an interface that was down already is deleted.
        if read == 0 and self.is_gone:
            raise CaptureUnavailable(self.interface, _GONE)
        return read

    def _dispatch(self, count: int, sink: PacketSink) -> int:
        first = 0
        if self._stale:
            first = self._read_first(sink)
            if self._stale or first == count:
                return first
        try:
            return first + self._dispatch_all(count - first, sink)
        except (pcapy.PcapError, LibpcapError):
            # If the interface is gone, the next read finds that out.
            if not first:
                raise
            return first

    def _read_first(self, sink: PacketSink) -> int:
        """
        Read the first packet that came after the filter was set. What came before that, while the handle was
        opened, is left out: between the two, no packet passed.

        @return: how many packets were read: one, or none.
        """
        found = 0

        def read(header: Any, data: bytes) -> None:
            nonlocal found
            seconds, ticks = header.getts()
            if seconds + ticks / self.ticks_per_second < self._began:
                self._stale -= 1
                return
            self._stale, found = 0, 1
            if callable(sink):
                sink(header, data)
            elif self._libpcap is None:
                cast(PlainDumper, sink).dump(header, data)
            else:
                self._libpcap.dump_one(sink, header, data)

        while self._stale and self._reader.dispatch(1, read):
            pass
        return found

    def _dispatch_all(self, count: int, sink: PacketSink) -> int:
        if callable(sink):
            return int(self._reader.dispatch(count, sink))
        if self._libpcap is None:
            return int(self._reader.dispatch(count, cast(PlainDumper, sink).dump))
        return self._libpcap.dump(self._reader, sink, count)

    def _unavailable(self, error: Exception) -> CaptureUnavailable:
        return CaptureUnavailable(self.interface, _GONE if self.is_gone else str(error))

    def discard_packets(self) -> None:
        """
        Discard what has arrived and been handed over by the kernel. It is never counted.

        @raise CaptureUnavailable: if the interface is gone.
        """
        while discarded := self._read(_STEP_PACKETS, _discard):
            self._discarded += discarded

    def begin(self, program: Program, *, promiscuous: bool) -> PcapyHandle:
        """
        Begin anew with another filter, in a thread: what has arrived is discarded, and not counted.

        @param promiscuous: whether to put the interface into promiscuous mode.

        @return: this handle.

        @raise RequestRejected: if the filter can't be used here; the handle is closed then.
        @raise CaptureUnavailable: if the interface is down or gone; likewise.
        """
        try:
            if not self.is_up():
                raise CaptureUnavailable(self.interface, _GONE if self.is_gone else "the interface is down")
            if promiscuous:
                self._become_promiscuous()
            self._set_on_idle(program)
            self.program = program
        except BaseException:
            self.close_here()
            raise
        return self

    def _become_promiscuous(self) -> None:
        # As libpcap does when it is asked to before it opens the interface.
        with socket.socket(fileno=os.dup(self.fileno())) as same:
            membership = _MEMBERSHIP.pack(self.index, _PACKET_MR_PROMISC, 0, b"")
            try:
                same.setsockopt(SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
            except OSError as error:
                raise CaptureUnavailable(self.interface, f"promiscuous mode: {error.strerror}") from None

    def compile(self, bpf: str) -> Program:
        """Compile a filter for this handle: see L{IPacketSystem.compile_now}."""
        try:
            return self._filters.compile(bpf)
        except BadFilter as error:
            raise _rejected(bpf, error) from None

    def set_filter(self, program: Program) -> None:
        if self._is_for_kernel_alone(program):
            # libpcap also applies a filter to what is in the ring, and to all that will be in its first
            # block. It doesn't know there in which direction a packet went, and would drop them all.
            self._attach(program)
            return
        try:
            if self._filters.replace(program):
                self._in_force = program
                return
            # libpcap would run it.
            if not self._filters.replace(self._in_force):
                raise CaptureUnavailable(self.interface, "the kernel doesn't run its filter any more")
        except BadFilter as error:
            raise _rejected(program.bpf, error) from None
        except (pcapy.PcapError, LibpcapError) as error:
            raise self._unavailable(error) from None
        raise FilterRejected(program.bpf, f"the kernel can't run it on {self.interface}")

    def set_first_filter(self, program: Program) -> None:
        """
        Set the first filter. Always set one: without it, the kernel keeps whole packets in the ring, whatever
        the snap length is.

        @raise RequestRejected: as L{set_filter} does.
        @raise CaptureUnavailable: likewise.
        """
        # Past libpcap, which would apply this filter to the whole first block of the ring as well.
        self._attach(NOTHING)
        if program != NOTHING:
            self._set_on_idle(program)

    def _set_on_idle(self, program: Program) -> None:
        """
        Set a filter, in a thread, while no packet passes. What arrived earlier is discarded. The kernel may
        hold some of it back, in a block that isn't full: that is recognized by its time stamps when it is
        read.
        """
        self.discard_packets()
        self._before = self._all_counts() or self._before
        self._began = time.time()
        # Some of them never come: those that were counted before libpcap bound its socket to the interface.
        self._stale = max(0, self._before.received - self._before.dropped - self._discarded)
        self.set_filter(program)

    def _is_for_kernel_alone(self, program: Program) -> bool:
        return self._libpcap is not None and self.link_type != LINUX_SLL and program.reads_packet_type

    def _attach(self, program: Program) -> None:
        try:
            attach(self.fileno(), program.instructions)
        except OSError:
            reason = f"the kernel can't run it on {self.interface}"
            raise FilterRejected(program.bpf, reason) from None
        self._in_force = program

    def counts(self, *, hardware: bool = True) -> PacketCounts | None:
        counts, before = self._all_counts(hardware=hardware), self._before
        if counts is None:
            return None
        dropped = counts.dropped - before.dropped
        return PacketCounts(
            # What came before the filter was set is not filtered out if it passes it.
            received=max(counts.received - before.received, self._packets + dropped),
            dropped=dropped,
            interface_dropped=_increase(before.interface_dropped, counts.interface_dropped),
        )

    def _all_counts(self, *, hardware: bool = True) -> PacketCounts | None:
        try:
            self._counts.update(self.fileno())
        except (OSError, pcapy.PcapError):
            return None
        missed = missed_packets(self.index) if hardware and not self.is_gone else None
        return PacketCounts(
            received=self._counts.received, dropped=self._counts.dropped, interface_dropped=missed
        )

    def close(self) -> None:
        self._close(self._close_descriptor)

    def close_here(self) -> None:
        """Close it, in a thread that may wait."""
        self._close(os.close)

    def _close(self, close_descriptor: Callable[[int], None]) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            # pcapy would hold Python's lock for as long as the kernel waits: so its close isn't the last.
            last = os.dup(self.fileno())
        except OSError:
            self._reader.close()
        else:
            self._reader.close()
            close_descriptor(last)


def _increase(before: int | None, after: int | None) -> int | None:
    """What was added to a counter; L{None} if that is unknown, since some drivers begin anew at 0."""
    if before is None or after is None or after < before:
        return None
    return after - before


def _rejected(bpf: str, error: Exception) -> FilterRejected:
    return FilterRejected(bpf, f"libpcap says: {one_line(str(error))}")


def _discard(header: object, data: bytes) -> None:
    """For packets that nobody wants."""
