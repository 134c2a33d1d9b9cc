"""Opens interfaces by libpcap, through pcapy-ng."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import msgspec
import pcapy

from pcapsvc.core.errors import NO_ROOM, NO_SUCH_INTERFACE, CaptureForbidden, CaptureUnavailable
from pcapsvc.core.filter import NOTHING, Program
from pcapsvc.core.read_pace import Ring
from pcapsvc.core.text import one_line
from pcapsvc.packets.handle import PcapyHandle
from pcapsvc.packets.handle_filters import Kind
from pcapsvc.packets.libpcap import Libpcap
from pcapsvc.packets.network_interfaces import ANY_INDEX, Interface, name_of
from pcapsvc.packets.ring import BLOCK_BYTES

#: The pseudo-interface that captures on all of them (pcap(3PCAP)).
ANY_INTERFACE = "any"
# How often an interface may be renamed while it is opened.
_MOST_RENAMES = 3

# Results of pcap_activate(3PCAP), of pcap/pcap.h. For all others, libpcap's own message is reported.
_NO_PERMISSION = -8
_ACTIVATE_ERRORS = {
    -5: NO_SUCH_INTERFACE,
    -9: "the interface is down",
    -11: "no permission for promiscuous mode",
}


class Opener(msgspec.Struct, frozen=True, kw_only=True):
    """
    Opens handles.

    @ivar buffer_size_bytes: of the kernel's ring, for each handle.
    @ivar read_timeout_ms: after how long the kernel hands over a block that isn't full.
    @ivar close_descriptor: closes a descriptor.
    @ivar libpcap: is called directly if that is better; with L{None}, never.
    @ivar nanoseconds: whether time stamps are to be in nanoseconds, for which libpcap is called directly.
    """

    buffer_size_bytes: int
    read_timeout_ms: int
    close_descriptor: Callable[[int], None]
    libpcap: Libpcap | None
    nanoseconds: bool = False

    def open(
        self,
        interface: Interface,
        snap_length: int,
        program: Program,
        *,
        promiscuous: bool,
        kind: Kind | None = None,
    ) -> PcapyHandle:
        """
        Open a handle: it takes some 25 ms.

        @param kind: what C{program} is compiled for. A handle of another kind gets no filter, and is to
            have one before it is used; L{None} is whatever it is.

        @raise FilterRejected: if the filter can't be used.
        @raise CaptureUnavailable: if the interface can't be captured on.
        @raise OSError: if there is no memory or no descriptor for it.
        """
        for _ in range(_MOST_RENAMES):
            handle = self._open_by_name(interface, snap_length, promiscuous)
            if not handle.is_gone:
                break
            # libpcap opens an interface by its name, and another one had that by then.
            handle.close_here()
        else:
            raise CaptureUnavailable(interface.name, "the interface is being renamed")
        try:
            if kind is not None and handle.kind(program.bpf) != kind:
                program = NOTHING
            handle.set_first_filter(program)
            handle.program = program
        except BaseException:
            handle.close_here()
            raise
        return handle

    def open_idle(self, interface: Interface, snap_length: int) -> PcapyHandle:
        """Open a handle that lets no packet pass, and leaves the interface out of promiscuous mode."""
        return self.open(interface, snap_length, NOTHING, promiscuous=False)

    def _open_by_name(self, interface: Interface, snap_length: int, promiscuous: bool) -> PcapyHandle:
        name = ANY_INTERFACE if interface.index == ANY_INDEX else name_of(interface.index)
        if name is None:
            raise CaptureUnavailable(interface.name, NO_SUCH_INTERFACE)
        try:
            reader = pcapy.create(name)
            self._activate(reader, interface.name, snap_length, promiscuous)
            handle = PcapyHandle(
                reader, interface, snap_length, self.close_descriptor, self.libpcap, self._ring()
            )
            reader.setnonblock(1)
            return handle
        except pcapy.PcapError as error:
            raise _error(interface.name, str(error)) from None
        except UnicodeEncodeError:
            raise CaptureUnavailable(interface.name, "the interface has a name that isn't UTF-8") from None

    def _ring(self) -> Ring:
        return Ring(
            blocks=max(1, self.buffer_size_bytes // BLOCK_BYTES),
            block_bytes=BLOCK_BYTES,
            block_seconds=self.read_timeout_ms / 1000,
        )

    def _activate(self, reader: Any, interface: str, snap_length: int, promiscuous: bool) -> None:
        reader.set_snaplen(snap_length)
        reader.set_promisc(int(promiscuous))
        reader.set_timeout(self.read_timeout_ms)
        reader.set_buffer_size(self.buffer_size_bytes)
        libpcap = self.libpcap
        if libpcap is not None and self.nanoseconds:
            libpcap.ask_for_nanoseconds(reader)
        # pcapy would hold Python's lock while it waits.
        status = reader.activate() if libpcap is None else libpcap.activate(reader)
        if status < 0:
            message = (libpcap and one_line(libpcap.words(reader))) or f"libpcap error {status}"
            reader.close()
            # libpcap doesn't say so: if there are no descriptors, this fails for the same reason.
            os.close(os.dup(0))
            if status == _NO_PERMISSION:
                raise CaptureForbidden(interface, "no permission to capture: the daemon needs CAP_NET_RAW")
            raise _error(interface, _ACTIVATE_ERRORS.get(status, message))


def _error(interface: str, message: str) -> OSError | CaptureUnavailable:
    """What a message of libpcap means. It reports errors of the kernel in words only, at the end."""
    for code in NO_ROOM:
        if message.endswith(os.strerror(code)):
            return OSError(code, message)
    if message.endswith(os.strerror(errno.ENODEV)):
        # It has gone meanwhile.
        message = NO_SUCH_INTERFACE
    return CaptureUnavailable(interface, message)
