"""Keys of the configuration in another case, and the marks of other editors."""

from __future__ import annotations

import codecs
import re

from pcapsvc.components import COMPONENTS
from pcapsvc.core.errors import SettingsError
from pcapsvc.delivery.settings import DeliverySettings
from pcapsvc.destinations.s3.settings import S3Settings
from pcapsvc.settings import Secret, load_settings
from pcapsvc.settings.files import read_secret
from pcapsvc.sources.redis.settings import RedisSettings
from tests.unit.settings_case import LEAST, SettingsTestCase


class CaseTests(SettingsTestCase):
    """Tables and keys match in any case, as in the original."""

    def test_any_case(self) -> None:
        """A configuration in capitals means the same."""
        text = (
            LEAST
            + '[s3]\nbucket = "b-1"\n[[interface]]\nname = "eth0"\nalias = ["a"]\n[delivery]\nmaxage = 5'
        )
        capitals = re.sub(r"(?m)^([a-z0-9]+)( =)", lambda key: key[1].upper() + key[2], text)
        for section in ("general", "redis", "s3", "interface", "delivery"):
            capitals = capitals.replace(f"[{section}]", f"[{section.title()}]")
        self.assertNotEqual(text, capitals)
        self.assertEqual(self.load(text), self.load(capitals))
        self.assertEqual(self.load(capitals).section(DeliverySettings).max_age_seconds, 5)

    def test_other_section(self) -> None:
        """The hint at a key that another section has is that one, unless several have it."""
        for section, key, hint in (
            ("general", "SpoolDir", "; did you mean 'delivery.spooldir'?"),
            ("local", "compress", "; did you mean 'general.localcompress'?"),
            ("redis", "upload", ""),
            ("redis", "portt", "; did you mean 'port'?"),
        ):
            problem = self.only_problem(f"{LEAST}[{section.upper()}]\n{key} = 1\n")
            self.assertEqual(problem, f"{section}.{key}: is not a known key{hint}")

    def test_several(self) -> None:
        """Of a key in several cases the exact one counts, or else the last; tables are merged."""
        self.assertEqual(
            self.load(
                LEAST.replace("[redis]", "MaxPackets = 5\nmaxpackets = 6\n[redis]")
            ).general.max_packets,
            6,
        )
        self.assertEqual(
            self.load(
                LEAST.replace("[redis]", "MaxPackets = 5\nMAXPACKETS = 7\n[redis]")
            ).general.max_packets,
            7,
        )
        merged = self.load(LEAST + '[S3]\nbucket = "old"\nfolder = "f"\n[s3]\nbucket = "new"\n').section(
            S3Settings
        )
        self.assertEqual((merged.bucket, merged.folder), ("new", "f"))
        both = self.load(LEAST + "[[Interface]]\nname = 'a'\n[[interface]]\nname = 'b'\n")
        self.assertEqual([each.name for each in both.interfaces], ["a", "b"])

    def test_problems(self) -> None:
        """A problem names the key as it is documented; an option overrides a key in any case."""
        self.assertIn(
            "general.maxpackets = 0: ", self.only_problem(LEAST.replace("[redis]", "MaxPackets = 0\n[redis]"))
        )
        self.assertEqual(
            "MaxPackets: is outside any section; it belongs in [general]",
            self.only_problem(f"MaxPackets = 1\n{LEAST}"),
        )
        settings = self.load(LEAST.replace("[redis]", "MaxPackets = 5\n[redis]"), maxpackets="8")
        self.assertEqual(settings.general.max_packets, 8)
        secret = self.load(LEAST + 'Auth = "p"\n').section(RedisSettings)
        self.assertEqual(secret.auth, Secret("p"))


class ByteOrderMarkTests(SettingsTestCase):
    """The mark that editors on Windows put at the start of a text."""

    def test_skipped(self) -> None:
        """It is skipped, in the configuration and in every file that the configuration names."""
        marked = self.file(codecs.BOM_UTF8 + LEAST.encode())
        self.assertEqual(load_settings(marked, COMPONENTS), self.load(LEAST))
        self.assertEqual(read_secret(self.file(codecs.BOM_UTF8 + b"s3cret\r\n")), Secret("s3cret"))

    def test_utf_16(self) -> None:
        """That of UTF-16 is named."""
        for encoding in ("utf-16-le", "utf-16-be"):
            path = self.file(("\ufeff" + LEAST).encode(encoding))
            problem = str(self.assertRaises(SettingsError, load_settings, path, COMPONENTS))
            self.assertIn("must be a UTF-8 file, and begins with the byte order mark of UTF-16", problem)
