"""Packets by libpcap, through pcapy-ng: the only room that knows either."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import pcapy
from zope.interface import implementer

from pcapsvc.core import filter, own_traffic
from pcapsvc.core.errors import CaptureForbidden, CaptureUnavailable, Problem, RequestRejected, shown
from pcapsvc.core.recording import PacketCounts
from pcapsvc.core.text import one_line
from pcapsvc.interfaces.capture import IPacketDumper, IPacketHandle, IPatientPacketSystem
from pcapsvc.packets.kernel_filter import runs_in_kernel
from pcapsvc.packets.libpcap import BadFilter, Libpcap, LibpcapError, find_libpcap
from pcapsvc.packets.meanwhile import Meanwhile, at_once

#: The pseudo-interface that captures on all of them (pcap(3PCAP)).
ANY_INTERFACE = "any"

# What pcap_activate(3PCAP) answers, of pcap/pcap.h. Of all others libpcap's own words are told.
_NO_PERMISSION = -8
_ACTIVATE_ERRORS = {
    -5: "no such interface",
    -9: "the interface is down",
    -11: "no permission for promiscuous mode",
}

# What a filter's syntax has nothing to do with.
_ANY_LINK_TYPE = 1
_ANY_SNAP_LENGTH = 65535
_NOT_OPTIMIZED, _OPTIMIZED = 0, 1

# Up to so many characters it takes some milliseconds at most to compile a filter.
_SHORT_FILTER = 80

_LIBPCAP = find_libpcap(pcapy.__file__)

# No packet is so long; and libpcap refuses a filter of which it can tell that nothing passes.
_NOTHING = "greater 2000000000"

# A membership in what an interface takes in, of linux/if_packet.h: struct packet_mreq (packet(7)). It
# ends with the socket.
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_PROMISC = 1
_MEMBERSHIP = struct.Struct("iHH8s")

# What is thrown away is so in steps, each of so many packets.
_STEP_PACKETS = 4096


@implementer(IPatientPacketSystem)
class PcapySystem:
    """
    Captures as tcpdump does.

    @param buffer_size_bytes: of the kernel's ring, for each capture.
    @param read_timeout_ms: after how long the kernel hands over a block that isn't full.
    @param promiscuous: whether to see what is addressed to others.
    @param close_descriptor: closes a descriptor. For that of a packet socket the kernel
        waits until all processors have taken note, some 25 ms: better done in a thread.
    @param meanwhile: does each step that takes long: some 25 ms, and up to most of a second for a
        filter of 512 characters.
    @param native: whether libpcap is called directly where that is better, if the pcapy that is installed
        is one that this is known to work with.
    """

    def __init__(
        self,
        *,
        buffer_size_bytes: int,
        read_timeout_ms: int,
        promiscuous: bool,
        close_descriptor: Callable[[int], None] = os.close,
        meanwhile: Meanwhile = at_once,
        native: bool = True,
    ) -> None:
        self._close_descriptor = close_descriptor
        self._meanwhile = meanwhile
        self._libpcap = _LIBPCAP if native else None
        self._buffer_size = buffer_size_bytes
        self._read_timeout_ms = read_timeout_ms
        self._promiscuous = promiscuous

    def open(self, interface: str, *, snap_length: int, bpf: str) -> IPacketHandle:
        """Begin to capture: see L{IPacketSystem.open}."""
        return self._open(interface, snap_length, bpf, promiscuous=self._is_to_be_promiscuous(interface))

    def wait(self, interface: str, *, snap_length: int) -> IPacketHandle:
        """Open a handle that waits: see L{IPatientPacketSystem.wait}."""
        handle = self._open(interface, snap_length, _NOTHING, promiscuous=False)
        handle.promiscuous_from_rearm = self._is_to_be_promiscuous(interface)
        return handle

    def _is_to_be_promiscuous(self, interface: str) -> bool:
        # There is no promiscuous mode on "any" (packet(7)).
        return self._promiscuous and interface != ANY_INTERFACE

    def _open(self, interface: str, snap_length: int, bpf: str, *, promiscuous: bool) -> _PcapyHandle:
        # libpcap opens more than network interfaces by name (USB, D-Bus, netfilter): those are not asked for.
        if interface != ANY_INTERFACE and interface not in interface_names():
            raise CaptureUnavailable(interface, "no such interface")
        # To open a handle takes long: so what is no filter on any link type is refused before.
        self._long_for(bpf)(lambda: self._refuse_what_is_no_filter(bpf))
        try:
            reader = pcapy.create(interface)
            self._activate(reader, interface, snap_length, promiscuous)
            handle = _PcapyHandle(reader, interface, self._close_descriptor, self._long_for, self._libpcap)
        except pcapy.PcapError as error:
            raise CaptureUnavailable(interface, str(error)) from None
        try:
            if bpf:
                self._long_for(bpf)(lambda: handle.filter(bpf))
            reader.setnonblock(1)
        except BaseException:
            handle.close()
            raise
        return handle

    def _activate(self, reader: Any, interface: str, snap_length: int, promiscuous: bool) -> None:
        reader.set_snaplen(snap_length)
        reader.set_promisc(int(promiscuous))
        reader.set_timeout(self._read_timeout_ms)
        reader.set_buffer_size(self._buffer_size)
        libpcap = self._libpcap
        status = self._meanwhile(reader.activate if libpcap is None else lambda: libpcap.activate(reader))
        if status < 0:
            words = (libpcap and one_line(libpcap.words(reader))) or f"libpcap error {status}"
            reader.close()
            # libpcap doesn't say so: where there are no descriptors, this fails for the same reason.
            os.close(os.dup(0))
            if status == _NO_PERMISSION:
                raise CaptureForbidden(interface, "no permission to capture: the daemon needs CAP_NET_RAW")
            raise CaptureUnavailable(interface, _ACTIVATE_ERRORS.get(status, words))

    def _long_for(self, bpf: str) -> Meanwhile:
        """How to compile a filter."""
        return self._meanwhile if len(bpf) > _SHORT_FILTER else at_once

    def _refuse_what_is_no_filter(self, bpf: str) -> None:
        try:
            if self._libpcap is None:
                pcapy.compile(_ANY_LINK_TYPE, _ANY_SNAP_LENGTH, bpf, _NOT_OPTIMIZED, 0)
            else:
                self._libpcap.check_filter(bpf, link_type=_ANY_LINK_TYPE, snap_length=_ANY_SNAP_LENGTH)
        except (pcapy.PcapError, LibpcapError) as error:
            if "syntax error" in str(error):
                raise _filter_refused(bpf, error) from None


def interface_names() -> frozenset[str]:
    """The network interfaces that there are now."""
    return frozenset(name for _, name in socket.if_nameindex())


def _filter_refused(bpf: str, why: Exception | str) -> RequestRejected:
    rule = why if isinstance(why, str) else f"libpcap says: {one_line(str(why))}"
    return RequestRejected([Problem(path="bpf", value=shown(bpf), rule=rule)])


def _throw_away(header: object, data: bytes) -> None:
    """For packets that nobody wants."""


class _Filters:
    """How filters are set on a handle of pcapy's, where no more is known of it."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def compiled(self, bpf: str) -> Any:
        """
        A filter to be set: here, its words.

        @raise BadFilter: where it is none.
        """
        return bpf

    def without(self, left_out: str, wanted: Any) -> Any:
        """One that lets pass what C{wanted} does, but for what C{left_out} does; raises as L{compiled}."""
        return own_traffic.without(left_out, wanted)

    def set(self, wanted: Any) -> None:
        """
        Set it. libpcap puts what is in the ring already through it as well (pcap_setfilter_linux_mmap).

        @raise BadFilter: where it is none.
        @raise pcapy.PcapError: where it can't be set: the interface went down or away.
        @raise LibpcapError: likewise.
        """
        try:
            self._reader.setfilter(wanted)
        except pcapy.PcapError:
            # It doesn't tell a filter that can't be compiled from one that can't be set.
            (mask,) = struct.unpack("=I", socket.inet_aton(self._reader.getmask()))
            try:
                pcapy.compile(self._reader.datalink(), _ANY_SNAP_LENGTH, wanted, _OPTIMIZED, mask)
            except pcapy.PcapError as error:
                raise BadFilter(str(error)) from None
            raise


class _CompiledFilters(_Filters):
    """Likewise, where libpcap is at hand: each filter is compiled once, and put together with others then."""

    def __init__(self, reader: Any, libpcap: Libpcap) -> None:
        super().__init__(reader)
        self._libpcap = libpcap

    def compiled(self, bpf: str) -> Any:
        return self._libpcap.compile(self._reader, bpf)

    def without(self, left_out: str, wanted: Any) -> Any:
        return filter.without(self.compiled(left_out), wanted)

    def set(self, wanted: Any) -> None:
        self._libpcap.set_filter(self._reader, wanted)


@implementer(IPacketHandle)
class _PcapyHandle:
    """
    A handle of pcapy's.

    @ivar promiscuous_from_rearm: whether L{rearm} is to bring the interface into promiscuous mode.
    """

    promiscuous_from_rearm = False

    def __init__(
        self,
        reader: Any,
        interface: str,
        close_descriptor: Callable[[int], None],
        long_for: Callable[[str], Meanwhile],
        libpcap: Libpcap | None,
    ) -> None:
        self._reader = reader
        self._interface = interface
        self._close_descriptor = close_descriptor
        self._long_for = long_for
        self._libpcap = libpcap
        self._closed = False
        self._filters = _Filters(reader) if libpcap is None else _CompiledFilters(reader, libpcap)
        # What was asked for, and what is set: that, or less.
        self._filter = self._in_force = self._filters.compiled("")
        # libpcap 1.9 opens its socket on all interfaces, and binds it then: what came between is counted.
        received, dropped, interface_dropped = reader.stats()
        self._before = PacketCounts(received=received, dropped=dropped, interface_dropped=interface_dropped)
        self.link_type: int = reader.datalink()

    def fileno(self) -> int:
        return int(self._reader.getfd())

    def open_dumper(self, path: str) -> IPacketDumper:
        try:
            dumper: IPacketDumper = self._reader.dump_open(path)
        except pcapy.PcapError as error:
            raise OSError(str(error)) from None
        return dumper

    def dispatch(self, count: int, callback: Callable[[Any, bytes], object]) -> int:
        try:
            return int(self._reader.dispatch(count, callback))
        except pcapy.PcapError as error:
            raise CaptureUnavailable(self._interface, str(error)) from None

    def dump(self, count: int, dumper: IPacketDumper) -> int:
        if self._libpcap is None:
            return self.dispatch(count, dumper.dump)
        try:
            return self._libpcap.dump(self._reader, dumper, count)
        except LibpcapError as error:
            raise CaptureUnavailable(self._interface, str(error)) from None

    def drain(self) -> None:
        while self.dispatch(_STEP_PACKETS, _throw_away):
            pass

    def rearm(self, bpf: str) -> None:
        self.drain()
        if self.promiscuous_from_rearm:
            self.promiscuous_from_rearm = False
            self._become_promiscuous()
        self._long_for(bpf)(lambda: self.filter(bpf))
        self._before = self._all_counts() or self._before

    def _become_promiscuous(self) -> None:
        # As libpcap does when it is asked to before it opens the interface.
        try:
            index = socket.if_nametoindex(self._interface)
            with socket.socket(fileno=os.dup(self.fileno())) as same:
                membership = _MEMBERSHIP.pack(index, _PACKET_MR_PROMISC, 0, b"")
                same.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
        except OSError as error:
            raise CaptureUnavailable(self._interface, f"promiscuous mode: {error.strerror}") from None

    def filter(self, bpf: str) -> None:
        """Let pass what this filter does, and no more: raises what L{IPacketHandle.rearm} does."""
        self._filter = self._set_filter(bpf, lambda: self._filters.compiled(bpf))

    def leave_out(self, bpf: str) -> None:
        self._set_filter(bpf, lambda: self._filters.without(bpf, self._filter) if bpf else self._filter)

    def _set_filter(self, bpf: str, make: Callable[[], Any]) -> Any:
        """Set a filter that is made of this one, and answer it."""
        try:
            wanted = make()
            self._filters.set(wanted)
            if runs_in_kernel(self.fileno()):
                self._in_force = wanted
                return wanted
            # libpcap would run it, and a dispatch go on for as long as packets come that don't pass it.
            self._filters.set(self._in_force)
        except BadFilter as error:
            raise _filter_refused(bpf, error) from None
        except (pcapy.PcapError, LibpcapError) as error:
            raise CaptureUnavailable(self._interface, str(error)) from None
        raise _filter_refused(bpf, f"the kernel can't run it on {self._interface}")

    def counts(self) -> PacketCounts | None:
        counts = self._all_counts()
        return counts and PacketCounts(
            received=counts.received - self._before.received,
            dropped=counts.dropped - self._before.dropped,
            interface_dropped=counts.interface_dropped - self._before.interface_dropped,
        )

    def _all_counts(self) -> PacketCounts | None:
        try:
            received, dropped, interface_dropped = self._reader.stats()
        except pcapy.PcapError:
            return None
        return PacketCounts(received=received, dropped=dropped, interface_dropped=interface_dropped)

    def close(self) -> None:
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
            self._close_descriptor(last)
