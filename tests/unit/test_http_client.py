"""The HTTP client, without a network."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from twisted.internet import defer, error, main
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial import unittest

from pcapsvc.net.http_client import exchange


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

    def connect(self, factory: Any) -> defer.Deferred[Any]:
        build = factory.wrappedFactory.buildProtocol
        factory.wrappedFactory.buildProtocol = lambda address: Opaque(build(address))
        return super().connect(factory)


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


class HostileServerTests(unittest.SynchronousTestCase):
    """Whatever a server sends, the exchange ends with an error, and nothing is logged."""

    def setUp(self) -> None:
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def begin(self, body: Any = None, endpoint: Any = None) -> tuple[Any, defer.Deferred[Any]]:
        """The connection of an exchange, and what the exchange fires with."""
        endpoint = endpoint or Endpoint()
        coroutine = exchange(Clock(), endpoint, "PUT", "http://localhost/", {}, body)
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
        endpoint.transport.protocol.dataReceived(b"HTTP/1.1 abc X\r\nContent-Length: 0\r\n\r\n")
        endpoint.transport.abortConnection()
        self.failureResultOf(done, error.ConnectionLost)
        gc.collect()
        self.flushLoggedErrors()

    def test_malformed(self) -> None:
        """A malformed response that arrives while the request is sent leaves no unhandled error."""
        body = Body()
        endpoint, done = self.begin(body)
        endpoint.transport.protocol.dataReceived(b"HTTP/1.1 abc X\r\nContent-Length: 0\r\n\r\n")
        endpoint.transport.abortConnection()
        body.sent.callback(None)
        self.failureResultOf(done, error.ConnectionLost)
        gc.collect()
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
