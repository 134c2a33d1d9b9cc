"""A Redis source without a network, and a server that the test plays."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer, error
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial import unittest
from zope.interface import implementer

from pcapsvc.sources.redis.source import RedisSource
from pcapsvc.testing import MemorySink


def command(*words: bytes) -> bytes:
    """A command, as it is sent."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def message(body: bytes, channel: bytes = b"capture") -> bytes:
    """A message, as a subscriber receives it."""
    return command(b"message", channel, body)


SUBSCRIBE = command(b"SUBSCRIBE", b"capture")
SUBSCRIBED = b"*3\r\n$9\r\nsubscribe\r\n$7\r\ncapture\r\n:1\r\n"
PING = command(b"PING")
PONG = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"


class Transport(StringTransport):
    """A connection that closes on request, unless the server is stubborn."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol
        self.stubborn = False
        self.aborted = False
        self.is_lost = False

    def loseConnection(self) -> None:
        if not self.stubborn:
            self.lose(error.ConnectionDone())

    def abortConnection(self) -> None:
        self.aborted = True
        self.lose(error.ConnectionAborted())

    def lose(self, reason: Exception) -> None:
        """Lose the connection."""
        if not self.is_lost:
            self.is_lost = True
            self.protocol.connectionLost(Failure(reason))

    def say(self, raw: bytes) -> bytes:
        """Let the server send something; returns what it was sent since it last did."""
        heard = self.value()
        self.clear()
        self.protocol.dataReceived(raw)
        return heard


@implementer(IStreamClientEndpoint)
class FakeEndpoint:
    """
    An endpoint; the test decides how attempts to connect end.

    @ivar attempts: all that were made.
    """

    def __init__(self) -> None:
        self.attempts: list[tuple[Any, defer.Deferred[Any]]] = []

    def connect(self, factory: Any) -> defer.Deferred[Any]:
        attempt: defer.Deferred[Any] = defer.Deferred(
            lambda attempt: attempt.errback(error.ConnectingCancelledError(None))
        )
        self.attempts.append((factory, attempt))
        return attempt

    def succeed(self) -> Transport:
        """Let the last attempt succeed."""
        factory, attempt = self.attempts[-1]
        protocol = factory.buildProtocol(None)
        transport = Transport(protocol)
        protocol.makeConnection(transport)
        attempt.callback(protocol)
        return transport

    def fail(self, reason: Exception) -> None:
        """Let the last attempt fail."""
        self.attempts[-1][1].errback(reason)


class RedisTestCase(unittest.SynchronousTestCase):
    """A source that is started."""

    username: str | None = None
    password: str | None = None

    def setUp(self) -> None:
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.clock = Clock()
        self.endpoint = FakeEndpoint()
        self.sink = MemorySink()
        self.source = self.make(self.sink)
        self.start(self.source)

    def start(self, source: RedisSource) -> None:
        """Start a source. It is stopped at the end of the test."""
        source.startService()
        self.addCleanup(source.stopService)

    def make(self, sink: MemorySink) -> RedisSource:
        """A source with the test's clock and endpoint, and the longest pauses that chance allows."""
        return RedisSource(
            self.clock,
            sink,
            host="redis.example",
            port=6379,
            channel="capture",
            username=self.username,
            password=self.password,
            make_endpoint=lambda: self.endpoint,
            chance=lambda: 1.0,
        )

    def subscribe(self) -> Transport:
        """A connection that is subscribed."""
        transport = self.endpoint.succeed()
        self.assertEqual(transport.say(SUBSCRIBED), SUBSCRIBE)
        return transport

    def logged(self) -> list[str]:
        """The lines logged since the last call, with their levels."""
        events, self.events[:] = list(self.events), []
        return [f"{event['log_level'].name}: {formatEvent(event)}" for event in events]

    def bodies(self) -> list[bytes]:
        """The submitted bodies."""
        return [body for _, body in self.sink.submitted]
