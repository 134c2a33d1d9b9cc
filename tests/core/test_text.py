"""Foreign text on a line of the log."""

from __future__ import annotations

import html
import json
from functools import partial
from urllib.parse import quote, quote_plus

from twisted.trial import unittest

from pcapsvc.core.mask import without_secrets
from pcapsvc.core.text import one_line
from tests.cost import takes_less


class OneLineTests(unittest.SynchronousTestCase):
    """L{one_line}, and L{without_secrets}."""

    def test_one_line(self) -> None:
        """Characters that break a line, or move the cursor, become a space."""
        self.assertEqual(one_line("\r\n a\x1b[31m\tb\u2028\x85c\ud800 "), "a [31m b c")
        for direction in "\u061c\u200e\u200f\u202a\u202e\u2066\u2069":
            self.assertEqual(one_line(f"a{direction}b"), "a b")

    def test_cut(self) -> None:
        """A text that is too long ends in an ellipsis."""
        self.assertEqual(one_line("abcde", most=5), "abcde")
        self.assertEqual(one_line("abcdef", most=5), "abcde…")

    def test_secrets(self) -> None:
        """Secrets are replaced in every form, and before the text is cut."""
        secrets = (("a/b c+ de", "[token]"), ("", "[none]"), (r"k\1", r"[\1]"))
        for form in ("a/b c+ de", "a/b\nc+ de", "a%2Fb%20c%2B%20de", "a%2fb+c%2b+de", "a/b%20c%2B%20de"):
            self.assertEqual(one_line(f"x {form}y", secrets=secrets), "x [token]y", form)
        self.assertEqual(one_line(r"k\1", secrets=secrets), r"[\1]")
        self.assertEqual(one_line("abcd s3cret", most=8, secrets=(("s3cret", "*"),)), "abcd *")
        self.assertEqual(without_secrets("a\nb", secrets), "a\nb")

    def test_long(self) -> None:
        """Of a long text only the beginning is looked at, and no beginning of a secret is left at its end."""
        secret = "s3cret-token"
        for text in (
            secret * 10_000,
            f"{secret}\n\n\n" * 10_000,
            "".join(f"%{ord(c):02x}" for c in secret) * 5000,
        ):
            for start in range(30):
                line = one_line("x" * start + text, most=5000, secrets=((secret, "*"),))
                self.assertRegex(line, r"\Ax*[* ]+…\Z")
        text, secrets = "\\" * 1_000_000, ((secret, "*"),)
        self.assertEqual(one_line(text, secrets=secrets), "\\" * 300 + "…")
        self.assertTrue(takes_less(0.5, partial(one_line, text, secrets=secrets)))

    def test_notations(self) -> None:
        """A secret is recognized in the notations of URLs, JSON, HTML and Python, one inside another."""
        secret = "s/T+en==9 \u00e9\U0001f600\\\"'"
        for notation in (
            html.escape(secret),
            "".join(f"&#{ord(character)};" for character in secret),
            "".join(f"&#x{ord(character):X};" for character in secret),
            "s&sol;T&plus;en&equals;&equals;9 &eacute;\U0001f600&bsol;&quot;&apos;",
            html.escape(html.escape(secret)),
            "".join(f"%{byte:02x}" for byte in secret.encode()),
            quote(quote(secret)),
            quote_plus(secret),
            json.dumps(secret)[1:-1],
            json.dumps(json.dumps(secret)[1:-1])[1:-1],
            json.dumps(secret, ensure_ascii=False)[1:-1].replace("/", r"\/"),
            "".join(rf"\u{ord(character):04x}" for character in secret[:11]) + secret[11:],
            repr(secret)[1:-1],
            ascii(secret)[1:-1],
            repr(secret.encode())[2:-1],
            repr(repr(secret)[1:-1])[1:-1],
        ):
            self.assertEqual(without_secrets(f"<{notation}>", [(secret, "*")]), "<*>", notation)

    def test_short_secrets(self) -> None:
        """A secret of fewer than 8 characters is only replaced as a whole word; a longer one anywhere."""
        secrets = (("t", "[token]"), ("io", "[auth]"), ("a/b", "[key]"))
        for text, expected in (
            ("Connection to the host timed out", "Connection to the host timed out"),
            ("/api/v1/t/upload", "/api/v1/[token]/upload"),
            ("token=t&x=io", "token=[token]&x=[auth]"),
            ("'t', IO.", "'[token]', [auth]."),
            ("a%2Fb a/b ba/b", "[key] [key] ba/b"),
            ("token%3Dt%26", "token%3D[token]%26"),
            (r"b'x\nt'", r"b'x\n[token]'"),
            ("x_t_y", "x_[token]_y"),
        ):
            self.assertEqual(without_secrets(text, secrets), expected)
        self.assertEqual(without_secrets("xabcdefgx xabcdefghx", [("abcdefgh", "*")]), "xabcdefgx x*x")
