"""Certificates, issued by an authority that exists only during a test."""

from __future__ import annotations

import ipaddress
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK = ("localhost", "127.0.0.1")

#: The labels that PEM files have for certificates.
LABELS = ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE")


def labelled(certificate: Path, label: str, *trust: str) -> Path:
    """
    A copy of a certificate's file with one of L{LABELS}.

    @param trust: which trust settings C{TRUSTED CERTIFICATE} carries, as options of openssl-x509(1);
        without any, it is trusted for TLS servers.
    """
    copy = certificate.with_name(f"{certificate.stem}-{label.replace(' ', '-').lower()}.pem")
    if label == "TRUSTED CERTIFICATE":
        command = ["openssl", "x509", "-trustout", "-in", str(certificate), "-out", str(copy)]
        subprocess.run([*command, *(trust or ("-addtrust", "serverAuth"))], check=True, capture_output=True)
    else:
        copy.write_text(certificate.read_text().replace("CERTIFICATE", label))
    return copy


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """
    The files of a certificate and its key.

    @ivar certificate: the path of the certificate, in PEM.
    @ivar key: the path of the unencrypted key, in PEM.
    """

    certificate: Path
    key: Path


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


class Authority:
    """
    A certificate authority.

    @ivar file: the path of its own certificate, in PEM, for clients to trust.
    """

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _name(f"pcapsvc test {name}")
        certificate = (
            self._builder(self._subject, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(self._key, hashes.SHA256())
        )
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, hosts: tuple[str, ...] = LOOPBACK) -> Certificate:
        """
        Issue a certificate to a server.

        @param name: the base name of the files.
        @param hosts: the host names and addresses that it is valid for.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        signed = (
            self._builder(_name(hosts[0]), key.public_key())
            .add_extension(
                x509.SubjectAlternativeName([_alternative_name(host) for host in hosts]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        made = Certificate(certificate=self._directory / f"{name}.crt", key=self._directory / f"{name}.key")
        made.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        made.key.touch(mode=0o600)
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return made

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
