"""
Files that survive a crash: written, synced, and only then given their names.

Shared by the spool and the local directory. All of it blocks: call it in threads.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

#: How much is read and written at once, in bytes.
CHUNK_BYTES = 256 * 1024

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def read_chunks(source: BinaryIO, cancelled: Callable[[], bool]) -> Iterator[bytes]:
    """
    The bytes of a file, in chunks.

    @param cancelled: whether the work has been cancelled; asked before each chunk.

    @raise OSError: with C{ECANCELED}, if the work has been cancelled.
    """
    while chunk := source.read(CHUNK_BYTES):
        if cancelled():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        yield chunk


def write_file(path: str, chunks: Iterable[bytes], *, mode: int, directory: int | None = None) -> int:
    """
    Make a file and sync it. If that fails, the file may be left behind, incomplete.

    @param path: nothing may exist there.
    @param mode: its permissions, whatever the umask is. Until it is complete, only we may read it.
    @param directory: the descriptor of the directory that the path is relative to.

    @return: its size, in bytes.
    """
    size = 0
    target = os.open(path, _NEW_FILE, 0o600, dir_fd=directory)
    try:
        for chunk in chunks:
            size += len(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(target, rest) :]
        os.fchmod(target, mode)
        os.fsync(target)
    finally:
        os.close(target)
    return size


def sync_directory(directory: str) -> None:
    """Sync a directory: the names in it, not the files."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(hidden: str, path: str) -> None:
    """
    Rename a synced file or directory, and sync the directory that it is in.

    If this raises, it has its hidden name again. If even that fails, the new name stays, and this
    returns: what everybody can see has to be known to us.
    """
    os.rename(hidden, path)
    try:
        sync_directory(os.path.dirname(path))
    except OSError:
        try:
            os.rename(path, hidden)
        except OSError:
            return
        raise
