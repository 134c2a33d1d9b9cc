"""The secrets of the configuration."""

from __future__ import annotations

import pickle
from typing import Any

from pcapsvc.components import COMPONENTS
from pcapsvc.settings import Secret, Settings
from pcapsvc.sources.redis.settings import RedisSettings
from tests.unit.settings_case import LEAST, SettingsTestCase


class SecretsTests(SettingsTestCase):
    """A secret can be used, but is never shown."""

    PLACES = (
        ("cloudshark", "token"),
        ("redis", "auth"),
        ("kafka", "sasl_plain_password"),
        ("s3", "accesskey"),
        ("sqs", "accesskey"),
    )

    def _text(self, section: str, lines: str) -> str:
        more = "accessid = 'id'\n" if "accesskey" in lines else ""
        if section == "kafka":
            more = "security_protocol = 'SASL_SSL'\nsasl_mechanism = 'PLAIN'\nsasl_plain_username = 'u'\n"
        return f"{LEAST}{lines}" if section == "redis" else f"{LEAST}[{section}]\n{more}{lines}"

    def _found(self, settings: Settings, section: str) -> Any:
        [kind] = [kind for kind in COMPONENTS.sections if kind.table == section and kind.secrets]
        return getattr(settings.section(kind), kind.secrets[0].field)

    def test_given_or_in_a_file(self) -> None:
        """Each secret can be given directly or in a file, where the white space around it is ignored."""
        path = self.file("  hunter2\n")
        for section, key in self.PLACES:
            for line in (f"{key} = 'hunter2'", f"{key}file = '{path}'"):
                found = self._found(self.load(self._text(section, line)), section)
                self.assertEqual("hunter2", found.reveal())

    def test_never_both(self) -> None:
        """Giving both a secret and its file is a problem, which doesn't show the secret."""
        path = self.file("hunter2")
        for section, key in self.PLACES:
            problem = self.only_problem(self._text(section, f"{key} = 'hunter3'\n{key}file = '{path}'"))
            self.assertIn(f'{section}.{key}file = "{path}": must not be given together with {key}', problem)
            self.assertNotIn("hunter", problem)

    def test_both_wrong(self) -> None:
        """Problems with a secret and with its file are reported together."""
        for section, key in self.PLACES:
            for given in ("5", "['hunter2']", '"hunter2\\n"'):
                for path, rule in (
                    ("6", "must be the path of a file"),
                    ('"/nope"', f"must not be given together with {key}; give one of them"),
                ):
                    text = self._text(section, f"{key} = {given}\n{key}file = {path}")
                    self.assertEqual(
                        [
                            f"{section}.{key}: must be one line of text",
                            f"{section}.{key}file = {path}: {rule}",
                        ],
                        self.problems(text),
                    )

    def test_files_that_hold_none(self) -> None:
        """A file that is empty, has several lines or can't be read is a problem that shows only its path."""
        for path, rule in (
            (self.file(" \n"), "it is empty"),
            (self.file("hunter2\nhunter3\n"), "it has several"),
            (self.file(b"hunter2\xff"), "UTF-8"),
            (self.file("hunter2\x01x\n"), "it has a control character"),
            (self.file("hunter2\tx"), "it has a control character"),
            ("/nowhere", "No such file"),
        ):
            problem = self.only_problem(f"{LEAST}authfile = '{path}'")
            self.assertIn(f'redis.authfile = "{path}": must be', problem)
            self.assertIn(rule, problem)
            self.assertNotIn("hunter", problem)

    def test_wrong_secrets_are_not_shown(self) -> None:
        """A secret of the wrong type, or of several lines, is a problem that doesn't show it."""
        for section, key in self.PLACES:
            for value in ("['hunter2']", "{a = 'hunter2'}", '"hunter2\\n"'):
                problem = self.only_problem(self._text(section, f"{key} = {value}"))
                self.assertEqual(f"{section}.{key}: must be one line of text", problem)

    def test_passwords_in_addresses(self) -> None:
        """A password in an address, which is not allowed, isn't shown either."""
        for line in ("host", "[cloudshark]\nhost", "[sqs]\nurl", "[s3]\nendpoint"):
            self.assertNotIn("hunter2", self.only_problem(f"{LEAST}{line} = 'https://u:hunter2@h/x'"))

    def test_never_seen(self) -> None:
        """A secret isn't shown by repr, str or format, of itself or of the settings, and can't be pickled."""
        settings = self.load(LEAST + "auth = 'hunter2'")
        secret = settings.section(RedisSettings).auth
        assert secret is not None
        for text in (repr(secret), str(secret), f"{secret}", f"{secret!r:>9}", repr(settings), str(settings)):
            self.assertNotIn("hunter2", text)
        self.assertRaises(TypeError, pickle.dumps, secret)

    def test_equal(self) -> None:
        """Secrets are equal if their values are, and equal nothing else."""
        self.assertEqual(Secret("é"), Secret("é"))
        self.assertEqual(hash(Secret("a")), hash(Secret("a")))
        self.assertNotEqual(Secret("a"), Secret("b"))
        self.assertNotEqual(Secret("a"), "a")
