"""Connections to hosts by name, which say why if a look-up could not be made."""

from __future__ import annotations

from typing import Any

from twisted.internet.abstract import isIPAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IProtocol,
    IProtocolFactory,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.net.names import ReactorWithResolver, problem_of


@implementer(IStreamClientEndpoint)
class NamedEndpoint:
    """
    A L{HostnameEndpoint} that fails with the reason if the name can't be looked up, for example because there
    are no descriptors, and not as if there were no such host.

    @param reactor: its resolver looks the name up.
    @param timeout_seconds: how long an address may take to accept a connection.
    @param read_bytes: how much is read in one turn of the reactor, which processes it before it does anything
        else; L{None} is Twisted's 64 KiB.
    """

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        *,
        timeout_seconds: float = 30.0,
        read_bytes: int | None = None,
    ) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._timeout_seconds = timeout_seconds
        self._read_bytes = read_bytes

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See L{IStreamClientEndpoint}. Fails with L{OSError} if the name can't be looked up now."""
        return self._connect(protocolFactory).addCallback(self._limit)

    def _limit(self, protocol: Any) -> Any:
        # Nothing has been read yet.
        if self._read_bytes is not None:
            protocol.transport.bufferSize = self._read_bytes
        return protocol

    def _connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        connected: Deferred[IProtocol]
        if isIPAddress(self._host):
            # There is nothing to look up, nor an internationalized name, for which a library would be loaded.
            by_address = TCP4ClientEndpoint(self._reactor, self._host, self._port, self._timeout_seconds)
            connected = by_address.connect(protocolFactory)
            return connected
        resolver = _Noting(self._reactor.nameResolver)
        reactor = ReactorWithResolver(self._reactor, resolver)
        endpoint = HostnameEndpoint(reactor, self._host, self._port, timeout=self._timeout_seconds)
        connected = endpoint.connect(protocolFactory)
        return connected.addErrback(resolver.explain)


@implementer(IHostnameResolver)
class _Noting:
    """A resolver whose last look-up is known."""

    def __init__(self, resolver: IHostnameResolver) -> None:
        self._resolver = resolver
        self._resolution: IHostResolution | None = None

    def resolveHostName(
        self, resolutionReceiver: IResolutionReceiver, *arguments: Any, **named: Any
    ) -> IHostResolution:
        self._resolution = self._resolver.resolveHostName(resolutionReceiver, *arguments, **named)
        return self._resolution

    def explain(self, failure: Failure) -> Failure:
        problem = problem_of(self._resolution)
        if isinstance(failure.value, DNSLookupError) and problem is not None:
            raise problem
        return failure
