"""Handles of libpcap, through pcapy-ng: the only module that imports pcapy."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pcapy
from zope.interface import implementer

from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.core.filter import NOTHING, FilterRejected, Program, everything
from pcapsvc.core.pcap_file import MICROSECOND_TICKS, file_header
from pcapsvc.core.read_pace import Ring
from pcapsvc.core.recording import PacketCounts
from pcapsvc.core.text import one_line
from pcapsvc.core.vlan_choice import vlan_choice
from pcapsvc.interfaces.capture import IPacketDumper, IPacketHandle, PacketSink
from pcapsvc.packets import network_interfaces
from pcapsvc.packets.filter_compiler import uses_netmask
from pcapsvc.packets.kernel_filter import attach, runs_in_kernel
from pcapsvc.packets.libpcap import (
    BadFilter,
    Libpcap,
    LibpcapError,
    find_libpcap,
    flush_all_streams,
    kept_length,
    library_path,
)
from pcapsvc.packets.network_interfaces import (
    ANY_INDEX,
    Interface,
    bound_index,
    missed_packets,
)

#: libpcap, if the internals of the installed pcapy are known; else L{None}.
LIBPCAP = find_libpcap(pcapy.__file__)

# A membership in what an interface receives, of linux/if_packet.h: struct packet_mreq (packet(7)). It
# ends with the socket.
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_PROMISC = 1
_MEMBERSHIP = struct.Struct("iHH8s")

# What libpcap says if an interface went down (pcap-linux.c), and what we say if it is gone.
_WENT_DOWN = "went down"
_GONE = "the interface is gone"

# The link type of handles on all interfaces (LINUX_SLL): there the direction is part of each packet.
_COOKED = 113
# How long it may take until the ring is empty, and how often to look, in seconds.
_EMPTY_SECONDS = 0.5
_EMPTY_STEP_SECONDS = 0.002

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


@dataclass(frozen=True, kw_only=True)
class Kind:
    """
    What a filter is compiled for.

    @ivar snap_length: in bytes.
    @ivar netmask: as inet_aton(3) has it; 0 if the filter doesn't depend on it.
    """

    link_type: int
    snap_length: int
    netmask: int


def problem_as_text(program: Program, link_type: int) -> str | None:
    """Why a filter can't be set as text, though it could be compiled; L{None} if it can be."""
    if not program.is_optimized:
        return "its optimization does not end"
    if vlan_choice(program.bpf, link_type) is not None:
        return "it can't choose among VLANs here"
    return None


class _Filters:
    """How filters are set on a handle of pcapy's whose internals are unknown: as text, compiled once more."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def compile(self, bpf: str) -> Program:
        """
        Compile a filter for the handle.

        @raise BadFilter: if it can't be compiled.
        """
        return Program(bpf=bpf, instructions=b"")

    def set(self, program: Program) -> None:
        """
        Set it. libpcap applies it to what is in the ring already as well (pcap_setfilter_linux_mmap).

        @raise BadFilter: if it can't be compiled.
        @raise pcapy.PcapError: if it can't be set, or if the interface went down.
        @raise LibpcapError: likewise.
        """
        if (problem := problem_as_text(program, self._reader.datalink())) is not None:
            raise BadFilter(problem)
        try:
            self._reader.setfilter(program.bpf)
        except pcapy.PcapError:
            # It doesn't distinguish a filter that can't be compiled from one that can't be set.
            netmask = _netmask(self._reader)
            try:
                pcapy.compile(self._reader.datalink(), 65535, program.bpf, 1, netmask)
            except pcapy.PcapError as error:
                raise BadFilter(str(error)) from None
            raise


class _CompiledFilters(_Filters):
    """Likewise, on a handle whose internals are known: as programs."""

    def __init__(self, reader: Any, libpcap: Libpcap) -> None:
        super().__init__(reader)
        self._libpcap = libpcap

    def compile(self, bpf: str) -> Program:
        return Program(bpf=bpf, instructions=self._libpcap.compile(self._reader, bpf))

    def set(self, program: Program) -> None:
        self._libpcap.set_filter(self._reader, program.instructions)


def _netmask(reader: Any) -> int:
    (netmask,) = struct.unpack("=I", socket.inet_aton(reader.getmask()))
    return int(netmask)


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
        self.link_type: int = reader.datalink()
        self.ticks_per_second = MICROSECOND_TICKS if libpcap is None else libpcap.ticks_per_second(reader)
        self._reader = reader
        self.snap_length = kept_length(self.link_type, snap_length)
        self._close_descriptor = close_descriptor
        self._libpcap = libpcap
        self._closed = False
        self._discarded = 0
        self._filters = _Filters(reader) if libpcap is None else _CompiledFilters(reader, libpcap)
        self.program = self._in_force = everything(self.snap_length)
        # libpcap 1.9 opens its socket on all interfaces, and binds it then: what came between is counted.
        received, dropped, _ = reader.stats()
        self._before = PacketCounts(
            received=received, dropped=dropped, interface_dropped=missed_packets(self.index)
        )

    def kind(self, bpf: str) -> Kind:
        """What a filter for this handle is compiled for."""
        netmask = _netmask(self._reader) if uses_netmask(bpf) else 0
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
    def is_gone(self) -> bool:
        """Whether the interface doesn't exist any more. Under its name there may be another one."""
        return bound_index(self.fileno()) != self.index

    def read(self, count: int, sink: PacketSink) -> int:
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
        if callable(sink):
            return int(self._reader.dispatch(count, sink))
        if self._libpcap is None:
            return int(self._reader.dispatch(count, cast(PlainDumper, sink).dump))
        return self._libpcap.dump(self._reader, sink, count)

    def _unavailable(self, error: Exception) -> CaptureUnavailable:
        return CaptureUnavailable(self.interface, _GONE if self.is_gone else str(error))

    def discard_packets(self) -> None:
        """
        Discard what has arrived.

        @raise CaptureUnavailable: if the interface is gone.
        """
        while discarded := self.read(_STEP_PACKETS, _discard):
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
            self.discard_packets()
            if promiscuous:
                self._become_promiscuous()
            self._set_on_empty_ring(program)
            self.program = program
            self._before = self._all_counts() or self._before
        except BaseException:
            self.close_here()
            raise
        return self

    def _become_promiscuous(self) -> None:
        # As libpcap does when it is asked to before it opens the interface.
        with socket.socket(fileno=os.dup(self.fileno())) as same:
            membership = _MEMBERSHIP.pack(self.index, _PACKET_MR_PROMISC, 0, b"")
            try:
                same.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
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
            # What has arrived by now is not filtered again, rather than lost.
            self._attach(program)
            return
        try:
            self._set_on_socket(program)
            if runs_in_kernel(self.fileno()):
                self._in_force = program
                return
            # libpcap would run it, and a read would last for as long as packets come that don't pass it.
            self._set_on_socket(self._in_force)
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
        if self._libpcap is None or self.link_type == _COOKED:
            self.set_filter(program)
            return
        # libpcap would also apply the filter to the first block of the ring.
        self._attach(NOTHING)
        if program != NOTHING:
            self._set_on_empty_ring(program)

    def _set_on_empty_ring(self, program: Program) -> None:
        """
        Set a filter while no packet passes.

        libpcap also applies a filter to what is in the ring, and to all that will be in its first block. It
        doesn't know there in which direction a packet went, and would drop them all. So such a filter is
        set in the kernel alone, once the ring is empty.
        """
        if not self._is_for_kernel_alone(program):
            self.set_filter(program)
            return
        until = time.monotonic() + _EMPTY_SECONDS
        received, dropped, _ = self._reader.stats()
        while self._discarded < received - dropped and time.monotonic() < until:
            # A block that isn't full is handed over after a while.
            time.sleep(_EMPTY_STEP_SECONDS)
            self.discard_packets()
        self._attach(program)

    def _is_for_kernel_alone(self, program: Program) -> bool:
        return self._libpcap is not None and self.link_type != _COOKED and program.reads_packet_type

    def _attach(self, program: Program) -> None:
        try:
            attach(self.fileno(), program.instructions)
        except OSError:
            reason = f"the kernel can't run it on {self.interface}"
            raise FilterRejected(program.bpf, reason) from None
        self._in_force = program

    def _set_on_socket(self, program: Program) -> None:
        try:
            self._filters.set(program)
        except BadFilter:
            raise
        except (pcapy.PcapError, LibpcapError):
            # That the interface went down is reported once by whatever comes next.
            if self.is_gone:
                raise
            self._filters.set(program)

    def counts(self, *, hardware: bool = True) -> PacketCounts | None:
        counts, before = self._all_counts(hardware=hardware), self._before
        return counts and PacketCounts(
            received=counts.received - before.received,
            dropped=counts.dropped - before.dropped,
            interface_dropped=_increase(before.interface_dropped, counts.interface_dropped),
        )

    def _all_counts(self, *, hardware: bool = True) -> PacketCounts | None:
        try:
            # The third number isn't of use: libpcap 1.9 reads what an interface of this name has dropped
            # since it was made, including what it has captured.
            received, dropped, _ = self._reader.stats()
        except pcapy.PcapError:
            return None
        missed = missed_packets(self.index) if hardware and not self.is_gone else None
        return PacketCounts(received=received, dropped=dropped, interface_dropped=missed)

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
