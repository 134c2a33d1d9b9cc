"""TLS clients, and servers on loopback."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import defer, endpoints, reactor, ssl
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial import unittest

from pcapsvc.net.pem import UnusableCertificates
from pcapsvc.net.tls import UnverifiedTLS, tls_problem, verified_tls
from peers.certificates import LABELS, Authority, labelled


class Greeter(Protocol):
    """Sends a greeting, and closes the connection."""

    def connectionMade(self) -> None:
        self.transport.write(b"hello")
        self.transport.loseConnection()


class Client(Protocol):
    """
    Receives until the end.

    @ivar done: fires with what was received; fails with what ended the connection before that.
    """

    def __init__(self) -> None:
        self.done: defer.Deferred[bytes] = defer.Deferred()
        self.received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.received:
            self.done.callback(self.received)
        else:
            self.done.errback(reason)


class TLSTestCase(unittest.TestCase):
    """A server on loopback with a certificate of an authority."""

    timeout = 300
    protocol: type[Protocol] = Greeter

    async def serve(self, *hosts: str) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.authority = Authority(self.directory)
        self.issued = self.authority.issue("server", hosts or ("localhost",))
        pair = ssl.PrivateCertificate.loadPEM(
            self.issued.certificate.read_bytes() + self.issued.key.read_bytes()
        )
        factory = Factory.forProtocol(self.protocol)
        factory.noisy = False
        port = await endpoints.serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(
            _TLSFactory(pair.options(), factory)
        )
        self.addCleanup(port.stopListening)
        self.port = port.getHost().port

    async def connect(self, creator: Any) -> bytes:
        """What the server sends."""
        client = Client()
        plain = endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        await endpoints.wrapClientTLS(creator, plain).connect(_Once(client))
        return await client.done


def _TLSFactory(options: Any, factory: Factory) -> Any:
    made = TLSMemoryBIOFactory(options, False, factory)
    made.noisy = False
    return made


class _Once(Factory):
    noisy = False

    def __init__(self, client: Client) -> None:
        self._client = client

    def buildProtocol(self, addr: Any) -> Client:
        return self._client


class VerifiedTests(TLSTestCase):
    """L{verified_tls} connects to servers whose certificate is vouched for, and to no others."""

    async def test_labels(self) -> None:
        """The certificates of the file may have any of their labels."""
        await self.serve()
        for label in LABELS:
            ca_file = labelled(self.authority.file, label)
            self.assertEqual(b"hello", await self.connect(verified_tls("localhost", str(ca_file))), label)

    async def test_read_once(self) -> None:
        """Certificates are read when it is made, those of the platform too, and not for each connection."""
        await self.serve()
        mine = self.directory / "mine.pem"
        for ca_file in (None, str(mine)):
            mine.write_bytes(self.authority.file.read_bytes())
            # OpenSSL, SSL_CTX_set_default_verify_paths(3)
            environment = {"SSL_CERT_FILE": str(mine), "SSL_CERT_DIR": str(self.directory / "none")}
            for name, value in environment.items():
                os.putenv(name, value)
                self.addCleanup(os.unsetenv, name)
            creator = verified_tls("localhost", ca_file)
            mine.unlink()
            for _ in range(2):
                self.assertEqual(b"hello", await self.connect(creator))

    async def test_server_certificate_alone(self) -> None:
        """The file may name the server's own certificate, and not who issued it."""
        await self.serve()
        for label in LABELS:
            ca_file = labelled(self.issued.certificate, label)
            self.assertEqual(b"hello", await self.connect(verified_tls("localhost", str(ca_file))), label)

    async def test_several_connections(self) -> None:
        """What was read once serves many connections, though the file goes away."""
        await self.serve()
        creator = verified_tls("localhost", str(self.authority.file))
        self.authority.file.unlink()
        for _ in range(2):
            self.assertEqual(b"hello", await self.connect(creator))

    async def test_stranger(self) -> None:
        """A certificate whose issuer is not in the file, or is unknown to the platform, is refused."""
        await self.serve()
        for ca_file in (str(Authority(self.directory, "stranger").file), None):
            error = await self.assertFailure(
                defer.ensureDeferred(self.connect(verified_tls("localhost", ca_file))), SSL.Error
            )
            self.assertEqual("certificate verify failed", tls_problem(error))

    async def test_another_host(self) -> None:
        """A certificate for another host is refused, though it is in the file itself."""
        await self.serve("other.example")
        for ca_file in (self.authority.file, self.issued.certificate):
            error = await self.assertFailure(
                defer.ensureDeferred(self.connect(verified_tls("localhost", str(ca_file)))), VerificationError
            )
            self.assertEqual("the server's certificate is for another name", tls_problem(error))

    def test_unusable(self) -> None:
        """A file that can't be used is refused before there is a connection; so is a host without a name."""
        self.assertRaises(UnusableCertificates, verified_tls, "localhost", "/nowhere")
        self.assertRaises(UnusableCertificates, verified_tls, "localhost", __file__)
        self.assertRaises(ValueError, verified_tls, "a..b")


class UnverifiedTests(TLSTestCase):
    """L{UnverifiedTLS} connects to anything that speaks TLS."""

    async def test_any(self) -> None:
        """Whatever the certificate, by name and by address."""
        await self.serve("other.example")
        for host in ("localhost", "127.0.0.1"):
            self.assertEqual(b"hello", await self.connect(UnverifiedTLS(host)))


class CipherTests(TLSTestCase):
    """What clients offer."""

    async def test_no_groups_of_the_server(self) -> None:
        """Nothing with which a server could choose a group that takes long to calculate in."""
        await self.serve()
        for creator in (
            verified_tls("localhost"),
            verified_tls("localhost", str(self.authority.file)),
            UnverifiedTLS("localhost"),
        ):
            factory = TLSMemoryBIOFactory(creator, True, Factory.forProtocol(Protocol))
            offered = creator.clientConnectionForTLS(factory.buildProtocol(None)).get_cipher_list()
            self.assertEqual([name for name in offered if "DHE" in name and "ECDHE" not in name], [])
            self.assertIn("ECDHE-RSA-AES128-GCM-SHA256", offered)
            self.assertIn("TLS_AES_128_GCM_SHA256", offered)


class ProblemTests(unittest.SynchronousTestCase):
    """L{tls_problem} puts what TLS raises in words."""

    def test_others(self) -> None:
        """Other errors are none of TLS."""
        self.assertIsNone(tls_problem(OSError("no")))

    def test_without_words(self) -> None:
        """OpenSSL may say nothing."""
        self.assertEqual("the connection was cut", tls_problem(SSL.Error([])))
        self.assertEqual("a; b", tls_problem(SSL.Error([("x", "y", "a"), ("x", "y", "b")])))
