"""The HTTP client, without a network."""

from __future__ import annotations

import gc
import io
import weakref
from typing import Any

from twisted.internet import defer, error, main
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial import unittest

from pcapsvc.core.errors import FAULT
from pcapsvc.net.file_body import FileBody
from pcapsvc.net.http_client import MAX_BODY_PIECES, exchange, failure_words, secured
from pcapsvc.net.metered_endpoint import READ_BYTES
from pcapsvc.testing import run_now
from tests.unit.http_case import TurnClock


class Transport(StringTransport):
    """A connection that can be aborted."""

    protocol: Any = None

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing."""

    def abortConnection(self, reason: Exception | None = None) -> None:
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connectionLost(Failure(reason or error.ConnectionAborted()))


class Endpoint:
    """An endpoint whose connection is made at once."""

    def connect(self, factory: Any) -> defer.Deferred[Any]:
        self.transport = Transport()
        self.transport.protocol = factory.buildProtocol(None)
        self.transport.protocol.makeConnection(self.transport)
        return defer.succeed(self.transport.protocol)


class Opaque:
    """Twisted's client, as in a version that has other private attributes."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.client, name)


class OpaqueEndpoint(Endpoint):
    """An endpoint on which Twisted's client is opaque."""

    client = Opaque

    def connect(self, factory: Any) -> defer.Deferred[Any]:
        build = factory.wrappedFactory.buildProtocol
        factory.wrappedFactory.buildProtocol = lambda address: self.client(build(address))
        return super().connect(factory)


class Faulty(Opaque):
    """Twisted's client with a fault: it processes one piece of a response, and nothing after it."""

    is_broken = False

    def dataReceived(self, data: bytes) -> None:
        if self.is_broken:
            raise ZeroDivisionError
        self.is_broken = True
        self.client.dataReceived(data)

    def connectionLost(self, reason: Any) -> None:
        """Nothing."""


class FaultyEndpoint(OpaqueEndpoint):
    """An endpoint on which Twisted's client has a fault."""

    client = Faulty


class Body:
    """A body that is being sent until C{sent} fires."""

    length = 9

    def __init__(self) -> None:
        self.sent: defer.Deferred[None] = defer.Deferred()

    def startProducing(self, consumer: Any) -> defer.Deferred[None]:
        consumer.write(b"123456789")
        return self.sent

    def stopProducing(self) -> None:
        """Nothing."""

    def pauseProducing(self) -> None:
        """Nothing."""

    def resumeProducing(self) -> None:
        """Nothing."""


class HostileServerTests(unittest.SynchronousTestCase):
    """Whatever a server sends, the exchange ends with an error, and nothing is logged."""

    def setUp(self) -> None:
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def begin(self, body: Any = None, endpoint: Any = None) -> tuple[Any, defer.Deferred[Any]]:
        """The connection of an exchange, and what the exchange fires with."""
        endpoint = endpoint or Endpoint()
        self.clock = TurnClock()
        coroutine = exchange(self.clock, endpoint, "PUT", "http://localhost/", {}, body)
        return endpoint, defer.Deferred.fromCoroutine(coroutine)

    def test_without_private_attributes(self) -> None:
        """
        What is known of Twisted's client from private attributes is not needed: in a version without them,
        responses are read all the same, and a malformed one ends the exchange.
        """
        endpoint, done = self.begin(endpoint=OpaqueEndpoint())
        endpoint.transport.protocol.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        self.assertEqual(b"hi", self.successResultOf(done).body)
        endpoint, done = self.begin(Body(), OpaqueEndpoint())
        endpoint.transport.protocol.dataReceived(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
        )
        endpoint.transport.abortConnection()
        self.failureResultOf(done, error.ConnectionLost)
        gc.collect()
        self.flushLoggedErrors()

    def test_malformed(self) -> None:
        """A malformed response that arrives while the request is sent leaves no unhandled error."""
        body = Body()
        endpoint, done = self.begin(body)
        endpoint.transport.protocol.dataReceived(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
        )
        endpoint.transport.abortConnection()
        body.sent.callback(None)
        self.failureResultOf(done, error.ConnectionLost)
        gc.collect()
        self.assertEqual(self.events, [])

    def test_unreadable(self) -> None:
        """What can't be parsed is reported in the same words, with nothing that the server said."""
        for rest in (
            b"Content-Length: secret\r\n\r\n",
            b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"Transfer-Encoding: secret\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\nsecret\r\n",
            b"secret\r\n\r\n",
            b"secret\xff: a\r\n\r\n",
            b": secret\r\n\r\n",
            b" secret\r\n\r\n",
        ):
            endpoint, done = self.begin()
            endpoint.transport.protocol.dataReceived(b"HTTP/1.1 200 OK\r\n" + rest)
            error = self.failureResultOf(done, ConnectionError).value
            self.assertEqual(
                failure_words(error, "host"), ("the server sent a malformed HTTP response", True)
            )
        self.assertEqual(self.events, [])

    def test_lost(self) -> None:
        """Twisted has one exception for all connections that are lost. It keeps nothing of an exchange."""
        for shared in (main.CONNECTION_LOST, main.CONNECTION_DONE):
            body = Body()
            endpoint, done = self.begin(body)
            endpoint.transport.abortConnection(shared)
            self.assertIsNot(self.failureResultOf(done).value, shared)
            kept = weakref.ref(body)
            del body, endpoint, done
            gc.collect()
            self.assertIsNone(kept())

    def test_interim(self) -> None:
        """Up to ten interim responses are skipped, however they are split; more of them are an error."""
        interim, final = b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 204 Done\r\n\r\n"
        endpoint, done = self.begin()
        for byte in interim * 10 + final:
            if endpoint.transport.protocol is not None:
                endpoint.transport.protocol.dataReceived(bytes([byte]))
        self.assertEqual(self.successResultOf(done).code, 204)
        endpoint, done = self.begin()
        endpoint.transport.protocol.dataReceived(interim * 11)
        self.assertIn("interim", str(self.failureResultOf(done, ConnectionError).value))
        self.assertEqual([each for each in self.events if "Ignoring" in str(each.get("log_format"))], [])

    def test_tiny_chunks(self) -> None:
        """
        What arrives at once is processed in pieces, each in a turn of its own, however it is divided. No more
        is read meanwhile.
        """
        endpoint, done = self.begin()
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        endpoint.transport.protocol.dataReceived(head + b"1\r\nx\r\n" * 1999 + b"0\r\n\r\n")
        turns = 0
        while not done.called:
            self.assertEqual(endpoint.transport.producerState, "paused")
            self.clock.advance(0)
            turns += 1
        self.assertGreaterEqual(turns, 6 * 1999 // 2048)
        self.assertEqual(self.successResultOf(done).body, b"x" * 1999)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_too_many_chunks(self) -> None:
        """A body in too many pieces is like one that is too long: its beginning is read, and no more."""
        endpoint, done = self.begin()
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        endpoint.transport.protocol.dataReceived(head + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")
        self.clock.pump([0] * (6 * MAX_BODY_PIECES // 2048))
        self.assertEqual(self.successResultOf(done).body, b"x" * MAX_BODY_PIECES)
        self.assertIsNone(endpoint.transport.protocol)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closed_after_response(self) -> None:
        """If the server closes the connection, what had arrived before is read to its end."""
        endpoint, done = self.begin()
        endpoint.transport.protocol.dataReceived(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10_000)
        endpoint.transport.abortConnection(main.CONNECTION_DONE)
        self.assertNoResult(done)
        self.clock.pump([0] * 10)
        self.assertEqual(self.successResultOf(done).body, b"x" * 10_000)

    def test_cancelled(self) -> None:
        """Once an exchange is cancelled, nothing is processed any more, whether or not it is connected."""
        for is_lost in (False, True):
            endpoint, done = self.begin()
            endpoint.transport.protocol.dataReceived(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10_000)
            if is_lost:
                endpoint.transport.abortConnection(main.CONNECTION_DONE)
            done.cancel()
            self.failureResultOf(done)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_fault(self) -> None:
        """
        An error in the processing of a response ends the exchange and the connection, whatever Twisted's
        client does then. The error itself is raised, to be logged.
        """
        for head in (b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\na: " + b"b" * 3000 + b"\r\n\r\n"):
            endpoint, done = self.begin(endpoint=FaultyEndpoint())
            endpoint.transport.protocol.dataReceived(head + b"x" * 10_000)
            self.assertNoResult(done)
            self.assertRaises(ZeroDivisionError, self.clock.pump, [0] * 10)
            error = self.failureResultOf(done, ConnectionError).value
            self.assertEqual(failure_words(error, "host"), (FAULT, True))
            self.assertIsNone(endpoint.transport.protocol)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_fault_of_body(self) -> None:
        """An error in the sending of a body is not the server's: it is logged, and doesn't pass."""
        closed = io.BytesIO(b"123456789")
        closed.close()
        _, done = self.begin(FileBody(closed, 9, run_now))
        self.assertEqual(failure_words(self.failureResultOf(done).value, "host"), (FAULT, False))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_body_that_cannot_be_read(self) -> None:
        """If a body can't be read for now, that is reported as it is."""
        _, done = self.begin(FileBody(io.BytesIO(b"12"), 9, run_now))
        error = self.failureResultOf(done).value
        self.assertEqual(failure_words(error, "host"), ("only 2 of 9 bytes could be read", True))
        self.assertEqual(self.events, [])

    def test_long_body(self) -> None:
        """The framing of chunks counts. If there is too much of it, that is the error."""
        endpoint, done = self.begin()
        endpoint.transport.protocol.dataReceived(
            b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;%b\r\nx\r\n" % (b"e" * 1000) * 150
        )
        self.clock.pump([0] * 100)
        error = self.failureResultOf(done, ConnectionError).value
        self.assertEqual(str(error), "the response is longer than 131072 bytes")

    def test_long_head(self) -> None:
        """A head of too many lines ends the exchange, and so does one that is too long."""
        for more in (b"a:b\r\n" * 1000, b"a: " + b"b" * 20_000 + b"\r\n"):
            endpoint, done = self.begin()
            endpoint.transport.protocol.dataReceived(b"HTTP/1.1 201 Created\r\n" + more + b"\r\n")
            self.clock.pump([0] * 10)
            self.assertIn("the head of the response", str(self.failureResultOf(done, ConnectionError).value))
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_metered(self) -> None:
        """With and without TLS, what a server sends is counted, and little of it is read in a turn."""
        for scheme in ("http", "https"):
            clients = MemoryReactorClock()
            plain = TCP4ClientEndpoint(clients, "127.0.0.1", 8443)
            securing = defer.Deferred.fromCoroutine(secured(plain, scheme, "localhost", False, run_now))
            self.successResultOf(securing).connect(Factory.forProtocol(Protocol))
            transport = Transport()
            clients.tcpClients[0][2].buildProtocol(None).makeConnection(transport)
            self.assertEqual(transport.bufferSize, READ_BYTES)  # type: ignore[attr-defined]
