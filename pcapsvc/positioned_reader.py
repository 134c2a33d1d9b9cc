"""A reader with a position of its own, whatever the offset of the file's descriptor is."""

from __future__ import annotations

import os
from io import RawIOBase
from typing import Any


class PositionedReader(RawIOBase):
    """
    Reads a file from its first byte on. A descriptor's offset is not used, as its duplicates share it.

    Subclasses say which descriptor that is, and where the file ends.

    @param start: where it begins for the descriptor, in bytes.
    """

    def __init__(self, start: int = 0) -> None:
        self._start = start
        self._at = 0

    def descriptor(self) -> int:
        """The file's descriptor, asked for at each read."""
        raise NotImplementedError

    def end(self) -> int:
        """The file's size, in bytes."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self.descriptor(), [buffer], self._start + self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.end()}[whence] + offset
        if at < 0:
            raise ValueError(f"negative position: {at}")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at
