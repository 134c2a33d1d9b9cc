"""The streams of stdio(3) that libpcap writes files into, and reads them from."""

from __future__ import annotations

import ctypes
import errno
import os

# Functions that may wait release Python's lock.
_unlocked = ctypes.CDLL(None, use_errno=True)
_fdopen = _unlocked.fdopen
_fdopen.argtypes = (ctypes.c_int, ctypes.c_char_p)
_fdopen.restype = ctypes.c_void_p
_fclose = _unlocked.fclose
_fclose.argtypes = (ctypes.c_void_p,)
_setvbuf = _unlocked.setvbuf
_setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
_fsetlocking = _unlocked.__fsetlocking
_fsetlocking.argtypes = (ctypes.c_void_p, ctypes.c_int)

# stdio.h, stdio_ext.h
_IOFBF = 0
_FSETLOCKING_BYCALLER = 2


def open_stream(descriptor: int, mode: bytes) -> int:
    """
    A stream, C{FILE *} of stdio.h.

    @param descriptor: which it owns. If this fails, it is closed.

    @raise OSError: if there is no memory for it.
    """
    stream: int | None = _fdopen(descriptor, mode)
    if not stream:
        code = ctypes.get_errno() or errno.ENOMEM
        os.close(descriptor)
        raise OSError(code, os.strerror(code))
    return stream


def close_stream(stream: int) -> None:
    """Write what is buffered, and close a stream with its descriptor."""
    _fclose(stream)


def use_buffer(stream: int, address: int | None, size: int) -> None:
    """
    Give a stream a buffer, before it is used. If that fails, it keeps its own.

    With more than one thread, stdio would lock the stream twice for each packet. From here on it doesn't:
    only one thread may use the stream at a time.

    @param address: of the buffer, which has to last as long as the stream; L{None} is memory of stdio's.
    @param size: in bytes.
    """
    _setvbuf(stream, address, _IOFBF, size)
    _fsetlocking(stream, _FSETLOCKING_BYCALLER)
