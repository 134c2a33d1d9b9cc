"""Readers with a position of their own."""

from __future__ import annotations

import ctypes
import os
from array import array
from io import RawIOBase
from typing import Any

_preadv = ctypes.CDLL(None, use_errno=True).preadv
_preadv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_preadv.restype = ctypes.c_ssize_t


def scatter(descriptor: int, places: array[int], count: int, offset: int) -> int:
    """
    Read a file to many places in memory (preadv(2)). C{os.preadv} needs an object for each of them.

    @param places: the address and the size of each, one after the other, as unsigned longs.
    @param count: how many of them are read to, up to 1024.
    @param offset: where the file is read, in bytes.

    @return: how many bytes were read.

    @raise OSError: if it can't be read.
    """
    address, _ = places.buffer_info()
    read: int = _preadv(descriptor, address, count, offset)
    if read < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return read


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

    def scatter(self, places: array[int], count: int, offset: int) -> int:
        """Read to many places in memory: see L{scatter}. The position is not used."""
        return scatter(self.descriptor(), places, count, self._start + offset)
