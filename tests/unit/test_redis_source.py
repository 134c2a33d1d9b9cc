"""Requests on a Redis channel, without a network."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import defer, error
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial import unittest
from zope.interface import implementer

from pcapsvc.core.errors import SettingsError
from pcapsvc.core.message import Message
from pcapsvc.core.result import Verdict
from pcapsvc.sources.polling import RETRY_SECONDS
from pcapsvc.sources.redis.source import ANSWER_SECONDS, CHECK_SECONDS, RedisSource
from pcapsvc.sources.redis.subscriber import CLOSE_SECONDS, GRACE_SECONDS, MAX_MESSAGE_BYTES
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
    """A connection that closes when it is told to, unless its server is stubborn."""

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
        """The connection is gone."""
        if not self.is_lost:
            self.is_lost = True
            self.protocol.connectionLost(Failure(reason))

    def say(self, raw: bytes) -> bytes:
        """Let the server say something; gives what it was sent since it spoke last."""
        heard = self.value()
        self.clear()
        self.protocol.dataReceived(raw)
        return heard


@implementer(IStreamClientEndpoint)
class FakeEndpoint:
    """
    An endpoint whose attempts the test decides.

    @ivar attempts: each that was made.
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
        """The last attempt comes through."""
        factory, attempt = self.attempts[-1]
        protocol = factory.buildProtocol(None)
        transport = Transport(protocol)
        protocol.makeConnection(transport)
        attempt.callback(protocol)
        return transport

    def fail(self, reason: Exception) -> None:
        """The last attempt does not."""
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
        """Start a source, that is stopped at the end of the test if it still runs."""
        source.startService()
        self.addCleanup(source.stopService)

    def make(self, sink: MemorySink) -> RedisSource:
        """A source of the test's clock and endpoint, whose chance makes each pause the longest."""
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

    def told(self) -> list[str]:
        """What was logged since the last call, by level and in words."""
        events, self.events[:] = list(self.events), []
        return [f"{event['log_level'].name}: {formatEvent(event)}" for event in events]

    def bodies(self) -> list[bytes]:
        """What was submitted."""
        return [body for _, body in self.sink.submitted]


class MessageTests(RedisTestCase):
    """What comes on the channel is submitted, as it is."""

    def test_submits(self) -> None:
        """Each message, byte for byte: numbers stay text, and what isn't UTF-8 is no matter."""
        sent = [b'{"node":"any"}', b"123", b"1.5", b"", b"\xff\xfe\x00\r\n$1\r\n", "é".encode(), b"QUEUED"]
        self.subscribe().say(b"".join(message(body) for body in sent))
        self.assertEqual(self.sink.submitted, [("redis", body) for body in sent])

    def test_late_verdict(self) -> None:
        """A verdict that takes time holds up no other message, and may come after the end of the source."""
        verdicts = self.sink.hold()
        self.subscribe().say(message(b"a") + message(b"b"))
        self.assertEqual(self.bodies(), [b"a", b"b"])
        self.successResultOf(self.source.stopService())
        verdicts[0].callback(self.sink.verdict)
        verdicts[1].errback(ZeroDivisionError("which the sink promised not to do"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_piecemeal(self) -> None:
        """However it is cut by the network."""
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
        """The answers, too, and what comes with them."""
        transport = self.endpoint.succeed()
        for byte in SUBSCRIBED + message(b"x"):
            transport.say(bytes([byte]))
        self.assertEqual(self.bodies(), [b"x"])
        self.assertEqual(len(self.told()), 1)

    def test_broken_sink(self) -> None:
        """Whatever the sink raises is logged, and the next message is heard."""

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
        """A message that is far too long ends its connection before it is whole; the next one is heard on."""
        transport = self.subscribe()
        self.told()
        transport.say(message(b"before") + message(b"")[:-6] + b"$%d\r\n" % (10 * MAX_MESSAGE_BYTES))
        for _ in range(MAX_MESSAGE_BYTES // 65536 + 1):
            transport.say(bytes(65536))
        self.assertTrue(transport.is_lost)
        [warning] = self.told()
        self.assertIn(f"the server began a message longer than {MAX_MESSAGE_BYTES} bytes", warning)
        self.clock.advance(RETRY_SECONDS[1])
        self.subscribe().say(message(b"after"))
        self.assertEqual(self.bodies(), [b"before", b"after"])

    def test_many_in_one(self) -> None:
        """A burst is no long message, however many come at once."""
        transport = self.subscribe()
        body = bytes(60000)
        transport.say(message(body) * 40)
        self.assertEqual(self.bodies(), [body] * 40)
        self.assertFalse(transport.is_lost)

    def test_longest(self) -> None:
        """The longest that is kept is submitted: to judge it is the sink's part."""
        body = bytes(MAX_MESSAGE_BYTES)
        self.subscribe().say(message(body))
        self.assertEqual(self.bodies(), [body])

    def test_nonsense(self) -> None:
        """A server that speaks no Redis is left, and tried again."""
        for raw in (
            b"HTTP/1.1 400 Bad Request\r\n",
            b"*x\r\n",
            b"$99999999999999999999\r\n",
            b"\xff\xfe\r\n",
            b"+" + b"x" * (MAX_MESSAGE_BYTES + 1),
        ):
            attempts = len(self.endpoint.attempts)
            transport = self.endpoint.succeed()
            transport.say(raw)
            self.assertTrue(transport.is_lost, raw)
            self.clock.advance(RETRY_SECONDS[1])
            self.assertEqual(len(self.endpoint.attempts), attempts + 1, raw)
        self.assertEqual(len(self.told()), 1)


class OutageTests(RedisTestCase):
    """An outage ends by itself, and is told once."""

    def test_down_at_start(self) -> None:
        """The server may come later than we do."""
        for _ in range(20):
            self.endpoint.fail(error.ConnectionRefusedError("refused"))
            self.clock.advance(RETRY_SECONDS[1])
        self.assertEqual(len(self.endpoint.attempts), 21)
        [warning] = self.told()
        self.assertIn("warn: Redis redis.example:6379: not subscribed to channel 'capture'", warning)
        self.subscribe().say(message(b"x"))
        self.assertEqual(self.told(), ["info: Redis redis.example:6379: subscribed to channel 'capture'"])
        self.assertEqual(self.bodies(), [b"x"])

    def test_back_off(self) -> None:
        """The pauses double up to the longest, and go on for ever."""
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
        """A connection that lasted is tried again at once; one that was cut at once is not."""
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
        """A connection that is lost is told once, as is that it is back."""
        self.subscribe().lose(error.ConnectionDone())
        self.clock.advance(RETRY_SECONDS[1])
        self.endpoint.fail(error.ConnectionRefusedError("refused"))
        self.clock.advance(RETRY_SECONDS[1])
        self.subscribe()
        self.assertEqual([line.split(":")[0] for line in self.told()], ["info", "warn", "info"])

    def test_unforeseen(self) -> None:
        """What nobody has foreseen is an outage too; its words, maybe a secret, are not shown."""
        self.endpoint.fail(ZeroDivisionError("hunter2"))
        self.clock.advance(RETRY_SECONDS[1])
        self.subscribe()
        told = self.told()[0]
        self.assertIn("unexpected error (ZeroDivisionError)", told)
        self.assertNotIn("hunter2", told)

    def test_tls(self) -> None:
        """That the certificate is no good is told in words."""
        self.endpoint.succeed().lose(SSL.Error([("SSL routines", "", "certificate verify failed")]))
        self.assertIn("TLS failed: certificate verify failed", self.told()[0])


class HalfOpenTests(RedisTestCase):
    """A server that is there no more, though the connection is, is noticed."""

    def test_answers(self) -> None:
        """It is asked again and again, and stays as long as it answers."""
        transport = self.subscribe()
        for _ in range(5):
            began = self.clock.seconds()
            while not transport.value():
                self.clock.advance(GRACE_SECONDS / 2)
            self.assertApproximates(self.clock.seconds() - began, CHECK_SECONDS, 2 * GRACE_SECONDS)
            self.assertEqual(transport.say(PONG), PING)
        self.assertFalse(transport.is_lost)

    def test_silent(self) -> None:
        """Where no answer comes, the connection is given up, and another made."""
        transport = self.subscribe()
        transport.stubborn = True
        self.told()
        self.clock.advance(CHECK_SECONDS)
        self.clock.advance(ANSWER_SECONDS)
        self.clock.advance(GRACE_SECONDS)
        self.assertTrue(transport.aborted)
        self.assertIn("no answer to PING within 5 s", self.told()[0])
        self.clock.advance(RETRY_SECONDS[0])
        self.subscribe()

    def test_messages_are_answers(self) -> None:
        """A server that has much to say is there, though its answer is behind all that."""
        transport = self.subscribe()
        self.clock.advance(CHECK_SECONDS)
        transport.say(message(b"x"))
        self.clock.advance(ANSWER_SECONDS)
        self.clock.advance(GRACE_SECONDS)
        self.assertFalse(transport.is_lost)

    def test_busy_ourselves(self) -> None:
        """An answer that waited in the socket while we were busy counts."""
        transport = self.subscribe()
        self.clock.advance(CHECK_SECONDS)
        self.clock.advance(ANSWER_SECONDS)
        transport.say(PONG)
        self.clock.advance(GRACE_SECONDS)
        self.assertFalse(transport.is_lost)

    def test_silent_from_the_start(self) -> None:
        """A server that takes the connection, and says nothing, is given up."""
        transport = self.endpoint.succeed()
        transport.stubborn = True
        self.clock.advance(ANSWER_SECONDS)
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(transport.aborted)
        self.assertIn("no answer to SUBSCRIBE within 5 s", self.told()[0])


class CredentialTests(RedisTestCase):
    """A user and a password."""

    username = "node"
    password = "t0p-s3cret"
    AUTH = command(b"AUTH", b"node", b"t0p-s3cret")

    def test_right(self) -> None:
        """The password comes first, then the subscription."""
        transport = self.endpoint.succeed()
        self.assertEqual(transport.say(b"+OK\r\n"), self.AUTH)
        self.assertEqual(transport.say(SUBSCRIBED + message(b"x")), SUBSCRIBE)
        self.assertEqual(self.bodies(), [b"x"])

    def refuse(self, answer: bytes) -> None:
        """One attempt at whose AUTH the server answers so."""
        transport = self.endpoint.succeed()
        transport.say(b"-" + answer + b"\r\n")
        self.assertTrue(transport.is_lost)
        self.clock.advance(RETRY_SECONDS[1])

    def test_wrong(self) -> None:
        """That it is wrong is told once, and tried on, until it is right."""
        for _ in range(5):
            self.refuse(b"WRONGPASS invalid username-password pair or user is disabled.")
        self.assertIn("AUTH was refused (wrong user name or password)", "".join(self.told()))
        transport = self.endpoint.succeed()
        transport.say(b"+OK\r\n")
        transport.say(SUBSCRIBED)
        self.assertEqual(len(self.told()), 1)

    def test_no_password_there(self) -> None:
        """That the server has no password, while one is set here, is told in words."""
        self.refuse(b"ERR AUTH <password> called without any password configured for the default user.")
        self.assertIn(
            "AUTH was refused (the server has no password, or does not support user names or AUTH)",
            "".join(self.told()),
        )

    def test_once_for_each_change(self) -> None:
        """Another problem is told, and so is the first when it comes again."""
        for _ in range(3):
            self.refuse(b"WRONGPASS no")
        for _ in range(3):
            self.endpoint.fail(error.ConnectionRefusedError("no"))
            self.clock.advance(RETRY_SECONDS[1])
        for _ in range(3):
            self.refuse(b"WRONGPASS no")
        self.assertEqual([line.split(":")[0] for line in self.told()], ["warn"] * 3)

    def test_never_shown(self) -> None:
        """No log shows the password, not even where the server repeats it."""
        self.refuse(b"ERR unknown command 'AUTH', with args beginning with: 'node' 't0p-s3cret'")
        self.refuse(b"t0p")
        transport = self.endpoint.succeed()
        transport.lose(error.ConnectionLost())
        told = "".join(self.told())
        self.assertNotIn("s3cret", told)
        self.assertIn("AUTH was refused (the server has no password, or ", told)

    def test_no_right(self) -> None:
        """A user without the right to the channel is told so, and tried on."""
        for _ in range(3):
            transport = self.endpoint.succeed()
            transport.say(b"+OK\r\n")
            transport.say(b"-NOPERM No permissions to access a channel\r\n")
            self.assertTrue(transport.is_lost)
            self.clock.advance(RETRY_SECONDS[1])
        [warning] = self.told()
        self.assertIn("SUBSCRIBE was refused (the user has no permission for this channel)", warning)

    def test_lost_at_auth(self) -> None:
        """A connection that is lost during AUTH does not end it."""
        self.endpoint.succeed().lose(error.ConnectionLost())
        self.clock.advance(RETRY_SECONDS[1])
        self.assertEqual(len(self.endpoint.attempts), 2)


class StopTests(RedisTestCase):
    """The stop leaves nothing behind, wherever it comes."""

    def assert_stopped(self) -> None:
        """It stops, and does nothing more."""
        self.successResultOf(self.source.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        attempts = len(self.endpoint.attempts)
        self.clock.pump([10.0] * 10)
        self.assertEqual(len(self.endpoint.attempts), attempts)
        self.assertEqual([line for line in self.told() if line.startswith(("warn", "error", "critical"))], [])

    def test_connecting(self) -> None:
        """While it connects."""
        self.assert_stopped()

    def test_subscribing(self) -> None:
        """While it subscribes."""
        self.endpoint.succeed()
        self.assert_stopped()

    def test_subscribed(self) -> None:
        """While it is subscribed, and asks whether the server is there."""
        transport = self.subscribe()
        self.clock.advance(CHECK_SECONDS)
        self.assert_stopped()
        self.assertTrue(transport.is_lost)

    def test_pausing(self) -> None:
        """While it waits to connect again."""
        self.endpoint.fail(error.ConnectionRefusedError("no"))
        self.told()
        self.assert_stopped()

    def test_stubborn(self) -> None:
        """It waits for a connection that doesn't close, until that is closed by force."""
        transport = self.subscribe()
        transport.stubborn = True
        stopped = self.source.stopService()
        self.assertNoResult(stopped)
        self.clock.advance(CLOSE_SECONDS)
        self.successResultOf(stopped)
        self.assertTrue(transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_while_closing(self) -> None:
        """It waits likewise where the connection was being closed for another reason."""
        transport = self.endpoint.succeed()
        transport.stubborn = True
        transport.say(b"-NOAUTH Authentication required.\r\n")
        stopped = self.source.stopService()
        self.assertNoResult(stopped)
        self.clock.advance(CLOSE_SECONDS)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_again(self) -> None:
        """What was stopped can be started, and stopped twice."""
        self.assert_stopped()
        self.assert_stopped()
        self.source.startService()
        self.subscribe().say(message(b"x"))
        self.assertEqual(self.bodies(), [b"x"])


class CertificateTests(unittest.SynchronousTestCase):
    """The file of certificates is read at the start, not before."""

    def problem_with(self, path: str) -> str:
        """What the start says."""
        source = RedisSource(
            Clock(), MemorySink(), host="localhost", port=6379, channel="c", tls=True, ca_file=path
        )
        return str(self.assertRaises(SettingsError, source.startService))

    def test_unreadable(self) -> None:
        """A file that isn't there, or holds none, is the operator's fault."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name) / "ca.pem"
        self.assertIn("redis.cafile", self.problem_with(str(path)))
        path.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
        self.assertIn("must be a file of PEM certificates", self.problem_with(str(path)))
        path.write_text("no")
        self.assertIn("contains none", self.problem_with(str(path)))
