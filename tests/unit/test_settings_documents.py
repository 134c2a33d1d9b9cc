"""What is written about the configuration is true."""

from __future__ import annotations

import re

from pcapsvc.components import COMPONENTS
from pcapsvc.destinations.local.settings import LocalSettings
from pcapsvc.settings import load_settings
from pcapsvc.settings.general import GeneralSettings
from pcapsvc.sources.http.settings import HttpSettings
from pcapsvc.sources.redis.settings import RedisSettings
from tests.unit.documents import DOCUMENTATION, EXAMPLE, ROOT, missing_from_example, undocumented
from tests.unit.settings_case import SettingsTestCase


class DocumentsTests(SettingsTestCase):
    """The documentation and the examples."""

    def test_the_documentation(self) -> None:
        """It has each key, in order, with its default, and each option with its key."""
        self.assertEqual([], list(undocumented(COMPONENTS, DOCUMENTATION.read_text())))

    def test_the_full_example(self) -> None:
        """It has each key, if only behind a hash sign."""
        self.assertEqual([], list(missing_from_example(COMPONENTS, EXAMPLE.read_text())))

    def test_the_examples_load(self) -> None:
        """Both examples load. The quick start listens on this host alone, and leaves that out of captures."""
        quick = load_settings(str(ROOT / "examples" / "quickstart.toml"), COMPONENTS)
        self.assertEqual("tcp:8480:interface=127.0.0.1", quick.section(HttpSettings).listen)
        self.assertTrue(quick.section(LocalSettings).write_local)
        self.assertTrue(quick.section(GeneralSettings).exclude_self)
        self.assertFalse(quick.section(RedisSettings).listen)
        load_settings(str(EXAMPLE), COMPONENTS)

    def test_the_quick_start_with_redis(self) -> None:
        """The quick start still loads when Redis is enabled as its comment says."""
        text = (ROOT / "examples" / "quickstart.toml").read_text()
        settings = self.load(re.sub(r"(?m)^#(?=\S)", "", text))
        self.assertTrue(settings.section(RedisSettings).listen)
