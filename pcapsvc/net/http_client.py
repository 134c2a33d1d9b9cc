"""
An HTTP client: one request on a connection of its own, and the response.

The connection never outlives the request, and what a server sends is bounded, whatever the server does. No
redirect is followed, as a request may carry credentials.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
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
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from pcapsvc.core.retry import asked_delay
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.lost import unshared
from pcapsvc.net.pem import UnusableCertificates
from pcapsvc.net.tls import UnverifiedTLS, verified_tls

_log = Logger()

#: How much of a body is read. The rest is not waited for.
MAX_BODY_BYTES = 64 * 1024

# With the headers, of which Twisted's client accepts any number.
_MAX_RECEIVED_BYTES = 256 * 1024

# How many interim responses (1xx) may precede the final one.
_MAX_INTERIM = 10

# Request Timeout, Locked (RFC 4918), Too Early, Too Many Requests; and of 5xx all but Not Implemented and
# HTTP Version Not Supported.
_PASSING = frozenset({408, 423, 425, 429})
_LASTING = frozenset({501, 505})

_INTERIM = re.compile(rb"HTTP/1\.\d 1\d\d[ \r\n]")
_END_OF_HEAD = re.compile(rb"\n\r?\n")


@dataclass(frozen=True, kw_only=True)
class Response:
    """
    A response.

    @ivar code: the HTTP status code.
    @ivar headers: by name in lower case; the first value of each.
    @ivar asked_seconds: how long the server asks clients to wait before the next request; L{None} if it
        doesn't.
    @ivar body: up to L{MAX_BODY_BYTES} of it.
    """

    code: int
    headers: Mapping[str, str]
    asked_seconds: float | None
    body: bytes

    @property
    def is_passing_error(self) -> bool:
        """Whether the status is an error that may pass by itself."""
        return self.code in _PASSING or (self.code >= 500 and self.code not in _LASTING)


async def exchange(
    reactor: Any,
    endpoint: IStreamClientEndpoint,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: IBodyProducer | None = None,
    *,
    target: str | None = None,
) -> Response:
    """
    Send a request, and read the response. It has no time limit of its own. Cancelling it closes the
    connection.

    @param endpoint: the server, see L{server_endpoint}. The URL's host is not connected to.
    @param url: ASCII.
    @param headers: these have precedence over those that Twisted's client adds.
    @param target: what is sent in place of the URL's path and query, byte for byte. ASCII, and it begins with
        one slash.

    @raise Exception: what went wrong. It may contain the URL.
    """
    connection = _Connection(endpoint, target)
    agent = Agent.usingEndpointFactory(reactor, connection)  # type: ignore[no-untyped-call]
    try:
        request = agent.request(
            method.encode("ascii"),
            url.encode("ascii"),
            Headers({name: [value] for name, value in headers.items()}),
            body,
        )
        response = await connection.answer(request)
        received = {
            name.decode("latin-1").lower(): values[0].decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        return Response(
            code=response.code,
            headers=received,
            asked_seconds=asked_delay(received.get("retry-after"), received.get("date")),
            body=await _read(response),
        )
    except Exception as error:  # noqa: BLE001 - raised again, unwrapped
        raise unshared(_innermost(error)) from None
    finally:
        connection.abort()


def failure_words(error: BaseException, host: str) -> tuple[str, bool]:
    """
    What made an exchange fail.

    @param host: the name or the address of the server.

    @return: in words, which may be a library's; and whether it may pass by itself.
    """
    if isinstance(error, VerificationError):
        return f"the certificate is not for {host}", False
    if isinstance(error, SSL.Error):
        reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
        words = "; ".join(str(reason[-1]) for reason in reasons if reason) or "TLS failed"
        return f"TLS: {words}", "certificate verify failed" not in words
    if isinstance(error, UnusableCertificates):
        return str(error), False
    return str(error) or type(error).__name__, True


def _innermost(error: BaseException) -> BaseException:
    """What is inside the wrappers of Twisted's client."""
    while reasons := getattr(error, "reasons", None):
        error = reasons[0].value
    return error


async def server_endpoint(
    reactor: Any, scheme: str, host: str, port: int, verify: bool | str, run_in_thread: RunInThread
) -> IStreamClientEndpoint:
    """
    How to connect to a server.

    @param verify: whether its certificate is verified; or the path of the PEM certificates to verify it with.
    @param run_in_thread: reads certificates.

    @raise Exception: if the certificates can't be used, or no certificate can be valid for C{host}.
    """
    return await secured(HostnameEndpoint(reactor, host, port), scheme, host, verify, run_in_thread)


async def secured(
    plain: IStreamClientEndpoint, scheme: str, host: str, verify: bool | str, run_in_thread: RunInThread
) -> IStreamClientEndpoint:
    """
    A way to connect to a server, with TLS if the scheme is C{https}.

    @param plain: the way without it.
    @param host: the name or the address that the certificate must be for.
    @param verify: as in L{server_endpoint}, and likewise the rest.
    """
    if scheme == "http":
        return plain
    if verify is False:
        creator: IOpenSSLClientConnectionCreator = UnverifiedTLS(host)
    else:
        creator = await run_in_thread(verified_tls, host, None if verify is True else verify)
    endpoint: IStreamClientEndpoint = wrapClientTLS(creator, plain)
    return endpoint


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Connection:
    """
    The connection of one request. It can be ended whatever state Twisted's client is in, which goes on
    sending a body after an early response.
    """

    def __init__(self, endpoint: IStreamClientEndpoint, target: str | None) -> None:
        self._endpoint = endpoint
        self._target = target
        self._open: _Watched | None = None
        self._answered: Deferred[IResponse] | None = None

    def endpointForURI(self, uri: Any) -> IStreamClientEndpoint:
        if self._target is not None:
            # What is requested is made of these. Twisted's parser would change some targets, such as "/a;".
            uri.path, uri.params, uri.query = self._target.encode("ascii"), b"", b""
        return self

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        def connected(protocol: Any) -> Any:
            self._open = protocol
            # Detects a peer that has vanished, even if the caller sets no time limit.
            protocol.setTcpKeepAlive(True)
            return protocol.wrappedProtocol

        watching = _Watching(protocolFactory, self._lost, self._refuse)
        return self._endpoint.connect(watching).addCallback(connected)

    def answer(self, request: Deferred[IResponse]) -> Deferred[IResponse]:
        """
        What a request on this connection fires with. If a response is malformed, and arrives before the
        request was sent in full, the agent's own Deferred never fires. This one does, when the connection is
        lost.
        """
        cancelled = False

        def cancel(_: object) -> None:
            # How the agent fails then depends on how far it was.
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
        """Close it at once. Does nothing if it is closed, or was never open."""
        if self._open is not None:
            self._open.abortConnection()

    def _refuse(self, reason: str) -> None:
        if self._answered is not None and not self._answered.called:
            self._answered.errback(ConnectionError(reason))
        self.abort()

    def _lost(self, reason: Failure) -> None:
        self._open = None
        if self._answered is not None and not self._answered.called:
            self._answered.errback(ConnectionLost("the connection was lost after a malformed HTTP response"))


class _Watched(ProtocolWrapper):
    """
    A connection that reports its loss, after its user has been notified of it. What arrives beyond the limits
    is reported, and not passed on; nor are interim responses, each of which Twisted would log.
    """

    factory: _Watching
    wrappedProtocol: Any
    _received_bytes = 0
    _interim = 0
    # What has arrived before the final response; None once that has begun.
    _early: bytes | None = b""

    def dataReceived(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._received_bytes > _MAX_RECEIVED_BYTES:
            self.factory.refuse(f"the response is longer than {_MAX_RECEIVED_BYTES} bytes")
            return
        if self._early is not None:
            data = self._skip_interim(self._early + data)
        if self._interim > _MAX_INTERIM:
            self.factory.refuse(f"the server sent more than {_MAX_INTERIM} interim responses")
        elif data:
            self._pass_on(data)

    def _skip_interim(self, data: bytes) -> bytes:
        """What follows the interim responses, as far as it has arrived."""
        while _INTERIM.match(data) and (end := _END_OF_HEAD.search(data)):
            data = data[end.end() :]
            self._interim += 1
        # Up to the status code.
        if _INTERIM.match(data) or (len(data) < 13 and b"\n" not in data):
            self._early = data
            return b""
        self._early = None
        return data

    def _pass_on(self, data: bytes) -> None:
        client = self.wrappedProtocol
        response = getattr(client, "_responseDeferred", None)
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        if _has_given_up(client):
            # It would trip over what it has cleared, and leaves this failure unhandled. The loss is reported.
            client._state = "GENERATION_FAILED"
            if response is not None:
                response.addErrback(lambda _: None)
            self.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        try:
            if self._early:
                early, self._early = self._early, None
                self._pass_on(early)
            super().connectionLost(reason)  # type: ignore[no-untyped-call]
        except Exception:  # noqa: BLE001 - Twisted's own, see _has_given_up
            _log.failure("error in Twisted's HTTP client after the connection was lost")
        finally:
            self.factory.lost(reason)


def _has_given_up(client: Any) -> bool:
    """
    Whether Twisted has given up on a malformed response, but goes on sending the request. Only private
    attributes tell. In a version without them the answer is always no: then Twisted may log an error about
    such a response, and the exchange ends with the connection.
    """
    try:
        return bool(client._state == "TRANSMITTING" and client._parser is None)
    except AttributeError:
        return False


class _Watching(WrappingFactory):
    protocol = _Watched
    noisy = False

    def __init__(self, wrapped: Any, lost: Callable[[Failure], None], refuse: Callable[[str], None]) -> None:
        wrapped.noisy = False
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.lost = lost
        self.refuse = refuse


class _Body(Protocol):
    """Reads a body, or the beginning of one that is too long."""

    def __init__(self) -> None:
        self._data = b""
        self.done: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self._data = (self._data + data)[:MAX_BODY_BYTES]
        if len(self._data) == MAX_BODY_BYTES and not self.done.called:
            self.done.callback(self._data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if isinstance(reason.value, ResponseDone | PotentialDataLoss):
            self.done.callback(self._data)
        else:
            self.done.errback(reason)


def _read(response: IResponse) -> Deferred[bytes]:
    body = _Body()
    response.deliverBody(body)  # type: ignore[no-untyped-call]
    return body.done
