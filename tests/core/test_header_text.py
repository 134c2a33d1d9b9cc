"""Texts as values of HTTP headers."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.header_text import header_text


class HeaderTextTests(SynchronousTestCase):
    """L{header_text}."""

    def test_plain(self) -> None:
        """Printable ASCII stays as it is."""
        self.assertEqual(header_text("customer:Big Co,node:web1"), "customer:Big Co,node:web1")

    def test_encoded(self) -> None:
        """Anything else is percent-encoded, and the percent sign and the outermost spaces, too."""
        self.assertEqual(header_text("ü,50%\n"), "%C3%BC,50%25%0A")
        self.assertEqual(header_text(" a  b  "), "%20a  b%20%20")
        self.assertEqual(header_text("\ud800"), "%3F")

    def test_longest(self) -> None:
        """Up to 2 KB, with the name that S3 has for it, are kept."""
        self.assertEqual(header_text("x" * 2044), "x" * 2044)

    def test_cut_at_comma(self) -> None:
        """What is longer is cut at a comma."""
        self.assertEqual(header_text("a" * 2000 + "," + "b" * 43), "a" * 2000 + "," + "b" * 43)
        self.assertEqual(header_text("a" * 2000 + "," + "b" * 44), "a" * 2000)
        self.assertEqual(header_text("a" * 2044 + ",b"), "a" * 2044)

    def test_cut_without_comma(self) -> None:
        """If there is no comma, it is not cut within an encoded byte."""
        for extra in range(4):
            value = header_text("x" * extra + "%" * 1000)
            self.assertLessEqual(len(value), 2044)
            self.assertTrue(value.endswith("%25"))
