"""Connecting to hosts by name."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.defer import fail, succeed
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IHostnameResolver, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from pcapsvc.net.named_endpoint import NamedEndpoint
from pcapsvc.net.names import ReactorWithResolver, ThreadedResolver
from pcapsvc.net.tls import UnverifiedTLS


class NamedEndpointTests(SynchronousTestCase):
    """L{NamedEndpoint}."""

    def connecting(self, looked_up: Any) -> Any:
        """A connection to a host, whose look-up has this result."""
        self.reactor = MemoryReactorClock()
        resolver = ThreadedResolver(lambda *_: looked_up)
        self.assertTrue(verifyObject(IHostnameResolver, resolver))
        endpoint = NamedEndpoint(
            ReactorWithResolver(self.reactor, resolver), "a.example", 80, timeout_seconds=7.0
        )
        self.assertTrue(verifyObject(IStreamClientEndpoint, endpoint))
        return endpoint.connect(Factory.forProtocol(Protocol))

    def test_found(self) -> None:
        """An address that was found is connected to."""
        connecting = self.connecting(
            succeed([(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))])
        )
        self.assertNoResult(connecting)
        [(host, port, _, timeout_seconds, _)] = self.reactor.tcpClients
        self.assertEqual((host, port, timeout_seconds), ("192.0.2.1", 80, 7.0))
        connecting.addErrback(lambda _: None).cancel()

    def test_address(self) -> None:
        """What is an address already is connected to without looking anything up."""
        reactor = MemoryReactorClock()
        endpoint = NamedEndpoint(ReactorWithResolver(reactor, None), "192.0.2.1", 80, timeout_seconds=7.0)
        connecting = endpoint.connect(Factory.forProtocol(Protocol))
        self.assertNoResult(connecting)
        [(host, port, _, timeout_seconds, _)] = reactor.tcpClients
        self.assertEqual((host, port, timeout_seconds), ("192.0.2.1", 80, 7.0))
        connecting.addErrback(lambda _: None).cancel()

    def test_read_size(self) -> None:
        """How much is read in one turn can be limited: that of the socket, also beneath TLS."""
        for wrap in (lambda plain: plain, lambda plain: wrapClientTLS(UnverifiedTLS("localhost"), plain)):
            for host, read_bytes in (("192.0.2.1", 1000), ("192.0.2.1", None), ("localhost", 1000)):
                reactor = MemoryReactorClock()
                resolver = ThreadedResolver(
                    lambda *_: succeed([(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))])
                )
                endpoint = NamedEndpoint(
                    ReactorWithResolver(reactor, resolver), host, 80, read_bytes=read_bytes
                )
                connecting = wrap(endpoint).connect(Factory.forProtocol(Protocol))
                [(_, _, factory, *_)] = reactor.tcpClients
                transport = StringTransport()
                factory.buildProtocol(None).makeConnection(transport)
                self.successResultOf(connecting)
                self.assertEqual(getattr(transport, "bufferSize", None), read_bytes)

    def test_problem(self) -> None:
        """If the look-up can't be made, the reason is what connecting fails with."""
        problem = OSError(errno.EMFILE, "Too many open files")
        self.assertIs(self.failureResultOf(self.connecting(fail(problem))).value, problem)

    def test_not_found(self) -> None:
        """A host that doesn't exist is not found."""
        unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self.failureResultOf(self.connecting(fail(unknown)), DNSLookupError)
