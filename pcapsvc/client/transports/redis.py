"""
Redis: PUBLISH and SUBSCRIBE, in version 2 of its protocol (https://redis.io/docs/reference/protocol-spec).

Four commands need no library. The daemon's is for Twisted, which takes longer to import than all of pcapctl.
"""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator

from pcapsvc.client.address import RedisAddress
from pcapsvc.client.credentials import Credentials
from pcapsvc.client.keepalive import keep_alive
from pcapsvc.client.lost import words_of
from pcapsvc.client.status import NoAnswer
from pcapsvc.client.timed import TimedReader
from pcapsvc.core.text import one_line

_ANSWER_SECONDS = 10.0
# The largest reply: the bytes of all its strings, and the number of its values.
_LONGEST_BYTES = 64 * 1024 * 1024
_MOST_VALUES = 64

Reply = int | bytes | None | list["Reply"]


class _Refused(Exception):
    """The server answered with an error."""


class Connection:
    """
    A connection to a server, logged in.

    @raise NoAnswer: from each method, if the server can't be reached, refuses, or is lost.
    """

    def __init__(self, address: RedisAddress, credentials: Credentials) -> None:
        self._address = address
        self._left_bytes = self._left_values = 0
        password = address.password if address.password is not None else credentials.password
        trust = credentials.trust() if address.tls else None
        try:
            self._socket = socket.create_connection((address.host, address.port), timeout=_ANSWER_SECONDS)
        except (OSError, ValueError) as problem:
            raise self._lost(problem) from None
        try:
            if trust is not None:
                self._socket = trust.wrap_socket(self._socket, server_hostname=address.host)
        except (OSError, ValueError) as problem:
            self._socket.close()
            raise self._lost(problem) from None
        self._reader = TimedReader(self._socket, _ANSWER_SECONDS)
        self._stream = io.BufferedReader(self._reader)
        try:
            if password is not None:
                login = [address.username, password] if address.username else [password]
                self.call("AUTH", *login)
        except NoAnswer:
            self.close()
            raise

    def call(self, *words: str | bytes) -> Reply:
        """Send a command. Return the answer."""
        try:
            self.say(*words)
            return self.reply()
        except _Refused as problem:
            # The server's words to AUTH may repeat the password.
            said = str(problem).split(" ", 1)[0] if words[0] == "AUTH" else str(problem)
            raise self.refused(str(words[0]), said) from None

    def say(self, *words: str | bytes) -> None:
        """Send a command."""
        raw = [word.encode() if isinstance(word, str) else word for word in words]
        command = [b"*%d\r\n" % len(raw), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in raw)]
        try:
            self._socket.settimeout(_ANSWER_SECONDS)
            self._socket.sendall(b"".join(command))
        except (OSError, ValueError) as problem:
            raise self._lost(problem) from None

    def reply(self) -> Reply:
        """Wait for an answer."""
        try:
            if self._reader.until is not None:
                self._reader.limit(_ANSWER_SECONDS)
            self._left_bytes, self._left_values = _LONGEST_BYTES, _MOST_VALUES
            return self._read()
        except (OSError, ValueError, RecursionError) as problem:
            raise self._lost(problem) from None

    def wait_forever(self) -> None:
        """Wait for answers as long as the server is there: the kernel asks it."""
        keep_alive(self._socket)
        self._reader.until = None
        self._socket.settimeout(None)

    def close(self) -> None:
        """From any thread: close it."""
        self._reader.disconnect()

    def _read(self) -> Reply:
        line = self._stream.readline(64 * 1024)
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"+":
                return rest
            case b"-":
                raise _Refused(rest.decode("utf-8", "replace"))
            case b":":
                return int(rest)
            case b"$" | b"*":
                return self._sized(kind, int(rest))
        raise ValueError("it does not answer as Redis does")

    def _sized(self, kind: bytes, size: int) -> Reply:
        if size < 0:
            return None
        if kind == b"*":
            self._left_values -= size
        else:
            self._left_bytes -= size
        if min(self._left_bytes, self._left_values) < 0:
            raise ValueError("it does not answer as Redis does")
        if kind == b"*":
            return [self._read() for _ in range(size)]
        raw = self._stream.read(size + 2)
        if len(raw) != size + 2:
            raise ConnectionError("the server closed the connection")
        return raw[:-2]

    def refused(self, what: str, said: str) -> NoAnswer:
        """The error for something that the server refuses, with what it said."""
        return NoAnswer(f"{self._address}: {what} was refused ({one_line(said)})")

    def _lost(self, problem: Exception) -> NoAnswer:
        return NoAnswer(f"{self._address}: {words_of(problem)}")


class RedisTransport:
    """A channel. See L{pcapsvc.client.transport.ITransport}."""

    def __init__(self, address: RedisAddress, credentials: Credentials) -> None:
        self._address = address
        self._credentials = credentials

    def send(self, body: bytes) -> int | None:
        """Publish a message."""
        connection = Connection(self._address, self._credentials)
        try:
            receivers = connection.call("PUBLISH", self._address.channel, body)
        finally:
            connection.close()
        return receivers if isinstance(receivers, int) else None

    def events(self, requestid: str | None) -> RedisEvents:
        """Subscribe."""
        connection = Connection(self._address, self._credentials)
        try:
            connection.call("SUBSCRIBE", self._address.channel)
        except NoAnswer:
            connection.close()
            raise
        connection.wait_forever()
        return RedisEvents(connection)


class RedisEvents:
    """What is published to a channel. See L{pcapsvc.client.transport.IEventStream}."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        while not self._closed.is_set():
            try:
                reply = self._connection.reply()
            except NoAnswer:
                if self._closed.is_set():
                    return
                raise
            except _Refused as problem:
                raise self._connection.refused("the subscription", str(problem)) from None
            if isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message":
                body = reply[2]
                if isinstance(body, bytes):
                    yield body

    def close(self) -> None:
        """End it."""
        self._closed.set()
        self._connection.close()
