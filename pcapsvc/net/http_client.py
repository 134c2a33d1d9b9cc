"""One request to an HTTP server on a connection of its own, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from pcapsvc.core.retry import asked_delay
from pcapsvc.net.tls import UnverifiedTLS, verified_tls

_MOST_ANSWER_BYTES = 64 * 1024
# With its headers, of which the HTTP client takes any number.
_MOST_RECEIVED_BYTES = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class Answer:
    """
    An answer.

    @ivar asked_seconds: how long the server asks to be left alone, where it does.
    """

    code: int
    asked_seconds: float | None
    body: bytes


async def exchange(
    reactor: Any,
    endpoint: IStreamClientEndpoint,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: IBodyProducer | None = None,
) -> Answer:
    """
    Ask a server, and read what it answers, up to 64 KiB of it. The connection ends with this,
    whatever the server does.

    @param url: ASCII.

    @raise Exception: what the HTTP client raises; it may show the URL.
    """
    connection = _Connection(endpoint)
    agent = Agent.usingEndpointFactory(reactor, connection)  # type: ignore[no-untyped-call]
    try:
        request = agent.request(
            method.encode("ascii"),
            url.encode("ascii"),
            Headers({name: [value] for name, value in headers.items()}),
            body,
        )
        response = await connection.answer(request)
        return Answer(
            code=response.code,
            asked_seconds=asked_delay(_header(response, "retry-after"), _header(response, "date")),
            body=await _read(response),
        )
    finally:
        connection.abort()


def server_endpoint(
    reactor: Any, scheme: str, host: str, port: int, verify: bool | str
) -> IStreamClientEndpoint:
    """
    How to connect to a server.

    @param verify: whether its certificate is verified, or the path of the certificates, in PEM, to verify
        it with.

    @raise Exception: where the file of certificates can't be used.
    """
    plain = HostnameEndpoint(reactor, host, port)
    if scheme == "http":
        return plain
    if verify is False:
        creator: IOpenSSLClientConnectionCreator = UnverifiedTLS(host)
    else:
        creator = verified_tls(host, None if verify is True else verify)
    endpoint: IStreamClientEndpoint = wrapClientTLS(creator, plain)
    return endpoint


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Connection:
    """
    The connection of one request, so that it can be ended whatever state the HTTP
    client is in: one that was answered early goes on to send what nobody reads.
    """

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint
        self._open: _Watched | None = None
        self._answered: Deferred[IResponse] | None = None

    def endpointForURI(self, uri: object) -> IStreamClientEndpoint:
        return self

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        def connected(protocol: Any) -> Any:
            self._open = protocol
            # A peer that went away without a word is noticed, even where no time-out is set.
            protocol.setTcpKeepAlive(True)
            return protocol.wrappedProtocol

        watching = _Watching(protocolFactory, self._lost, self._too_much)
        return self._endpoint.connect(watching).addCallback(connected)

    def answer(self, request: Deferred[IResponse]) -> Deferred[IResponse]:
        """
        What a request on this connection fires with. Where an answer can't be parsed
        before the request was sent in full, the agent's own Deferred never fires: this
        one does, when the connection is lost.
        """
        cancelled = False

        def cancel(_: object) -> None:
            # What the agent says to this depends on how far it was.
            nonlocal cancelled
            cancelled = True
            request.cancel()

        answered: Deferred[IResponse] = Deferred(cancel)
        self._answered = answered

        def fired(result: Any) -> None:
            if answered.called or cancelled:
                return
            if isinstance(result, Failure):
                answered.errback(result)
            else:
                answered.callback(result)

        request.addBoth(fired)
        return answered

    def abort(self) -> None:
        """End it, now. Nothing happens where it has ended, or never begun."""
        if self._open is not None:
            self._open.abortConnection()

    def _too_much(self) -> None:
        if self._answered is not None and not self._answered.called:
            self._answered.errback(ConnectionError(f"an answer of more than {_MOST_RECEIVED_BYTES} bytes"))
        self.abort()

    def _lost(self, reason: Failure) -> None:
        self._open = None
        if self._answered is not None and not self._answered.called:
            self._answered.errback(ConnectionLost("the connection was lost within an answer that is no HTTP"))


class _Watched(ProtocolWrapper):
    """
    A connection whose loss is told, after whoever uses it has heard of it; and that
    something arrives that is too long, of which no more is passed on.
    """

    factory: _Watching
    _received_bytes = 0

    def dataReceived(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._received_bytes <= _MOST_RECEIVED_BYTES:
            super().dataReceived(data)  # type: ignore[no-untyped-call]
        else:
            self.factory.too_much()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        try:
            super().connectionLost(reason)  # type: ignore[no-untyped-call]
        finally:
            self.factory.lost(reason)


class _Watching(WrappingFactory[_Watched]):
    protocol = _Watched
    noisy = False

    def __init__(self, wrapped: Any, lost: Callable[[Failure], None], too_much: Callable[[], None]) -> None:
        wrapped.noisy = False
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.lost = lost
        self.too_much = too_much


class _Body(Protocol):
    """Reads a body, or the beginning of one that is too long."""

    def __init__(self) -> None:
        self._data = b""
        self.done: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self._data = (self._data + data)[:_MOST_ANSWER_BYTES]
        if len(self._data) == _MOST_ANSWER_BYTES and not self.done.called:
            self.done.callback(self._data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if isinstance(reason.value, ResponseDone | PotentialDataLoss):
            self.done.callback(self._data)
        else:
            self.done.errback(reason)


def _header(response: IResponse, name: str) -> str | None:
    values: list[str] = response.headers.getRawHeaders(name) or []
    return values[0] if values else None


def _read(response: IResponse) -> Deferred[bytes]:
    body = _Body()
    response.deliverBody(body)  # type: ignore[no-untyped-call]
    return body.done
