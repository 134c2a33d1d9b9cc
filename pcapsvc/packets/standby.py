"""Handles that wait, open already, so that a capture begins at once."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.errors import CaptureUnavailable, RequestRejected
from pcapsvc.interfaces.capture import IPacketHandle, IPacketSystem, IPatientPacketSystem

#: How often waiting handles are looked after, in seconds.
CARE_SECONDS = 5.0
#: How soon one that was taken is replaced, in seconds: not while a request's other interfaces are opened.
REPLACE_SECONDS = 0.25

# What opening a handle may raise, beside that the interface can't be captured on: there is no descriptor
# or no memory for it, or no filter on its link type.
_EXPECTED = (OSError, RequestRejected)


@implementer(IPacketSystem)
class StandbySystem(Service):
    """
    Keeps a handle open on each of some interfaces, that lets no packet pass, and leaves the
    interface out of promiscuous mode.

    To open one, the kernel waits twice until all processors have taken note: some
    25 ms with libpcap 1.9, while to give it another filter takes a fraction of one.

    @param interfaces: their names.
    @param snap_length: of the handles; a capture with another opens its own.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        system: IPatientPacketSystem,
        *,
        interfaces: Sequence[str],
        snap_length: int,
    ) -> None:
        self._reactor = reactor
        self._system = system
        self._interfaces = tuple(interfaces)
        self._snap_length = snap_length
        self._waiting: dict[str, IPacketHandle] = {}
        self._care: IDelayedCall | None = None

    def startService(self) -> None:
        """Open the handles."""
        super().startService()  # type: ignore[no-untyped-call]
        self._look_after()

    def stopService(self) -> None:
        """Close them."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._care is not None and self._care.active():
            self._care.cancel()
        self._care = None
        for handle in self._waiting.values():
            handle.close()
        self._waiting.clear()

    def open(self, interface: str, *, snap_length: int, bpf: str) -> IPacketHandle:
        """Begin to capture, with a handle that waits if there is one: see L{IPacketSystem.open}."""
        handle = self._waiting.pop(interface, None) if snap_length == self._snap_length else None
        if handle is not None:
            try:
                handle.rearm(bpf)
            except CaptureUnavailable:
                # It is of an interface that went down, or away, and may be back by now.
                handle.close()
            except BaseException:
                handle.close()
                raise
            else:
                return handle
            finally:
                if self._care is not None and self._care.active():
                    self._care.reset(REPLACE_SECONDS)
        return self._system.open(interface, snap_length=snap_length, bpf=bpf)

    def _look_after(self) -> None:
        """Give up handles of interfaces that went down, and replace what is gone."""
        for interface in tuple(self._waiting):
            self._check(interface)
        self._replace()

    def _replace(self) -> None:
        """Open a handle where none waits: one in a turn of the reactor."""
        missing = [interface for interface in self._interfaces if interface not in self._waiting]
        if any(self._open_one(interface) for interface in missing) and len(missing) > 1:
            self._care = self._reactor.callLater(0, self._replace)
        else:
            self._care = self._reactor.callLater(CARE_SECONDS, self._look_after)

    def _check(self, interface: str) -> None:
        try:
            # Of what came before its filter was set.
            self._waiting[interface].drain()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next handle is opened in time
            self._tell(interface, error)
            self._waiting.pop(interface).close()

    def _open_one(self, interface: str) -> bool:
        try:
            self._waiting[interface] = self._system.wait(interface, snap_length=self._snap_length)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again in time
            self._tell(interface, error)
        return interface in self._waiting

    def _tell(self, interface: str, error: Exception) -> None:
        line = "no handle waits on {interface}: {problem}"
        if isinstance(error, CaptureUnavailable):
            self._log.debug(line, interface=interface, problem=error.reason)
        elif isinstance(error, _EXPECTED):
            self._log.debug(line, interface=interface, problem=str(error))
        else:
            self._log.failure(line, interface=interface, problem="a fault")
