"""
Connections to hosts that strangers name.

A name may have another address each time that it is looked up. So it is looked up once, all its addresses are
checked, and the connection goes to one of those that were checked, whatever the name means by then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from zope.interface import implementer

from pcapsvc.core.public_address import Address
from pcapsvc.net.names import ReactorWithResolver, problem_of


class AddressRefused(Exception):
    """A host has an address that may not be connected to."""


async def checked_endpoint(
    reactor: Any, host: str | Address, port: int, is_allowed: Callable[[Address], bool]
) -> IStreamClientEndpoint:
    """
    How to connect to a host, all of whose addresses are allowed.

    @param reactor: its resolver looks the name up.

    @raise AddressRefused: if one of them isn't. It doesn't say which: what names mean here may be internal.
    @raise DNSLookupError: if there is none.
    @raise OSError: if it can't be looked up now.
    """
    found = await _look_up(reactor, str(host), port)
    if not found:
        raise DNSLookupError("the host was not found")
    if not all(is_allowed(_address(each)) for each in found):
        raise AddressRefused
    # The name has no meaning any more: whatever is asked for, it is these addresses.
    endpoint: IStreamClientEndpoint = HostnameEndpoint(
        ReactorWithResolver(reactor, _Pinned(found)), found[0].host, port
    )
    return endpoint


def _address(found: Any) -> Address:
    address: Address = ip_address(found.host)
    return address


async def _look_up(reactor: Any, host: str, port: int) -> list[Any]:
    receiver = _Receiver()
    reactor.nameResolver.resolveHostName(receiver, host, port)
    await receiver.done
    problem = problem_of(receiver.resolution)
    if problem is not None:
        raise problem
    return receiver.addresses


@implementer(IResolutionReceiver)
class _Receiver:
    """Collects the addresses of a look-up."""

    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.resolution: IHostResolution | None = None
        self.done: Deferred[None] = Deferred(lambda _: self._cancel())

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        self.resolution = resolutionInProgress

    def addressResolved(self, address: IAddress) -> None:
        self.addresses.append(address)

    def resolutionComplete(self) -> None:
        if not self.done.called:
            self.done.callback(None)

    def _cancel(self) -> None:
        # Complete from here on: the resolver may say so as well.
        self.resolutionComplete = lambda: None  # type: ignore[method-assign]
        if self.resolution is not None:
            self.resolution.cancel()


@implementer(IHostnameResolver)
class _Pinned:
    """A resolver for which every name has the same addresses, that are known already."""

    def __init__(self, addresses: Sequence[IAddress]) -> None:
        self._addresses = addresses

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        resolution = _Known(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        for address in self._addresses:
            resolutionReceiver.addressResolved(address)
        resolutionReceiver.resolutionComplete()
        return resolution


@implementer(IHostResolution)
class _Known:
    """A look-up that was complete at once."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """There is nothing to wait for."""
