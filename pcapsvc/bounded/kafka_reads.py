"""How much is read at once from a connection to Kafka (kafka-python, version 3.0)."""

from __future__ import annotations

import ssl
from typing import Any

from kafka.errors import KafkaConnectionError

#: How much is read from a connection before it is looked at.
READ_BYTES = 1024 * 1024

_CHUNK_BYTES = 64 * 1024
_NOTHING_YET = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def receive(connection: Any) -> tuple[bytes, Exception | None]:
    """
    Receive what has arrived, up to L{READ_BYTES}. The library's own way reads on while more arrives, whatever
    the protocol thinks of it, and takes a Ctrl-C for the end of the connection.

    Data that arrives together with the end of a connection is returned before the end itself. The library
    drops that data, which may say why authentication failed.

    @param connection: a socket that doesn't block.

    @return: the data, and why there will be no more, if there won't be.
    """
    received = bytearray()
    # Data that TLS has decrypted already would not wake the selector.
    while len(received) < READ_BYTES or _decrypted(connection):
        try:
            data = connection.recv(_CHUNK_BYTES)
        except _NOTHING_YET:
            break
        except Exception as problem:  # noqa: BLE001 - as the library does
            return bytes(received), None if received else KafkaConnectionError(problem)
        if not data:
            return bytes(received), None if received else KafkaConnectionError("socket disconnected")
        received += data
    return bytes(received), None


def _decrypted(connection: Any) -> int:
    return connection.pending() if isinstance(connection, ssl.SSLSocket) else 0
