"""
Looks up host names, in threads of ours.

Twisted's own look-ups run in the reactor's pool, whose threads are joined when the process exits: silent name
servers would delay that for as long as the system's resolver is patient.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from twisted.application.service import Service
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.interfaces.threads import RunInThread

_KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
_TYPES: dict[int, type[IPv4Address | IPv6Address]] = {
    socket.AF_INET: IPv4Address,
    socket.AF_INET6: IPv6Address,
}


class NameLookups(Service):
    """
    Has a reactor look up names by a L{ThreadedResolver} while it runs.

    @param reactor: if it can't be given a resolver, as in tests, nothing happens.
    """

    name = "name look-ups"

    def __init__(self, reactor: Any, run_in_thread: RunInThread) -> None:
        self._reactor = reactor
        self._run_in_thread = run_in_thread
        self._before: IHostnameResolver | None = None

    def startService(self) -> None:
        """Replace the reactor's resolver."""
        super().startService()  # type: ignore[no-untyped-call]
        if IReactorPluggableNameResolver.providedBy(self._reactor):
            self._before = self._reactor.installNameResolver(ThreadedResolver(self._run_in_thread))

    def stopService(self) -> None:
        """Put it back."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._before is not None:
            self._reactor.installNameResolver(self._before)
            self._before = None


@implementer(IHostnameResolver)
class ThreadedResolver:
    """
    Looks up names by getaddrinfo(3). A name that isn't found has no addresses.

    @param run_in_thread: in threads that don't keep the process alive.
    """

    _log = Logger()

    def __init__(self, run_in_thread: RunInThread) -> None:
        self._run_in_thread = run_in_thread

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See L{IHostnameResolver}. What is an address already needs no thread, and fires at once."""
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        wanted = tuple(_TYPES.values()) if addressTypes is None else tuple(addressTypes)
        looking = self._look_up(hostName, portNumber, wanted, transportSemantics)
        resolution.end = Deferred.fromCoroutine(self._report(looking, resolutionReceiver))
        return resolution

    async def _report(self, looking: Any, receiver: IResolutionReceiver) -> None:
        try:
            for address in await looking:
                receiver.addressResolved(address)
        except (OSError, UnicodeError, CancelledError):
            pass  # not found, or not a name
        except Exception:  # noqa: BLE001 - whoever connects is waiting
            self._log.failure("internal error in a look-up")
        receiver.resolutionComplete()

    async def _look_up(
        self, host: str, port: int, wanted: tuple[type[IAddress], ...], transport: str
    ) -> Iterable[IPv4Address | IPv6Address]:
        families = [family for family, kind in _TYPES.items() if kind in wanted]
        family = families[0] if len(families) == 1 else socket.AF_UNSPEC
        arguments = (host, port, family, _KINDS[transport])
        if isIPAddress(host) or isIPv6Address(host.partition("%")[0]):
            found = socket.getaddrinfo(*arguments, flags=socket.AI_NUMERICHOST)
        else:
            found = await self._run_in_thread(socket.getaddrinfo, *arguments)
        kind: Literal["TCP", "UDP"] = "UDP" if transport == "UDP" else "TCP"
        return [_TYPES[each[0]](kind, *_with_zone(each[4])) for each in found if each[0] in families]


def _with_zone(address: tuple[Any, ...]) -> tuple[Any, ...]:
    """
    A socket address with the zone of a link-local one in its host (RFC 4007, section 11): Twisted connects to
    the host alone, and Python leaves the zone out of it.
    """
    if len(address) == 4 and address[3] and "%" not in address[0]:
        return (f"{address[0]}%{address[3]}", *address[1:])
    return address


@implementer(IHostResolution)
class _Resolution:
    """
    A look-up in progress.

    @ivar end: fires when it is complete.
    """

    end: Deferred[None]

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """Wait for it no longer: it is complete, without any address."""
        self.end.cancel()
