"""Handles that are open before they are needed, so that a capture starts at once."""

from __future__ import annotations

from collections.abc import Sequence
from mmap import mmap

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.errors import CaptureUnavailable, RequestRejected
from pcapsvc.core.filter import Program
from pcapsvc.core.network_interface import NetworkInterface
from pcapsvc.core.pcap_file import MICROSECOND_TICKS
from pcapsvc.interfaces.capture import (
    IHostInterfaces,
    IPacketDumper,
    IPacketHandle,
    IPacketSystem,
    IRecordWriter,
    ISieve,
    IStandbyHandle,
    IStandbyPacketSystem,
)

#: How often standby handles are checked, in seconds.
CHECK_SECONDS = 5.0
#: How soon a used one is replaced, in seconds: not while a request's other interfaces are opened.
REPLACE_SECONDS = 0.25

# What opening a handle may raise, besides that the interface can't be captured on: there is no descriptor
# or no memory for it, or no filter for its link type.
_EXPECTED = (OSError, RequestRejected)


@implementer(IPacketSystem, IHostInterfaces)
class StandbySystem(Service):
    """
    Keeps a handle open on each of some interfaces, that lets no packet pass and leaves the interface out
    of promiscuous mode.

    To open one, the kernel waits twice until all processors have taken note: some 25 ms with libpcap 1.9,
    while to give it another filter takes a fraction of one.

    @param interfaces: their names.
    @param snap_length: of the handles; a capture with another one opens its own.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        system: IStandbyPacketSystem,
        *,
        interfaces: Sequence[str],
        snap_length: int,
    ) -> None:
        self._reactor = reactor
        self._system = system
        self._interfaces = tuple(interfaces)
        self._snap_length = snap_length
        self._ready: dict[str, IStandbyHandle] = {}
        self._timer: IDelayedCall | None = None
        self._opening: Deferred[None] | None = None
        # Whether one was used while others were being opened.
        self._is_used = False

    def startService(self) -> None:
        """Open the handles."""
        super().startService()  # type: ignore[no-untyped-call]
        self._check()

    def stopService(self) -> None:
        """Close them."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._opening is not None:
            self._opening.cancel()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        for handle in self._ready.values():
            handle.close()
        self._ready.clear()

    def open(self, interface: str, *, snap_length: int, bpf: str) -> Deferred[IPacketHandle]:
        """Start to capture, with a standby handle if there is one: see L{IPacketSystem.open}."""
        return Deferred.fromCoroutine(self._open(interface, snap_length, bpf))

    async def _open(self, interface: str, snap_length: int, bpf: str) -> IPacketHandle:
        handle = None
        if snap_length == self._snap_length and self._ready:
            handle = self._handle_on(await self._system.find(interface))
            if handle is not None or interface in self._ready:
                self._replace_soon()
        if handle is not None:
            try:
                return await handle.arm(bpf)
            except CaptureUnavailable:
                # The interface went down, or away, and may be back by now.
                pass
        return await self._system.open(interface, snap_length=snap_length, bpf=bpf)

    def _handle_on(self, index: int | None) -> IStandbyHandle | None:
        """
        Take the handle that waits on an interface. The interface may have been renamed since, or be asked for
        by another of its names.
        """
        for name, handle in self._ready.items():
            if handle.index == index:
                return self._ready.pop(name)
        return None

    def _replace_soon(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.reset(REPLACE_SECONDS)
        else:
            self._is_used = True

    def find(self, interface: str) -> Deferred[int | None]:
        """Find an interface by its name: see L{IStandbyPacketSystem.find}."""
        return self._system.find(interface)

    def check(self) -> Deferred[None]:
        """See whether this process may capture at all: see L{IHostInterfaces.check}."""
        return self._system.check()

    def list_interfaces(self) -> Deferred[Sequence[NetworkInterface]]:
        """The network interfaces: see L{IHostInterfaces.list_interfaces}."""
        return self._system.list_interfaces()

    def compile_filter(self, interface: str | None, *, snap_length: int, bpf: str) -> Deferred[Program]:
        """Compile a filter, and open nothing: see L{IHostInterfaces.compile_filter}."""
        return self._system.compile_filter(interface, snap_length=snap_length, bpf=bpf)

    def compile_now(self, handle: IPacketHandle, bpf: str) -> Program:
        """Compile a filter for a handle, while everything waits: see L{IPacketSystem.compile_now}."""
        return self._system.compile_now(handle, bpf)

    def open_dumper(
        self,
        file: str | int,
        *,
        link_type: int,
        snap_length: int,
        ticks_per_second: int = MICROSECOND_TICKS,
    ) -> IPacketDumper:
        """Create a pcap file: see L{IPacketSystem.open_dumper}."""
        return self._system.open_dumper(
            file, link_type=link_type, snap_length=snap_length, ticks_per_second=ticks_per_second
        )

    def open_records(self, memory: mmap, start: int, end: int, *, link_type: int) -> IRecordWriter:
        """Write packets into memory: see L{IPacketSystem.open_records}."""
        return self._system.open_records(memory, start, end, link_type=link_type)

    def open_sieve(
        self, interface: str, *, link_type: int, kept: int, snap_length: int, bpf: str
    ) -> Deferred[ISieve]:
        """Filter packets that were recorded: see L{IPacketSystem.open_sieve}."""
        return self._system.open_sieve(
            interface, link_type=link_type, kept=kept, snap_length=snap_length, bpf=bpf
        )

    def _check(self) -> None:
        """Give up handles of interfaces that are gone or renamed, and replace what is missing."""
        self._timer = None
        for interface, handle in tuple(self._ready.items()):
            try:
                handle.check()
            except Exception as error:  # noqa: BLE001 - whatever it is, the handle is replaced
                self._give_up(interface, error)
        self._opening = Deferred.fromCoroutine(self._replace())
        self._opening.addCallbacks(self._set_timer, self._cancelled)

    async def _replace(self) -> None:
        """Open a handle on each interface that has none, one after the other."""
        for interface in self._interfaces:
            await self._compare(interface)
            if interface not in self._ready:
                try:
                    handle = await self._system.open_standby(interface, snap_length=self._snap_length)
                except CancelledError:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
                    self._report(interface, error)
                else:
                    self._ready[interface] = handle

    async def _compare(self, interface: str) -> None:
        """Give up the handle on an interface if another interface has its name by now."""
        if (handle := self._ready.get(interface)) is None:
            return
        try:
            index = await self._system.find(interface)
        except CancelledError:
            raise
        except OSError:
            return  # it can't be found out now
        except Exception as error:  # noqa: BLE001 - whatever it is, the handle is replaced
            index = None
            self._report(interface, error)
        if index != handle.index and self._ready.get(interface) is handle:
            self._give_up(interface, CaptureUnavailable(interface, "the interface was renamed"))

    def _give_up(self, interface: str, error: Exception) -> None:
        self._report(interface, error)
        self._ready.pop(interface).close()

    def _set_timer(self, _: None) -> None:
        self._opening = None
        if self.running:
            seconds = REPLACE_SECONDS if self._is_used else CHECK_SECONDS
            self._is_used = False
            self._timer = self._reactor.callLater(seconds, self._check)

    def _cancelled(self, _: object) -> None:
        self._opening = None

    def _report(self, interface: str, error: Exception) -> None:
        line = "there is no standby handle on {interface}: {problem}"
        if isinstance(error, CaptureUnavailable):
            self._log.debug(line, interface=interface, problem=error.reason)
        elif isinstance(error, _EXPECTED):
            self._log.debug(line, interface=interface, problem=str(error))
        else:
            self._log.failure(line, interface=interface, problem="internal error")
