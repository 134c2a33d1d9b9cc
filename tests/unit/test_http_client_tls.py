"""The HTTP client over TLS, with a server on loopback."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.internet import defer, error, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from pcapsvc.net.http_client import exchange, failure_words, secured
from pcapsvc.testing import run_now
from tests.unit.http_case import TurnClock
from tests.unit.test_http_client import Body
from tests.unit.test_tls import TLSTestCase


class Answering(Protocol):
    """
    Answers once a request has begun, and ends the connection at once.

    @cvar answer: what it sends.
    @cvar lost: fires when the client has closed the connection, too.
    """

    answer: ClassVar[bytes]
    lost: ClassVar[defer.Deferred[None]]
    has_answered = False

    def dataReceived(self, data: bytes) -> None:
        if not self.has_answered:
            self.has_answered = True
            self.transport.write(self.answer)  # type: ignore[union-attr]
            self.transport.loseConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class LostWhileWaitingTests(TLSTestCase):
    """The connection is lost while what has arrived waits to be processed: TLS can't be aborted then."""

    protocol = Answering

    async def begin(self, answer: bytes, body: Any = None) -> defer.Deferred[Any]:
        """What an exchange fires with, once the connection is lost. The rest happens in turns of a clock."""
        await self.serve()
        Answering.answer, Answering.lost = answer, defer.Deferred()
        self.clock = TurnClock()
        plain = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        endpoint = await secured(plain, "https", "localhost", str(self.authority.file), run_now)
        done = defer.Deferred.fromCoroutine(
            exchange(self.clock, endpoint, "PUT", "https://localhost/", {}, body)
        )
        await Answering.lost
        self.assertNoResult(done)
        return done

    async def test_complete(self) -> None:
        """A response is complete, whether its end is its length or the end of the connection."""
        for head in (b"Content-Length: 12000\r\n", b""):
            done = await self.begin(b"HTTP/1.1 500 No\r\n" + head + b"\r\n" + b"x" * 12_000)
            self.clock.pump([0] * 10)
            response = self.successResultOf(done)
            self.assertEqual((response.code, response.body), (500, b"x" * 12_000))

    async def test_early(self) -> None:
        """So is one that arrives before the request was sent in full."""
        body = Body()
        done = await self.begin(b"HTTP/1.1 200 OK\r\nContent-Length: 12000\r\n\r\n" + b"x" * 12_000, body)
        self.clock.pump([0] * 10)
        self.assertEqual(self.successResultOf(done).body, b"x" * 12_000)

    async def test_cut_off(self) -> None:
        """If the response is cut off, the loss of the connection is the error."""
        done = await self.begin(b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + b"x" * 12_000)
        self.clock.pump([0] * 10)
        self.failureResultOf(done, error.ConnectionDone)

    async def test_malformed(self) -> None:
        """If it is malformed, that is the error, also before the request was sent in full."""
        answer = (
            b"HTTP/1.1 200 OK\r\na: " + b"b" * 9000 + b"\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
        )
        for body in (None, Body()):
            done = await self.begin(answer, body)
            self.clock.pump([0] * 10)
            words, passes = failure_words(self.failureResultOf(done).value, "localhost")
            self.assertIn("malformed HTTP response", words)
            self.assertTrue(passes)

    async def test_too_many_lines(self) -> None:
        """If its head has too many lines, that is the error."""
        done = await self.begin(b"HTTP/1.1 200 OK\r\na: " + b"b" * 9000 + b"\r\na:b" * 300)
        self.clock.pump([0] * 10)
        self.assertIn("the head of the response", str(self.failureResultOf(done, ConnectionError).value))

    async def test_cancelled(self) -> None:
        """If the exchange is cancelled, nothing is processed any more."""
        done = await self.begin(b"HTTP/1.1 200 OK\r\nContent-Length: 12000\r\n\r\n" + b"x" * 12_000)
        done.cancel()
        self.failureResultOf(done, defer.CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
