"""The configuration of certificates, their keys, and the names that they are for."""

from __future__ import annotations

import os

from pcapsvc.core.errors import shown
from tests.rooms.test_settings import LEAST, SettingsTestCase


class CertificatesTests(SettingsTestCase):
    """Files of certificates, and the names that these are for, are found to be good before the start."""

    def test_no_certificates(self) -> None:
        """A private key, a certificate that is broken, or a broken one among others, is a problem."""
        ours = self.issue()
        good = ours.certificate.read_text()
        broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        for content, rule in (
            (ours.key.read_text(), "and it holds none"),
            ("-----BEGIN CERTIFICATE-----\n", "and it holds none"),
            (broken, "and what is in it is broken"),
            (broken.replace("AAAA", "é"), "and what is in it is broken"),
            (good + broken, "and certificate 2 of 2 in it is broken"),
        ):
            path = self.file(content)
            for line, key in (
                ("tls = true\ncafile", "redis.cafile"),
                ("[cloudshark]\nverify", "cloudshark.verify"),
                ("[kafka]\nsecurity_protocol = 'SSL'\nssl_cafile", "kafka.ssl_cafile"),
            ):
                self.assertEqual(
                    f"{key} = {shown(path)}: must be a file of certificates in PEM, {rule}",
                    self.only_problem(f"{LEAST}{line} = '{path}'"),
                )

    def test_what_else_is_in_the_file(self) -> None:
        """Comments, in whatever language, and a key beside the certificates don't matter."""
        ours = self.issue()
        path = self.file("# é\n" + ours.key.read_text() + ours.certificate.read_text() * 2)
        settings = self.load(f"{LEAST}tls = true\ncafile = '{path}'")
        self.assertEqual(os.path.abspath(path), settings.redis.ca_file)

    def test_names(self) -> None:
        """Where a server's certificate is verified, its host has a name that one can have, or an address."""
        cloudshark = "[cloudshark]\nupload = true\ntoken = 't'\n"
        for host in ("foo_bar..x", "a..b", "-a", "a" * 64, "redis:6379"):
            for text, key in ((f"{LEAST}tls = true\n", "redis"), (f"{LEAST}{cloudshark}", "cloudshark")):
                self.assertTrue(
                    self.only_problem(f"{text}host = '{host}'").startswith(
                        f"{key}.host = {host!r}: must be a name that a certificate can have, or an address, "
                    )
                )
        for host in ("a", "a.example.", "é.example", "192.0.2.1", "::1", "fe80::1%lo"):
            self.assertEqual(host, self.load(f"{LEAST}tls = true\nhost = '{host}'").redis.host)

    def test_names_without_certificates(self) -> None:
        """Where none is verified, names as those of container networks are taken."""
        self.assertEqual("a_b", self.load(f"{LEAST}host = 'a_b'").redis.host)
        for more in ("verify = false", "scheme = 'http'"):
            text = f"{LEAST}[cloudshark]\nupload = true\ntoken = 't'\nhost = 'a_b'\n{more}"
            self.assertEqual("a_b", self.load(text).cloudshark.host)
