"""
Requests by HTTP: C{POST /captures}, and C{GET /captures/ID} for what became of one.

Every answer is JSON, that of a failure too. It is built on twisted.web's
protocol, not on its resources, whose errors are pages of HTML.
"""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from http import HTTPStatus
from io import BytesIO
from typing import Any

from twisted.application import service
from twisted.internet import defer, endpoints
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    ILoggingContext,
    IProtocolNegotiationFactory,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from zope.interface import implementer

from pcapsvc.core.errors import Problem, SettingsError, shown
from pcapsvc.core.request import MAX_BODY_BYTES
from pcapsvc.interfaces.requests import IRequestSink
from pcapsvc.sources.http.answers import Answer, Answers, Lookup, error_answer

#: How long a request may take to arrive, from the connection or the answer before it.
REQUEST_SECONDS = 30.0

#: How long what a client still sends after an error is thrown away, so that it gets to read the answer.
LINGER_SECONDS = 2.0

#: How long a connection has to close.
CLOSE_SECONDS = 2.0

#: Connections at once. The next ones are closed as they come.
MAX_CONNECTIONS = 128

#: The mode of a unix socket, where its endpoint says none: for the owner and the group.
SOCKET_MODE = "660"

# A request target in absolute form, without its query (RFC 9112, section 3.2.2): the host, and the path.
_ABSOLUTE = re.compile(rb"\Ahttps?://([^/@]+)(/.*)?\Z", re.IGNORECASE)


def http_endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """
    What a server endpoint string of Twisted says, without opening it. A unix
    socket whose mode isn't given gets L{SOCKET_MODE}, where Twisted's own default is 666.

    @raise SettingsError: where Twisted can make nothing of it.
    """
    kind, *parameters = re.split(r"(?<!\\):", description)
    positional = [part for part in parameters if not re.search(r"(?<!\\)=", part)]
    if kind == "unix" and not any(part.startswith("mode=") for part in parameters) and len(positional) < 2:
        description += f":mode={SOCKET_MODE}"
    try:
        endpoint: IStreamServerEndpoint = endpoints.serverFromString(reactor, description)
    except Exception as problem:
        raise _unusable(description, problem) from problem
    return endpoint


def _unusable(listen: str, problem: BaseException | None) -> SettingsError:
    rule = f"must be an endpoint that can be listened on ({str(problem) or type(problem).__name__})"
    return SettingsError([Problem(path="http.listen", value=shown(listen), rule=rule)])


class HTTPSource(service.Service):
    """
    Submits what is posted to C{/captures}.

    @ivar name: what the sink hears as the source.
    @ivar listening: fires with the address listened on, or with L{None} where there is
        none; never fails. L{None} before the start.
    """

    name = "http"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamServerEndpoint,
        sink: IRequestSink,
        *,
        lookup: Lookup,
        token: str | None = None,
        endpoint_name: str = "the HTTP endpoint",
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """
        @param reactor: provides time.
        @param lookup: gives the state of a capture, by its id, as it can be put in JSON;
            L{None} where it knows none.
        @param token: what clients must bear; L{None} lets everyone in.
        @param endpoint_name: what to call the endpoint in the log.
        """
        self._endpoint = endpoint
        self._endpoint_name = endpoint_name
        self._factory = _Factory(reactor, Answers(sink, self.name, lookup, token), max_connections)
        self._port: IListeningPort | None = None
        self._opening: defer.Deferred[Any] | None = None
        self.listening: defer.Deferred[IAddress | None] | None = None

    def startService(self) -> None:
        """
        Begin to listen.

        @raise SettingsError: where the endpoint says at once that it can't, so that the
            process ends. Where it says so later, see L{listening}; both are logged.
        """
        self.listening = defer.Deferred()
        self._factory.open()
        problems: list[Failure] = []
        self._opening = self._endpoint.listen(self._factory)
        self._opening.addCallbacks(self._opened, self._not_opened, errbackArgs=(problems,))
        if problems:
            raise _unusable(self._endpoint_name, problems[0].value) from problems[0].value
        super().startService()

    def stopService(self) -> defer.Deferred[None]:
        """
        Listen no more, and close every connection.

        @return: fires when all are closed.
        """
        super().stopService()
        return defer.Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        port, self._port = self._port, None
        if port is not None:
            await defer.maybeDeferred(port.stopListening)
        await self._factory.close()

    def _opened(self, port: IListeningPort) -> None:
        self._port = port
        address = port.getHost()
        self._log.info("HTTP: listening on {address}", address=_shown_address(address))
        assert self.listening is not None
        self.listening.callback(address)

    def _not_opened(self, why: Failure, problems: list[Failure]) -> None:
        assert self.listening is not None
        if not why.check(defer.CancelledError):
            problems.append(why)
            self._log.critical(
                "HTTP: can't listen on {endpoint}: {problem}",
                endpoint=self._endpoint_name,
                problem=why.getErrorMessage(),
            )
        self.listening.callback(None)


def _shown_address(address: IAddress) -> str:
    match address:
        case IPv6Address():
            return f"[{address.host}]:{address.port}"
        case IPv4Address():
            return f"{address.host}:{address.port}"
        case UNIXAddress():
            return os.fsdecode(address.name or b"")
        case _:
            return str(address)


def _shown(word: bytes) -> str:
    """A word of a request, for the log: ASCII, and the rest of it escaped."""
    return word.decode("latin-1").encode("unicode_escape").decode("ascii")


def _body(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def _headers(body: bytes) -> dict[bytes, bytes]:
    return {
        b"Date": http.datetimeToString(),
        b"Cache-Control": b"no-store",
        b"Content-Type": b"application/json",
        b"Content-Length": b"%d" % len(body),
    }


class _Request(http.Request):
    """
    A request, whose body is kept in memory, and is never taken for a form.

    @ivar target_host: the host in the request target; L{None} where there is only a path.
    """

    target_host: bytes | None = None
    channel: Any
    content: Any
    _log = Logger()

    @property
    def over_unix_socket(self) -> bool:
        """Whether it came over a unix socket."""
        return isinstance(self.channel.getHost(), UNIXAddress)

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        # The channel has refused what says that it is longer.
        if self.channel.refused:
            return
        if self.content.tell() + len(data) > MAX_BODY_BYTES:
            self.channel.refuse_body()
            return
        self.content.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.content.seek(0)
        self.args = {}
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        if absolute := _ABSOLUTE.match(self.path):
            self.target_host, self.path = absolute[1], absolute[2] or b"/"
        self.process()

    def process(self) -> None:
        try:
            try:
                answer = self.channel.factory.answers.answer(self)
            except Answer as refusal:
                answer = refusal
            body = _body(answer.content)
        except Exception:  # noqa: BLE001 - whatever it is, the client is to hear of it
            self._log.failure(
                "HTTP: {method} {path} failed", method=_shown(self.method), path=_shown(self.path)
            )
            answer = error_answer(500, "this node failed; its log says why")
            body = _body(answer.content)
        self.setResponseCode(answer.code)
        for name, value in {**_headers(body), **answer.headers}.items():
            self.setHeader(name, value)
        self.write(body)
        self.finish()


class _Channel(http.HTTPChannel):
    """
    A connection. What twisted.web answers by itself, this answers in JSON.

    @ivar refused: whether an error was answered here, so that nothing more is heard.
    """

    requestFactory = _Request
    factory: Any
    transport: Any
    refused = False
    _began = False
    _closing: Any = None

    def connectionMade(self) -> None:
        self.factory.connections.add(self)
        super().connectionMade()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        super().connectionLost(reason)
        self.factory.lost(self)

    def dataReceived(self, data: bytes) -> None:
        self._began = True
        super().dataReceived(data)

    def rawDataReceived(self, data: bytes) -> None:
        if not self.refused:
            super().rawDataReceived(data)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._refuse(431, "a line of the head is too long")

    def headerReceived(self, line: bytes) -> bool:
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            # A length of more digits than int() takes, which twisted.web doesn't expect.
            self._respondToBadRequestAndDisconnect()
            return False

    def allHeadersReceived(self) -> None:
        if self.length is not None and self.length > MAX_BODY_BYTES:
            # Before "100 Continue" is said.
            self.refuse_body()
        else:
            super().allHeadersReceived()

    def allContentReceived(self) -> None:
        if not self.refused:
            super().allContentReceived()

    def requestDone(self, request: http.Request) -> None:
        self._began = False
        super().requestDone(request)

    def resetTimeout(self) -> None:
        """
        Nothing: the time starts at the connection, and at each answer. A client
        that sends a byte now and then does not get more of it.
        """

    def timeoutConnection(self) -> None:
        if self._began and not self.refused:
            self._refuse(408, f"the request took longer than {REQUEST_SECONDS:g} s to arrive")
        else:
            self.loseConnection()

    def loseConnection(self) -> None:
        if self._closing is None:
            self._closing = self.factory.reactor.callLater(CLOSE_SECONDS, self.transport.abortConnection)
        super().loseConnection()

    def refuse_body(self) -> None:
        """Refuse the rest of a body."""
        self._refuse(413, f"the body must be at most {MAX_BODY_BYTES} bytes long")

    def _respondToBadRequestAndDisconnect(self) -> None:
        self._refuse(400, "this is no HTTP request")

    def _refuse(self, code: int, text: str) -> None:
        if self.refused:
            return
        self.refused = True
        body = _body({"error": text})
        head = [b"HTTP/1.1 %d %s" % (code, HTTPStatus(code).phrase.encode())]
        headers = {**_headers(body), b"Connection": b"close"}
        head += [name + b": " + value for name, value in headers.items()]
        self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + body)
        # To close at once, with data unread, would reset the connection before
        # the client has read this (RFC 9112, section 9.6).
        self.setRawMode()
        self.setTimeout(LINGER_SECONDS)


@implementer(IProtocolNegotiationFactory, ILoggingContext)
class _Factory(http.HTTPFactory):
    """Makes connections, and knows them."""

    noisy = False
    protocol = _Channel  # type: ignore[assignment]
    _log = Logger()

    def __init__(self, reactor: Any, answers: Answers, max_connections: int) -> None:
        super().__init__(timeout=REQUEST_SECONDS, reactor=reactor)
        self.answers = answers
        self.connections: set[_Channel] = set()
        self._most = max_connections
        self._is_open = False
        self._is_full = False
        self._empty: list[defer.Deferred[None]] = []

    def logPrefix(self) -> str:
        """What begins to listen, as Twisted logs it."""
        return "HTTP"

    def startFactory(self) -> None:
        """Nothing: twisted.web would open its own log of accesses."""

    def stopFactory(self) -> None:
        """Nothing, likewise."""

    def log(self, request: http.Request) -> None:
        """
        Nothing: twistd prints what is logged at any level, and clients that ask for the
        state of a capture do so again and again. What became of a request is told by reporters.
        """

    def acceptableProtocols(self) -> list[bytes]:
        # Where TLS asks (RFC 7301): to one that answers nothing most clients don't speak.
        return [b"http/1.1", b"http/1.0"]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if not self._is_open:
            return None
        if len(self.connections) >= self._most:
            if not self._is_full:
                self._log.warn("HTTP: {most} connections are open; others are closed", most=self._most)
            self._is_full = True
            return None
        return super().buildProtocol(addr)

    def open(self) -> None:
        """Let connections in."""
        self._is_open = True

    def close(self) -> defer.Deferred[None]:
        """Close every connection; fires when all are."""
        self._is_open = False
        for channel in list(self.connections):
            channel.loseConnection()
        if not self.connections:
            return defer.succeed(None)
        self._empty.append(defer.Deferred())
        return self._empty[-1]

    def lost(self, channel: _Channel) -> None:
        """A connection is closed."""
        self.connections.discard(channel)
        if len(self.connections) <= self._most // 2:
            self._is_full = False
        if not self.connections:
            waiting, self._empty = self._empty, []
            for deferred in waiting:
                deferred.callback(None)
