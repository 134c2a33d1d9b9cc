"""A publisher: one connection to a real redis-server, with any number of commands in flight."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

CHANNEL = "capture"

# A subscriber that lags by 8 MB for a minute, or by 32 MB at any time, is cut off (client-output-buffer-limit
# pubsub in redis.conf).
_MOST_WAITING_BYTES = 1 << 20
_PATIENCE_SECONDS = 30.0


class Publisher:
    """
    Publishes on L{CHANNEL}.

    @param port: the port of a server on 127.0.0.1 without a password.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")

    def close(self) -> None:
        """Close the connection."""
        self._answers.close()
        self._socket.close()

    @staticmethod
    def command(body: bytes) -> bytes:
        """The command to publish a message (Redis serialization protocol, version 2)."""
        return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (
            *(len(CHANNEL), CHANNEL.encode()),
            *(len(body), body),
        )

    def publish(self, commands: Sequence[bytes]) -> int:
        """
        Publish several messages in one write.

        @return: the sum of the subscribers that received each.
        """
        self._socket.sendall(b"".join(commands))
        return sum(int(self._line()[1:]) for _ in commands)

    def wait_for_subscribers(self) -> None:
        """Wait until the server buffers little for its subscribers."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._held_back() > _MOST_WAITING_BYTES:
            if time.monotonic() > deadline:
                raise RuntimeError("a subscriber reads nothing")
            time.sleep(0.001)

    def _held_back(self) -> int:
        self._socket.sendall(b"CLIENT LIST TYPE pubsub\r\n")
        clients = self._answers.read(int(self._line()[1:]) + 2).split()
        return max((int(word[5:]) for word in clients if word.startswith(b"omem=")), default=0)

    def _line(self) -> bytes:
        line = self._answers.readline()
        if not line or line.startswith(b"-"):
            raise RuntimeError(f"redis-server answered {line!r}")
        return line
