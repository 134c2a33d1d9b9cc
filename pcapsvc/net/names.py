"""
Looks up host names, in threads of ours.

Twisted's own look-ups run in the reactor's pool, whose threads are joined when the process exits: silent name
servers would delay that for as long as the system's resolver is patient.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from itertools import islice
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

#: How many addresses of a name are used. A name may have thousands: each would be looked at, and connected
#: to as long as none answers.
MOST_ADDRESSES = 32

_KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
# What getaddrinfo(3) says of a name that doesn't exist, or has no addresses.
_NOT_FOUND = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})
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
    Looks up names by getaddrinfo(3). A name that isn't found has no addresses. Of others, the first
    L{MOST_ADDRESSES} of the wanted types are reported.

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
        resolution = Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        wanted = tuple(_TYPES.values()) if addressTypes is None else tuple(addressTypes)
        looking = self._look_up(hostName, portNumber, wanted, transportSemantics)
        resolution.end = Deferred.fromCoroutine(self._report(looking, resolution, resolutionReceiver))
        return resolution

    async def _report(self, looking: Any, resolution: Resolution, receiver: IResolutionReceiver) -> None:
        try:
            for address in await looking:
                receiver.addressResolved(address)
        except OSError as error:
            if error.errno not in _NOT_FOUND:
                resolution.problem = error
        except (UnicodeError, CancelledError):
            pass  # not a name, or not wanted any more
        except Exception:  # noqa: BLE001 - whoever connects is waiting
            self._log.failure("internal error in a look-up")
        receiver.resolutionComplete()

    async def _look_up(
        self, host: str, port: int, wanted: tuple[type[IAddress], ...], transport: str
    ) -> Iterable[IPv4Address | IPv6Address]:
        families = [family for family, kind in _TYPES.items() if kind in wanted]
        family = families[0] if len(families) == 1 else socket.AF_UNSPEC
        # Python would encode text as an internationalized name, ASCII or not, and load tables for that.
        name = host.encode() if host.isascii() else host
        arguments = (name, port, family, _KINDS[transport])
        if isIPAddress(host) or isIPv6Address(host.partition("%")[0]):
            found = socket.getaddrinfo(*arguments, flags=socket.AI_NUMERICHOST)
        else:
            found = await self._in_thread(arguments)
        kind: Literal["TCP", "UDP"] = "UDP" if transport == "UDP" else "TCP"
        used = islice((each for each in found if each[0] in families), MOST_ADDRESSES)
        return [_TYPES[each[0]](kind, *_with_zone(each[4])) for each in used]

    async def _in_thread(self, arguments: tuple[Any, ...]) -> list[Any]:
        is_wanted = True

        def look_up() -> list[Any]:
            # It may have waited for a thread until nobody waited for it.
            return socket.getaddrinfo(*arguments) if is_wanted else []

        try:
            found: list[Any] = await self._run_in_thread(look_up)
            return found
        finally:
            is_wanted = False


def _with_zone(address: tuple[Any, ...]) -> tuple[Any, ...]:
    """
    A socket address with the zone of a link-local one in its host (RFC 4007, section 11): Twisted connects to
    the host alone, and Python leaves the zone out of it.
    """
    if len(address) == 4 and address[3] and "%" not in address[0]:
        return (f"{address[0]}%{address[3]}", *address[1:])
    return address


@implementer(IReactorPluggableNameResolver)
class ReactorWithResolver:
    """A reactor that looks up names by another resolver, for one user of it."""

    def __init__(self, reactor: Any, resolver: IHostnameResolver) -> None:
        self._reactor = reactor
        self.nameResolver = resolver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        raise NotImplementedError


@implementer(IHostResolution)
class Resolution:
    """
    A look-up in progress.

    @ivar end: fires when it is complete.
    @ivar problem: why it could not be made: no descriptors, no threads, or name servers that don't answer;
        L{None} otherwise, also if there is no such name.
    """

    end: Deferred[None]
    problem: OSError | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """Wait for it no longer: it is complete, without any address."""
        self.end.cancel()


def problem_of(resolution: IHostResolution | None) -> OSError | None:
    """Why a look-up could not be made; L{None} if it could be, or if that isn't known."""
    return resolution.problem if isinstance(resolution, Resolution) else None
