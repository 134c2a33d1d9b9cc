"""What a peer sends, by a time: each byte in time is not enough."""

from __future__ import annotations

import contextlib
import io
import socket
import time
from typing import cast


class TimedReader(io.RawIOBase):
    """
    Reads from a socket. The socket's own time limit is for a single read, so that a peer that sends a byte
    now and then is waited for forever.

    @ivar until: when reading ends with L{TimeoutError}, in seconds of C{time.monotonic()}; with L{None}, the
        socket's own time limit is what counts.
    """

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._raw = cast("io.RawIOBase", connection.makefile("rb", buffering=0))
        self.until: float | None = None
        self.limit(seconds)

    def limit(self, seconds: float) -> None:
        """Read for so many seconds from now on."""
        self.until = time.monotonic() + seconds

    def makefile(self, mode: str) -> io.BufferedReader:
        """What L{http.client} asks of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]
        """
        Wait for what comes next.

        @raise TimeoutError: if it's too late for that.
        """
        if self.until is not None:
            left = self.until - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._connection.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Close it, and with it the socket, if that is closed as well."""
        self._raw.close()
        super().close()

    def disconnect(self) -> None:
        """
        Hang up, from any thread: a read that is blocked in another ends. What refers to the connection may
        live on, as an error with its traceback does.
        """
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._connection.close()
        with contextlib.suppress(OSError):
            self.close()
