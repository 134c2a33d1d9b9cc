"""The parts of an upload."""

from __future__ import annotations

import hashlib
import io
import os

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.destinations.s3.multipart import MOST_PARTS, Part, Sizes, digest_of


class _File(io.BytesIO):
    """A file that knows its size."""

    is_made = False

    @property
    def size(self) -> int:
        return len(self.getvalue())


class SizesTests(SynchronousTestCase):
    """Where parts begin and end."""

    def test_whole(self) -> None:
        """Parts follow each other without a gap, to the end; all but the last have the same size."""
        for size in (1, 99, 100, 101, 250, 1000):
            parts = [*Sizes(part_bytes=100).parts(size)]
            self.assertEqual([start for start, _ in parts], [*range(0, size, 100)])
            self.assertEqual(sum(length for _, length in parts), size)
            self.assertEqual({length for _, length in parts[:-1]} - {100}, set())

    def test_not_too_many(self) -> None:
        """Of a large file, parts are larger, as there may be 10,000."""
        for size in (16 * 2**20 * MOST_PARTS, 16 * 2**20 * MOST_PARTS + 1, 5 * 10**12):
            parts = [*Sizes().parts(size)]
            self.assertLessEqual(len(parts), MOST_PARTS)
            self.assertEqual(sum(length for _, length in parts), size)

    def test_default(self) -> None:
        """The largest capture of the default configuration is put whole."""
        self.assertEqual(Sizes().single_bytes, 100_000_000)


class PartTests(SynchronousTestCase):
    """A part, as a file."""

    def test_like_a_file(self) -> None:
        """It can be read and positioned like a file of its own, and never shows what is beside it."""
        data = os.urandom(1000)
        for start, size in ((0, 300), (300, 300), (900, 100)):
            part, plain = Part(_File(data), start, size), io.BytesIO(data[start : start + size])
            self.assertEqual(len(part), size)
            for offset, whence in ((0, 0), (50, 0), (size, 0), (size - 10, 0), (-20, 2), (0, 2), (-5, 1)):
                self.assertEqual(part.seek(offset, whence), plain.seek(offset, whence))
                for count in (7, 0, 10_000, -1):
                    self.assertEqual(part.read(count), plain.read(count))
                    self.assertEqual(part.tell(), plain.tell())
            self.assertEqual(digest_of(part, 64), hashlib.md5(plain.getvalue()).digest())
