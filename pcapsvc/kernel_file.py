"""Reads files of proc(5), sysfs(5) and cgroups(7)."""

from __future__ import annotations

import ctypes
import os

# Nearly all of them are smaller.
_PIECE_BYTES = 16 << 10

# They keep Python's lock.
_libc = ctypes.PyDLL(None, use_errno=True)
_open, _read, _close = _libc.open, _libc.read, _libc.close
_open.argtypes = (ctypes.c_char_p, ctypes.c_int)
_read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_read.restype = ctypes.c_ssize_t


def read_kernel_file(path: str | bytes) -> bytes:
    """
    The content of a small file that the kernel makes when it is read, without waiting for anything.

    Python's own files ask for the size, the position and more first, and each of Python's own system calls
    gives its lock away. To get it back takes a while if other threads are busy.

    @raise OSError: if it can't be read.
    """
    descriptor = _checked(_open(os.fsencode(path), os.O_RDONLY | os.O_CLOEXEC), path)
    try:
        room = ctypes.create_string_buffer(_PIECE_BYTES)
        content = b""
        while count := _checked(_read(descriptor, room, _PIECE_BYTES), path):
            content += ctypes.string_at(room, count)
        return content
    finally:
        _close(descriptor)


def _checked(result: int, path: str | bytes) -> int:
    if result >= 0:
        return result
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), path)
