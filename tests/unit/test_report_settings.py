"""The configuration of the channels that events are published to."""

from __future__ import annotations

from pcapsvc.reports.kafka.settings import KafkaReportsSettings
from pcapsvc.reports.redis.settings import RedisReportsSettings
from pcapsvc.reports.settings import ReportsSettings
from pcapsvc.reports.sqs.settings import SqsReportsSettings
from pcapsvc.settings import Secret
from tests.unit.settings_case import LEAST, SettingsTestCase


class ReportsTests(SettingsTestCase):
    """C{[reports]}."""

    def test_defaults(self) -> None:
        """Progress is reported each second, and 10,000 events wait."""
        section = self.section(ReportsSettings, LEAST)
        self.assertEqual((section.progress_seconds, section.queue), (1, 10_000))

    def test_interval(self) -> None:
        """The interval may be a fraction; 0 is never."""
        for given, meant in (("0", None), ("0.1", 0.1), ("2.5", 2.5), ("3600", 3600)):
            text = f"{LEAST}[reports]\nprogressinterval = {given}"
            self.assertEqual(self.section(ReportsSettings, text).progress_seconds, meant)
        for wrong in ("0.05", "-1", "3601", "nan", "'1'", "true"):
            problem = self.only_problem(f"{LEAST}[reports]\nprogressinterval = {wrong}")
            self.assertIn("must be 0, or a number of seconds from 0.1 to 3600", problem)


class RedisTests(SettingsTestCase):
    """C{[reports.redis]}, and what it takes from C{[redis]}."""

    SOURCE = (
        LEAST + "host = 'a.example'\nport = 1\ntls = true\nusername = 'u'\nauth = 'hunter2'\nchannel = 'c'\n"
    )

    def reports(self, text: str, source: str | None = None) -> RedisReportsSettings:
        """The section, if it has these keys."""
        section = (source or self.SOURCE) + f"[reports.redis]\nsend = true\n{text}"
        return self.section(RedisReportsSettings, section)

    def test_as_it_is(self) -> None:
        """By default nothing is published, and nothing is taken over."""
        section = self.section(RedisReportsSettings, self.SOURCE)
        self.assertFalse(section.is_enabled())
        self.assertEqual(
            (section.host, section.port, section.channel, section.auth),
            ("localhost", 6379, "capture-events", None),
        )

    def test_inherited(self) -> None:
        """The connection is that of the source; what it is for is not."""
        section = self.reports("")
        self.assertEqual(
            (section.host, section.port, section.tls, section.username, section.auth, section.channel),
            ("a.example", 1, True, "u", Secret("hunter2"), "capture-events"),
        )
        self.assertTrue(section.uses_twisted_tls())

    def test_without_listening(self) -> None:
        """It doesn't matter whether the source listens."""
        source = self.SOURCE.replace("listen = true", "listen = false") + "[kafka]\nlisten = true\n"
        source += "server = ['a:1']\n"
        self.assertEqual(self.reports("", source).host, "a.example")

    def test_an_option(self) -> None:
        """What an option says of the source is taken over as well."""
        text = self.SOURCE + "[reports.redis]\nsend = true"
        self.assertEqual(self.section(RedisReportsSettings, text, redisnode="b.example").host, "b.example")

    def test_own_keys(self) -> None:
        """Each key may be set, in place of the one of the source."""
        section = self.reports("auth = 'hunter3'\ntls = false")
        self.assertEqual((section.auth, section.username, section.tls), (Secret("hunter3"), "u", False))

    def test_an_authfile(self) -> None:
        """A password in a file takes the place of one in the source's section."""
        section = self.reports(f"authfile = '{self.file('hunter4')}'")
        self.assertEqual(section.auth, Secret("hunter4"))

    def test_another_server(self) -> None:
        """No credentials are sent to another server, but it is encrypted if the source is."""
        for other in ("host = 'b.example'", "port = 2", "host = 'a.example'\nport = 2"):
            section = self.reports(other)
            self.assertEqual((section.username, section.auth, section.tls), (None, None, True), other)

    def test_the_same_server(self) -> None:
        """It may be named again."""
        section = self.reports("host = 'a.example'\nport = 1")
        self.assertEqual((section.username, section.auth), ("u", Secret("hunter2")))
        source = LEAST + "auth = 'hunter2'\n"
        self.assertEqual(self.reports("host = 'localhost'", source).auth, Secret("hunter2"))

    def test_another_user(self) -> None:
        """Another user doesn't get the password of the source's."""
        problem = self.only_problem(self.SOURCE + "[reports.redis]\nsend = true\nusername = 'v'")
        self.assertEqual(
            problem, "reports.redis.username: needs reports.redis.auth or reports.redis.authfile"
        )

    def test_a_wrong_value(self) -> None:
        """A wrong value of the source is reported once, where it is."""
        text = self.SOURCE.replace("port = 1", "port = 0") + "[reports.redis]\nsend = true"
        self.assertEqual(self.only_problem(text), "redis.port = 0: must be a whole number from 1 to 65535")

    def test_an_unused_cafile(self) -> None:
        """Without TLS of its own, it doesn't take the source's certificates either."""
        source = f"{self.SOURCE}cafile = '{self.issue().certificate}'\n"
        self.assertIsNotNone(self.reports("", source).ca_file)
        self.assertIsNone(self.reports("tls = false", source).ca_file)

    def test_secrets(self) -> None:
        """No secret is in the text of the settings."""
        self.assertNotIn("hunter", repr(self.load(self.SOURCE + "[reports.redis]\nsend = true")))


class KafkaTests(SettingsTestCase):
    """C{[reports.kafka]}, and what it takes from C{[kafka]}."""

    SOURCE = (
        LEAST + "[kafka]\nserver = ['a:1', 'b:1']\nclientid = 'node'\nsecurity_protocol = 'SASL_SSL'\n"
        "sasl_mechanism = 'PLAIN'\nsasl_plain_username = 'u'\nsasl_plain_password = 'hunter2'\n"
        "ssl_check_hostname = false\n"
    )

    def reports(self, text: str, source: str | None = None) -> KafkaReportsSettings:
        """The section, if it has these keys."""
        section = (source or self.SOURCE) + f"[reports.kafka]\nsend = true\n{text}"
        return self.section(KafkaReportsSettings, section)

    def test_inherited(self) -> None:
        """The connection is that of the source, whether or not it listens; what it is for is not."""
        section = self.reports("")
        self.assertEqual((section.server, section.topic), (("a:1", "b:1"), "capture-events"))
        self.assertEqual((section.client_id, section.ssl_check_hostname), ("node", False))
        self.assertEqual(
            (section.security_protocol, section.sasl_mechanism, section.sasl_plain_username),
            ("SASL_SSL", "PLAIN", "u"),
        )
        self.assertEqual(section.sasl_plain_password, Secret("hunter2"))

    def test_needs_servers(self) -> None:
        """It needs servers, of its own or those of the source."""
        problem = self.only_problem(LEAST + "[reports.kafka]\nsend = true")
        self.assertEqual(problem, "reports.kafka.send: needs reports.kafka.server")

    def test_the_same_server(self) -> None:
        """One of the same servers may be named."""
        self.assertEqual(self.reports("server = ['b:1']").sasl_plain_password, Secret("hunter2"))

    def test_another_server(self) -> None:
        """No login is sent to another server, not even if one of the same is there as well."""
        for other in ("['c:1']", "['a:1', 'c:1']", "['a:2']"):
            section = self.reports(f"server = {other}")
            self.assertEqual(
                (section.security_protocol, section.sasl_mechanism, section.sasl_plain_username),
                ("SSL", None, None),
                other,
            )
            self.assertEqual((section.sasl_plain_password, section.ssl_check_hostname), (None, False))

    def test_another_user(self) -> None:
        """Another user doesn't get the password of the source's."""
        self.assertEqual(
            self.only_problem(
                self.SOURCE + "[reports.kafka]\nsend = true\nsasl_mechanism = 'PLAIN'\n"
                "sasl_plain_username = 'v'"
            ),
            'reports.kafka.sasl_mechanism = "PLAIN": needs reports.kafka.sasl_plain_username, and'
            " reports.kafka.sasl_plain_password or sasl_plain_passwordfile",
        )
        own = self.reports("sasl_plain_password = 'hunter3'")
        self.assertEqual((own.sasl_plain_username, own.sasl_plain_password), ("u", Secret("hunter3")))

    def test_another_protocol(self) -> None:
        """What has no effect with a protocol of its own isn't taken."""
        section = self.reports("security_protocol = 'PLAINTEXT'")
        self.assertEqual((section.sasl_mechanism, section.ssl_check_hostname), (None, True))

    def test_a_certificate(self) -> None:
        """A client's certificate, too, is for one cluster."""
        one, other = self.issue(), self.issue()
        source = LEAST + (
            "[kafka]\nserver = ['a:1']\nsecurity_protocol = 'SSL'\n"
            f"ssl_certfile = '{one.certificate}'\nssl_keyfile = '{one.key}'\n"
        )
        self.assertEqual(self.reports("", source).ssl_keyfile, str(one.key.absolute()))
        self.assertIsNone(self.reports("server = ['c:1']", source).ssl_certfile)
        own = f"ssl_certfile = '{other.certificate}'\nssl_keyfile = '{other.key}'"
        self.assertEqual(self.reports(own, source).ssl_keyfile, str(other.key.absolute()))


class SqsTests(SettingsTestCase):
    """C{[reports.sqs]}, and what it takes from C{[sqs]}."""

    QUEUE = "https://sqs.eu-west-1.amazonaws.com/1/events"

    def reports(self, text: str, source: str = "") -> SqsReportsSettings:
        """The section, if it has these keys, and the source's section has those."""
        whole = f"{LEAST}[sqs]\naccessid = 'AKIA'\naccesskey = 'hunter2'\n{source}\n"
        return self.section(SqsReportsSettings, f"{whole}[reports.sqs]\nsend = true\n{text}")

    def test_needs_a_queue(self) -> None:
        """The queue is never that of the source."""
        text = f"{LEAST}[sqs]\nurl = '{self.QUEUE}'\n[reports.sqs]\nsend = true"
        self.assertEqual(self.only_problem(text), "reports.sqs.send: needs reports.sqs.url")

    def test_amazon(self) -> None:
        """Amazon's queues share credentials; the region is that of the queue."""
        for source in (
            "",
            "region = 'us-east-1'",
            "url = 'https://sqs.us-east-1.amazonaws.com/1/c'\nregion = 'us-east-1'",
        ):
            section = self.reports(f"url = '{self.QUEUE}'", source)
            self.assertEqual(
                (section.access_id, section.access_key, section.region),
                ("AKIA", Secret("hunter2"), None),
                source,
            )

    def test_the_same_host(self) -> None:
        """At the same host, everything but the queue is shared."""
        section = self.reports(
            "url = 'http://queues:1/0/events'", "url = 'http://queues:1/0/captures'\nregion = 'r'"
        )
        self.assertEqual((section.access_id, section.region), ("AKIA", "r"))
        section = self.reports(
            "url = 'https://sqs.eu-west-1.amazonaws.com/1/e'",
            "url = 'https://sqs.eu-west-1.amazonaws.com/1/c'\nendpoint = 'vpce.example:1'",
        )
        self.assertEqual((section.access_id, section.endpoint), ("AKIA", "https://vpce.example:1"))

    def test_another_host(self) -> None:
        """No credentials are used for another host, whichever of the two is Amazon's."""
        for own, source in (
            ("url = 'http://other:1/0/events'", "url = 'http://queues:1/0/captures'"),
            ("url = 'http://queues:2/0/events'", "url = 'http://queues:1/0/captures'"),
            ("url = 'http://queues:1/0/events'", ""),
            (f"url = '{self.QUEUE}'", "url = 'http://queues:1/0/captures'"),
            (f"url = '{self.QUEUE}'\nendpoint = 'other'", f"url = '{self.QUEUE}'"),
            (f"url = '{self.QUEUE}.amazonaws.com.example/1/e'".replace("/1/events", ""), ""),
        ):
            section = self.reports(own, source)
            self.assertEqual((section.access_id, section.access_key), (None, None), own)

    def test_own_credentials(self) -> None:
        """Credentials are taken as a pair, or not at all."""
        text = f"url = '{self.QUEUE}'\naccessid = 'AKIB'\naccesskey = 'hunter3'"
        self.assertEqual(self.reports(text).access_key, Secret("hunter3"))
        whole = f"{LEAST}[sqs]\naccessid = 'AKIA'\naccesskey = 'hunter2'\n[reports.sqs]\nsend = true\n"
        problem = self.only_problem(f"{whole}url = '{self.QUEUE}'\naccessid = 'AKIB'")
        self.assertIn("reports.sqs.accessid: must be given together with reports.sqs.accesskey", problem)


class LoopTests(SettingsTestCase):
    """Events are not published to where the node reads its requests."""

    def rejected(self, text: str) -> None:
        """The problem names both keys."""
        problem = self.only_problem(text)
        self.assertIn(": otherwise this node would read its events as requests", problem)

    def test_a_channel(self) -> None:
        """The channel of the source is rejected, on the same server."""
        reports = "[reports.redis]\nsend = true\nchannel = 'capture'\n"
        self.assertEqual(
            self.only_problem(LEAST + reports),
            'reports.redis.channel = "capture": must differ from redis.channel: '
            "otherwise this node would read its events as requests",
        )
        self.rejected(f"{LEAST}{reports}host = 'LocalHost'\n")
        for elsewhere in ("host = 'b.example'", "port = 6380"):
            self.load(f"{LEAST}{reports}{elsewhere}\n")

    def test_a_topic(self) -> None:
        """So is the topic, if one of the servers is the same."""
        source = LEAST + "[kafka]\nlisten = true\nserver = ['a:1', 'b:1']\n"
        reports = "[reports.kafka]\nsend = true\ntopic = 'capture'\n"
        self.rejected(source + reports)
        self.rejected(f"{source}{reports}server = ['c:1', 'b:1']\n")
        self.load(f"{source}{reports}server = ['c:1']\n")

    def test_a_queue(self) -> None:
        """So is the queue."""
        queue = "http://queues:1/0/captures"
        source = f"{LEAST}[sqs]\nlisten = true\nurl = '{queue}'\n[reports.sqs]\nsend = true\n"
        self.rejected(f"{source}url = '{queue}'\n")
        self.load(f"{source}url = '{queue}-events'\n")

    def test_without_listening_or_sending(self) -> None:
        """A node that doesn't do both can't read its own events."""
        reports = "[reports.redis]\nsend = true\nchannel = 'capture'\n"
        self.load(LEAST + reports.replace("true", "false"))
        source = LEAST.replace("listen = true", "listen = false") + "[http]\n"
        self.load(f"{source}listen = 'tcp:8480:interface=127.0.0.1'\n{reports}")
