"""The configuration of the channels that events are published to."""

from __future__ import annotations

from pcapsvc.reports.redis.settings import RedisReportsSettings
from pcapsvc.reports.settings import ReportsSettings
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
