"""Events to a Redis channel, without a network. See C{tests.integration.test_event_channels} as well."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer, error
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.trial import unittest
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pcapsvc.core.report_queue import Report
from pcapsvc.interfaces.reports import IPublisher, Published
from pcapsvc.net.redis import ANSWER_SECONDS, ProtocolError, Refused, Silent
from pcapsvc.reports.redis.publisher import MAX_ANSWER_BYTES, RedisPublisher
from tests.unit.redis_case import Transport, command

EVENTS = [Report(f"e{number}", None, False, b'{"number":%d}' % number) for number in range(3)]


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Connects to the test."""

    def __init__(self) -> None:
        self.transport: Transport | None = None

    def connect(self, protocolFactory: Any) -> defer.Deferred[Any]:
        """Connect."""
        protocol = protocolFactory.buildProtocol(None)
        self.transport = Transport(protocol)
        protocol.makeConnection(self.transport)
        return defer.succeed(protocol)


class RedisPublisherTests(unittest.SynchronousTestCase):
    """A publisher to a server that the test plays."""

    def setUp(self) -> None:
        """A publisher without a password."""
        self.clock, self.endpoint = Clock(), Endpoint()
        self.publisher = self.make()
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def make(self, **login: str) -> RedisPublisher:
        """A publisher."""
        return RedisPublisher(
            self.clock,
            host="a",
            port=1,
            channel="capture-events",
            make_endpoint=lambda: self.endpoint,
            **login,
        )

    @property
    def transport(self) -> Transport:
        """The connection."""
        assert self.endpoint.transport is not None
        return self.endpoint.transport

    def opened(self) -> None:
        """Connect."""
        opening = self.publisher.open()
        self.allow()
        self.assertIs(self.successResultOf(opening), True)

    def allow(self) -> None:
        """Answer as Redis does if the user may publish."""
        self.asked(b"DISCARD")
        self.transport.say(b"-ERR DISCARD without MULTI\r\n")
        self.asked(b"MULTI")
        self.transport.say(b"+OK\r\n")
        self.assertEqual(
            self.transport.value(), command(b"PUBLISH", b"capture-events", b"") + command(b"DISCARD")
        )
        self.transport.clear()
        self.transport.say(b"+QUEUED\r\n+OK\r\n")

    def asked(self, *words: bytes) -> None:
        """It has sent this command, and nothing else since."""
        self.assertEqual(self.transport.value(), command(*words))
        self.transport.clear()

    def closed(self) -> None:
        """Disconnect."""
        self.successResultOf(self.publisher.close())

    def test_interface(self) -> None:
        """It is a publisher."""
        verifyObject(IPublisher, self.publisher)
        self.assertEqual(self.publisher.server, "Redis a:1")
        self.assertEqual(self.publisher.target, "channel 'capture-events'")

    def test_published(self) -> None:
        """All events are sent at once, and have arrived when Redis has answered for each of them."""
        self.opened()
        publishing = self.publisher.publish(EVENTS)
        sent = b"".join(command(b"PUBLISH", b"capture-events", event.json) for event in EVENTS)
        self.assertEqual(self.transport.value(), sent)
        self.transport.say(b":0\r\n:1\r")
        self.assertNoResult(publishing)
        self.transport.say(b"\n:12\r\n")
        self.assertEqual(self.successResultOf(publishing), Published(arrived=EVENTS))
        self.closed()

    def test_login(self) -> None:
        """It logs in before anything else, as a user or without one."""
        for login, words in (
            ({"password": "p"}, [b"AUTH", b"p"]),
            ({"username": "u", "password": "p"}, [b"AUTH", b"u", b"p"]),
        ):
            self.publisher = self.make(**login)
            opening = self.publisher.open()
            self.asked(*words)
            self.transport.say(b"+OK\r\n")
            self.allow()
            self.assertIs(self.successResultOf(opening), True)
            self.closed()

    def test_wrong_password(self) -> None:
        """A refusal is reported without the server's own words, which might repeat the password."""
        self.publisher = self.make(password="hunter2")
        opening = self.publisher.open()
        self.transport.say(b"-WRONGPASS it is not hunter2\r\n")
        problem = self.failureResultOf(opening, Refused).value
        self.assertEqual(
            self.publisher.described(problem),
            ("WRONGPASS", "AUTH was refused (wrong user name or password)"),
        )
        self.closed()

    def test_not_allowed(self) -> None:
        """If the user may not publish, or hasn't logged in, that is known before there is an event."""
        for answers, words in (
            ((b"-NOAUTH no\r\n",), "PUBLISH was refused (the server requires a password"),
            (
                (b"-ERR DISCARD without MULTI\r\n", b"+OK\r\n", b"-NOPERM no\r\n+OK\r\n"),
                "PUBLISH was refused",
            ),
        ):
            opening = self.publisher.open()
            for answer in answers:
                self.transport.say(answer)
            problem = self.failureResultOf(opening, Refused).value
            self.assertIn(words, self.publisher.described(problem)[1])
            self.closed()

    def test_unknown_whether_allowed(self) -> None:
        """If there are no transactions, or not for this user, it is known with the first event only."""
        for answers in (
            (b"-NOPERM no\r\n",),
            (b"-ERR unknown command\r\n",),
            (b"-ERR DISCARD without MULTI\r\n", b"-NOPERM no\r\n"),
        ):
            opening = self.publisher.open()
            for answer in answers:
                self.transport.say(answer)
            self.assertIs(self.successResultOf(opening), False)
            self.assertNotIn(b"PUBLISH", self.transport.value())
            self.closed()

    def test_silent_from_the_start(self) -> None:
        """A server that accepts connections and never answers is not connected."""
        opening = self.publisher.open()
        self.clock.advance(ANSWER_SECONDS)
        self.failureResultOf(opening, Silent)
        self.closed()

    def test_refused(self) -> None:
        """If one event is refused, all of them may have to be sent again."""
        self.opened()
        publishing = self.publisher.publish(EVENTS)
        self.transport.say(b":1\r\n-NOPERM no\r\n:1\r\n")
        problem = self.failureResultOf(publishing, Refused).value
        self.assertIn("no permission for this channel", self.publisher.described(problem)[1])
        self.closed()

    def test_silent(self) -> None:
        """A server that doesn't answer in time is given up."""
        self.opened()
        publishing = self.publisher.publish(EVENTS)
        self.transport.say(b":1\r\n")
        self.clock.advance(ANSWER_SECONDS)
        self.failureResultOf(publishing, Silent)
        self.transport.say(b":1\r\n:1\r\n")
        self.closed()

    def test_not_redis(self) -> None:
        """Whatever isn't an answer to what was asked ends the connection; nothing of it is kept."""
        for nonsense in (
            b"HTTP/1.1 400 Bad Request\r\n",
            b"$3\r\nabc\r\n",
            b":1\r\n:1\r\n:1\r\n:1\r\n",
            b"+" + b"x" * MAX_ANSWER_BYTES + b"\r\n",
            b"x" * (MAX_ANSWER_BYTES + 1),
        ):
            self.opened()
            lost = self.publisher.when_lost()
            publishing = self.publisher.publish(EVENTS)
            publishing.addErrback(lambda why: why.trap(ProtocolError))
            self.transport.say(nonsense)
            self.assertTrue(self.transport.aborted, nonsense)
            self.failureResultOf(lost, ProtocolError)
            self.successResultOf(publishing)
            self.closed()

    def test_lost(self) -> None:
        """A lost connection fails what is being published; if nothing is, the loss is reported."""
        self.opened()
        publishing, lost = self.publisher.publish(EVENTS), self.publisher.when_lost()
        self.transport.lose(error.ConnectionLost())
        self.failureResultOf(publishing, error.ConnectionLost)
        self.failureResultOf(lost, error.ConnectionLost)
        self.failureResultOf(self.publisher.publish(EVENTS), error.ConnectionLost)
        self.failureResultOf(self.publisher.when_lost(), error.ConnectionLost)
        self.closed()

    def test_a_wait_that_is_cancelled(self) -> None:
        """Who doesn't wait any more for the loss of the connection doesn't end it."""
        self.opened()
        self.publisher.when_lost().cancel()
        self.assertFalse(self.transport.is_lost)
        self.closed()

    def test_stubborn(self) -> None:
        """A connection that doesn't close is aborted after a second."""
        self.opened()
        self.transport.stubborn = True
        closing = self.publisher.close()
        self.assertNoResult(closing)
        self.clock.advance(1)
        self.successResultOf(closing)
        self.assertTrue(self.transport.aborted)

    def test_closed_before(self) -> None:
        """Closing what isn't open does nothing."""
        self.closed()
