"""The configuration of message brokers."""

from __future__ import annotations

import os

from pcapsvc.settings import Secret
from pcapsvc.sources.kafka.settings import KafkaSettings
from pcapsvc.sources.sqs.settings import SqsSettings
from tests.unit.settings_case import LEAST, SettingsTestCase


class KafkaTests(SettingsTestCase):
    """C{[kafka]}, and the rules between its keys."""

    KAFKA = LEAST + "[kafka]\n"
    SASL = "security_protocol = 'SASL_SSL'\nsasl_mechanism = "
    USER = "sasl_plain_username = 'u'\nsasl_plain_password = 'hunter2'\n"

    def test_as_it_is(self) -> None:
        """By default there is no group, no encryption and no authentication."""
        kafka = self.section(KafkaSettings, self.KAFKA)
        self.assertEqual(
            ((), "capture", None, "pcapsvc", "PLAINTEXT", True, None),
            (
                kafka.server,
                kafka.topic,
                kafka.group,
                kafka.client_id,
                kafka.security_protocol,
                kafka.ssl_check_hostname,
                kafka.sasl_mechanism,
            ),
        )

    def test_servers(self) -> None:
        """A server is a host, or an IPv6 address in brackets, with a port. Empty entries are ignored."""
        given = ["a.example:9092", "", "192.0.2.1:1", "[::1]:65535"]
        self.assertEqual(
            ("a.example:9092", "192.0.2.1:1", "[::1]:65535"),
            self.section(KafkaSettings, f"{self.KAFKA}server = {given}").server,
        )
        for server in (
            "a",
            "a:",
            ":1",
            "a:0",
            "a:65536",
            "::1:9092",
            "a:²",
            "a b:1",
            "kafka://a:1",
            "[::1:2",
        ):
            problem = self.only_problem(f"{self.KAFKA}server = ['{server}']")
            self.assertIn("kafka.server", problem)
            self.assertIn('"HOST:PORT"', problem)

    def test_one_of_the_servers(self) -> None:
        """Of several entries of a list, those are reported that are wrong."""
        rule = 'must be "HOST:PORT", or "[ADDRESS]:PORT" for IPv6'
        self.assertEqual(
            self.problems(f"{self.KAFKA}server = ['a:1', 'b:65536', 'c:1', '::1:9092']"),
            [f'kafka.server[1] = "b:65536": {rule}', f'kafka.server[3] = "::1:9092": {rule}'],
        )

    def test_one_of_the_servers_that_are_inherited(self) -> None:
        """A wrong entry is reported once, at its origin, and the list counts as given."""
        reports = "\n[reports.kafka]\nsend = true"
        problem = self.only_problem(f"{self.KAFKA}server = ['a:1', 'b:65536']{reports}")
        self.assertTrue(problem.startswith('kafka.server[1] = "b:65536"'), problem)

    def test_topics(self) -> None:
        """A topic's name is one that Kafka allows."""
        self.assertEqual("a.B_c-1", self.section(KafkaSettings, f"{self.KAFKA}topic = 'a.B_c-1'").topic)
        for topic in ("", ".", "..", "a b", "é", "a/b", "x" * 250):
            self.assertIn("kafka.topic = ", self.only_problem(f"{self.KAFKA}topic = '{topic}'"))

    def test_listen_needs_a_server(self) -> None:
        """Listening needs a server; an empty entry doesn't count."""
        for line in ("", "server = ['']"):
            problems = self.problems(f"{self.KAFKA}listen = true\n{line}")
            self.assertIn("kafka.listen: needs kafka.server", problems)

    def test_logging_in(self) -> None:
        """Each mechanism works with the keys that it needs, and the password is a secret."""
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
            kafka = self.section(KafkaSettings, f"{self.KAFKA}{self.SASL}'{mechanism}'\n{self.USER}")
            self.assertEqual(
                (mechanism, "u", Secret("hunter2")),
                (kafka.sasl_mechanism, kafka.sasl_plain_username, kafka.sasl_plain_password),
            )
        path = self.file("token\n")
        kafka = self.load(f"{self.KAFKA}{self.SASL}'OAUTHBEARER'\nsasl_oauth_tokenfile = '{path}'").section(
            KafkaSettings
        )
        self.assertEqual(os.path.abspath(path), kafka.sasl_oauth_token_file)

    def test_what_goes_together(self) -> None:
        """A key that needs another, or has no effect without it, is reported."""
        ours = self.issue()
        certificate, key = ours.certificate, ours.key
        token = self.file("hunter2")
        tls = "security_protocol = 'SSL'\n"
        for more, expected in (
            ("security_protocol = 'SASL_SSL'", 'kafka.security_protocol = "SASL_SSL": needs kafka.sasl_mech'),
            (
                f"sasl_mechanism = 'PLAIN'\n{self.USER}",
                "kafka.sasl_mechanism: has no effect without kafka.sec",
            ),
            (f"{self.SASL}'PLAIN'", 'kafka.sasl_mechanism = "PLAIN": needs kafka.sasl_plain_username, and'),
            (f"{self.SASL}'SCRAM-SHA-256'\nsasl_plain_username = 'u'", 'kafka.sasl_mechanism = "SCRAM-SHA-'),
            (f"{self.SASL}'OAUTHBEARER'", 'kafka.sasl_mechanism = "OAUTHBEARER": needs kafka.sasl_oauth_tok'),
            (
                f"{self.SASL}'PLAIN'\n{self.USER}sasl_oauth_tokenfile = '{token}'",
                "kafka.sasl_oauth_tokenfile: has no effect without kafka.sasl_mechanism = 'OAUTHBEARER'",
            ),
            (
                f"{self.SASL}'OAUTHBEARER'\nsasl_oauth_tokenfile = '{token}'\n{self.USER}",
                "kafka.sasl_plain_username: has no effect without kafka.sasl_mechanism = 'PLAIN'",
            ),
            ("sasl_plain_password = 'hunter2'", "kafka.sasl_plain_password: has no effect without"),
            (f"ssl_cafile = '{certificate}'", "kafka.ssl_cafile: has no effect without kafka.security_proto"),
            (f"ssl_certfile = '{certificate}'", "kafka.ssl_certfile: has no effect without"),
            (f"{tls}ssl_keyfile = '{key}'", "kafka.ssl_keyfile: has no effect without kafka.ssl_certfile"),
            (
                f"{tls}ssl_cafile = '/nowhere'",
                'kafka.ssl_cafile = "/nowhere": must be a file that can be read',
            ),
            (f"{tls}ssl_cafile = '{token}'", "kafka.ssl_cafile = "),
            (
                f"{self.SASL}'OAUTHBEARER'\nsasl_oauth_tokenfile = '/nowhere'",
                'kafka.sasl_oauth_tokenfile = "/nowhere": must be a file that can be read',
            ),
        ):
            problem = self.only_problem(f"{self.KAFKA}{more}")
            self.assertTrue(problem.startswith(expected), problem)
            self.assertNotIn("hunter2", problem)

    def test_key_of_the_certificate(self) -> None:
        """The key belongs to the certificate, and is in its own file or in the same one."""
        ours, other = self.issue(), self.issue()
        tls = f"{self.KAFKA}security_protocol = 'SSL'\nssl_certfile = "
        both = self.file(ours.certificate.read_text() + ours.key.read_text())
        self.assertEqual(os.path.abspath(both), self.section(KafkaSettings, f"{tls}'{both}'").ssl_certfile)
        problem = self.only_problem(f"{tls}'{ours.certificate}'")
        self.assertTrue(problem.startswith("kafka.ssl_certfile = "), problem)
        self.assertIn(
            ": needs kafka.ssl_keyfile, because it doesn't contain the certificate's private key", problem
        )
        problem = self.only_problem(f"{tls}'{ours.certificate}'\nssl_keyfile = '{other.key}'")
        self.assertTrue(problem.startswith("kafka.ssl_keyfile = "), problem)
        self.assertIn(": must contain the private key of the certificate in kafka.ssl_certfile", problem)

    def test_keys_with_a_password(self) -> None:
        """A private key with a password is a problem, because nobody could enter it."""
        ours = self.issue()
        tls = f"security_protocol = 'SSL'\nssl_certfile = '{ours.certificate}'\n"
        self.assertEqual(
            os.path.abspath(ours.key),
            self.section(KafkaSettings, f"{self.KAFKA}{tls}ssl_keyfile = '{ours.key}'").ssl_keyfile,
        )
        for text, rule in (
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "without a password"),
            ("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED", "without a password"),
            ("nothing", "but contains none"),
        ):
            self.assertIn(rule, self.only_problem(f"{self.KAFKA}{tls}ssl_keyfile = '{self.file(text)}'"))


class SqsTests(SettingsTestCase):
    """C{[sqs]}."""

    def test_as_it_is(self) -> None:
        """By default the service is Amazon's, and messages for other nodes are returned to the queue."""
        sqs = self.section(SqsSettings, LEAST + "[sqs]")
        self.assertEqual((None, "release"), (sqs.endpoint, sqs.unmatched))

    def test_endpoint(self) -> None:
        """An endpoint becomes a URL."""
        for given, expected in (("http://mq:9324/", "http://mq:9324"), ("mq.example", "https://mq.example")):
            self.assertEqual(
                expected, self.section(SqsSettings, f"{LEAST}[sqs]\nendpoint = '{given}'").endpoint
            )
        self.assertIn("sqs.endpoint = ", self.only_problem(f"{LEAST}[sqs]\nendpoint = 'http://a/b'"))

    def test_queue(self) -> None:
        """The queue's URL has a host, and a valid port if any."""
        for url in ("https://sqs.eu-west-1.amazonaws.com/1/q", "http://[::1]:9324/1/q", "http://a"):
            self.assertEqual(url, self.section(SqsSettings, f"{LEAST}[sqs]\nurl = '{url}'").url)
        for url in ("https:///1/q", "https://:1/q", "https://a:99999/q", "https://a:0/q", "https://[::1/1/q"):
            self.assertEqual(
                f'sqs.url = "{url}": must be an http:// or https:// URL with a host, and a port '
                "from 1 to 65535 if any",
                self.only_problem(f"{LEAST}[sqs]\nurl = '{url}'"),
            )

    def test_unmatched(self) -> None:
        """Messages for other nodes are either released or deleted."""
        self.assertEqual("delete", self.section(SqsSettings, f"{LEAST}[sqs]\nunmatched = 'delete'").unmatched)
        self.assertEqual(
            'sqs.unmatched = "keep": must be one of release, delete',
            self.only_problem(f"{LEAST}[sqs]\nunmatched = 'keep'"),
        )

    def test_chunk_size(self) -> None:
        """More messages per poll than the service returns are a problem."""
        self.assertEqual(
            "sqs.chunksize = 11: must be a whole number from 1 to 10",
            self.only_problem(f"{LEAST}[sqs]\nchunksize = 11"),
        )

    def test_listen_needs_a_url(self) -> None:
        """Listening needs the queue's URL."""
        self.assertIn("sqs.listen: needs sqs.url", self.problems(f"{LEAST}[sqs]\nlisten = true"))


class AgeTests(SettingsTestCase):
    """How old a request may be."""

    def test_age(self) -> None:
        """The default is a minute, 0 is no limit, and negative numbers are rejected."""
        self.assertEqual(60, self.load(LEAST).general.max_request_age_seconds)
        text = LEAST.replace("[redis]", "maxrequestage = 0\n[redis]")
        self.assertIsNone(self.load(text).general.max_request_age_seconds)
        self.assertIn("general.maxrequestage = -1: must be", self.only_problem(text.replace("= 0", "= -1")))


class RateTests(SettingsTestCase):
    """How many requests a source may deliver."""

    def test_rate(self) -> None:
        """The default is a hundred per second, 0 is no limit, and negative numbers are rejected."""
        self.assertEqual(100, self.load(LEAST).general.max_request_rate)
        text = LEAST.replace("[redis]", "maxrequestrate = 0\n[redis]")
        self.assertIsNone(self.load(text).general.max_request_rate)
        self.assertIn("general.maxrequestrate = -1: must be", self.only_problem(text.replace("= 0", "= -1")))


class ExcludeSelfTests(SettingsTestCase):
    """Whether the daemon's own packets are captured."""

    def test_exclude_self(self) -> None:
        """By default they are."""
        self.assertFalse(self.load(LEAST).general.exclude_self)
        self.assertTrue(
            self.load(LEAST.replace("[redis]", "excludeself = true\n[redis]")).general.exclude_self
        )
