"""
A bounded HTTP server.

Twisted's protocol, with limits on everything that a client can make it keep or wait for, and with problem
details (RFC 9457) in place of each error that Twisted answers by itself. A connection serves one request at a
time. The answers come from a tree of resources, see L{pcapsvc.net.http_resource}.
"""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet import defer
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IAddress, ILoggingContext, IProtocolNegotiationFactory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, resource
from twisted.web.error import UnsupportedMethod
from zope.interface import implementer

from pcapsvc.net.http_resource import Answer, HTTPProblem

#: How long a request may take to arrive, from the connection or the previous answer.
REQUEST_SECONDS = 30.0

#: How long what a client still sends after an error is discarded, so that it gets to read the answer.
LINGER_SECONDS = 2.0

#: How long a connection has to close.
CLOSE_SECONDS = 2.0

#: How long a stop waits for answers that are being worked out.
ANSWER_SECONDS = 1.0

#: Connections at once. Further ones are closed as they come.
MAX_CONNECTIONS = 128

# What Twisted's resources return that finish the request themselves (twisted.web.server.NOT_DONE_YET, whose
# module costs 3 MB).
_NOT_DONE_YET = 1

# A request target in absolute form, without its query (RFC 9112, section 3.2.2): the host, and the path.
_ABSOLUTE = re.compile(rb"\Ahttps?://([^/@]+)(/.*)?\Z", re.IGNORECASE)


class Request(http.Request):
    """
    A request. Its body is kept in memory, and is never parsed as a form.

    @ivar path: the path in the request target, without the query.
    @ivar target_host: the host in the request target, which then counts rather than the C{Host} header (RFC
        9112, section 3.2.2); L{None} if there is only a path.
    @ivar prepath: the segments of the path that have been traversed; likewise C{postpath}, those to come.
    @ivar responding: fires when the answer was sent, or the client is gone and nobody works on one any more.
    @ivar is_disconnected: whether the client has gone before it got the whole answer.
    """

    responding: defer.Deferred[None]
    target_host: bytes | None = None
    is_disconnected = False
    channel: Any
    content: Any
    _log = Logger()

    @property
    def over_unix_socket(self) -> bool:
        """Whether it came over a unix socket."""
        return isinstance(self.host, UNIXAddress)

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        # The channel has refused a body that is announced to be longer.
        if self.channel.refused:
            return
        if self.content.tell() + len(data) > self.channel.factory.max_body_bytes:
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
        self.prepath: list[bytes] = []
        self.postpath = [unquote_to_bytes(segment) for segment in self.path[1:].split(b"/")]
        self.process()

    def process(self) -> None:
        self.channel.factory.answer(self)

    def connectionLost(self, reason: Failure) -> None:
        self.is_disconnected = True
        super().connectionLost(reason)

    def unregisterProducer(self) -> None:
        # Twisted's own fails once the client is gone, when a stream has yet to end.
        if self.is_disconnected:
            self.producer = None
        else:
            super().unregisterProducer()

    async def respond(self, root: resource.IResource, check: Callable[[Request], None]) -> None:
        """
        Find the answer, and send it, if the client is still there. Never raises.

        @param root: the tree of resources.
        @param check: raises L{HTTPProblem} if the request is not admitted.
        """
        try:
            answer = await self._answer(root, check)
            if answer is not None and not self.is_disconnected:
                self._send(answer)
        except Exception:  # noqa: BLE001 - whatever it is, the connection must not stay open
            self._log.failure("HTTP: an answer could not be sent")
            self._abort()

    async def _answer(self, root: resource.IResource, check: Callable[[Request], None]) -> Answer | None:
        """The answer; L{None} if a resource sends one by itself."""
        try:
            self._check_host()
            check(self)
            found = self._resource(root)
            result = await defer.maybeDeferred(found.render, self)
        except HTTPProblem as problem:
            return self._failed(problem)
        except UnsupportedMethod as refusal:
            allowed = b", ".join(refusal.allowedMethods).decode("ascii")
            detail = f"This resource supports {allowed} only."
            return HTTPProblem(405, detail, headers={"Allow": allowed}).answer()
        except Exception:  # noqa: BLE001 - whatever it is, the client gets an answer
            self._log.failure(
                "HTTP: {method} {path} failed", method=_shown(self.method), path=_shown(self.path)
            )
            return self._failed(HTTPProblem(500, "Internal error: see the log of this node."))
        if isinstance(result, Answer):
            return result
        if result != _NOT_DONE_YET and not self.is_disconnected:
            self._finish(result)
        return None

    def _finish(self, body: bytes | None) -> None:
        """End an answer as Twisted's resources leave it: all but the body, or in full."""
        if body is not None:
            self.setHeader(b"Content-Length", b"%d" % len(body))
            self.write(body)
        self.finish()

    def _failed(self, problem: HTTPProblem) -> Answer | None:
        if not self.startedWriting:
            return problem.answer()
        # What was sent so far must not be taken for the whole.
        self._abort()
        return None

    def _resource(self, root: resource.IResource) -> resource.IResource:
        if not self.path.startswith(b"/"):
            raise HTTPProblem(404, "There is no resource at this path.")
        found: resource.IResource = resource.getChildForRequest(root, self)
        return found

    def _check_host(self) -> None:
        # RFC 9112, section 3.2.
        hosts = self.requestHeaders.getRawHeaders(b"Host", [])
        if len(hosts) > 1 or (not hosts and self.clientproto == b"HTTP/1.1"):
            raise HTTPProblem(400, "A request must have exactly one Host header.")

    def _abort(self) -> None:
        if not self.is_disconnected:
            self.channel.transport.abortConnection()

    def _send(self, answer: Answer) -> None:
        self.setResponseCode(answer.status, HTTPStatus(answer.status).phrase.encode())
        for name, value in _headers(answer).items():
            self.setHeader(name, value)
        self.write(answer.body)
        self.finish()


def _headers(answer: Answer) -> dict[str, str]:
    return {
        "Date": http.datetimeToString().decode("ascii"),
        "Cache-Control": "no-store",
        "Content-Type": answer.media_type,
        "Content-Length": str(len(answer.body)),
        **answer.headers,
    }


def _shown(word: bytes) -> str:
    """A word of a request, for the log: ASCII, with anything else escaped."""
    return word.decode("latin-1").encode("unicode_escape").decode("ascii")


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
        self._refuse(431, "A line of the request's head is too long.")

    def headerReceived(self, line: bytes) -> bool:
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            # A length of more digits than int() accepts, which twisted.web doesn't expect.
            self._respondToBadRequestAndDisconnect()
            return False

    def allHeadersReceived(self) -> None:
        if self.length is not None and self.length > self.factory.max_body_bytes:
            # Before "100 Continue" is sent.
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
        if self.refused:
            return
        self.refused = True
        answer = HTTPProblem(status, detail).answer()
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in {**_headers(answer), "Connection": "close"}.items()]
        self.transport.write("\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + answer.body)
        # To close at once, with data unread, would reset the connection before
        # the client has read this (RFC 9112, section 9.6).
        self.setRawMode()
        self.setTimeout(LINGER_SECONDS)


@implementer(IProtocolNegotiationFactory, ILoggingContext)
class HTTPServer(http.HTTPFactory):
    """
    Serves a tree of resources on a bounded number of connections.

    @ivar max_body_bytes: the longest body of a request.
    @ivar connections: those that are open.
    @ivar answering: the requests whose answers are being worked out.
    """

    noisy = False
    protocol = _Channel  # type: ignore[assignment]
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        root: resource.IResource,
        *,
        check: Callable[[Request], None],
        max_body_bytes: int,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """
        @param reactor: provides time.
        @param root: the resource at C{/}.
        @param check: raises L{HTTPProblem} if a request is not admitted.
        """
        super().__init__(timeout=REQUEST_SECONDS, reactor=reactor)
        self._root = root
        self._check = check
        self.max_body_bytes = max_body_bytes
        self.connections: set[_Channel] = set()
        self.answering: set[Request] = set()
        self._max_connections = max_connections
        self._is_open = False
        self._is_full = False
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
        if len(self.connections) >= self._max_connections:
            if not self._is_full:
                self._log.warn(
                    "HTTP: {count} connections are open; closing further ones", count=self._max_connections
                )
            self._is_full = True
            return None
        return super().buildProtocol(addr)

    def answer(self, request: Request) -> None:
        """Answer a request that has arrived."""

        def done(_: object) -> None:
            self.answering.discard(request)
            self._settle()

        self.answering.add(request)
        request.responding = defer.Deferred.fromCoroutine(request.respond(self._root, self._check))
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
        if len(self.connections) <= self._max_connections // 2:
            self._is_full = False
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
