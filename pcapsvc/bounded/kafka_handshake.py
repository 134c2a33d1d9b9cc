"""How long the handshake of a connection to Kafka may take (kafka-python, version 3.0)."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from kafka.errors import KafkaConnectionError, KafkaTimeoutError


async def shake_hands(net: Any, transport: Any, timeout_at: float) -> None:
    """
    Wait for the handshake of a connection. The library waits for the server's TLS forever, and leaks the
    socket if that fails.

    @param net: the event loop of the library.
    @param timeout_at: by when it must have ended, in seconds of C{time.monotonic()}.

    @raise KafkaTimeoutError: if it has not. The connection is closed, as after any other failure.
    @raise KafkaConnectionError: if it fails.
    """
    limit = _Limit(transport._sock)
    timer = net.call_at(timeout_at, limit.reach)
    try:
        await transport.handshake()
    except Exception as problem:
        transport.abort(problem)
        if limit.is_reached:
            raise KafkaTimeoutError("timed out") from None
        raise KafkaConnectionError(str(problem)) from problem
    except BaseException:
        transport.abort()
        raise
    finally:
        net.cancel(timer)


class _Limit:
    """Hangs up when it is reached: whoever waits for data is woken."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.is_reached = False

    def reach(self) -> None:
        self.is_reached = True
        with contextlib.suppress(OSError):
            # Not that of a connection by TLS, which would go on without it.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)
