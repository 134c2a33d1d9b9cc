"""What servers may send, in one turn of the reactor and altogether."""

from __future__ import annotations

from twisted.internet import error, reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.testing import AccumulatingProtocol, MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from pcapsvc.net.metered_endpoint import MAX_RECORDS, READ_BYTES, MeteredEndpoint
from pcapsvc.net.tls import UnverifiedTLS
from tests.unit.test_tls import Client, TLSTestCase


class Transport(StringTransport):
    """A connection that is lost when it is aborted."""

    def abortConnection(self) -> None:
        super().abortConnection()
        self.protocol.connectionLost(Failure(error.ConnectionAborted()))


class MeteredEndpointTests(unittest.SynchronousTestCase):
    """L{MeteredEndpoint}."""

    def setUp(self) -> None:
        reactor = MemoryReactorClock()
        endpoint = MeteredEndpoint(TCP4ClientEndpoint(reactor, "127.0.0.1", 80), 10)
        verifyObject(IStreamClientEndpoint, endpoint)
        users = Factory.forProtocol(AccumulatingProtocol)
        users.protocolConnectionMade = None  # type: ignore[attr-defined]
        connecting = endpoint.connect(users)
        [(_, _, factory, *_)] = reactor.tcpClients
        self.transport = Transport()
        self.transport.protocol = factory.buildProtocol(None)
        self.transport.protocol.makeConnection(self.transport)
        self.client = self.successResultOf(connecting)

    def test_within(self) -> None:
        """What is within the limit is passed on, and so is the end."""
        self.transport.protocol.dataReceived(b"12345")
        self.transport.protocol.dataReceived(b"67890")
        self.transport.protocol.connectionLost(Failure(error.ConnectionDone()))
        self.assertEqual(self.client.data, b"1234567890")
        self.assertTrue(self.client.closedReason.check(error.ConnectionDone))

    def test_beyond(self) -> None:
        """If there is more, the connection is closed, and the reason says why."""
        self.transport.protocol.dataReceived(b"1234567890")
        self.transport.protocol.dataReceived(b"1")
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(self.client.data, b"1234567890")
        self.assertEqual(str(self.client.closedReason.value), "the server sent more than 10 bytes")

    def test_turn(self) -> None:
        """Little is read in one turn."""
        self.assertEqual(self.transport.bufferSize, READ_BYTES)  # type: ignore[attr-defined]

    def test_writing(self) -> None:
        """What the client sends is sent."""
        self.client.transport.write(b"hello")
        self.assertEqual(self.transport.value(), b"hello")


class RecordTests(unittest.SynchronousTestCase):
    """Records of TLS, from a server that sends a handshake byte by byte."""

    # A ServerHello of 16 KiB begins (RFC 8446, section 4).
    begin = b"\x16\x03\x03\x00\x04\x02\x00\x40\x00"
    record = b"\x16\x03\x03\x00\x01\x00"

    def setUp(self) -> None:
        memory = MemoryReactorClock()
        metered = MeteredEndpoint(TCP4ClientEndpoint(memory, "127.0.0.1", 443), 100_000)
        self.client = AccumulatingProtocol()
        users = Factory.forProtocol(lambda: self.client)  # type: ignore[arg-type]
        users.protocolConnectionMade = None  # type: ignore[attr-defined]
        connecting = wrapClientTLS(UnverifiedTLS("localhost"), metered).connect(users)
        [(_, _, factory, *_)] = memory.tcpClients
        self.transport = Transport()
        self.transport.protocol = factory.buildProtocol(None)
        self.transport.protocol.makeConnection(self.transport)
        self.successResultOf(connecting)

    def receive(self, data: bytes, piece_bytes: int) -> None:
        """The data arrive in pieces, until the connection is closed."""
        for start in range(0, len(data), piece_bytes):
            if not self.transport.disconnected:
                self.transport.protocol.dataReceived(data[start : start + piece_bytes])

    def test_too_many(self) -> None:
        """If there are too many records, the connection is closed, and the reason says why."""
        for piece_bytes in (1, 7, 2048):
            self.setUp()
            self.receive(self.begin + self.record * (MAX_RECORDS - 1), piece_bytes)
            self.assertFalse(self.transport.disconnected)
            self.receive(self.record, piece_bytes)
            self.assertTrue(self.transport.disconnected)
            self.assertEqual(
                str(self.client.closedReason.value), f"the server sent more than {MAX_RECORDS} TLS records"
            )


class TLSTests(TLSTestCase):
    """L{MeteredEndpoint} beneath TLS."""

    async def connect_with(self, most_bytes: int) -> bytes:
        """What the server sends, if it is not too much."""
        client = Client()
        plain = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        metered = MeteredEndpoint(plain, most_bytes)
        factory = Factory.forProtocol(lambda: client)  # type: ignore[arg-type]
        factory.noisy = False
        await wrapClientTLS(UnverifiedTLS("localhost"), metered).connect(factory)
        return await client.done

    async def test_records(self) -> None:
        """All records count, also those of the handshake. The reason is the same."""
        await self.serve()
        self.assertEqual(await self.connect_with(100_000), b"hello")
        error = await self.assertFailure(ensureDeferred(self.connect_with(100)), ConnectionError)
        self.assertEqual(str(error), "the server sent more than 100 bytes")
