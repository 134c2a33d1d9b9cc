"""The HTTP API of a node."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from pcapsvc.client.address import HttpAddress
from pcapsvc.client.credentials import Credentials
from pcapsvc.client.keepalive import keep_alive
from pcapsvc.client.status import ClientError, NoAnswer
from pcapsvc.core.text import one_line

_CONNECT_SECONDS = 5.0
#: How long a node has to answer: it may compile a filter for five seconds.
ANSWER_SECONDS = 30.0

_LOST = (OSError, http.client.HTTPException)


class ApiProblem(ClientError):
    """
    A node answered that something is wrong.

    @ivar document: the problem document (RFC 9457), or what there is of it.
    """

    def __init__(self, address: HttpAddress, code: int, document: Mapping[str, Any]) -> None:
        detail = one_line(
            str(document.get("detail") or document.get("title") or "no reason given"), most=2000
        )
        super().__init__(f"{address} answered {code}: {detail}")
        self.code = code
        self.document = document


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("pcapsvc", timeout=_CONNECT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Body:
    """The body of an answer, as it arrives. Only L{close} may be called from another thread."""

    def __init__(self, api: NodeApi, response: http.client.HTTPResponse, connection: socket.socket) -> None:
        self._api = api
        self._response = response
        self._connection = connection
        self.headers = response.headers
        self.status = response.status
        self.is_closed = False
        length = response.headers.get("Content-Length", "")
        self._missing = int(length) if length.isdecimal() else 0

    def read(self, most: int | None = None) -> bytes:
        """
        What has arrived, up to C{most} bytes, or everything. Blocks until there is something; nothing is the
        end.

        @raise NoAnswer: if the connection was lost before.
        """
        data = self._guarded(lambda: self._response.read() if most is None else self._response.read1(most))
        self._missing -= len(data)
        if not data and self._missing > 0 and not self.is_closed:
            # The library doesn't notice.
            raise NoAnswer(f"{self._api.address}: the connection was closed too early")
        return data

    def line(self, most: int) -> bytes:
        """The next line, with its end; nothing at the end of the body. Otherwise as L{read}."""
        return self._guarded(lambda: self._response.readline(most))

    def close(self) -> None:
        """Close the connection. A read that is blocked in another thread ends."""
        self.is_closed = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._connection.close()

    def _guarded(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except (*_LOST, ValueError, AttributeError) as problem:
            # What the library raises if it was closed by another thread depends on where it was.
            if self.is_closed:
                return b""
            raise self._api.lost(problem) from None


class NodeApi:
    """
    The API of one node. Each request has a connection of its own.

    @ivar address: where it is.
    """

    def __init__(self, address: HttpAddress, credentials: Credentials) -> None:
        self.address = address
        self._token = credentials.token_for(address)
        self._ca_file = credentials.ca_file

    def call(self, method: str, path: str, body: bytes | None = None, **query: str | None) -> Any:
        """
        Send a request. Return the JSON of the answer.

        @raise ApiProblem: if the node answers with an error.
        @raise NoAnswer: if it can't be reached.
        """
        answer = self.open(method, path, body, query=query)
        try:
            return json.loads(answer.read())
        except ValueError:
            raise NoAnswer(f"{self.address} does not answer as a node does") from None
        finally:
            answer.close()

    def open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Mapping[str, str | None] | None = None,
        headers: Mapping[str, str] | None = None,
        forever: bool = False,
    ) -> Body:
        """
        Send a request. Return the answer, whose body is not read yet.

        @param forever: whether the body goes on for ever.

        @raise ApiProblem: if the node answers with an error.
        @raise NoAnswer: if it can't be reached.
        """
        given = {name: value for name, value in (query or {}).items() if value is not None}
        target = path + (f"?{urlencode(given)}" if given else "")
        login = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        try:
            connection = self._connection()
            connection.connect()
            connection.sock.settimeout(ANSWER_SECONDS)
            # The library forgets the socket once it has an answer after which the connection ends.
            connection.request(method, target, body, {**login, **(headers or {}), "Connection": "close"})
            sock = connection.sock
            answer = connection.getresponse()
        except (*_LOST, ValueError) as problem:
            raise self.lost(problem) from None
        if answer.status >= 400:
            raise ApiProblem(self.address, answer.status, _document(answer))
        if forever:
            keep_alive(sock)
            sock.settimeout(None)
        return Body(self, answer, sock)

    def lost(self, problem: Exception) -> NoAnswer:
        """The error that a node can't be reached, in words."""
        if isinstance(problem, ssl.SSLError):
            words = getattr(problem, "verify_message", None) or problem.reason or "the connection was cut"
            return NoAnswer(f"{self.address}: TLS failed: {words}")
        if isinstance(problem, http.client.HTTPException) and not isinstance(problem, OSError):
            return NoAnswer(f"{self.address} does not answer as a node does")
        words = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
        return NoAnswer(f"{self.address}: {one_line(str(words))}")

    def _connection(self) -> http.client.HTTPConnection:
        address = self.address
        if address.path is not None:
            return _UnixConnection(address.path)
        if not address.tls:
            return http.client.HTTPConnection(address.host, address.port, timeout=_CONNECT_SECONDS)
        trust = ssl.create_default_context(cafile=self._ca_file)
        return http.client.HTTPSConnection(
            address.host, address.port, timeout=_CONNECT_SECONDS, context=trust
        )


def capture_path(capture_id: str, more: str = "") -> str:
    """The path of a capture."""
    return f"/captures/{quote(capture_id, safe='')}{more}"


def _document(answer: http.client.HTTPResponse) -> Mapping[str, Any]:
    try:
        document = json.loads(answer.read(1024 * 1024))
    except (*_LOST, ValueError):
        return {}
    finally:
        answer.close()
    return document if isinstance(document, dict) else {}
