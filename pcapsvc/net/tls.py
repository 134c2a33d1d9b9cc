"""TLS clients on Twisted: which certificates they trust, and their errors in words."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import (
    AcceptableCiphers,
    Certificate,
    CertificateOptions,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from pcapsvc.net.pem import read_certificates

# Twisted's without DHE: its group is the server's choice, any 10,000 bits, in which a key exchange takes
# 0.7 s, on the reactor. TLS 1.3 knows certain groups only.
_OPTIONS = {
    "acceptableCiphers": AcceptableCiphers.fromOpenSSLCipherString(  # type: ignore[no-untyped-call]
        "ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES256:ECDH+AES128:RSA+AESGCM:RSA+AES:!aNULL:!MD5:!DSS"
    )
}


def verified_tls(host: str, ca_file: str | None = None) -> IOpenSSLClientConnectionCreator:
    """
    TLS with a server whose certificate must be valid for a host.

    Certificates are read here, also the platform's, and not for each connection. The disk may hang, so call
    this in a thread, or at the start. Only for an issuer that it doesn't know, OpenSSL looks into the
    platform's directory of certificates later, if there is one.

    @param ca_file: the path of the PEM certificates to verify the server's with; L{None} is the platform's.

    @raise UnusableCertificates: if C{ca_file} can't be used.
    @raise ValueError: if no certificate can be valid for C{host}.
    """
    if ca_file is None:
        return _loaded(optionsForClientTLS(host, extraCertificateOptions=_OPTIONS))
    trust = trustRootFromCertificates(read_certificates(ca_file, _parse))  # type: ignore[no-untyped-call]
    return _loaded(_Anchored(optionsForClientTLS(host, trustRoot=trust, extraCertificateOptions=_OPTIONS)))


def _loaded(creator: IOpenSSLClientConnectionCreator) -> IOpenSSLClientConnectionCreator:
    """The same, with its certificates. Twisted loads them for the first connection, and keeps them."""
    factory = TLSMemoryBIOFactory(creator, True, Factory.forProtocol(Protocol))
    creator.clientConnectionForTLS(factory.buildProtocol(None))
    return creator


def _parse(der: bytes) -> Certificate:
    try:
        return Certificate.load(der)
    except crypto.Error as error:
        raise ValueError("not a certificate") from error


@implementer(IOpenSSLClientConnectionCreator)
class _Anchored:
    """
    Trusts each certificate that it was given, not only self-signed ones, as Python's own TLS does since 3.13
    (ssl.create_default_context, VERIFY_X509_PARTIAL_CHAIN).
    """

    def __init__(self, creator: IOpenSSLClientConnectionCreator) -> None:
        self._creator = creator

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection: SSL.Connection = self._creator.clientConnectionForTLS(tlsProtocol)
        store = connection.get_context().get_cert_store()
        assert store is not None
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        return connection


@implementer(IOpenSSLClientConnectionCreator)
class UnverifiedTLS:
    """TLS with whoever answers."""

    def __init__(self, host: str) -> None:
        self._host = host

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection = SSL.Connection(CertificateOptions(verify=False, **_OPTIONS).getContext(), None)
        if not (isIPAddress(self._host) or isIPv6Address(self._host)):
            # RFC 6066, section 3: a server name is never an address.
            connection.set_tlsext_host_name(self._host.encode("idna"))
        return connection


def tls_problem(error: BaseException) -> str | None:
    """What went wrong in TLS, in words; L{None} if C{error} has another cause."""
    if isinstance(error, VerificationError):
        return "the server's certificate is for another name"
    if isinstance(error, SSL.Error):
        reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
        words = (str(reason[-1]) for reason in reasons if reason)
        # Some versions of cryptography don't have the words of every reason.
        return "; ".join(filter(None, words)) or "the connection was cut"
    return None
