"""How long the answers to a client of boto3 may be, and how long they may take."""

from __future__ import annotations

import http.client
import io
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from botocore.exceptions import EndpointConnectionError


class CutOff(ConnectionAbortedError):
    """An answer was too long, or took too long; the message says so."""


def why_cut_off(problem: BaseException) -> str | None:
    """Why an answer was not read to its end, if that is behind an exception of botocore; else L{None}."""
    seen: set[int] = set()
    behind: BaseException | None = problem
    while behind is not None and id(behind) not in seen:
        if isinstance(behind, CutOff):
            return str(behind)
        seen.add(id(behind))
        behind = behind.__cause__ or behind.__context__
    return None


def connection_words(problem: Exception) -> str:
    """What botocore says of a problem, and why there is no connection, which botocore leaves out."""
    if not isinstance(problem, EndpointConnectionError):
        return str(problem)
    inner = problem.kwargs.get("error")
    reason = getattr(inner, "__cause__", None) or inner
    return f"{problem}: {reason.strerror or reason}" if isinstance(reason, OSError) else str(problem)


class Meter(Protocol):
    """Limits what is received."""

    def check(self) -> None:
        """Raise L{OSError} if no more is to be received."""

    def count(self, received_bytes: int) -> None:
        """Count what was received. Raise L{OSError} if that is too much."""


class _Answer:
    """
    One answer.

    @param most_bytes: the longest that is read.
    @param seconds: how long it may take.
    """

    def __init__(self, most_bytes: int, seconds: float) -> None:
        self._most_bytes = most_bytes
        self._left_bytes = most_bytes
        self._seconds = seconds
        self._until = time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self._until:
            raise CutOff(f"an answer was not complete within {self._seconds:g} s")

    def count(self, received_bytes: int) -> None:
        self._left_bytes -= received_bytes
        if self._left_bytes < 0:
            raise CutOff(f"an answer is longer than {self._most_bytes} bytes")


class _Received(io.RawIOBase):
    """What arrives at a socket, as far as its meter lets it."""

    def __init__(self, inner: io.RawIOBase, meter: Meter, *, may_end: bool) -> None:
        self._inner = inner
        self._meter = meter
        self._may_end = may_end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count: int | None = self._inner.readinto(buffer)
        self._meter.check()
        if count == 0 and not self._may_end:
            raise ConnectionAbortedError("the connection was closed")
        self._meter.count(count or 0)
        return count

    def close(self) -> None:
        self._inner.close()
        super().close()


class MeteredSocket:
    """
    A socket whose files are metered. There is one for each answer.

    @param meter: makes the meter of a file.
    """

    def __init__(self, inner: Any, meter: Callable[[], Meter]) -> None:
        self._inner = inner
        self._meter = meter

    def makefile(self, mode: str = "rb", buffering: int | None = None) -> Any:
        """The file that an answer is read from."""
        # botocore reads the answer to "Expect: 100-continue" from an unbuffered file. It would look for the
        # end of its headers in a loop if the connection ends before.
        unbuffered = buffering == 0
        received = _Received(self._inner.makefile(mode, 0), self._meter(), may_end=not unbuffered)
        return received if unbuffered else io.BufferedReader(received)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Response(http.client.HTTPResponse):
    """
    A final response. Python's client skips 100 only, and would return any other interim response as the final
    one (RFC 9110, section 15.2: a client must be able to parse them, although it did not ask for them).
    """

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not _is_interim(status):
                return version, status, reason
            http.client.parse_headers(self.fp)


def _is_interim(status: int) -> bool:
    return 100 <= status < 200 and status != HTTPStatus.SWITCHING_PROTOCOLS


class Final:
    """A mix-in for urllib3's connections: interim responses are never taken for the final one."""

    response_class = _Response

    def _is_100_continue_status(self, line: bytes) -> bool:
        # botocore takes anything else for the final response. After another interim response the body may be
        # sent as well: if the final one is an error, it comes nevertheless.
        version, _, rest = line.partition(b" ")
        status = rest[:3]
        return version.startswith(b"HTTP/") and status.isdigit() and _is_interim(int(status))


def bound_answers(client: Any, *, most_bytes: int, seconds: float) -> None:
    """
    Limit each answer to a client of boto3.

    @param most_bytes: the longest that is read, with its headers.
    @param seconds: how long one may take. The client's own time-outs are for each read, and come on top.
    """

    def metered(plain: Any) -> MeteredSocket:
        return MeteredSocket(plain, lambda: _Answer(most_bytes, seconds))

    class Bounded(Final):
        def connect(self) -> None:
            super().connect()  # type: ignore[misc] # of a connection
            self.sock: Any = metered(self.sock)

        def _tunnel(self) -> None:
            # A proxy's answer to CONNECT. TLS needs the socket itself after that.
            plain, self.sock = self.sock, metered(self.sock)
            super()._tunnel()  # type: ignore[misc]
            self.sock = plain

    class Connection(Bounded, AWSHTTPConnection):  # type: ignore[misc]
        pass

    class SecureConnection(Bounded, AWSHTTPSConnection):  # type: ignore[misc]
        pass

    class Pool(AWSHTTPConnectionPool):  # type: ignore[misc]
        ConnectionCls = Connection

    class SecurePool(AWSHTTPSConnectionPool):  # type: ignore[misc]
        ConnectionCls = SecureConnection

    use_pools(client, Pool, SecurePool)


def use_pools(client: Any, pool: Callable[..., Any], secure_pool: Callable[..., Any]) -> None:
    """Make the connections of a client of boto3, by HTTP and by HTTPS, those of these pools."""
    # botocore has no public way to do this. One dictionary serves direct connections and those by a proxy.
    classes: dict[str, Callable[..., Any]] = client._endpoint.http_session._pool_classes_by_scheme
    classes.update(http=pool, https=secure_pool)
