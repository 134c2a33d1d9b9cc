"""Readers with a position of their own."""

from __future__ import annotations

import os
from io import RawIOBase
from typing import Any


class SeekableReader(RawIOBase):
    """
    Reads a file from its first byte on, and from wherever its position is set to.

    Subclasses read, from C{_at} on, and say where the file ends.
    """

    def __init__(self) -> None:
        self._at = 0

    def end(self) -> int:
        """The file's size, in bytes."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.end()}[whence] + offset
        if at < 0:
            raise ValueError(f"negative position: {at}")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at


class PositionedReader(SeekableReader):
    """
    Reads a file by its descriptor, whose offset is not used, as its duplicates share it.

    Subclasses say which descriptor that is.

    @param start: where the file begins for the descriptor, in bytes.
    """

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self._start = start

    def descriptor(self) -> int:
        """The file's descriptor, asked for at each read."""
        raise NotImplementedError

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self.descriptor(), [buffer], self._start + self._at)
        self._at += count
        return count
