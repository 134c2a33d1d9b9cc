"""A file in memory."""

from __future__ import annotations

import os

from twisted.trial import unittest

from pcapsvc.memory_file import MemoryFile


class MemoryFileTests(unittest.SynchronousTestCase):
    """The file itself."""

    def test_close(self) -> None:
        """A large one is freed by whoever has time for that; a small one at once."""
        for size, expected in ((1000, 0), (4 << 20, 1)):
            closed: list[int] = []
            file = MemoryFile("test", closed.append)
            os.write(file.descriptor, bytes(size))
            file.close()
            file.close()
            self.assertEqual(len(closed), expected)
            for descriptor in closed:
                os.close(descriptor)
