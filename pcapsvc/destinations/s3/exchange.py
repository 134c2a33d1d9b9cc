"""What one attempt says to a service and hears from it, so that it can be ended at any time."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

#: How much of a service's answers is read within one attempt. Those of S3 to a PutObject have hundreds.
MOST_ANSWER_BYTES = 256 * 1024

_here = threading.local()


class Exchange:
    """
    One attempt. A time-out of a socket is for one call of the system only: who sends a
    byte now and then is waited for without end. So this ends all connections that
    it has, from any thread and whatever is done with them there.

    @ivar problem: what was wrong with the service's answer, where it was cut off for that.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self._received_bytes = 0
        self._lock = threading.Lock()
        self._is_cut = False
        # Duplicates: a descriptor that a client has closed may be somebody else's by now.
        self._sockets: list[socket.socket] = []

    @contextmanager
    def here(self) -> Iterator[None]:
        """Within, the connections of this thread are those of this exchange. Each ends with it."""
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
        """End it, now; from any thread."""
        with self._lock:
            self._is_cut = True
            for one in self._sockets:
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it is not connected, or not any more

    def check(self) -> None:
        """Raise L{ConnectionAbortedError} where it was ended."""
        if self._is_cut:
            raise ConnectionAbortedError("nobody waits for this any more")

    def connect(self, connection: Any) -> socket.socket:
        """
        Connect to one of the addresses of a host, within the connection's time-out for
        all of them together.

        @raise OSError: where there is none.
        """
        deadline = None if connection.timeout is None else time.monotonic() + connection.timeout
        problem = OSError("the host has no address")
        found = socket.getaddrinfo(connection.host.strip("[]"), connection.port, type=socket.SOCK_STREAM)
        for tried, (family, kind, protocol, _, address) in enumerate(found):
            self.check()
            one = socket.socket(family, kind, protocol)
            try:
                if deadline is not None:
                    # The others, too, are to have their share.
                    left = max(0.0, deadline - time.monotonic())
                    one.settimeout(max(0.01, left / (len(found) - tried)))
                for option in connection.socket_options or ():
                    one.setsockopt(*option)
                self._watch(one)
                one.connect(address)
                # Cut before it was connected, it had nothing to shut down.
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
        """Note what was received, and raise L{ConnectionAbortedError} where that is too much."""
        self._received_bytes += received_bytes
        if self._received_bytes > MOST_ANSWER_BYTES:
            self.problem = f"an answer of more than {MOST_ANSWER_BYTES} bytes"
            raise ConnectionAbortedError(self.problem)


class _Received(io.RawIOBase):
    """What arrives at a socket, as far as its exchange goes."""

    def __init__(self, inner: io.RawIOBase, exchange: Exchange, *, may_end: bool) -> None:
        self._inner = inner
        self._exchange = exchange
        self._may_end = may_end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count: int | None = self._inner.readinto(buffer)
        self._exchange.check()
        if count == 0 and not self._may_end:
            raise ConnectionAbortedError("the connection was closed")
        self._exchange.count(count or 0)
        return count

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Socket:
    """A socket whose files end with the exchange."""

    def __init__(self, inner: Any, exchange: Exchange) -> None:
        self._inner = inner
        self._exchange = exchange

    def makefile(self, mode: str = "rb", buffering: int | None = None) -> Any:
        # What botocore reads so is the answer to "Expect: 100-continue". It would look for
        # the end of its headers in a loop, where the connection ends before.
        unbuffered = buffering == 0
        received = _Received(self._inner.makefile(mode, 0), self._exchange, may_end=not unbuffered)
        return received if unbuffered else io.BufferedReader(received)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Ending:
    """To be mixed into a connection of urllib3: it belongs to the exchange of the thread that connects it."""

    def _new_conn(self) -> socket.socket:
        # As urllib3.connection.HTTPConnection has it, whose errors botocore knows.
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
        self.sock: Any = _Socket(self.sock, _here.exchange)


class _Connection(_Ending, AWSHTTPConnection):  # type: ignore[misc]
    """HTTP."""


class _SecureConnection(_Ending, AWSHTTPSConnection):  # type: ignore[misc]
    """HTTPS."""


class _Closing:
    """To be mixed into a pool of urllib3: what is given back to it is closed, before another may take it."""

    def _put_conn(self, connection: Any) -> None:
        if connection is not None:
            # It is connected anew when it is needed.
            connection.close()
        super()._put_conn(connection)  # type: ignore[misc]


class _Pool(_Closing, AWSHTTPConnectionPool):  # type: ignore[misc]
    ConnectionCls = _Connection


class _SecurePool(_Closing, AWSHTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _SecureConnection


def make_ending(client: Any) -> None:
    """
    Make the connections of a client of boto3 those of exchanges: it may be used within
    L{Exchange.here} only.
    """
    # botocore has no public way to say so. One dictionary serves direct connections and those by a proxy.
    classes: dict[str, Callable[..., Any]] = client._endpoint.http_session._pool_classes_by_scheme
    classes.update(http=_Pool, https=_SecurePool)
