"""
Publishes events by PUBLISH, each confirmed by Redis.

The format is RESP version 2 (Redis documentation, "Redis serialization protocol specification"). The answers
that matter are one line each, so nothing else is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail, gatherResults, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.report_queue import Report
from pcapsvc.core.text import one_line
from pcapsvc.interfaces.reports import IPublisher, Published
from pcapsvc.net.lost import unshared
from pcapsvc.net.redis import (
    ANSWER_SECONDS,
    ProtocolError,
    Refused,
    Silent,
    described,
    redis_endpoint,
)

#: The longest answer, in bytes.
MAX_ANSWER_BYTES = 4096

# How long a connection has to close.
_CLOSE_SECONDS = 1.0


class RedisConnection(Protocol):
    """
    A connection.

    @ivar reason: why it was lost; L{None} while it is not.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._buffer = b""
        self._asked: deque[tuple[str, Deferred[bytes]]] = deque()
        self._waiting: list[Deferred[None]] = []
        self._complaint: Exception | None = None
        self.reason: Exception | None = None

    def ask(self, *commands: Sequence[bytes]) -> Deferred[list[bytes]]:
        """
        Send commands, all at once.

        @return: fires with their answers; fails with L{Refused}, L{Silent}, or the reason why the connection
            was lost. Then it is unknown what became of the other commands.
        """
        if self.reason is not None:
            return fail(self.reason)
        answers: list[Deferred[bytes]] = []
        for command in commands:
            answer: Deferred[bytes] = Deferred(lambda _: None)
            self._asked.append((command[0].decode(), answer))
            answers.append(answer)
        self.transport.write(b"".join(map(_encoded, commands)))  # type: ignore[union-attr]
        name = commands[0][0].decode()
        whole: Deferred[list[bytes]] = gatherResults(answers, consumeErrors=True)
        whole.addErrback(_first_error)
        return whole.addTimeout(ANSWER_SECONDS, self._clock, lambda result, _: _silent(result, name))

    def dataReceived(self, data: bytes) -> None:
        """Take answers."""
        *lines, self._buffer = (self._buffer + data).split(b"\r\n")
        for line in lines:
            self._answered(line)
        if len(self._buffer) > MAX_ANSWER_BYTES:
            self._complain("an answer is too long")

    def _answered(self, line: bytes) -> None:
        if self._complaint is not None:
            return
        if not self._asked or line[:1] not in (b"+", b"-", b":") or len(line) > MAX_ANSWER_BYTES:
            self._complain(f"{line[:20]!r} is not an answer")
            return
        command, answer = self._asked.popleft()
        if answer.called:
            return
        if line.startswith(b"-"):
            answer.errback(Refused(command, one_line(line[1:].decode("utf-8", "replace"))))
        else:
            answer.callback(line[1:])

    def _complain(self, what: str) -> None:
        self._complaint = ProtocolError(f"the server does not speak Redis ({what})")
        self._buffer = b""
        self.transport.abortConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """All that was asked is unanswered."""
        problem = reason.value if isinstance(reason.value, Exception) else ConnectionLost()
        self.reason = self._complaint or unshared(problem)
        asked, self._asked = self._asked, deque()
        waiting, self._waiting = self._waiting, []
        for _, answer in asked:
            if not answer.called:
                answer.errback(self.reason)
        for wait in waiting:
            wait.errback(self.reason)

    def when_lost(self) -> Deferred[None]:
        """Fails with the reason when it is lost. Cancelling it only ends the wait."""
        if self.reason is not None:
            return fail(self.reason)

        def cancelled(failure: Failure) -> None:
            failure.trap(CancelledError)  # type: ignore[no-untyped-call]

        waiting: Deferred[None] = Deferred(lambda lost: self._waiting.remove(lost))
        self._waiting.append(waiting)
        return waiting.addErrback(cancelled)

    def close(self) -> Deferred[None]:
        """Close it, and abort it after a second. Fires when it is closed."""
        if self.reason is not None:
            return succeed(None)
        closed: Deferred[None] = Deferred()
        self.when_lost().addBoth(lambda _: closed.callback(None))
        abort = self._clock.callLater(_CLOSE_SECONDS, self.transport.abortConnection)  # type: ignore[union-attr]
        self.transport.loseConnection()  # type: ignore[union-attr]

        def is_closed(_: None) -> None:
            if abort.active():
                abort.cancel()

        return closed.addCallback(is_closed)


@implementer(IPublisher)
class RedisPublisher:
    """
    Publishes to a channel.

    @param reactor: provides time, TCP and name resolution.
    @param username: of an ACL user; L{None} is the default user.
    @param ca_file: as in L{redis_endpoint}.
    @param make_endpoint: makes what to connect to, in place of C{host} and C{port}.
    """

    most = 200
    most_bytes = 256 * 1024

    def __init__(
        self,
        reactor: Any,
        *,
        host: str,
        port: int,
        channel: str,
        username: str | None = None,
        password: str | None = None,
        tls: bool = False,
        ca_file: str | None = None,
        make_endpoint: Callable[[], IStreamClientEndpoint] | None = None,
    ) -> None:
        self._reactor = reactor
        self._channel = channel.encode()
        self._login = [part.encode() for part in (username, password) if part is not None]
        self._make_endpoint = make_endpoint or (
            lambda: redis_endpoint(reactor, host, port, tls=tls, ca_file=ca_file, table="reports.redis")
        )
        self._endpoint: IStreamClientEndpoint | None = None
        self._connection: RedisConnection | None = None
        self.server = f"Redis {host}:{port}"
        self.target = f"channel {channel!r}"

    def open(self) -> Deferred[bool]:
        """Connect, log in, and see whether it may publish: see L{IPublisher.open}."""
        return Deferred.fromCoroutine(self._open())

    async def _open(self) -> bool:
        if self._endpoint is None:
            self._endpoint = self._make_endpoint()
        factory: Any = Factory.forProtocol(lambda: RedisConnection(self._reactor))
        factory.noisy = False
        connection: Any = await self._endpoint.connect(factory)
        self._connection = connection
        if self._login:
            await connection.ask([b"AUTH", *self._login])
        return await self._may_publish(connection)

    async def _may_publish(self, connection: RedisConnection) -> bool:
        """
        Find out whether the user may publish, without publishing: Redis checks that when a command is queued
        for a transaction, which is then discarded.

        @return: L{False} if that can't be known before the first event, because the user may not use
            transactions, or a proxy doesn't have them.
        """
        # DISCARD comes first: without it, there would be no way out of MULTI.
        for command, usual in ((b"DISCARD", "without MULTI"), (b"MULTI", "")):
            try:
                await connection.ask([command])
            except Refused as refusal:
                if refusal.code not in ("NOPERM", "ERR"):
                    # Such as NOAUTH: it would refuse to publish, too.
                    raise Refused("PUBLISH", str(refusal)) from None
                if not usual or usual not in str(refusal):
                    return False
        await connection.ask([b"PUBLISH", self._channel, b""], [b"DISCARD"])
        return True

    def publish(self, reports: Sequence[Report]) -> Deferred[Published]:
        """Publish events: see L{IPublisher.publish}."""
        connection = self._the_connection()
        sent = connection.ask(*([b"PUBLISH", self._channel, report.json] for report in reports))
        return sent.addCallback(lambda _: Published(arrived=reports))

    def when_lost(self) -> Deferred[None]:
        """Wait for the loss: see L{IPublisher.when_lost}."""
        return self._the_connection().when_lost()

    def close(self) -> Deferred[None]:
        """Disconnect: see L{IPublisher.close}."""
        connection, self._connection = self._connection, None
        return succeed(None) if connection is None else connection.close()

    def described(self, problem: Exception) -> tuple[str, str]:
        """A problem in words: see L{IPublisher.described}."""
        return described(problem)

    def _the_connection(self) -> RedisConnection:
        if self._connection is None:
            raise ConnectionLost("not connected")
        return self._connection


def _encoded(command: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in command)


def _first_error(failure: Failure) -> Failure:
    # Twisted wraps it.
    return getattr(failure.value, "subFailure", failure)


def _silent(result: Any, command: str) -> Any:
    if isinstance(result, Failure) and isinstance(result.value, CancelledError | TimeoutError):
        raise Silent(f"no answer to {command} within {ANSWER_SECONDS:g} s")
    return result
