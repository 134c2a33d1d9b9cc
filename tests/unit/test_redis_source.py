"""Requests on a Redis channel, without a network."""

from __future__ import annotations

import tempfile
from pathlib import Path

from twisted.internet import defer, error
from twisted.internet.task import Clock
from twisted.trial import unittest

from pcapsvc.core.errors import SettingsError
from pcapsvc.core.message import Message
from pcapsvc.core.result import Verdict
from pcapsvc.net.outages import RETRY_SECONDS
from pcapsvc.sources.redis.frames import MAX_MESSAGE_BYTES, Frames
from pcapsvc.sources.redis.source import CHECK_SECONDS, RedisSource
from pcapsvc.sources.redis.subscriber import CLOSE_SECONDS
from pcapsvc.testing import MemorySink
from tests.unit.redis_case import (
    PING,
    PONG,
    SUBSCRIBE,
    SUBSCRIBED,
    RedisTestCase,
    Transport,
    command,
    message,
)


class MessageTests(RedisTestCase):
    """Messages of the channel are submitted unchanged."""

    def test_submits(self) -> None:
        """Each message is submitted byte for byte: numbers are not converted, and UTF-8 is not required."""
        sent = [b'{"node":"any"}', b"123", b"1.5", b"", b"\xff\xfe\x00\r\n$1\r\n", "é".encode(), b"QUEUED"]
        self.subscribe().say(b"".join(message(body) for body in sent))
        self.assertEqual(self.sink.submitted, [("redis", body) for body in sent])

    def test_late_verdict(self) -> None:
        """A slow verdict holds up no other message, and may come after the source has stopped."""
        verdicts = self.sink.hold()
        self.subscribe().say(message(b"a") + message(b"b"))
        self.assertEqual(self.bodies(), [b"a", b"b"])
        self.successResultOf(self.source.stopService())
        verdicts[0].callback(self.sink.verdict)
        verdicts[1].errback(ZeroDivisionError("which the sink promised not to do"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_piecemeal(self) -> None:
        """The network may split messages anywhere."""
        sent = [b"one", b"", b"\r\n" * 20, b"four"]
        raw = b"".join(message(body) for body in sent)
        for size in (1, 2, 3, 7, 50):
            self.sink.submitted.clear()
            if size == 1:
                transport = self.subscribe()
            for start in range(0, len(raw), size):
                transport.say(raw[start : start + size])
            self.assertEqual(self.bodies(), sent)

    def test_subscribed_piecemeal(self) -> None:
        """It may also split the server's answers, and what follows them."""
        transport = self.endpoint.succeed()
        for byte in SUBSCRIBED + message(b"x"):
            transport.say(bytes([byte]))
        self.assertEqual(self.bodies(), [b"x"])
        self.assertEqual(len(self.logged()), 1)

    def test_broken_sink(self) -> None:
        """An exception of the sink is logged, and the next message is submitted."""

        class Broken(MemorySink):
            def submit(self, message: Message) -> defer.Deferred[Verdict]:
                super().submit(message)
                raise ZeroDivisionError

        self.successResultOf(self.source.stopService())
        self.sink = Broken()
        self.start(self.make(self.sink))
        transport = self.subscribe()
        transport.say(message(b"a") + message(b"b"))
        self.assertEqual(self.bodies(), [b"a", b"b"])
        self.assertFalse(transport.is_lost)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_huge(self) -> None:
        """A message that is far too long is skipped and logged; those around it are submitted."""
        transport = self.subscribe()
        self.logged()
        length = 10 * MAX_MESSAGE_BYTES
        raw = message(b"before") + message(b"")[:-6] + b"$%d\r\n" % length + bytes(length) + b"\r\n"
        raw += message(b"after")
        for at in range(0, len(raw), 65536):
            transport.say(raw[at : at + 65536])
        self.assertFalse(transport.is_lost)
        self.assertEqual(self.bodies(), [b"before", b"after"])
        [warning] = self.logged()
        self.assertIn(f"skipped a message of {length} bytes on channel 'capture'", warning)

    def test_huge_piecemeal(self) -> None:
        """It is skipped wherever the network splits it."""
        length = MAX_MESSAGE_BYTES + 1
        raw = message(bytes(length)) + message(b"after")
        head = len(raw) - length - len(message(b"after")) + 5
        for split in (*range(1, head), head + length, *range(len(raw) - 45, len(raw))):
            transport = self.subscribe()
            transport.say(raw[:split])
            transport.say(raw[split:])
            self.assertEqual(self.bodies(), [b"after"], split)
            self.sink.submitted.clear()
            transport.lose(error.ConnectionDone())
            self.clock.advance(RETRY_SECONDS[1])

    def test_many_huge(self) -> None:
        """Many messages that are too long are logged once, and counted."""
        transport = self.subscribe()
        self.logged()
        huge = message(bytes(MAX_MESSAGE_BYTES + 1))
        for _ in range(5):
            transport.say(huge)
        self.assertEqual(len(self.logged()), 1)
        self.clock.advance(1)
        transport.say(huge)
        [warning] = self.logged()
        self.assertIn("(and 4 more)", warning)

    def test_contains_replies(self) -> None:
        """A message that contains what a server would send is a message."""
        inner = message(bytes(100), b"other") + SUBSCRIBED + b"$99999999\r\n"
        transport = self.subscribe()
        for size in (1, 7, 1000):
            raw = message(inner) * 2
            for at in range(0, len(raw), size):
                transport.say(raw[at : at + size])
        self.assertEqual(self.bodies(), [inner] * 6)

    def test_many_in_one(self) -> None:
        """A burst of messages doesn't count as one long message."""
        transport = self.subscribe()
        body = bytes(60000)
        transport.say(message(body) * 40)
        self.assertEqual(self.bodies(), [body] * 40)
        self.assertFalse(transport.is_lost)

    def test_longest(self) -> None:
        """The longest message that is buffered is submitted: the sink judges it."""
        body = bytes(MAX_MESSAGE_BYTES)
        self.subscribe().say(message(body))
        self.assertEqual(self.bodies(), [body])

    def test_nonsense(self) -> None:
        """A server that doesn't speak Redis is disconnected, and tried again."""
        for raw in (
            b"HTTP/1.1 400 Bad Request\r\n",
            b"*x\r\n",
            b"$99999999999999999999\r\n",
            b"\xff\xfe\r\n",
            b"+" + b"x" * (MAX_MESSAGE_BYTES + 1),
            b"*99\r\n" + b"*99\r\n" * 99,
            b"*3\r\n$7\r\nmessage\r\n$5\r\nother\r\n$99999999\r\n" + bytes(10000),
            b"+OK\r\n",
        ):
            attempts = len(self.endpoint.attempts)
            transport = self.endpoint.succeed()
            transport.say(raw)
            self.assertTrue(transport.is_lost, raw)
            self.clock.advance(RETRY_SECONDS[1])
            self.assertEqual(len(self.endpoint.attempts), attempts + 1, raw)
        self.assertEqual(len(self.logged()), 1)


class UnsubscribedTests(RedisTestCase):
    """A server that ends the subscription is noticed, and the source subscribes again."""

    def assert_noticed(self, transport: Transport, words: str) -> None:
        """The connection is given up, which is logged once, and another one is made."""
        self.assertTrue(transport.is_lost)
        [warning] = self.logged()
        self.assertIn(words, warning)
        self.clock.advance(RETRY_SECONDS[1])
        self.subscribe().say(message(b"again"))
        self.assertEqual(self.bodies(), [b"again"])

    def checked(self, answer: bytes) -> Transport:
        """A connection whose PING gets an answer."""
        transport = self.subscribe()
        self.logged()
        self.clock.advance(CHECK_SECONDS)
        self.assertEqual(transport.say(answer), PING)
        return transport

    def test_push(self) -> None:
        """The server says so."""
        transport = self.subscribe()
        self.logged()
        transport.say(b"*3\r\n$11\r\nunsubscribe\r\n$7\r\ncapture\r\n:0\r\n")
        self.assert_noticed(transport, "the server ended the subscription")

    def test_pong(self) -> None:
        """The server answers PING as it does to clients that are not subscribed."""
        self.assert_noticed(self.checked(b"+PONG\r\n"), "no longer treats this connection as subscribed")

    def test_still(self) -> None:
        """The answer to a subscriber changes nothing."""
        transport = self.checked(PONG)
        self.clock.advance(1)
        self.assertFalse(transport.is_lost)
        self.assertEqual(self.logged(), [])

    def test_no_ping(self) -> None:
        """If PING is not permitted, another SUBSCRIBE shows whether the subscription lasts."""
        transport = self.checked(b"-NOPERM this user has no permissions to run the 'ping' command\r\n")
        self.assertEqual(transport.say(SUBSCRIBED + message(b"x")), SUBSCRIBE)
        self.assertFalse(transport.is_lost)
        self.sink.submitted.clear()
        self.clock.pump([1.0] * int(CHECK_SECONDS + 2))
        self.assertEqual(transport.say(b""), PING)
        transport.say(b"-NOAUTH Authentication required.\r\n")
        transport.say(b"-NOAUTH Authentication required.\r\n")
        self.assert_noticed(transport, "the server ended the subscription (NOAUTH Authentication required.)")

    def test_unasked(self) -> None:
        """An error that answers nothing is an error of the connection, and its words are one bounded line."""
        transport = self.subscribe()
        self.logged()
        transport.say(b"-ERR you\x1b[2J\n" + b"x" * 3000 + b"\r\n")
        self.assertTrue(transport.is_lost)
        [warning] = self.logged()
        self.assertNotRegex(warning, "[\x00-\x1f]")
        self.assertLess(len(warning), 500)

    def test_not_confirmed(self) -> None:
        """A SUBSCRIBE that is answered with something else has failed."""
        transport = self.endpoint.succeed()
        transport.say(b"+OK\r\n")
        self.assert_noticed(transport, "did not confirm the subscription")


class CredentialTests(RedisTestCase):
    """User names and passwords."""

    username = "node"
    password = "t0p-s3cret"
    AUTH = command(b"AUTH", b"node", b"t0p-s3cret")

    def test_right(self) -> None:
        """AUTH comes first, then SUBSCRIBE."""
        transport = self.endpoint.succeed()
        self.assertEqual(transport.say(b"+OK\r\n"), self.AUTH)
        self.assertEqual(transport.say(SUBSCRIBED + message(b"x")), SUBSCRIBE)
        self.assertEqual(self.bodies(), [b"x"])

    def refuse(self, answer: bytes) -> None:
        """One attempt that the server answers to AUTH with an error."""
        transport = self.endpoint.succeed()
        transport.say(b"-" + answer + b"\r\n")
        self.assertTrue(transport.is_lost)
        self.clock.advance(RETRY_SECONDS[1])

    def test_wrong(self) -> None:
        """A wrong password is logged once, and retried until it is right."""
        for _ in range(5):
            self.refuse(b"WRONGPASS invalid username-password pair or user is disabled.")
        self.assertIn("AUTH was refused (wrong user name or password)", "".join(self.logged()))
        transport = self.endpoint.succeed()
        transport.say(b"+OK\r\n")
        transport.say(SUBSCRIBED)
        self.assertEqual(len(self.logged()), 1)

    def test_no_password_there(self) -> None:
        """A server without a password is logged in words, if one is configured here."""
        self.refuse(b"ERR AUTH <password> called without any password configured for the default user.")
        self.assertIn(
            "AUTH was refused (the server has no password, or does not support user names or AUTH)",
            "".join(self.logged()),
        )

    def test_once_for_each_change(self) -> None:
        """Each change of the problem is logged, also back to an earlier one."""
        for _ in range(3):
            self.refuse(b"WRONGPASS no")
        for _ in range(3):
            self.endpoint.fail(error.ConnectionRefusedError("no"))
            self.clock.advance(RETRY_SECONDS[1])
        for _ in range(3):
            self.refuse(b"WRONGPASS no")
        self.assertEqual([line.split(":")[0] for line in self.logged()], ["warn"] * 3)

    def test_never_shown(self) -> None:
        """The password is never logged, even if the server repeats it."""
        self.refuse(b"ERR unknown command 'AUTH', with args beginning with: 'node' 't0p-s3cret'")
        self.refuse(b"t0p")
        transport = self.endpoint.succeed()
        transport.lose(error.ConnectionLost())
        told = "".join(self.logged())
        self.assertNotIn("s3cret", told)
        self.assertIn("AUTH was refused (the server has no password, or ", told)

    def test_no_right(self) -> None:
        """A user without permission for the channel is logged, and retried."""
        for _ in range(3):
            transport = self.endpoint.succeed()
            transport.say(b"+OK\r\n")
            transport.say(b"-NOPERM No permissions to access a channel\r\n")
            self.assertTrue(transport.is_lost)
            self.clock.advance(RETRY_SECONDS[1])
        [warning] = self.logged()
        self.assertIn("SUBSCRIBE was refused (the user has no permission for this channel)", warning)

    def test_lost_at_auth(self) -> None:
        """The source retries after a connection is lost during AUTH."""
        self.endpoint.succeed().lose(error.ConnectionLost())
        self.clock.advance(RETRY_SECONDS[1])
        self.assertEqual(len(self.endpoint.attempts), 2)


class StopTests(RedisTestCase):
    """A stop leaves nothing behind, whatever state the source is in."""

    def assert_stopped(self) -> None:
        """The source stops, and does nothing more."""
        self.successResultOf(self.source.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        attempts = len(self.endpoint.attempts)
        self.clock.pump([10.0] * 10)
        self.assertEqual(len(self.endpoint.attempts), attempts)
        self.assertEqual(
            [line for line in self.logged() if line.startswith(("warn", "error", "critical"))], []
        )

    def test_connecting(self) -> None:
        """A stop while it connects."""
        self.assert_stopped()

    def test_subscribing(self) -> None:
        """A stop while it subscribes."""
        self.endpoint.succeed()
        self.assert_stopped()

    def test_subscribed(self) -> None:
        """A stop while it is subscribed, and waits for an answer to PING."""
        transport = self.subscribe()
        self.clock.advance(CHECK_SECONDS)
        self.assert_stopped()
        self.assertTrue(transport.is_lost)

    def test_pausing(self) -> None:
        """A stop while it waits to connect again."""
        self.endpoint.fail(error.ConnectionRefusedError("no"))
        self.logged()
        self.assert_stopped()

    def test_stubborn(self) -> None:
        """A stop waits for a connection that doesn't close, until it is aborted."""
        transport = self.subscribe()
        transport.stubborn = True
        stopped = self.source.stopService()
        self.assertNoResult(stopped)
        self.clock.advance(CLOSE_SECONDS)
        self.successResultOf(stopped)
        self.assertTrue(transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_while_closing(self) -> None:
        """So it does if the connection was being closed already."""
        transport = self.endpoint.succeed()
        transport.stubborn = True
        transport.say(b"-NOAUTH Authentication required.\r\n")
        stopped = self.source.stopService()
        self.assertNoResult(stopped)
        self.clock.advance(CLOSE_SECONDS)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_again(self) -> None:
        """A stopped source can be started again, and stopped twice."""
        self.assert_stopped()
        self.assert_stopped()
        self.source.startService()
        self.subscribe().say(message(b"x"))
        self.assertEqual(self.bodies(), [b"x"])


class TurnTests(RedisTestCase):
    """What is processed in one turn of the reactor."""

    def setUp(self) -> None:
        """A source that is subscribed, and a sink that takes 0.4 ms for each request."""
        super().setUp()
        decide = self.sink.answer

        def slowly() -> defer.Deferred[Verdict]:
            # Without what is due by then: it would be a turn of the reactor.
            self.clock.rightNow += 0.0004
            return decide()

        self.sink.answer = slowly
        self.transport = self.subscribe()

    def test_slow(self) -> None:
        """They take a few milliseconds. Nothing more is read until all are judged, in later turns."""
        self.transport.say(b"".join(message(b"%d" % number) for number in range(50)) + message(b"last")[:-3])
        self.assertTrue(5 <= len(self.sink.submitted) <= 15, len(self.sink.submitted))
        self.assertEqual(self.transport.producerState, "paused")
        # Its turns follow each other at once, as time passes in them.
        self.clock.advance(0)
        self.assertEqual(self.transport.producerState, "producing")
        self.transport.say(b"t\r\n" + message(b"further"))
        expected = [b"%d" % number for number in range(50)] + [b"last", b"further"]
        self.assertEqual(self.bodies(), expected)

    def test_more_while_paused(self) -> None:
        """What arrives although reading is paused, as it may with TLS, waits for its turn."""
        self.transport.say(b"".join(message(b"%d" % number) for number in range(20)))
        before = len(self.sink.submitted)
        self.transport.say(b"".join(message(b"%d" % number) for number in range(20, 30)))
        self.assertEqual(len(self.sink.submitted), before)
        self.clock.pump([0.0] * 10)
        self.assertEqual(self.bodies(), [b"%d" % number for number in range(30)])
        self.assertEqual(self.transport.producerState, "producing")

    def test_other_replies(self) -> None:
        """Replies that are no messages take their turns as well: a server may send any number of them."""
        replies: list[bytes] = []

        def slowly(reply: bytes) -> None:
            self.clock.rightNow += 0.0004
            replies.append(reply)

        frames = Frames(
            b"capture",
            on_message=self.fail,
            on_skipped=self.fail,
            on_reply=slowly,
            seconds=self.clock.seconds,
        )
        frames.receive(b"+OK\r\n" * 50)
        self.assertFalse(frames.hand_over(0.003))
        self.assertEqual(len(replies), 8)
        while not frames.hand_over(0.003):
            pass
        self.assertEqual(replies, [b"+OK\r\n"] * 50)

    def test_lost_meanwhile(self) -> None:
        """What was received before a connection was lost is judged, and then it is lost."""
        self.transport.say(b"".join(message(b"%d" % number) for number in range(30)))
        self.transport.lose(error.ConnectionDone())
        self.assertTrue(self.source.state().connected)
        self.clock.pump([0.0] * 10)
        self.assertEqual(len(self.sink.submitted), 30)
        self.assertFalse(self.source.state().connected)

    def test_nonsense_after_it_was_lost(self) -> None:
        """If what was received last isn't Redis, it is lost all the same."""
        self.transport.say(b"".join(message(b"%d" % number) for number in range(30)) + b"nonsense")
        self.transport.lose(error.ConnectionDone())
        self.clock.pump([0.0] * 10)
        self.assertEqual(len(self.sink.submitted), 30)
        self.assertFalse(self.source.state().connected)

    def test_stopped_meanwhile(self) -> None:
        """A stop has what was received judged."""
        self.transport.say(b"".join(message(b"%d" % number) for number in range(30)))
        stopped = self.source.stopService()
        self.clock.pump([0.0] * 10)
        self.successResultOf(stopped)
        self.assertEqual(len(self.sink.submitted), 30)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class CertificateTests(unittest.SynchronousTestCase):
    """The CA file is read at the start, not before."""

    def problem_with(self, path: str) -> str:
        """The error that the start raises."""
        source = RedisSource(
            Clock(), MemorySink(), host="localhost", port=6379, channel="c", tls=True, ca_file=path
        )
        return str(self.assertRaises(SettingsError, source.startService))

    def test_unreadable(self) -> None:
        """A file that is missing, or contains no certificate, is a configuration error."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name) / "ca.pem"
        self.assertIn("redis.cafile", self.problem_with(str(path)))
        path.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
        self.assertIn("must be a file of PEM certificates", self.problem_with(str(path)))
        path.write_text("no")
        self.assertIn("contains none", self.problem_with(str(path)))
