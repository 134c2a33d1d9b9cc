"""
What a request by HTTP gets. Nothing is known here of connections.

A browser can be made to send requests here by any page that it shows, and a
node often listens on loopback without a token. Hence two rules:

  - What bears an C{Origin} header comes from a page, and is refused: a browser
    adds it to each POST (Fetch Standard, "Origin header"), and no script's
    client does.
  - Without a token, the host asked for must be an address or C{localhost}. A page
    whose name was made to point here ("DNS rebinding") is of the same origin in the
    browser's eyes, but still says its own name. To a unix socket no name can point:
    there, any will do.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, Protocol

from twisted.web.http_headers import Headers

from pcapsvc.core.result import Accepted, Busy, NotForThisNode, Verdict
from pcapsvc.interfaces.requests import IRequestSink

#: When a client may come back after there was no room.
RETRY_AFTER_SECONDS = 10

_CAPTURE = re.compile(rb"\A/captures/([A-Za-z0-9]{1,64})\Z")

Lookup = Callable[[str], Mapping[str, Any] | None]


class Request(Protocol):
    """
    A request that has arrived.

    @ivar path: of the request target, without its query.
    @ivar target_host: the host in the request target, which then counts rather than
        the C{Host} header (RFC 9112, section 3.2.2); L{None} where there is only a path.
    """

    method: bytes
    path: bytes
    target_host: bytes | None
    clientproto: bytes
    requestHeaders: Headers
    content: BytesIO

    @property
    def over_unix_socket(self) -> bool:
        """Whether it came over a unix socket."""


class Answer(Exception):
    """What a client gets, where it isn't what it came for."""

    def __init__(
        self, code: int, content: Mapping[str, Any], headers: Mapping[bytes, bytes] | None = None
    ) -> None:
        super().__init__(code)
        self.code = code
        self.content = content
        self.headers = headers or {}


def error_answer(code: int, text: str, headers: Mapping[bytes, bytes] | None = None) -> Answer:
    """An answer that says in words what is wrong."""
    return Answer(code, {"error": text}, headers)


class Answers:
    """Decides what a request gets."""

    def __init__(self, sink: IRequestSink, source: str, lookup: Lookup, token: str | None) -> None:
        self._sink = sink
        self._source = source
        self._lookup = lookup
        self._token = None if token is None else token.encode()

    def answer(self, request: Request) -> Answer:
        """
        The answer to a request that has arrived.

        @raise Answer: where it is refused.
        """
        self._admit(request)
        if request.path == b"/captures":
            self._want(request, b"POST")
            return self._told(self._sink.submit(self._source, request.content.read()))
        match = _CAPTURE.match(request.path)
        if match is None:
            raise error_answer(404, "there is nothing here: POST /captures, or GET /captures/ID")
        self._want(request, b"GET", b"HEAD")
        state = self._lookup(match[1].decode())
        if state is None:
            raise error_answer(404, "no capture of this id is known")
        return Answer(200, state)

    def _admit(self, request: Request) -> None:
        headers = request.requestHeaders
        if headers.hasHeader(b"Origin"):
            raise error_answer(403, "requests of web pages, which bear an Origin header, are refused")
        hosts = headers.getRawHeaders(b"Host", [])
        # RFC 9112, section 3.2.
        if len(hosts) > 1 or (not hosts and request.clientproto == b"HTTP/1.1"):
            raise error_answer(400, "must have one Host header")
        if self._token is None:
            asked = hosts if request.target_host is None else [request.target_host]
            if asked and not request.over_unix_socket and not _is_plain_host(asked[0]):
                raise error_answer(403, "without a token, the host must be an address or localhost")
            return
        given = headers.getRawHeaders(b"Authorization", [])
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        # The comparison comes first, so that it is always made.
        if not hmac.compare_digest(token.strip(b" "), self._token) or scheme.lower() != b"bearer":
            raise error_answer(401, "must bear the token", {b"WWW-Authenticate": b"Bearer"})

    @staticmethod
    def _want(request: Request, *methods: bytes) -> None:
        if request.method not in methods:
            allowed = b", ".join(methods)
            raise error_answer(405, f"only {allowed.decode()} is possible here", {b"Allow": allowed})

    @staticmethod
    def _told(verdict: Verdict) -> Answer:
        if isinstance(verdict, NotForThisNode):
            return error_answer(404, "the request is not for this node")
        if isinstance(verdict, Busy):
            return error_answer(503, verdict.reason, {b"Retry-After": b"%d" % RETRY_AFTER_SECONDS})
        problems = [
            {"path": problem.path, "value": problem.value, "rule": problem.rule}
            for problem in verdict.problems
        ]
        if not isinstance(verdict, Accepted):
            return Answer(400, {"problems": problems})
        captures = [
            {"id": started.capture_id, "interface": started.interface} for started in verdict.captures
        ]
        headers = {b"Location": f"/captures/{captures[0]['id']}".encode()} if len(captures) == 1 else {}
        return Answer(202, {"captures": captures, "problems": problems}, headers)


def _is_plain_host(host: bytes) -> bool:
    match = re.fullmatch(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<name>[^:]*))(?::[0-9]*)?", host.decode("latin-1"))
    if match is None:
        return False
    if match["name"] is not None and match["name"].lower() in ("localhost", "localhost."):
        return True
    try:
        if match["six"] is not None:
            ipaddress.IPv6Address(match["six"])
        else:
            ipaddress.IPv4Address(match["name"])
    except ValueError:
        return False
    return True
