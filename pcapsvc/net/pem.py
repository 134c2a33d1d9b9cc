"""
Reads certificates from PEM files. Everything that validates or uses such a file goes through here.

This module needs the standard library only. A configuration is validated before it is known whether
OpenSSL's Python binding is needed, which costs 15 MB. So the caller passes in the function that parses
an X.509 certificate.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from pcapsvc.core.errors import NO_ROOM
from pcapsvc.regular_file import read_regular_file

_MAX_BYTES = 1024 * 1024

# RFC 7468, section 5, with its older label, and OpenSSL's own (openssl-x509(1), -trustout).
_BLOCK = re.compile(
    rb"-----BEGIN (TRUSTED |X509 |)CERTIFICATE-----(.+?)-----END \1CERTIFICATE-----", re.DOTALL
)

# Tags of DER (ITU-T X.690, section 8).
_SEQUENCE = 0x30
_OBJECT_IDENTIFIER = 0x06
_CONTEXT_0 = 0xA0

# id-kp-serverAuth and anyExtendedKeyUsage (RFC 5280, section 4.2.1.12).
_FOR_SERVERS = {b"\x2b\x06\x01\x05\x05\x07\x03\x01", b"\x55\x1d\x25\x00"}

Parsed = TypeVar("Parsed")


class UnusableCertificates(Exception):
    """
    A file of certificates can't be used.

    @ivar rule: the rule that the file breaks; continues from its path.
    @ivar passes: whether that may pass by itself: if there was no room to read it.
    """

    def __init__(self, path: str, rule: str, *, passes: bool = False) -> None:
        super().__init__(f"{path}: {rule}")
        self.rule = rule
        self.passes = passes


def read_certificates(path: str, parse: Callable[[bytes], Parsed]) -> list[Parsed]:
    """
    The certificates in a PEM file. Anything else in the file is ignored.

    The labels C{CERTIFICATE}, C{X509 CERTIFICATE} and C{TRUSTED CERTIFICATE} are accepted. The last one
    carries trust settings behind the certificate. They are respected as OpenSSL does: a certificate that is
    rejected for TLS servers, or trusted for other purposes only, is left out.

    @param parse: is called with each certificate in DER; raises L{ValueError} if it is malformed.

    @raise UnusableCertificates: if the file can't be read, contains no certificate, or contains one that is
        malformed.
    """
    blocks = _BLOCK.findall(_read(path))
    if not blocks:
        raise UnusableCertificates(path, "must be a file of PEM certificates, but contains none")
    parsed: list[Parsed] = []
    for number, (label, text) in enumerate(blocks, 1):
        try:
            certificate, settings = _split(base64.b64decode(b"".join(text.split()), validate=True))
            result = parse(certificate)
            is_trusted = label != b"TRUSTED " or _is_for_servers(settings)
        except ValueError:
            which = f"certificate {number} of {len(blocks)}" if len(blocks) > 1 else "its certificate"
            rule = f"must be a file of PEM certificates, but {which} is malformed"
            raise UnusableCertificates(path, rule) from None
        if is_trusted:
            parsed.append(result)
    if not parsed:
        raise UnusableCertificates(path, "must contain a certificate that is trusted for TLS servers")
    return parsed


def _read(path: str) -> bytes:
    try:
        content = read_regular_file(path, _MAX_BYTES + 1)
    except OSError as error:
        rule = f"must be a file that can be read ({error.strerror})"
        raise UnusableCertificates(path, rule, passes=error.errno in NO_ROOM) from None
    except ValueError:
        raise UnusableCertificates(path, "must be a file that can be read (this is not a path)") from None
    if len(content) > _MAX_BYTES:
        raise UnusableCertificates(path, f"must be a file of up to {_MAX_BYTES} bytes")
    return content


def _split(der: bytes) -> tuple[bytes, bytes]:
    """A certificate, and what follows it."""
    tag, _, end = _element(der, 0)
    if tag != _SEQUENCE:
        raise ValueError("not a certificate")
    return der[:end], der[end:]


def _is_for_servers(settings: bytes) -> bool:
    """
    Whether the trust settings behind a certificate allow it to vouch for TLS servers.

    C{CertAux ::= SEQUENCE {trust SEQUENCE OF OBJECT IDENTIFIER OPTIONAL, reject [0] SEQUENCE OF OBJECT
    IDENTIFIER OPTIONAL, …}} (OpenSSL, crypto/x509/x_x509a.c; for what they mean, x509_trust.c).
    """
    trusted: set[bytes] = set()
    rejected: set[bytes] = set()
    if settings:
        for tag, content in _elements(_only_sequence(settings)):
            if tag in (_SEQUENCE, _CONTEXT_0):
                purposes = {oid for kind, oid in _elements(content) if kind == _OBJECT_IDENTIFIER}
                (trusted if tag == _SEQUENCE else rejected).update(purposes)
    return not rejected & _FOR_SERVERS and (not trusted or bool(trusted & _FOR_SERVERS))


def _only_sequence(der: bytes) -> bytes:
    tag, start, end = _element(der, 0)
    if tag != _SEQUENCE or end != len(der):
        raise ValueError("malformed trust settings")
    return der[start:end]


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(der):
        tag, start, position = _element(der, position)
        yield tag, der[start:position]


def _element(der: bytes, position: int) -> tuple[int, int, int]:
    """The tag of an element, and where its content begins and ends (ITU-T X.690, section 8.1)."""
    if len(der) < position + 2:
        raise ValueError("truncated")
    tag, length, start = der[position], der[position + 1], position + 2
    if length >= 0x80:
        start, octets = start + (length & 0x7F), der[start : start + (length & 0x7F)]
        if not 0 < len(octets) <= 4:
            raise ValueError("no definite length of up to 4 octets")
        length = int.from_bytes(octets, "big")
    if len(der) < start + length:
        raise ValueError("truncated")
    return tag, start, start + length
