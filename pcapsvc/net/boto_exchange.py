"""The connections of one attempt, which can be closed at any time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from pcapsvc.bounded.boto_answers import Final, MeteredSocket, use_pools
from pcapsvc.net.names import MOST_ADDRESSES

#: How much of the service's answers is read in one attempt, in bytes. S3 answers a PutObject with hundreds,
#: and an error with a few thousand. All threads wait while 256 KiB of XML are parsed, for up to 0.13 s.
MOST_ANSWER_BYTES = 64 * 1024

_here = threading.local()


class Exchange:
    """
    One attempt, and all connections that are made in it.

    @ivar problem: what was wrong with the service's latest answer, if it was cut off for that.
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
        self.problem = None
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
        del found[MOST_ADDRESSES:]
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


class _Ending(Final):
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
        self.sock: Any = MeteredSocket(self.sock, lambda: exchange)


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
    use_pools(client, _Pool, _SecurePool)
