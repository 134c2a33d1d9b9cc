"""
A bounded HTTP server.

Twisted's protocol, with limits on everything that a client can make it keep or wait for, and with problem
details (RFC 9457) in place of each error that Twisted answers by itself. A connection serves one request at a
time, and one in each turn of the reactor. It is closed after a request that is not admitted, whose body isn't
read. The answers come from a tree of resources, see L{pcapsvc.net.http_resource}.
"""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from twisted.internet import defer
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    ILoggingContext,
    IProtocolNegotiationFactory,
)
from twisted.python.failure import Failure
from twisted.web import http, resource
from zope.interface import implementer

from pcapsvc.core.role import Role
from pcapsvc.net.gate import Gate
from pcapsvc.net.http_request import Request
from pcapsvc.net.http_resource import HTTPProblem
from pcapsvc.net.turns import Turns

#: How long a request may take to arrive, from the connection or the previous answer.
REQUEST_SECONDS = 30.0

# How much is held of what a client sends before its last request is answered. No more is read meanwhile.
_HELD_BYTES = 16 * 1024

#: How long what a client still sends after an error is discarded, so that it gets to read the answer.
LINGER_SECONDS = 2.0

#: How long a connection has to close.
CLOSE_SECONDS = 2.0

#: How long a stop waits for answers that are being worked out.
ANSWER_SECONDS = 1.0

#: Connections at once, see L{Gate}.
MAX_CONNECTIONS = 128


@implementer(IHalfCloseableProtocol)
class _Channel(http.HTTPChannel):
    """
    A connection. It answers in problem details what Twisted would answer by itself.

    @ivar refused: whether an error was answered here, after which nothing more is read.
    """

    requestFactory = Request
    factory: Any
    transport: Any
    refused = False
    _began = False
    # Whether its client has authenticated.
    _is_known = False
    _is_ended = False
    _closing: Any = None
    # What has arrived of the next request, while the last one is answered and the turn of the next has yet
    # to come; None otherwise.
    _next: bytearray | None = None
    # How much of the body of a refused request is to come; None if that isn't known.
    _unread_bytes: int | None = None
    # Closes the connection if the client doesn't read its answers.
    _unread: Any = None

    def connectionMade(self) -> None:
        self.factory.connections.add(self)
        super().connectionMade()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        self._answers_are_read()
        self.factory.turns.withdraw(self._begin_next)
        super().connectionLost(reason)
        self.factory.lost(self)

    def dataReceived(self, data: bytes) -> None:
        self._began = True
        super().dataReceived(data)

    def rawDataReceived(self, data: bytes) -> None:
        if self.refused:
            self._discard(len(data))
        elif self._next is not None:
            self._next += data
            self._pace()
        else:
            super().rawDataReceived(data)
            self._limit_chunk()
            self._pace()

    def _limit_chunk(self) -> None:
        """Refuse a chunk that is announced to be too long, before it arrives."""
        decoder: Any = self._transferDecoder
        if not self.refused and getattr(decoder, "state", None) == "BODY":
            received_bytes = self.requests[-1].content.tell()
            if received_bytes + decoder.length > self.factory.max_body_bytes:
                self.refuse_body()

    def setLineMode(self, extra: bytes = b"") -> None:
        """Go on to the next request, when it is its turn and the client reads its answers."""
        self._next = bytearray(extra)
        if not self._waitingForTransport:
            self.factory.turns.ask(self._begin_next, is_known=self._is_known)
        self._pace()

    def _begin_next(self) -> None:
        data, self._next = bytes(self._next or b""), None
        if self._closing is None:
            super().setLineMode(data)
            self._pace()
            self._close_if_ended()

    def readConnectionLost(self) -> None:
        """
        The client sends no more. What it has requested is answered. A stream without a length ends, as a
        client that has gone looks the same.
        """
        self._is_ended = True
        self._close_if_ended()

    def writeConnectionLost(self) -> None:
        """Nothing: only the server itself could cause this."""

    def _close_if_ended(self) -> None:
        is_answering = self._handlingRequest and all(each.has_end for each in self.requests)
        if self._is_ended and not is_answering and not self._next:
            self.loseConnection()

    def pauseProducing(self) -> None:
        """Answers wait to be sent: read and process nothing more."""
        super().pauseProducing()
        self._pace()
        if self._next is not None:
            self.factory.turns.withdraw(self._begin_next)
        if self._unread is None:
            self._unread = self.factory.reactor.callLater(REQUEST_SECONDS, self.loseConnection)

    def resumeProducing(self) -> None:
        """All answers were sent."""
        was_waiting = self._waitingForTransport
        self._answers_are_read()
        super().resumeProducing()
        self._pace()
        if was_waiting and self._next is not None:
            self.factory.turns.ask(self._begin_next, is_known=self._is_known)

    def _answers_are_read(self) -> None:
        if self._unread is not None and self._unread.active():
            self._unread.cancel()
        self._unread = None

    def limit_silence(self) -> None:
        """
        Have the kernel close the connection if the client's host doesn't acknowledge what is sent to it for
        L{REQUEST_SECONDS}, or has no room for it (tcp(7), TCP_USER_TIMEOUT). A stream that sends little would
        never find out by itself.
        """
        transport = self.transport
        while (inner := getattr(transport, "transport", None)) is not None:
            transport = inner
        connection = getattr(transport, "socket", None)
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            milliseconds = int(REQUEST_SECONDS * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def _pace(self) -> None:
        """
        Read only if the client reads its answers, and little is held. Twisted's own pause does not take
        effect while a request is answered, which is when answers are written.
        """
        if self._closing is not None:
            return
        held = len(self._next or b"") + sum(map(len, self._dataBuffer))
        if self._waitingForTransport or held > _HELD_BYTES:
            self._networkProducer.pauseProducing()
        else:
            self._networkProducer.resumeProducing()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._refuse(431, "A line of the request's head is too long.")

    def headerReceived(self, line: bytes) -> bool:
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            # A length of more digits than int() accepts, which twisted.web doesn't expect.
            self._respondToBadRequestAndDisconnect()
            return False

    def allHeadersReceived(self) -> None:
        request = self.requests[-1]
        try:
            request.head_received(self._command, self._path, self._version)
            request.check_head(self.factory.root, self.factory.check)
        except HTTPProblem as problem:
            self.transport.refuse()
            self._answer_at_once(problem, unread_bytes=self.length, has_body=self._command != b"HEAD")
            return
        may_stay = True
        if request.roles:
            may_stay = self._is_known = self.transport.welcome()
        if self.length is not None and self.length > self.factory.max_body_bytes:
            # Before "100 Continue" is sent.
            self.refuse_body()
        else:
            super().allHeadersReceived()
            self.persistent = self.persistent and may_stay

    def allContentReceived(self) -> None:
        if not self.refused:
            super().allContentReceived()

    def requestDone(self, request: http.Request) -> None:
        self._began = False
        super().requestDone(request)

    def resetTimeout(self) -> None:
        """
        Nothing: the time starts at the connection, and at each answer. A client that sends a byte now and
        then does not get more of it.
        """

    def timeoutConnection(self) -> None:
        if self._began and not self.refused:
            self._refuse(408, f"The request did not arrive within {REQUEST_SECONDS:g} s.")
        else:
            self.loseConnection()

    def loseConnection(self) -> None:
        if self._closing is None:
            self._closing = self.factory.reactor.callLater(CLOSE_SECONDS, self.transport.abortConnection)
            # The transport would wait until they end by themselves.
            for request in self.requests:
                request.cut()
            super().loseConnection()

    def close(self) -> None:
        """Close the connection; if an answer is being worked out, once that was sent."""
        if any(request in self.factory.answering and not request.startedWriting for request in self.requests):
            self.persistent = False
        else:
            self.loseConnection()

    def refuse_body(self) -> None:
        """Refuse the rest of a body."""
        self._refuse(413, f"The body must be up to {self.factory.max_body_bytes} bytes long.")

    def _respondToBadRequestAndDisconnect(self) -> None:
        self._refuse(400, "This is not a valid HTTP request.")

    def _refuse(self, status: int, detail: str) -> None:
        self._answer_at_once(HTTPProblem(status, detail))

    def _answer_at_once(
        self, problem: HTTPProblem, *, unread_bytes: int | None = None, has_body: bool = True
    ) -> None:
        """
        Answer, and read no more.

        @param unread_bytes: how much of the request is to come; L{None} if that isn't known.
        """
        if self.refused:
            return
        self.refused = True
        answer = problem.answer()
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
        lines += [
            f"{name}: {value}" for name, value in {**answer.all_headers(), "Connection": "close"}.items()
        ]
        head = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
        assert isinstance(answer.body, bytes)
        self.transport.write(head + answer.body if has_body else head)
        self.setRawMode()
        self.setTimeout(LINGER_SECONDS)
        # To close at once, with data unread, would reset the connection before the client has read this
        # (RFC 9112, section 9.6).
        self._unread_bytes = unread_bytes
        self._discard(0)

    def _discard(self, count: int) -> None:
        if self._unread_bytes is not None:
            self._unread_bytes -= count
            if self._unread_bytes <= 0:
                self.loseConnection()


@implementer(IProtocolNegotiationFactory, ILoggingContext)
class HTTPServer(http.HTTPFactory):
    """
    Serves a tree of resources on a bounded number of connections.

    @ivar max_body_bytes: the longest body of a request.
    @ivar connections: those that are open.
    @ivar root: the resource at C{/}.
    @ivar check: returns the roles of a request's client; raises L{HTTPProblem} if it is not admitted.
    @ivar gate: admits connections.
    @ivar turns: when what clients send is processed.
    @ivar answering: the requests whose answers are being worked out.
    """

    noisy = False
    protocol = _Channel  # type: ignore[assignment]

    def __init__(
        self,
        reactor: Any,
        root: resource.IResource,
        *,
        check: Callable[[Request], frozenset[Role]],
        max_body_bytes: int,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """
        @param reactor: provides time.
        @param root: the resource at C{/}.
        @param check: returns the roles of a request's client, none if it is a stranger; raises L{HTTPProblem}
            if the request is not admitted. Called before the body is read.
        """
        super().__init__(timeout=REQUEST_SECONDS, reactor=reactor)
        self.root = root
        self.check = check
        self.turns = Turns(reactor)
        self.gate = Gate(reactor, self.turns, name="HTTP", max_connections=max_connections)
        self.max_body_bytes = max_body_bytes
        self.connections: set[_Channel] = set()
        self.answering: set[Request] = set()
        self._is_open = False
        self._waiting: list[tuple[set[Any], defer.Deferred[None]]] = []

    def logPrefix(self) -> str:
        """What Twisted calls this in its log."""
        return "HTTP"

    def startFactory(self) -> None:
        """Nothing: twisted.web would open an access log of its own."""

    def stopFactory(self) -> None:
        """Nothing, likewise."""

    def log(self, request: http.Request) -> None:
        """
        Nothing: twistd prints what is logged at any level, and clients that poll the state of a capture ask
        again and again. What became of a request is the reporters' to log.
        """

    def acceptableProtocols(self) -> list[bytes]:
        # What TLS negotiates (RFC 7301): most clients refuse a server that names nothing.
        return [b"http/1.1", b"http/1.0"]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if not self._is_open:
            return None
        return self.gate.enter(addr, super().buildProtocol(addr))

    def answer(self, request: Request) -> None:
        """Answer a request that has arrived."""

        def done(_: object) -> None:
            self.answering.discard(request)
            self._settle()

        self.answering.add(request)
        request.responding = defer.Deferred.fromCoroutine(request.respond())
        request.responding.addBoth(done)

    def open(self) -> None:
        """Accept connections."""
        self._is_open = True

    async def close(self) -> None:
        """
        Accept no more connections, and close those that are open. Answers that are being worked out are
        waited for, up to L{ANSWER_SECONDS}. Returns once all connections are closed.
        """
        self._is_open = False
        for channel in list(self.connections):
            channel.close()
        answered = self._when_empty(self.answering)
        await answered.addTimeout(ANSWER_SECONDS, self.reactor, lambda result, _: None)
        for channel in list(self.connections):
            channel.loseConnection()
        await self._when_empty(self.connections)

    def lost(self, channel: _Channel) -> None:
        """A connection is closed."""
        self.connections.discard(channel)
        self._settle()

    def _when_empty(self, things: set[Any]) -> defer.Deferred[None]:
        if not things:
            return defer.succeed(None)
        self._waiting.append((things, defer.Deferred()))
        return self._waiting[-1][1]

    def _settle(self) -> None:
        settled = [each for each in self._waiting if not each[0]]
        self._waiting = [each for each in self._waiting if each[0]]
        for _, deferred in settled:
            if not deferred.called:
                deferred.callback(None)
