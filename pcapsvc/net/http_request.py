"""A request to the HTTP server: it finds its resource, and sends the answer."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from http import HTTPStatus
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet import defer
from twisted.internet.address import UNIXAddress
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, resource
from twisted.web.error import UnsupportedMethod
from twisted.web.iweb import IBodyProducer

from pcapsvc.core.role import Role
from pcapsvc.net.http_resource import Answer, AnswerCut, HTTPProblem

# What Twisted's resources return that finish the request themselves (twisted.web.server.NOT_DONE_YET, whose
# module costs 3 MB).
_NOT_DONE_YET = 1

# A request target in absolute form, without its query (RFC 9112, section 3.2.2): the host, and the path.
_ABSOLUTE = re.compile(rb"\Ahttps?://([^/]+)(/.*)?\Z", re.IGNORECASE)

_MOST_PATH_BYTES = 1024


def parsed_query(query: bytes) -> dict[bytes, list[bytes]]:
    """
    The parameters of a query, as browsers write them (URL Standard, section 5.1): only C{&} separates them,
    and one without C{=} has an empty value. Twisted also splits at C{;}, and drops those without C{=}.
    """
    parameters: dict[bytes, list[bytes]] = {}
    for part in query.replace(b"+", b" ").split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            parameters.setdefault(unquote_to_bytes(name), []).append(unquote_to_bytes(value))
    return parameters


class Request(http.Request):
    """
    A request. Its body is kept in memory, and is never parsed as a form.

    @ivar path: the path in the request target, without the query.
    @ivar query: the query in the request target, without the question mark.
    @ivar target_host: the host in the request target, which then counts rather than the C{Host} header (RFC
        9112, section 3.2.2); L{None} if there is only a path.
    @ivar prepath: the segments of the path that have been traversed; likewise C{postpath}, those to come.
    @ivar roles: those of the client. A stranger has none.
    @ivar responding: fires when the answer was sent, or was dropped because the client has gone.
    @ivar is_disconnected: whether the client has gone before it got the whole answer.
    """

    responding: defer.Deferred[None]
    target_host: bytes | None = None
    is_disconnected = False
    roles: frozenset[Role] = frozenset()
    channel: Any
    content: Any
    _log = Logger()
    # What produces the body of the answer, until that is whole, and what fires then.
    _producing: tuple[IBodyProducer, defer.Deferred[None]] | None = None
    # What answers it; or why nothing does.
    _found: resource.IResource | HTTPProblem

    @cached_property
    def args(self) -> dict[bytes, list[bytes]]:  # type: ignore[override]
        """The parameters in the query, and none from the body."""
        return parsed_query(self.query)

    @property
    def over_unix_socket(self) -> bool:
        """Whether it came over a unix socket."""
        return isinstance(self.host, UNIXAddress)

    def header(self, name: str) -> str | None:
        """The last value of a header, one character for each byte; L{None} if there is none."""
        values = self.requestHeaders.getRawHeaders(name.encode("ascii"))
        return values[-1].decode("latin-1") if values else None

    @property
    def is_public(self) -> bool:
        """Whether everyone may have what it asks for, without a token."""
        headers = self.requestHeaders
        has_body = headers.hasHeader(b"Transfer-Encoding") or headers.getRawHeaders(
            b"Content-Length", [b"0"]
        ) != [b"0"]
        is_reading = self.method in (b"GET", b"HEAD") and not has_body
        return is_reading and bool(getattr(self._found, "is_public", False))

    @property
    def needed_role(self) -> Role | None:
        """The role that its client needs; L{None} if any will do, as only an error will come of it."""
        allowed = getattr(self._found, "allowedMethods", None)
        if isinstance(self._found, HTTPProblem) or (allowed is not None and self.method not in allowed):
            return None
        roles: Mapping[bytes, Role] = getattr(self._found, "roles", {})
        return roles.get(self.method, Role.READ)

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

    def head_received(self, command: bytes, path: bytes, version: bytes) -> None:
        """The head has arrived."""
        self.method, self.uri, self.clientproto = command, path, version
        self.path, _, self.query = path.partition(b"?")
        if absolute := _ABSOLUTE.match(self.path):
            self.target_host, self.path = absolute[1], absolute[2] or b"/"
        self.prepath: list[bytes] = []
        # Before the token is checked, nothing may cost more than the read. No path of ours is that long.
        segments = self.path[1:].split(b"/") if len(self.path) <= _MOST_PATH_BYTES else [self.path]
        self.postpath = [unquote_to_bytes(segment[:_MOST_PATH_BYTES]) for segment in segments]

    def check_head(self, root: resource.IResource, check: Callable[[Request], frozenset[Role]]) -> None:
        """
        Check what is known before the body arrives.

        @param root: the tree of resources.
        @param check: returns the client's roles; raises L{HTTPProblem} if the request is not admitted.

        @raise HTTPProblem: if it is not, or not valid.
        """
        try:
            self._check_host()
            self._found = self._find(root)
            self.roles = check(self)
        except HTTPProblem:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, the client gets an answer
            raise self._internal_error() from None

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.content.seek(0)
        self.process()

    def process(self) -> None:
        self.channel.factory.answer(self)

    def connectionLost(self, reason: Failure) -> None:
        self.is_disconnected = True
        self.cut()
        super().connectionLost(reason)

    @property
    def has_end(self) -> bool:
        """Whether the answer has an end, whatever the client does."""
        if not self.startedWriting or self.responseHeaders.hasHeader(b"Content-Length"):
            return True
        return self._producing is not None and bool(getattr(self._producing[0], "has_end", False))

    def cut(self) -> None:
        """Send no more of an answer that is produced piece by piece. The caller closes the connection."""
        if self._producing is None:
            return
        (producer, ended), self._producing = self._producing, None
        producer.stopProducing()
        self.unregisterProducer()
        if not ended.called:
            ended.callback(None)

    def unregisterProducer(self) -> None:
        # Twisted's own fails once the client is gone, when a stream has yet to end.
        if self.is_disconnected:
            self.producer = None
        else:
            super().unregisterProducer()

    async def respond(self) -> None:
        """Find the answer, and send it, if the client is still there. Never raises."""
        try:
            answer = await self._answer()
            if answer is not None:
                await self._send(answer)
        except AnswerCut:
            self._abort()
        except Exception:  # noqa: BLE001 - whatever it is, the connection must not stay open
            self._log.failure("HTTP: an answer could not be sent")
            self._abort()

    async def _answer(self) -> Answer | None:
        """The answer; L{None} if a resource sends one by itself."""
        try:
            if isinstance(self._found, HTTPProblem):
                raise self._found
            result = await defer.maybeDeferred(self._found.render, self)
        except HTTPProblem as problem:
            return self._failed(problem)
        except UnsupportedMethod as refusal:
            allowed = b", ".join(refusal.allowedMethods).decode("ascii")
            detail = f"This resource supports {allowed} only."
            return HTTPProblem(405, detail, headers={"Allow": allowed}).answer()
        except Exception:  # noqa: BLE001 - whatever it is, the client gets an answer
            return self._failed(self._internal_error())
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

    def _internal_error(self) -> HTTPProblem:
        """The answer to what must not happen, which is logged."""
        self._log.failure("HTTP: {method} {path} failed", method=_shown(self.method), path=_shown(self.path))
        return HTTPProblem(500, "Internal error: see the log of this node.")

    def _failed(self, problem: HTTPProblem) -> Answer | None:
        if not self.startedWriting:
            return problem.answer()
        # What was sent so far must not be taken for the whole.
        self._abort()
        return None

    def _find(self, root: resource.IResource) -> resource.IResource | HTTPProblem:
        if not self.path.startswith(b"/"):
            return HTTPProblem(404, "There is no resource at this path.")
        try:
            found: resource.IResource = resource.getChildForRequest(root, self)
            return found
        except HTTPProblem as problem:
            return problem

    def _check_host(self) -> None:
        # RFC 9112, section 3.2.
        hosts = self.requestHeaders.getRawHeaders(b"Host", [])
        if len(hosts) > 1 or (not hosts and self.clientproto == b"HTTP/1.1"):
            raise HTTPProblem(400, "A request must have exactly one Host header.")
        # RFC 9110, section 4.2.4: what looks like a host there may hide the real one.
        if b"@" in (self.target_host or b""):
            raise HTTPProblem(400, "The URL of a request must not have a user name.")
        if not self.path.startswith(b"/") and self.path != b"*":
            raise HTTPProblem(400, "The target of a request must be a path or a URL.")

    def _abort(self) -> None:
        if not self.is_disconnected:
            self.channel.transport.abortConnection()

    async def _send(self, answer: Answer) -> None:
        try:
            if self.is_disconnected:
                return
            self.setResponseCode(answer.status, HTTPStatus(answer.status).phrase.encode())
            for name, value in answer.all_headers().items():
                self.setHeader(name, value)
            if isinstance(answer.body, bytes):
                self.write(answer.body)
            else:
                # The head, even if there is nothing to follow yet.
                self.write(b"")
                if self.method != b"HEAD" and answer.status != 304 and not await self._produce(answer.body):
                    return
            self.finish()
        finally:
            if not isinstance(answer.body, bytes):
                answer.body.stopProducing()

    async def _produce(self, producer: IBodyProducer) -> bool:
        """
        Send what is produced.

        @return: whether that is all, rather than cut off.
        """
        ended: defer.Deferred[None] = defer.Deferred()

        def end(result: Any) -> None:
            if not ended.called:
                ended.callback(result)

        self._producing = producer, ended
        self.channel.limit_silence()
        self.registerProducer(producer, True)
        producer.startProducing(self).addBoth(end)
        try:
            await ended
        finally:
            is_whole, self._producing = self._producing is not None, None
            if is_whole:
                self.unregisterProducer()
        return is_whole


def _shown(word: bytes) -> str:
    """A word of a request, for the log: ASCII, with anything else escaped."""
    return word.decode("latin-1").encode("unicode_escape").decode("ascii")
