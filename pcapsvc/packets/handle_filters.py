"""How filters are set on handles of libpcap."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import ExitStack
from typing import Any

import msgspec
import pcapy

from pcapsvc.core.filter import Program
from pcapsvc.core.vlan_choice import vlan_choice
from pcapsvc.packets.kernel_filter import attach, attached
from pcapsvc.packets.libpcap import BadFilter, Libpcap, LibpcapError


class Kind(msgspec.Struct, frozen=True, kw_only=True):
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


class HandleFilters:
    """How filters are set on a handle of pcapy's whose internals are unknown: as text, compiled once more."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def compile(self, bpf: str) -> Program:
        """
        Compile a filter for the handle.

        @raise BadFilter: if it can't be compiled.
        """
        return Program(bpf=bpf, instructions=b"")

    def replace(self, program: Program) -> bool:
        """
        Set it on a handle that has a filter. libpcap applies it to what is in the ring already as well
        (pcap_setfilter_linux_mmap).

        libpcap would have the kernel drop every packet until the new filter is attached, for as long as this
        thread may have to wait for a processor meanwhile (set_kernel_filter in pcap-linux.c). So it attaches
        the filter to another socket, in place of the handle's, from which the handle's gets it.

        @return: whether the kernel runs it. If not, a read may last for as long as packets come that don't
            pass it: another one has to be set.
        @raise BadFilter: if it can't be compiled.
        @raise pcapy.PcapError: if it can't be set.
        @raise LibpcapError: likewise.
        """
        descriptor = self._reader.getfd()
        with ExitStack() as stack:
            try:
                own = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
                stack.callback(os.close, own)
                other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            except OSError:
                # There are no descriptors: so some packets are lost.
                return self._set_here(program)
            stack.callback(os.dup2, own, descriptor, inheritable=False)
            os.dup2(other.fileno(), descriptor, inheritable=False)
            self.set(program)
            instructions = attached(descriptor)
            if instructions:
                try:
                    if attached(own) != instructions:
                        attach(own, instructions)
                except OSError:
                    return False
                # Again: what arrived until now had passed the filter before.
                self.set(program)
        return self._set_here(program) if instructions is None else bool(instructions)

    def _set_here(self, program: Program) -> bool:
        try:
            self.set(program)
        except BadFilter:
            raise
        except (pcapy.PcapError, LibpcapError):
            # That the interface went down is reported once by whatever comes next.
            self.set(program)
        return attached(self._reader.getfd()) != b""

    def set(self, program: Program) -> None:
        """
        Set it on whatever socket the handle has.

        @raise BadFilter: if it can't be compiled.
        @raise pcapy.PcapError: if it can't be set.
        @raise LibpcapError: likewise.
        """
        if (problem := problem_as_text(program, self._reader.datalink())) is not None:
            raise BadFilter(problem)
        try:
            self._reader.setfilter(program.bpf)
        except pcapy.PcapError:
            # It doesn't distinguish a filter that can't be compiled from one that can't be set.
            netmask = netmask_of(self._reader)
            try:
                pcapy.compile(self._reader.datalink(), 65535, program.bpf, 1, netmask)
            except pcapy.PcapError as error:
                raise BadFilter(str(error)) from None
            raise


class CompiledHandleFilters(HandleFilters):
    """Likewise, on a handle whose internals are known: as programs."""

    def __init__(self, reader: Any, libpcap: Libpcap) -> None:
        super().__init__(reader)
        self._libpcap = libpcap

    def compile(self, bpf: str) -> Program:
        return Program(bpf=bpf, instructions=self._libpcap.compile(self._reader, bpf))

    def set(self, program: Program) -> None:
        self._libpcap.set_filter(self._reader, program.instructions)


def netmask_of(reader: Any) -> int:
    """The netmask of what a handle captures on, as inet_aton(3) has it; 0 if it has none."""
    (netmask,) = struct.unpack("=I", socket.inet_aton(reader.getmask()))
    return int(netmask)
