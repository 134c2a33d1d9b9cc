"""A file in memory."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from io import BufferedReader
from mmap import PAGESIZE
from typing import BinaryIO

from pcapsvc.positioned_reader import PositionedReader

# To free a file of this size takes a quarter of a millisecond; one of 200 MB, 40.
_LARGE_BYTES = 1 << 20
# linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
# It doesn't wait, and with each request it is asked how much all captures hold: it keeps Python's lock, which
# would take longer to get back if other threads are busy.
_lseek = ctypes.PyDLL(None, use_errno=True).lseek
_lseek.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int)
_lseek.restype = ctypes.c_int64


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


class MemoryFile:
    """
    A file in memory, of this process alone (memfd_create(2)). Memory at its beginning can be freed; in the
    end, the file may begin there.

    @ivar freed: how many bytes at its beginning were freed.
    @ivar path: opens it again, with an independent offset, if proc(5) is mounted.
    @ivar file: the path, or else the descriptor.
    @ivar descriptor: its offset is at the end.
    @ivar close_descriptor: closes a descriptor. To free much memory takes a while.
    """

    def __init__(self, name: str, close_descriptor: Callable[[int], object] = os.close) -> None:
        self.close_descriptor = close_descriptor
        self.descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        self._reserved = 0
        # Where it begins, and how much was freed before.
        self._start = self.freed = 0
        self.path = f"/proc/self/fd/{self.descriptor}"
        self.file: str | int = self.path if os.path.lexists(self.path) else self.descriptor

    @property
    def size(self) -> int:
        """The number of bytes."""
        # In Python, four times as fast as fstat(2). The descriptor's offset is not used.
        end: int = _lseek(self.descriptor, 0, os.SEEK_END)
        if end < 0:
            raise _error()
        return end - self._start

    @property
    def held_bytes(self) -> int:
        """How much memory it holds, without what is reserved."""
        return self._start + self.size - self.freed

    def open(self) -> BinaryIO:
        """An independent reader, at the first byte. The caller closes it."""
        return BufferedReader(_Reader(os.dup(self.descriptor), self._start))

    def duplicate(self) -> int:
        """A descriptor of the file as it is, which the caller closes."""
        return os.dup(self.descriptor)

    def read_at(self, offset: int, count: int) -> bytes:
        """Up to C{count} bytes from C{offset} on. The descriptor's offset is not used."""
        return os.pread(self.descriptor, count, self._start + offset)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """
        Write somewhere. The descriptor's offset is not used.

        @raise OSError: if there is not enough memory.
        """
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, self._start + offset)
            view, offset = view[written:], offset + written

    def free(self, end: int) -> None:
        """Free the memory of the first C{end} bytes, in whole pages. What is there is lost."""
        end -= end % PAGESIZE
        if end > self.freed:
            self._allocate(_FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, self.freed, end)
            self.freed = end

    def begin_at(self, offset: int) -> None:
        """From here on, the file begins there, and what precedes it is lost."""
        self._start = offset
        self.free(offset)

    def truncate(self, end: int) -> None:
        """Leave out, and free, all but the first C{end} bytes."""
        os.ftruncate(self.descriptor, self._start + end)

    def reserve(self, end: int, *, more: int) -> None:
        """
        Reserve memory for the first C{end} bytes, so that writing them can't fail.

        @param more: how many bytes more are reserved if any are.

        @raise OSError: if there is not enough.
        """
        if end > self._reserved:
            # In whole pages: a part of one could not be freed.
            end = -(-(end + more) // PAGESIZE) * PAGESIZE
            self._allocate(_FALLOC_FL_KEEP_SIZE, self._reserved, end)
            self._reserved = end

    def release(self) -> None:
        """Free what is reserved beyond the last byte."""
        end = self._start + self.size
        if self._reserved > end:
            self._allocate(_FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, end, self._reserved)
        self._reserved = 0

    def _allocate(self, mode: int, start: int, end: int) -> None:
        # fallocate(2): the standard library has only posix_fallocate(3), which changes the file's size.
        while _fallocate(self.descriptor, mode, start, end - start) != 0:
            # A signal interrupts it, and nothing else would try again.
            if ctypes.get_errno() != errno.EINTR:
                raise _error()

    def close(self) -> None:
        """Free the memory. Readers that are open stay readable. A second call does nothing."""
        if self.descriptor >= 0:
            close = os.close if self.held_bytes < _LARGE_BYTES else self.close_descriptor
            close(self.descriptor)
            self.descriptor = -1


class _Reader(PositionedReader):
    """
    Reads a file from its first byte, wherever the offset of its descriptor is: that is shared with others.

    @param descriptor: which it closes.
    @param start: where the file begins.
    """

    def __init__(self, descriptor: int, start: int) -> None:
        super().__init__(start)
        self._descriptor = descriptor

    def descriptor(self) -> int:
        return self._descriptor

    def end(self) -> int:
        return os.fstat(self._descriptor).st_size - self._start

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()
