"""Certificates in PEM files."""

from __future__ import annotations

import base64
import errno
import os
import subprocess
import sys
from pathlib import Path

from twisted.trial import unittest

from pcapsvc.net.http_client import failure_words
from pcapsvc.net.pem import UnusableCertificates, read_certificates
from peers.certificates import LABELS, Authority, labelled


class PemTests(unittest.SynchronousTestCase):
    """L{read_certificates} reads what Redis, CloudShark and Kafka are verified with."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.ca_file = Authority(self.directory).file
        self.pem = self.ca_file.read_text()
        self.der = base64.b64decode("".join(self.pem.splitlines()[1:-1]))

    def read(self, content: bytes | str) -> list[bytes]:
        """The certificates in a file with some content."""
        path = self.directory / "file.pem"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_certificates(str(path), bytes)

    def rule_for(self, content: bytes | str) -> str:
        """The rule that a content breaks."""
        return self.assertRaises(UnusableCertificates, self.read, content).rule

    def test_labels(self) -> None:
        """A certificate is the same under each label, and without its trust settings."""
        for label in LABELS:
            self.assertEqual([self.der], read_certificates(str(labelled(self.ca_file, label)), bytes), label)

    def test_trust_settings(self) -> None:
        """A certificate that is rejected for TLS servers, or trusted for other purposes only, is left out."""
        for options, is_trusted in (
            (("-setalias", "ours"), True),
            (("-addtrust", "clientAuth", "-addtrust", "serverAuth"), True),
            (("-addtrust", "anyExtendedKeyUsage"), True),
            (("-addreject", "emailProtection"), True),
            (("-addtrust", "emailProtection"), False),
            (("-addreject", "serverAuth"), False),
            (("-addtrust", "serverAuth", "-addreject", "serverAuth"), False),
            (("-addreject", "anyExtendedKeyUsage"), False),
        ):
            content = labelled(self.ca_file, "TRUSTED CERTIFICATE", *options).read_text()
            self.assertEqual([self.der] * (1 + is_trusted), self.read(content + self.pem), options)
            if not is_trusted:
                self.assertEqual(
                    "must contain a certificate that is trusted for TLS servers", self.rule_for(content)
                )

    def test_no_room(self) -> None:
        """A file that can't be read for want of descriptors can be read later; one that isn't there can't."""
        for code, passes in ((errno.EMFILE, True), (errno.ENOMEM, True), (errno.ENOENT, False)):

            def fail(*_: object, code: int = code) -> int:
                raise OSError(code, os.strerror(code))

            patch = self.patch(os, "open", fail)
            error = self.assertRaises(UnusableCertificates, read_certificates, "ca.pem", bytes)
            patch.restore()
            self.assertEqual(failure_words(error, "localhost"), (str(error), passes))

    def test_anything_else_is_ignored(self) -> None:
        """Comments in whatever encoding, line ends of Windows, and other blocks don't matter."""
        key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
        content = b"# \xe9\xff\n" + key.encode() + self.pem.replace("\n", "\r\n").encode()
        self.assertEqual([self.der] * 2, self.read(content * 2))

    def test_none(self) -> None:
        """A file without a certificate is unusable; so is one whose certificate doesn't end as it began."""
        for content in ("", self.pem.replace("END CERTIFICATE", "END X509 CERTIFICATE")):
            self.assertEqual("must be a file of PEM certificates, but contains none", self.rule_for(content))

    def test_malformed(self) -> None:
        """A block that is truncated, or not a certificate, is malformed; the error names it by its number."""
        begin, end = "-----BEGIN CERTIFICATE-----\n", "\n-----END CERTIFICATE-----\n"
        for der in (
            b"\x30",
            b"\x30\x80\x00\x00",
            b"\x30\x85\x00\x00\x00\x00\x01\x00",
            self.der[:-1],
            b"\x31\x00",
        ):
            block = begin + base64.b64encode(der).decode() + end
            self.assertEqual(
                "must be a file of PEM certificates, but its certificate is malformed", self.rule_for(block)
            )
        self.assertIn(
            "certificate 2 of 3 is malformed", self.rule_for(self.pem + f"{begin}-{end}" + self.pem)
        )

    def test_malformed_trust_settings(self) -> None:
        """So are trust settings that can't be understood: nothing is trusted by mistake."""
        for settings in (b"\x00", b"\x30\x05\x30", b"\x30\x02\x30\x09", b"\x30\x00\x00"):
            text = base64.b64encode(self.der + settings).decode()
            block = f"-----BEGIN TRUSTED CERTIFICATE-----\n{text}\n-----END TRUSTED CERTIFICATE-----\n"
            self.assertIn("is malformed", self.rule_for(block))

    def test_refused_by_the_parser(self) -> None:
        """What the given parser refuses is malformed."""

        def refuse(der: bytes) -> None:
            raise ValueError

        error = self.assertRaises(UnusableCertificates, read_certificates, str(self.ca_file), refuse)
        self.assertEqual(
            f"{self.ca_file}: must be a file of PEM certificates, but its certificate is malformed",
            str(error),
        )

    def test_unreadable(self) -> None:
        """A file that is missing, is none, or is huge is unusable."""
        for path, words in (
            ("/nowhere", "No such file or directory"),
            (str(self.directory), "Is a directory"),
            ("\0", "this is not a path"),
            ("/dev/zero", "not a regular file"),
        ):
            error = self.assertRaises(UnusableCertificates, read_certificates, path, bytes)
            self.assertIn(words, error.rule)

    def test_without_openssl(self) -> None:
        """Reading them doesn't import OpenSSL's binding or Twisted, which a configuration may do without."""
        program = (
            "import sys, pcapsvc.net.pem; "
            "print([name for name in ('OpenSSL', 'cryptography', 'ssl', 'twisted') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        self.assertEqual(b"[]\n", done.stdout)
