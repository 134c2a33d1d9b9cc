"""
Files that are made of others while they are read.

To keep such a file would take as much memory again as the one that it is made of. So nothing is kept but how
large it is, and each reader makes it once more. It has to become the same each time; a reader that finds
another size fails.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from io import BufferedReader
from typing import Any, BinaryIO

from pcapsvc.core.recording import Content
from pcapsvc.positioned_reader import SeekableReader

#: Makes a file of another one, piece by piece. Pieces may be empty, and may change when the next one is made.
Make = Callable[[BinaryIO], Generator[bytes | memoryview]]


class GeneratedFile:
    """
    A file that is made of another one when it is read: a L{Content}. It is to be read in threads.

    @param source: the other one. It must stay open.
    @param close: called when this is closed, once.
    @ivar size: in bytes.
    """

    def __init__(
        self, source: Content, make: Make, size: int, *, close: Callable[[], object] = lambda: None
    ) -> None:
        self._source: Content | None = source
        self._make = make
        self._close = close
        self.size = size

    def open(self) -> BinaryIO:
        """A reader: see L{Content.open}."""
        if self._source is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return BufferedReader(_Reader(self._source.open(), self._make, self.size))

    def close(self) -> None:
        """Make it no more: see L{Content.close}."""
        if self._source is not None:
            self._source = None
            self._close()


class _Reader(SeekableReader):
    """
    Makes a file while it is read. To go back is to begin again.

    @param source: what it is made of. It is closed.
    @param size: how large it becomes, in bytes.
    """

    def __init__(self, source: BinaryIO, make: Make, size: int) -> None:
        super().__init__()
        self._source = source
        self._make = make
        self._size = size
        self._begin()

    def _begin(self) -> None:
        self._pieces = self._make(self._source)
        self._piece = memoryview(b"")
        # Where the piece begins.
        self._made = 0

    def end(self) -> int:
        return self._size

    def readinto(self, buffer: Any) -> int:
        if self._at < self._made:
            self._pieces.close()
            self._source.seek(0)
            self._begin()
        while self._at >= self._made + len(self._piece):
            self._made += len(self._piece)
            self._piece = memoryview(b"")
            piece = next(self._pieces, None)
            if piece is None:
                if self._made != self._size:
                    raise OSError(f"made again, it has {self._made} bytes instead of {self._size}")
                return 0
            self._piece = memoryview(piece)
        start = self._at - self._made
        found = self._piece[start : start + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        if not self.closed:
            self._pieces.close()
            self._source.close()
        super().close()
