"""Secrets in texts."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from urllib.parse import quote_plus

from twisted.trial import unittest

from pcapsvc.core.errors import shown_words
from pcapsvc.core.mask import HIDDEN, Mask, of_process, without_values
from pcapsvc.core.text import one_line
from tests.cost import takes_less


def _masked(secret: str, text: str) -> str:
    return Mask([secret])(text)


class MaskTests(unittest.SynchronousTestCase):
    """L{Mask}."""

    def test_notations(self) -> None:
        """A secret is hidden as it is, in other cases, and in other notations; all else stays."""
        mask = Mask(["s3cret pw/\u00df", "other"])
        for text, expected in (
            ("ERR s3cret pw/\u00df!", f"ERR {HIDDEN}!"),
            ("ERR S3CRET PW/\u00df, Other", f"ERR {HIDDEN}, {HIDDEN}"),
            ("ERR " + quote_plus("s3cret pw/\u00df"), f"ERR {HIDDEN}"),
            ("s3cret+pw/\u00df", HIDDEN),
            ("s3cret&#32;pw/\u00df", HIDDEN),
            (json.dumps("s3cret pw/\u00df"), f'"{HIDDEN}"'),
            ("100 % of others \\ & s3cret pw", "100 % of others \\ & s3cret pw"),
        ):
            self.assertEqual(mask(text), expected)

    def test_mixed_notations(self) -> None:
        """Each character may be in a notation of its own."""
        spellings: tuple[Callable[[str], str], ...] = (
            str,
            lambda one: "".join(f"%25{byte:02x}" for byte in one.encode()),
            lambda one: f"\\\\u{ord(one):04X}",
            lambda one: f"&amp;#{ord(one)};",
            lambda one: f"&#x{ord(one):x};",
            lambda one: html.escape(one),
            lambda one: json.dumps(one)[1:-1],
        )
        for secret in ("n7Xa/b+c==0", "x%41\\y&lt;z", "\u00fcber \u00e9\u00e8", "+/=-=/+", "n0\t1234"):
            for first in range(len(spellings)):
                spelled = "".join(
                    spellings[(first + at) % len(spellings)](one) for at, one in enumerate(secret)
                )
                self.assertEqual(Mask([secret])(f"25 {spelled}."), f"25 {HIDDEN}.", spelled)

    def test_cost(self) -> None:
        """Many secrets cost little even in texts that are full of notations."""
        mask = Mask(f"secret-{number}-abcdefgh" for number in range(100))
        for text in ("\\" * 20_000, "%25" * 7_000, "&amp;" * 4_000, "\\x41" * 5_000, "&#65;" * 4_000):
            self.assertEqual(mask(text), text)
            self.assertTrue(takes_less(0.5, mask, text))

    def test_almost(self) -> None:
        """What is almost a secret costs little in any notation: no character can be read in two ways."""
        for secret in ("0123456789abcdef01234567", '<&"=+/' * 2, "\u00e9\u00df" * 12, "\U0001f600" * 12):
            for spelled in (
                "".join(f"\\u{ord(one):04x}" for one in secret),
                "".join(f"\\x{ord(one):02x}" for one in secret),
                "".join(f"\\x{byte:02x}" for byte in secret.encode()),
                "".join(f"%{byte:02x}" for byte in secret.encode()),
                "".join(f"&#{ord(one)};" for one in secret),
                json.dumps(secret)[1:-1],
                html.escape(secret),
                html.escape(html.escape(secret)),
            ):
                text = f"{secret} {spelled[:-1]}!"
                self.assertEqual(_masked(secret, text), f"{HIDDEN} {spelled[:-1]}!", spelled)
                self.assertTrue(takes_less(0.5, _masked, secret, text))

    def test_backslashes(self) -> None:
        """
        A secret that has many backslashes is hidden in any notation, and what is almost that costs little,
        though a backslash may also begin the notation of what follows it.
        """
        for secret in (
            "ab" + "\\" * 9 + "c",
            "\\'" * 9 + "c",
            "\\\n" * 6 + "c",
            "\\\u00e9" * 6 + "c",
            "abcdefg\\",
        ):
            once = json.dumps(secret)[1:-1]
            for spelled in (
                secret,
                once,
                json.dumps(once)[1:-1],
                repr(secret)[1:-1],
                ascii(secret)[1:-1],
                quote_plus(secret),
            ):
                whole, almost = f"%25 {spelled}.", f"%25 {spelled[:-1]}!"
                self.assertNotIn("ab", _masked(secret, whole), spelled)
                self.assertIn(HIDDEN, _masked(secret, whole), spelled)
                if secret.endswith("c"):
                    self.assertEqual(_masked(secret, almost), almost)
                for text in (whole, almost):
                    self.assertTrue(takes_less(0.25, _masked, secret, text), spelled)

    def test_queries(self) -> None:
        """The queries of URLs are hidden, in any notation, as they may have signatures; again or once."""
        for text, expected in (
            ("PUT https://h/p?sig=abc: no", f"PUT https://h/p?{HIDDEN} no"),
            ("'HTTP://h:80?x', y", f"'HTTP://h:80?{HIDDEN}', y"),
            (r'"https:\/\/h\/p\u003fsig=a\u0026b=c"', rf'"https:\/\/h\/p\u003f{HIDDEN}"'),
            ("x=https%3A%2F%2Fh%2Fp%3Fsig%3Dabc.", f"x=https%3A%2F%2Fh%2Fp%3F{HIDDEN}"),
            ("https://h/p", "https://h/p"),
            ("is it at https://h/p or not? a=b", "is it at https://h/p or not? a=b"),
            ("(?i)^web-?1", "(?i)^web-?1"),
        ):
            self.assertEqual(Mask()(text), expected)
            self.assertEqual(Mask()(expected), expected)

    def test_queries_cost(self) -> None:
        """Texts that are full of beginnings of URLs cost little."""
        for text in (
            "https://" * 8192,
            "https://a?" * 8192,
            "https:" + "\\" * 60_000,
            "https://" + "%25" * 20_000,
        ):
            self.assertTrue(takes_less(0.5, Mask(), text))

    def test_values(self) -> None:
        """Of a message that is logged, the texts of secret fields are hidden, in any case of their names."""
        for text, expected in (
            (
                '{"node": "n", "PutURL" : "h/p?s\\"x", "a": 1}',
                f'{{"node": "n", "PutURL" : "{HIDDEN}", "a": 1}}',
            ),
            ('{"puturl":"a","puturl":"b"}', f'{{"puturl":"{HIDDEN}","puturl":"{HIDDEN}"}}'),
            ('{"puturl": "unended', f'{{"puturl": "{HIDDEN}"'),
            ('{"puturl": ["s", ["t"]], "a": 1}', f'{{"puturl": "{HIDDEN}"'),
            ('{"puturl":\n{"s": 1}}', f'{{"puturl":\n"{HIDDEN}"'),
            ('{"p\\u0075turl": "h\\u003a\\u002f/p\\u003fs"}', f'{{"puturl": "{HIDDEN}"}}'),
            ('{"a": "\\\\u0075 \\u0022 \\u005c"}', '{"a": "\\\\u0075 \\u0022 \\u005c"}'),
            ('{"puturl": null}', '{"puturl": null}'),
            ('{"put_url": "h/p?sig=x&y=z", "a": 1}', f'{{"put_url": "h/p?sig={HIDDEN}", "a": 1}}'),
            ('{"nodere": "(?i)^web-?1$"}', '{"nodere": "(?i)^web-?1$"}'),
        ):
            self.assertEqual(without_values(text, ["puturl"]), expected)
        self.assertEqual(without_values('{"puturl": "a"}', []), '{"puturl": "a"}')

    def test_none(self) -> None:
        """Without secrets, a text stays as it is; the secrets may be replaced by others."""
        mask = Mask([""])
        self.assertEqual(mask("hunter22"), "hunter22")
        mask.hide(["hunter22"])
        self.assertEqual(mask("hunter22"), HIDDEN)
        mask.hide(())
        self.assertEqual(mask("hunter22"), "hunter22")


class SecretsOfTheProcessTests(unittest.SynchronousTestCase):
    """The secrets of the configuration are hidden in every foreign text that becomes one of ours."""

    def setUp(self) -> None:
        of_process.hide(["s3cretpw-xyz"])
        self.addCleanup(of_process.hide, ())

    def test_cut(self) -> None:
        """They are hidden before a text is cut, which would leave half of one."""
        self.assertEqual(one_line("pw s3cretpw-xyz", most=8), "pw <secr…")
        self.assertEqual(one_line("pw\ns3cretpw-xyz", secrets=[("pw", "[user]")]), f"[user] {HIDDEN}")
        self.assertEqual(shown_words("pw s3cretpw-xyz and more", 8), "pw <secr…")
