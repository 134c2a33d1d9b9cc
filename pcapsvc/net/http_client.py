"""
An HTTP client: one request on a connection of its own, and the response.

The connection never outlives the request, and what a server sends is bounded, whatever the server does. No
redirect is followed, as a request may carry credentials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import wrapClientTLS
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
from twisted.web.client import Agent, RequestGenerationFailed, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from pcapsvc.core.errors import FAULT
from pcapsvc.core.http_status import is_passing_error
from pcapsvc.core.response_head import FinalResponse, UnusableResponse
from pcapsvc.core.retry import asked_delay
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.lost import unshared
from pcapsvc.net.metered_endpoint import MeteredEndpoint
from pcapsvc.net.named_endpoint import NamedEndpoint
from pcapsvc.net.pem import UnusableCertificates
from pcapsvc.net.tls import UnverifiedTLS, verified_tls

_log = Logger()

#: How much of a body is read. The rest is not waited for.
MAX_BODY_BYTES = 64 * 1024

#: How many pieces of a body are read, such as chunks. Each takes two to ten microseconds.
MAX_BODY_PIECES = 2000

# With the heads of responses, and the framing of chunks.
_MAX_RECEIVED_BYTES = 128 * 1024

# With TLS: its handshake with the server's certificates, and the framing of records.
_MAX_WIRE_BYTES = 512 * 1024

# How much of what arrives is processed in one turn of the reactor: as each header, and each chunk, it may be
# a few bytes long, 2 KiB of which take three milliseconds.
_PIECE_BYTES = 2 * 1024


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """
    A response.

    @ivar code: the HTTP status code.
    @ivar headers: by name in lower case; the first value of each.
    @ivar asked_seconds: how long the server asks clients to wait before the next request; L{None} if it
        doesn't.
    @ivar body: up to L{MAX_BODY_BYTES} of it, in up to L{MAX_BODY_PIECES} pieces.
    """

    code: int
    headers: Mapping[str, str]
    asked_seconds: float | None
    body: bytes

    @property
    def is_passing_error(self) -> bool:
        """Whether the status is an error that may pass by itself."""
        return is_passing_error(self.code)


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
    connection = _Connection(reactor, endpoint, target)
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
            body=await connection.read(response),
        )
    except Exception as error:  # noqa: BLE001 - raised again, unwrapped
        raise unshared(_cause(error)) from None
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
        return str(error), error.passes
    if isinstance(error, RequestGenerationFailed):
        return FAULT, False
    return str(error) or type(error).__name__, True


def _cause(error: BaseException) -> BaseException:
    """What is inside the wrappers of Twisted's client, or the outermost that says whose fault it is."""
    is_read = False
    while reasons := getattr(error, "reasons", None):
        inner = reasons[0].value
        if isinstance(error, RequestGenerationFailed) and _is_unexpected(inner):
            _log.failure("internal error while a request was sent", reasons[0])
            return error
        is_read = is_read or isinstance(error, ResponseFailed)
        error = inner
    # Some of the errors of Twisted's client are private.
    is_twisted = type(error).__module__ == PotentialDataLoss.__module__
    if is_read and (is_twisted or _is_unexpected(error)):
        # The words would be a parser's, and some of the server's.
        return ConnectionError("the server sent a malformed HTTP response")
    return error


def _is_unexpected(error: BaseException) -> bool:
    """Whether it is an error of the code that raises it, or of a parser that can't parse something."""
    return isinstance(error, ValueError | LookupError | AttributeError | TypeError)


async def server_endpoint(
    reactor: Any, scheme: str, host: str, port: int, verify: bool | str, run_in_thread: RunInThread
) -> IStreamClientEndpoint:
    """
    How to connect to a server.

    @param verify: whether its certificate is verified; or the path of the PEM certificates to verify it with.
    @param run_in_thread: reads certificates.

    @raise Exception: if the certificates can't be used, or no certificate can be valid for C{host}.
    """
    return await secured(NamedEndpoint(reactor, host, port), scheme, host, verify, run_in_thread)


async def secured(
    plain: IStreamClientEndpoint, scheme: str, host: str, verify: bool | str, run_in_thread: RunInThread
) -> IStreamClientEndpoint:
    """
    A way to connect to a server, with TLS if the scheme is C{https}.

    @param plain: the way without it.
    @param host: the name or the address that the certificate must be for.
    @param verify: as in L{server_endpoint}, and likewise the rest.
    """
    metered = MeteredEndpoint(plain, _MAX_WIRE_BYTES)
    if scheme == "http":
        return metered
    if verify is False:
        creator: IOpenSSLClientConnectionCreator = UnverifiedTLS(host)
    else:
        creator = await run_in_thread(verified_tls, host, None if verify is True else verify)
    endpoint: IStreamClientEndpoint = wrapClientTLS(creator, metered)
    return endpoint


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Connection:
    """
    The connection of one request. It can be ended whatever state Twisted's client is in, which goes on
    sending a body after an early response.
    """

    def __init__(self, reactor: Any, endpoint: IStreamClientEndpoint, target: str | None) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._target = target
        self._open: _Watched | None = None
        self._answered: Deferred[IResponse] | None = None
        self._body: _Body | None = None

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

        watching = _Watching(protocolFactory, self._reactor, self._lost, self._refuse)
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

    def read(self, response: IResponse) -> Deferred[bytes]:
        """
        Read the body of a response. Fires with it, or with the beginning of one that is too long; fails if
        the connection is lost before that.
        """
        self._body = _Body()
        response.deliverBody(self._body)  # type: ignore[no-untyped-call]
        return self._body.done

    def abort(self) -> None:
        """Close it at once. Does nothing if it is closed, or was never open."""
        if self._open is not None:
            self._open.abortConnection()

    def _refuse(self, reason: str) -> None:
        self._fail(ConnectionError(reason))
        self.abort()

    def _lost(self) -> None:
        self._open = None
        self._fail(ConnectionLost("the connection was lost after a malformed HTTP response"))

    def _fail(self, error: Exception) -> None:
        """Whatever is waited for, Twisted's client may not end it."""
        if self._answered is not None and not self._answered.called:
            self._answered.errback(error)
        elif self._body is not None:
            self._body.connectionLost(Failure(error))  # type: ignore[no-untyped-call]


class _Watched(ProtocolWrapper):
    """
    A connection that reports its loss, after its user has been notified of it. What arrives is processed in
    pieces, each in a turn of the reactor of its own. What exceeds a limit is reported, and not passed on.
    """

    factory: _Watching
    transport: Any
    wrappedProtocol: Any

    def __init__(self, factory: Any, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self._received_bytes = 0
        self._response = FinalResponse()
        # What has arrived, and has yet to be processed.
        self._waiting = bytearray()
        self._turn: Any = None
        self._is_paused = False
        # Why the connection was lost, until that is reported.
        self._loss: Failure | None = None
        self._is_lost = False

    def dataReceived(self, data: bytes) -> None:
        self._waiting += data
        if self._turn is None:
            self._process()

    def _process(self) -> None:
        self._turn = None
        piece = bytes(self._waiting[:_PIECE_BYTES])
        del self._waiting[:_PIECE_BYTES]
        try:
            self._receive(piece)
        except BaseException:
            self.factory.refuse(FAULT)
            raise
        if self._waiting:
            self._turn = self.factory.reactor.callLater(0, self._process)
        if self._loss is not None:
            self._report_loss()
        elif self._waiting:
            # Again and again, as Twisted's client resumes it.
            self._is_paused = True
            self.transport.pauseProducing()
        elif self._is_paused and not self.disconnecting:
            self._is_paused = False
            self.transport.resumeProducing()

    def _receive(self, piece: bytes) -> None:
        self._received_bytes += len(piece)
        if self._received_bytes > _MAX_RECEIVED_BYTES:
            self.factory.refuse(f"the response is longer than {_MAX_RECEIVED_BYTES} bytes")
            return
        try:
            passed = self._response.receive(piece)
        except UnusableResponse as unusable:
            self.factory.refuse(str(unusable))
            return
        if passed:
            self._pass_on(passed)

    def abortConnection(self) -> None:
        """Close it. What waits is of no interest any more."""
        self._waiting.clear()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self.disconnecting = True
        if not self._is_lost:
            # TLS that has been lost can't be aborted: that raises an error.
            self.transport.abortConnection()
        self._report_loss()

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
        self._loss, self._is_lost = reason, True
        self._report_loss()

    def _report_loss(self) -> None:
        """Report the loss, once everything that arrived before has been processed."""
        if self._waiting or self._loss is None:
            return
        reason, self._loss = self._loss, None
        try:
            super().connectionLost(reason)  # type: ignore[no-untyped-call]
        except Exception:  # noqa: BLE001 - Twisted's own, see _has_given_up
            _log.failure("error in Twisted's HTTP client after the connection was lost")
        finally:
            self.factory.lost()


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

    def __init__(
        self,
        wrapped: Any,
        reactor: Any,
        lost: Callable[[], None],
        refuse: Callable[[str], None],
    ) -> None:
        wrapped.noisy = False
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.reactor = reactor
        self.lost = lost
        self.refuse = refuse


class _Body(Protocol):
    """Reads a body, or the beginning of one that is too long."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._pieces = 0
        self.done: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        if self.done.called:
            return
        self._data += data[: MAX_BODY_BYTES - len(self._data)]
        self._pieces += 1
        if len(self._data) == MAX_BODY_BYTES or self._pieces == MAX_BODY_PIECES:
            self.done.callback(bytes(self._data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if isinstance(reason.value, ResponseDone | PotentialDataLoss):
            self.done.callback(bytes(self._data))
        else:
            self.done.errback(reason)
