"""Reads files of proc(5), sysfs(5) and cgroups(7)."""

from __future__ import annotations

import os

# Nearly all of them are smaller.
_PIECE_BYTES = 16 << 10


def read_kernel_file(path: str | bytes) -> bytes:
    """
    The content of a small file that the kernel makes when it is read.

    Python's own files ask for the size, the position and more first. Each system call gives Python's lock
    away, which takes a while to get back if other threads are busy.

    @raise OSError: if it can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = b""
        while piece := os.read(descriptor, _PIECE_BYTES):
            content += piece
        return content
    finally:
        os.close(descriptor)
