"""The configuration of certificates, their keys, and their names."""

from __future__ import annotations

import os

from twisted.internet import reactor

from pcapsvc.core.errors import shown
from pcapsvc.destinations.cloudshark.settings import CloudSharkSettings
from pcapsvc.settings.listen import check_listener, read_listener
from pcapsvc.sources.http.settings import HttpSettings
from pcapsvc.sources.http.source import http_endpoint
from pcapsvc.sources.redis.settings import RedisSettings
from peers.certificates import LABELS, labelled
from tests.unit.settings_case import LEAST, SettingsTestCase


class CertificatesTests(SettingsTestCase):
    """Certificate files, and the names that servers are verified by, are checked before the start."""

    def test_no_certificates(self) -> None:
        """A private key, a malformed certificate, and a malformed one among others are problems."""
        ours = self.issue()
        good = ours.certificate.read_text()
        broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        for content, rule in (
            (ours.key.read_text(), "contains none"),
            ("-----BEGIN CERTIFICATE-----\n", "contains none"),
            (broken, "its certificate is malformed"),
            (broken.replace("AAAA", "é"), "its certificate is malformed"),
            (good + broken, "certificate 2 of 2 is malformed"),
        ):
            path = self.file(content)
            for line, key in (
                ("tls = true\ncafile", "redis.cafile"),
                ("[cloudshark]\nverify", "cloudshark.verify"),
                ("[kafka]\nsecurity_protocol = 'SSL'\nssl_cafile", "kafka.ssl_cafile"),
            ):
                self.assertEqual(
                    f"{key} = {shown(path)}: must be a file of PEM certificates, but {rule}",
                    self.only_problem(f"{LEAST}{line} = '{path}'"),
                )

    def test_labels(self) -> None:
        """All components accept all labels of certificates."""
        ours = self.issue()
        for label in LABELS:
            path = labelled(ours.certificate, label)
            for line in (
                "tls = true\ncafile",
                "[cloudshark]\nverify",
                "[kafka]\nsecurity_protocol = 'SSL'\nssl_cafile",
            ):
                self.load(f"{LEAST}{line} = '{path}'\n")

    def test_what_else_is_in_the_file(self) -> None:
        """Comments in any language, and a key in the same file, are ignored."""
        ours = self.issue()
        path = self.file("# é\n" + ours.key.read_text() + ours.certificate.read_text() * 2)
        settings = self.load(f"{LEAST}tls = true\ncafile = '{path}'")
        self.assertEqual(os.path.abspath(path), settings.section(RedisSettings).ca_file)

    def test_names(self) -> None:
        """If a server's certificate is verified, its host is a valid name or an address."""
        cloudshark = "[cloudshark]\nupload = true\ntoken = 't'\n"
        for host in ("foo_bar..x", "a..b", "-a", "a" * 64, "redis:6379"):
            for text, key in ((f"{LEAST}tls = true\n", "redis"), (f"{LEAST}{cloudshark}", "cloudshark")):
                self.assertTrue(
                    self.only_problem(f"{text}host = '{host}'").startswith(
                        f"{key}.host = {shown(host)}: must be a valid host name or an address, because "
                    )
                )
        for tls in ("true", "false"):
            for text, host in (("[::1]", "::1"), ("[fe80::1%lo]", "fe80::1%lo")):
                self.load(f"{LEAST}{cloudshark}host = '{text}'")
                redis = self.section(RedisSettings, f"{LEAST}tls = {tls}\nhost = '{text}'")
                self.assertEqual(host, redis.host)
        for host in ("a", "a.example.", "é.example", "192.0.2.1", "::1", "fe80::1%lo"):
            self.assertEqual(host, self.section(RedisSettings, f"{LEAST}tls = true\nhost = '{host}'").host)

    def test_names_without_certificates(self) -> None:
        """If no certificate is verified, names as in container networks are accepted."""
        self.assertEqual("a_b", self.section(RedisSettings, f"{LEAST}host = 'a_b'").host)
        for more in ("verify = false", "scheme = 'http'"):
            text = f"{LEAST}[cloudshark]\nupload = true\ntoken = 't'\nhost = 'a_b'\n{more}"
            self.assertEqual("a_b", self.section(CloudSharkSettings, text).host)


class EndpointTests(SettingsTestCase):
    """What an endpoint needs is checked before the start."""

    def listen_problem(self, listen: str) -> str:
        """The problem with an endpoint."""
        return self.only_problem(f"{LEAST}[http]\nlisten = '{listen}'")

    def test_tls(self) -> None:
        """A certificate and its key are accepted in two files or in one, by Twisted too."""
        ours = self.issue()
        chain = self.file(ours.certificate.read_text())
        both = self.file(ours.key.read_text() + ours.certificate.read_text())
        for files in (
            f"privateKey={ours.key}:certKey={ours.certificate}",
            f"privateKey={both}:extraCertChain={chain}:sslmethod=TLS_METHOD",
        ):
            settings = self.load(f"{LEAST}[http]\nlisten = 'ssl:0:interface=127.0.0.1:{files}'")
            assert settings.section(HttpSettings).listen is not None
            http_endpoint(reactor, settings.section(HttpSettings).listen)

    def test_tls_methods(self) -> None:
        """Twisted's TLS has each method that is accepted."""
        ours = self.issue()
        files = f"privateKey={ours.key}:certKey={ours.certificate}"
        methods = self.listen_problem(f"ssl:0:{files}:sslmethod=foo").rpartition("one of ")[2].split(", ")
        self.assertIn("TLSv1_2_METHOD", methods)
        for method in methods:
            http_endpoint(reactor, f"ssl:0:{files}:sslmethod={method}")

    def test_tls_without(self) -> None:
        """Everything that is missing, is something else or doesn't match is reported."""
        ours, other = self.issue(), self.issue()
        nothing = self.file("nothing")
        start = "ssl:8443:interface=127.0.0.1"
        missing = "must be a file that can be read (No such file or directory)"
        for more, rules in (
            (
                "",
                (f"its 'privateKey', \"server.pem\", {missing}", f"its 'certKey', \"server.pem\", {missing}"),
            ),
            (
                f":privateKey=/nope.pem:certKey={ours.certificate}",
                (f"its 'privateKey', \"/nope.pem\", {missing}",),
            ),
            (
                ":privateKey=/etc/passwd",
                (
                    "its 'privateKey', \"/etc/passwd\", must be a file with a PEM private key",
                    "its 'certKey', ",
                ),
            ),
            (
                f":privateKey={other.key}:certKey={ours.certificate}",
                ("its 'privateKey' must contain the private key of the certificate in 'certKey'",),
            ),
            (
                f":privateKey={ours.key}:certKey={ours.certificate}:extraCertChain={ours.key}"
                f":dhParameters={nothing}",
                ("its 'extraCertChain', ", "its 'dhParameters', "),
            ),
        ):
            problem = self.listen_problem(start + more)
            self.assertTrue(problem.startswith('http.listen = "ssl:8443:'), problem)
            for rule in rules:
                self.assertIn(rule, problem)
            self.assertEqual(len(rules), 1 + problem.count("; its "), problem)

    def test_systemd(self) -> None:
        """A socket is one of those that systemd passed to this process."""
        opened = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:other"}
        for good in ("index=0", "index=1", "name=http"):
            check_listener(read_listener(f"systemd:domain=UNIX:{good}"), opened)
        self.assertEqual("2", opened["LISTEN_FDS"])
        for wrong, environment, rule in (
            ("index=0", {}, "must be a socket passed by systemd, but systemd passed none"),
            ("index=0", {**opened, "LISTEN_PID": "1"}, "but systemd passed none"),
            ("index=2", opened, "must give 'index' as less than the number of sockets"),
            (
                "name=htp",
                opened,
                "must give 'name' as one of the sockets passed by systemd: 'http', 'other'",
            ),
        ):
            listener = read_listener(f"systemd:domain=UNIX:{wrong}")
            problem = self.assertRaises(ValueError, check_listener, listener, environment)
            self.assertIn(rule, str(problem))
        check_listener(read_listener("systemd:domain=UNIX:index=2"), None)
