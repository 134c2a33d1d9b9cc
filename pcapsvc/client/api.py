"""The HTTP API of a node."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import quote, urlencode

from pcapsvc.client.address import HttpAddress
from pcapsvc.client.credentials import Credentials
from pcapsvc.client.keepalive import keep_alive
from pcapsvc.client.lost import words_of
from pcapsvc.client.status import ClientError, NoAnswer
from pcapsvc.client.timed import TimedReader
from pcapsvc.core.text import one_line

_CONNECT_SECONDS = 5.0
#: How long a node has to begin an answer, as it may compile a filter for five seconds, and then to end it.
ANSWER_SECONDS = 30.0
#: Whatever a node answers is shorter than this, in bytes, but for packets and events, and for hundreds of
#: captures with very long filters. As JSON, it may take 25 times as much memory.
MOST_ANSWER_BYTES = 16 * 1024 * 1024

# More digits are not a number to the library either, and Python converts 4,300 at most.
_LENGTH = re.compile("[0-9]{1,18}")
_LOST = (OSError, http.client.HTTPException)
# Otherwise the token seems to be wrong.
_WITHHELD = " The token was not sent, as neither an option nor the profile names this address."


class ApiProblem(ClientError):
    """
    A node answered that something is wrong.

    @ivar document: the problem document (RFC 9457), or what there is of it.
    """

    def __init__(
        self, address: HttpAddress, code: int, document: Mapping[str, Any], *, hint: str = ""
    ) -> None:
        detail = one_line(
            str(document.get("detail") or document.get("title") or "no reason given"), most=2000
        )
        super().__init__(f"{address} answered {code}: {detail}{hint}")
        self.code = code
        self.document = document


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("pcapsvc", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Body:
    """The body of an answer, as it arrives. Only L{close} may be called from another thread."""

    def __init__(self, api: NodeApi, response: http.client.HTTPResponse, reader: TimedReader) -> None:
        self._api = api
        self._response = response
        self._reader = reader
        self.headers = response.headers
        self.status = response.status
        self.is_closed = False
        length = response.headers.get("Content-Length", "")
        self._missing = int(length) if _LENGTH.fullmatch(length) else 0

    def read(self, most: int | None = None) -> bytes:
        """
        What has arrived, up to C{most} bytes, or everything. Blocks until there is something; nothing is the
        end.

        @raise NoAnswer: if the connection was lost before, or if everything is too much or takes too long.
        """
        if most is None:
            self._reader.limit(self._api.answer_seconds)
            data = self._guarded(lambda: self._response.read(MOST_ANSWER_BYTES + 1))
            if len(data) > MOST_ANSWER_BYTES:
                most_mib = MOST_ANSWER_BYTES // (1024 * 1024)
                raise NoAnswer(f"{self._api.address}: the answer is longer than {most_mib} MiB")
        else:
            data = self._guarded(lambda: self._response.read1(most))
        self._missing -= len(data)
        if (not data or most is None) and self._missing > 0 and not self.is_closed:
            # The library doesn't notice.
            raise NoAnswer(f"{self._api.address}: the connection was closed too early")
        return data

    def line(self, most: int) -> bytes:
        """The next line, with its end; nothing at the end of the body. Otherwise as L{read}."""
        return self._guarded(lambda: self._response.readline(most))

    def close(self) -> None:
        """Close the connection. A read that is blocked in another thread ends."""
        self.is_closed = True
        self._reader.disconnect()

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
    @ivar answer_seconds: how long it has for the beginning of an answer, and then for the rest; and at most
        so long to accept a connection.
    """

    def __init__(
        self, address: HttpAddress, credentials: Credentials, *, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self.address = address
        self.answer_seconds = answer_seconds
        self._token = credentials.token_for(address)
        self._is_withheld = self._token is None and credentials.token is not None
        self._credentials = credentials

    def call(self, method: str, path: str, body: bytes | None = None, **query: str | None) -> Any:
        """
        Send a request. Return the JSON of the answer.

        @raise ApiProblem: if the node answers with an error.
        @raise NoAnswer: if it can't be reached.
        """
        answer = self.open(method, path, body, query=query)
        try:
            return json.loads(answer.read())
        except (ValueError, RecursionError):
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
        target = path + (f"?{urlencode(given, errors='replace')}" if given else "")
        login = {} if self._token is None else {"Authorization": f"Bearer {self._token}".encode()}
        connection = self._connection()
        with contextlib.ExitStack() as closing:
            closing.callback(connection.close)
            try:
                connection.connect()
                # The library forgets the socket once it has an answer after which the connection ends.
                sock = connection.sock
                sock.settimeout(self.answer_seconds)
                reader = TimedReader(sock, self.answer_seconds)
                closing.callback(reader.disconnect)
                connection.response_class = _answers(reader)
                connection.request(method, target, body, {**login, **(headers or {}), "Connection": "close"})
                answer = connection.getresponse()
                if forever:
                    keep_alive(sock)
            except (*_LOST, ValueError) as problem:
                raise self.lost(problem) from None
            if not 200 <= answer.status < 300:
                is_withheld = answer.status == 401 and self._is_withheld
                raise ApiProblem(
                    self.address, answer.status, _document(answer), hint=_WITHHELD if is_withheld else ""
                )
            closing.pop_all()
        # Packets and events take as long as they take.
        reader.until = None
        sock.settimeout(None if forever else self.answer_seconds)
        return Body(self, answer, reader)

    def lost(self, problem: Exception) -> NoAnswer:
        """The error that a node can't be reached, in words."""
        if isinstance(problem, http.client.HTTPException | ValueError) and not isinstance(
            problem, OSError | UnicodeError
        ):
            return NoAnswer(f"{self.address} does not answer as a node does")
        return NoAnswer(f"{self.address}: {words_of(problem)}")

    def _connection(self) -> http.client.HTTPConnection:
        address, seconds = self.address, min(_CONNECT_SECONDS, self.answer_seconds)
        if address.path is not None:
            return _UnixConnection(address.path, seconds)
        if not address.tls:
            return http.client.HTTPConnection(address.host, address.port, timeout=seconds)
        return http.client.HTTPSConnection(
            address.host, address.port, timeout=seconds, context=self._credentials.trust()
        )


def capture_path(capture_id: str, more: str = "") -> str:
    """The path of a capture. An id may be anything, also half of a surrogate pair."""
    return f"/captures/{quote(capture_id, safe='', errors='replace')}{more}"


def _answers(reader: TimedReader) -> type[http.client.HTTPResponse]:
    """What the library makes of an answer, which is read by a time."""

    class Answer(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, **options: Any) -> None:
            super().__init__(cast("socket.socket", reader), **options)

    return Answer


def _document(answer: http.client.HTTPResponse) -> Mapping[str, Any]:
    try:
        document = json.loads(answer.read(1024 * 1024))
    except (*_LOST, ValueError, RecursionError):
        return {}
    finally:
        answer.close()
    return document if isinstance(document, dict) else {}
