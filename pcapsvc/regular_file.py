"""
Reads the files that an operator names: only regular ones.

A FIFO that nobody writes to would be waited for forever, and a device may never end.
"""

from __future__ import annotations

import errno
import os
import stat


def read_regular_file(path: str, most_bytes: int) -> bytes:
    """
    The content of a regular file, or the beginning of one that is longer.

    @raise OSError: if it can't be read, or is not a regular file.
    @raise ValueError: if this is not a path.
    """
    # Opening a FIFO, or a terminal, must not block either (open(2)).
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most_bytes)
    finally:
        os.close(descriptor)
