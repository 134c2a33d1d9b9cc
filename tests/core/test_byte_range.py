"""Parts of a file, as HTTP asks for them."""

from __future__ import annotations

from unittest import TestCase

from pcapsvc.core.byte_range import OutOfRange, matches, read_range
from tests.examples import given
from tests.examples import strategies as st


class RangeTests(TestCase):
    """C{Range} headers."""

    def test_parts(self) -> None:
        """A range has a beginning, an end, or both; the end may be beyond that of the file."""
        for header, expected in (
            ("bytes=0-0", (0, 1)),
            ("bytes=2-4", (2, 5)),
            ("bytes=9-", (9, 10)),
            ("bytes=0-99", (0, 10)),
            ("bytes=-3", (7, 10)),
            ("bytes=-99", (0, 10)),
            ("Bytes= 2-4 ", (2, 5)),
            ("bytes=5-999999999999999999", (5, 10)),
            ("bytes=0-" + "9" * 23, (0, 10)),
            ("bytes=-" + "9" * 5000, (0, 10)),
            ("bytes=" + "0" * 40 + "2-4", (2, 5)),
        ):
            self.assertEqual(read_range(header, 10), expected, header)

    def test_whole(self) -> None:
        """What is malformed, of another unit, or several ranges, stands for the whole file."""
        for header in (
            *("", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=4-2", "lines=1-2", "bytes=0-1,4-5"),
            *("bytes=0-1, ", "bytes=--1", "bytes=+1-2", "bytes=1-2-3"),
            "bytes=\u0661-\u0662",
        ):
            self.assertIsNone(read_range(header, 10), header)

    def test_out_of_range(self) -> None:
        """What begins after the end is nothing."""
        for header, size in (
            ("bytes=10-", 10),
            ("bytes=10-11", 10),
            ("bytes=" + "9" * 5000 + "-", 10),
            ("bytes=-0", 10),
            ("bytes=0-", 0),
        ):
            self.assertRaises(OutOfRange, read_range, header, size)

    @given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 30))
    def test_as_slices(self, first: int, last: int, size: int) -> None:
        """A range is what a slice of the file is."""
        try:
            part = read_range(f"bytes={first}-{last}", size)
        except OutOfRange:
            self.assertGreaterEqual(first, size)
        else:
            data = bytes(range(size))
            if part is None:
                self.assertLess(last, first)
            else:
                self.assertEqual(data[slice(*part)], data[first : last + 1])
                self.assertTrue(data[slice(*part)])


class EntityTagTests(TestCase):
    """Lists of entity tags."""

    def test_matches(self) -> None:
        """A list has a tag if it is one of its members, weak or not, or if it stands for any."""
        for header, expected in (
            ('"a-1"', True),
            ('"b", "a-1"', True),
            ('W/"a-1"', True),
            ("*", True),
            ('"a-2"', False),
            ("a-1", False),
            ("", False),
        ):
            self.assertEqual(matches(header, '"a-1"'), expected, header)

    def test_strongly(self) -> None:
        """A weak tag is not the same as a strong one, if that matters; and no tag is one of a list."""
        for header, etag, expected in (
            ('"b", "a-1"', '"a-1"', True),
            ('W/"a-1"', '"a-1"', False),
            ("*", '"a-1"', True),
            ("*", None, True),
            ('"a-1", W/None', None, False),
        ):
            self.assertEqual(matches(header, etag, strongly=True), expected, (header, etag))
