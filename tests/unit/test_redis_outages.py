"""Outages of Redis, without a network."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet import error

from pcapsvc.core.mask import of_process
from pcapsvc.net.outages import RETRY_SECONDS
from pcapsvc.net.redis import ANSWER_SECONDS
from pcapsvc.sources.redis.source import CHECK_SECONDS
from pcapsvc.sources.redis.subscriber import CLOSE_SECONDS, GRACE_SECONDS
from tests.unit.redis_case import (
    PING,
    PONG,
    RedisTestCase,
    message,
)


class OutageTests(RedisTestCase):
    """The source recovers from an outage by itself, and logs it once."""

    def test_down_at_start(self) -> None:
        """The server may start after the source."""
        for _ in range(20):
            self.endpoint.fail(error.ConnectionRefusedError("refused"))
            self.clock.advance(RETRY_SECONDS[1])
        self.assertEqual(len(self.endpoint.attempts), 21)
        [warning] = self.logged()
        self.assertIn("warn: Redis redis.example:6379: not subscribed to channel 'capture'", warning)
        self.subscribe().say(message(b"x"))
        self.assertEqual(self.logged(), ["info: Redis redis.example:6379: subscribed to channel 'capture'"])
        self.assertEqual(self.bodies(), [b"x"])

    def test_back_off(self) -> None:
        """The pauses double up to the longest, without end."""
        pauses = []
        for _ in range(8):
            began = self.clock.seconds()
            attempts = len(self.endpoint.attempts)
            self.endpoint.fail(error.TimeoutError())
            while len(self.endpoint.attempts) == attempts:
                self.clock.advance(0.25)
            pauses.append(self.clock.seconds() - began)
        self.assertEqual(pauses, [0.5, 1, 2, 4, 8, 10, 10, 10])

    def test_fresh_start(self) -> None:
        """A connection that lasted resets the back-off; one that was cut at once does not."""
        for _ in range(3):
            self.subscribe().lose(error.ConnectionLost())
            self.clock.advance(RETRY_SECONDS[1])
        transport = self.subscribe()
        self.clock.advance(CHECK_SECONDS)
        transport.say(PONG)
        self.clock.advance(ANSWER_SECONDS)
        transport.lose(error.ConnectionLost())
        attempts = len(self.endpoint.attempts)
        self.clock.advance(RETRY_SECONDS[0])
        self.assertEqual(len(self.endpoint.attempts), attempts + 1)

    def test_lost(self) -> None:
        """A lost connection is logged once, and so is the recovery."""
        self.subscribe().lose(error.ConnectionDone())
        self.clock.advance(RETRY_SECONDS[1])
        self.endpoint.fail(error.ConnectionRefusedError("refused"))
        self.clock.advance(RETRY_SECONDS[1])
        self.subscribe()
        self.assertEqual([line.split(":")[0] for line in self.logged()], ["info", "warn", "info"])

    def test_unforeseen(self) -> None:
        """An unexpected error is an outage, too; its message, which may contain a secret, is not logged."""
        self.endpoint.fail(ZeroDivisionError("hunter2"))
        self.clock.advance(RETRY_SECONDS[1])
        self.subscribe()
        told = self.logged()[0]
        self.assertIn("unexpected error (ZeroDivisionError)", told)
        self.assertNotIn("hunter2", told)

    def test_secrets(self) -> None:
        """A server that repeats the password, or another secret, doesn't have it logged or reported."""
        of_process.hide(["s3cretpw-xyz", "token-of-http"])
        self.addCleanup(of_process.hide, ())
        for answer in (
            b"-ERR pw s3cretpw-xyz\r\n",
            b"-ERR pw " + b"." * 215 + b"s3cretpw-xyz\r\n",
            b"-s3cretpw-xyz token-of-http\r\n",
            b"$s3cretpw-xyz\r\n",
            b"$xx s3cretpw-xyz s3cretpw-xyz\r\n",
            b"*s3cretpw-xyz\r\n",
        ):
            for subscribed in (False, True):
                transport = self.subscribe() if subscribed else self.endpoint.succeed()
                transport.say(answer)
                transport.lose(error.ConnectionDone())
                told = " ".join([*self.logged(), str(self.source.state())])
                self.assertIn("<s", told)
                for part in ("s3c", "xyz", "token-of"):
                    self.assertNotIn(part, told, answer)
                self.clock.advance(RETRY_SECONDS[1])

    def test_tls(self) -> None:
        """A certificate that can't be verified is logged in words."""
        self.endpoint.succeed().lose(SSL.Error([("SSL routines", "", "certificate verify failed")]))
        self.assertIn("TLS failed: certificate verify failed", self.logged()[0])


class HalfOpenTests(RedisTestCase):
    """A server that has vanished while the connection stays open is noticed."""

    def test_answers(self) -> None:
        """The server is sent PINGs, and the connection stays as long as it answers."""
        transport = self.subscribe()
        for _ in range(5):
            began = self.clock.seconds()
            while not transport.value():
                self.clock.advance(GRACE_SECONDS / 2)
            self.assertApproximates(self.clock.seconds() - began, CHECK_SECONDS, 2 * GRACE_SECONDS)
            self.assertEqual(transport.say(PONG), PING)
        self.assertFalse(transport.is_lost)

    def test_silent(self) -> None:
        """Without an answer, the connection is replaced."""
        transport = self.subscribe()
        transport.stubborn = True
        self.logged()
        self.clock.advance(CHECK_SECONDS)
        self.clock.advance(ANSWER_SECONDS)
        self.clock.advance(GRACE_SECONDS)
        self.assertTrue(transport.aborted)
        self.assertIn("no answer to PING within 5 s", self.logged()[0])
        self.clock.advance(RETRY_SECONDS[0])
        self.subscribe()

    def test_messages_are_answers(self) -> None:
        """A server that sends many messages is alive, even if its answer is queued behind them."""
        transport = self.subscribe()
        self.clock.advance(CHECK_SECONDS)
        transport.say(message(b"x"))
        self.clock.advance(ANSWER_SECONDS)
        self.clock.advance(GRACE_SECONDS)
        self.assertFalse(transport.is_lost)

    def test_busy_ourselves(self) -> None:
        """An answer that waited in the socket while this process was busy counts."""
        transport = self.subscribe()
        self.clock.advance(CHECK_SECONDS)
        self.clock.advance(ANSWER_SECONDS)
        transport.say(PONG)
        self.clock.advance(GRACE_SECONDS)
        self.assertFalse(transport.is_lost)

    def test_silent_from_the_start(self) -> None:
        """A server that accepts the connection, but sends nothing, is given up."""
        transport = self.endpoint.succeed()
        transport.stubborn = True
        self.clock.advance(ANSWER_SECONDS)
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(transport.aborted)
        self.assertIn("no answer to SUBSCRIBE within 5 s", self.logged()[0])
