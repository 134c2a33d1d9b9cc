"""What the tests of the configuration share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from twisted.trial import unittest

from pcapsvc.components import COMPONENTS
from pcapsvc.core.errors import SettingsError
from pcapsvc.settings import Settings, load_settings
from pcapsvc.settings.section import Section
from peers.certificates import Authority, Certificate

S = TypeVar("S", bound=Section)

#: A minimal configuration.
LEAST = """
[general]
writelocal = true
localdir = "/tmp"
[redis]
listen = true
"""


class SettingsTestCase(unittest.TestCase):
    """What the tests of the configuration share."""

    components = COMPONENTS

    def file(self, content: str | bytes) -> str:
        """The path of a new file with that content."""
        path = Path(self.mktemp())
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def issue(self) -> Certificate:
        """A new certificate and its key, in files."""
        directory = Path(self.mktemp())
        directory.mkdir()
        return Authority(directory).issue("server")

    def load(self, text: str, **overrides: Any) -> Settings:
        return load_settings(self.file(text), self.components, overrides)

    def section(self, kind: type[S], text: str, **overrides: Any) -> S:
        """One section of a configuration."""
        return self.load(text, **overrides).section(kind)

    def problems(self, text: str, **overrides: Any) -> list[str]:
        """The problems of a configuration, each as it is printed."""
        error = self.assertRaises(SettingsError, self.load, text, **overrides)
        return [str(problem) for problem in error.problems]

    def only_problem(self, text: str, **overrides: Any) -> str:
        problems = self.problems(text, **overrides)
        self.assertEqual(1, len(problems), problems)
        return problems[0]
