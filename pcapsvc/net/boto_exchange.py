"""The connections of one attempt, which can be closed at any time."""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Protocol

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

#: How much of the service's answers is read in one attempt, in bytes. S3 answers a PutObject with hundreds.
MOST_ANSWER_BYTES = 256 * 1024

_here = threading.local()


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


class Meter(Protocol):
    """Limits what is received."""

    def check(self) -> None:
        """Raise L{OSError} if no more is to be received."""

    def count(self, received_bytes: int) -> None:
        """Count what was received. Raise L{OSError} if that is too much."""


class Exchange:
    """
    One attempt, and all connections that are made in it.

    @ivar problem: what was wrong with the service's answer, if it was cut off for that.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self._received_bytes = 0
        self._lock = threading.Lock()
        self._is_cut = False
        # Duplicates: a descriptor that the client has closed may have another owner by now.
        self._sockets: list[socket.socket] = []

    @contextmanager
    def here(self) -> Iterator[None]:
        """Within, this thread's connections belong to this exchange. They are closed with it."""
        _here.exchange = self
        try:
            yield
        finally:
            _here.exchange = None
            self.cut()
            with self._lock:
                sockets, self._sockets = self._sockets, []
            for one in sockets:
                one.close()

    def cut(self) -> None:
        """Close all connections, now. May be called from any thread."""
        with self._lock:
            self._is_cut = True
            for one in self._sockets:
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # not connected, or not any more

    def renew(self) -> None:
        """Another request begins, whose answer may be as long. The connections of those before are closed."""
        self.check()
        with self._lock:
            sockets, self._sockets = self._sockets, []
        self._received_bytes = 0
        for one in sockets:
            one.close()

    def check(self) -> None:
        """Raise L{ConnectionAbortedError} if it was cut."""
        if self._is_cut:
            raise ConnectionAbortedError("the attempt was cancelled")

    def connect(self, connection: Any) -> socket.socket:
        """
        Connect to one of a host's addresses. The connection's time-out is for all of them together.

        @raise OSError: if none of them accepts.
        """
        deadline = None if connection.timeout is None else time.monotonic() + connection.timeout
        problem = OSError("the host has no address")
        found = socket.getaddrinfo(connection.host.strip("[]"), connection.port, type=socket.SOCK_STREAM)
        for tried, (family, kind, protocol, _, address) in enumerate(found):
            self.check()
            one = socket.socket(family, kind, protocol)
            try:
                if deadline is not None:
                    # Each of the others gets its share.
                    left = max(0.0, deadline - time.monotonic())
                    one.settimeout(max(0.01, left / (len(found) - tried)))
                for option in connection.socket_options or ():
                    one.setsockopt(*option)
                self._watch(one)
                one.connect(address)
                # If it was cut before it was connected, the shutdown had no effect.
                self.check()
                one.settimeout(connection.timeout)
                return one
            except OSError as error:
                one.close()
                problem = error
        raise problem

    def _watch(self, one: socket.socket) -> None:
        with self._lock:
            self._sockets.append(one.dup())

    def count(self, received_bytes: int) -> None:
        """Count what was received, and raise L{ConnectionAbortedError} if that is too much."""
        self._received_bytes += received_bytes
        if self._received_bytes > MOST_ANSWER_BYTES:
            self.problem = f"an answer of more than {MOST_ANSWER_BYTES} bytes"
            raise ConnectionAbortedError(self.problem)


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


class _Socket:
    """
    A socket whose files are metered. There is one for each answer.

    @param meter: makes the meter of a file.
    """

    def __init__(self, inner: Any, meter: Callable[[], Meter]) -> None:
        self._inner = inner
        self._meter = meter

    def makefile(self, mode: str = "rb", buffering: int | None = None) -> Any:
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


class _Final:
    """A mix-in for urllib3's connections: interim responses are never taken for the final one."""

    response_class = _Response

    def _is_100_continue_status(self, line: bytes) -> bool:
        # botocore takes anything else for the final response. After another interim response the body may be
        # sent as well: if the final one is an error, it comes nevertheless.
        version, _, rest = line.partition(b" ")
        status = rest[:3]
        return version.startswith(b"HTTP/") and status.isdigit() and _is_interim(int(status))


class _Ending(_Final):
    """A mix-in for urllib3's connections: each belongs to the exchange of the thread that connects it."""

    def _new_conn(self) -> socket.socket:
        # Like urllib3.connection.HTTPConnection, with the errors that botocore knows.
        connection: Any = self
        exchange: Exchange = _here.exchange
        try:
            return exchange.connect(connection)
        except TimeoutError as error:
            raise ConnectTimeoutError(connection, f"no connection to {connection.host}") from error
        except OSError as error:
            raise NewConnectionError(connection, str(error)) from error

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        exchange: Exchange = _here.exchange
        self.sock: Any = _Socket(self.sock, lambda: exchange)


class _Connection(_Ending, AWSHTTPConnection):  # type: ignore[misc]
    """HTTP."""


class _SecureConnection(_Ending, AWSHTTPSConnection):  # type: ignore[misc]
    """HTTPS."""


class _Closing:
    """A mix-in for urllib3's pools: a connection that is returned is closed before it can be reused."""

    def _put_conn(self, connection: Any) -> None:
        if connection is not None:
            # It is connected again when it is needed.
            connection.close()
        super()._put_conn(connection)  # type: ignore[misc]


class _Pool(_Closing, AWSHTTPConnectionPool):  # type: ignore[misc]
    ConnectionCls = _Connection


class _SecurePool(_Closing, AWSHTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _SecureConnection


def make_ending(client: Any) -> None:
    """
    Make the connections of a client of boto3 belong to exchanges: from now on it may be used within
    L{Exchange.here} only.
    """
    _use(client, _Pool, _SecurePool)


def bound_answers(client: Any, *, most_bytes: int, seconds: float) -> None:
    """
    Limit each answer to a client of boto3.

    @param most_bytes: the longest that is read, with its headers.
    @param seconds: how long one may take. The client's own time-outs are for each read, and come on top.
    """

    class Bounded(_Final):
        def connect(self) -> None:
            super().connect()  # type: ignore[misc] # of a connection
            self.sock: Any = _Socket(self.sock, lambda: _Answer(most_bytes, seconds))

    class Connection(Bounded, AWSHTTPConnection):  # type: ignore[misc]
        pass

    class SecureConnection(Bounded, AWSHTTPSConnection):  # type: ignore[misc]
        pass

    class Pool(AWSHTTPConnectionPool):  # type: ignore[misc]
        ConnectionCls = Connection

    class SecurePool(AWSHTTPSConnectionPool):  # type: ignore[misc]
        ConnectionCls = SecureConnection

    _use(client, Pool, SecurePool)


def _use(client: Any, pool: Callable[..., Any], secure_pool: Callable[..., Any]) -> None:
    # botocore has no public way to do this. One dictionary serves direct connections and those by a proxy.
    classes: dict[str, Callable[..., Any]] = client._endpoint.http_session._pool_classes_by_scheme
    classes.update(http=pool, https=secure_pool)
