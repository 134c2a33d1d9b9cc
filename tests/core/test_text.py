"""Foreign text on a line of the log."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.text import one_line, without_secrets


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
        secrets = (("a/b c+", "[token]"), ("", "[none]"), (r"k\1", r"[\1]"))
        for form in ("a/b c+", "a/b\nc+", "a%2Fb%20c%2B", "a%2fb+c%2b", "a/b%20c%2B"):
            self.assertEqual(one_line(f"x {form}y", secrets=secrets), "x [token]y", form)
        self.assertEqual(one_line(r"k\1", secrets=secrets), r"[\1]")
        self.assertEqual(one_line("abcd s3cret", most=8, secrets=(("s3cret", "*"),)), "abcd *")
        self.assertEqual(without_secrets("a\nb", secrets), "a\nb")
