"""
Files that survive a crash: written, synced, and only then given their names.

Shared by the spool and the local directory. All of it blocks: call it in threads.

Not every file system can sync directories, or has permissions. Without them a capture is less safe, but not
worthless: L{Shortcomings} are noted, and the capture is stored.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

#: How much is read and written at once, in bytes.
CHUNK_BYTES = 256 * 1024

#: The errors of link(2) on file systems without hard links.
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# How file systems say that they don't support something. All other errors, such as EIO, are errors.
# CIFS, vboxsf and FUSE sync files, but not each of them directories.
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
_NO_DIRECTORY_SYNC = _NO_SYNC | {errno.EBADF}
# FAT and mounts of S3 have no permissions; those of a mount apply.
_NO_MODE = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL})


class Shortcomings:
    """
    What the file system of one directory turns out not to support. That prevents nothing; it is noted, for
    somebody to report it. For use in several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._new: list[str] = []

    def note(self, what: str) -> None:
        """Note something, if it is not known yet."""
        with self._lock:
            if what not in self._known:
                self._known.add(what)
                self._new.append(what)

    def take_new(self) -> list[str]:
        """What was noted since the last call, in words."""
        with self._lock:
            new, self._new = self._new, []
            return new

    @contextmanager
    def tolerating(self, errnos: Container[int | None], what: str) -> Iterator[None]:
        """Within, these errors are noted, and raised no further."""
        try:
            yield
        except OSError as error:
            if error.errno not in errnos:
                raise
            self.note(f"{what} ({os.strerror(error.errno or 0)})")


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


def write_file(
    path: str,
    chunks: Iterable[bytes],
    *,
    mode: int,
    shortcomings: Shortcomings,
    directory: int | None = None,
) -> int:
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
        set_mode(target, mode, shortcomings)
        with shortcomings.tolerating(
            _NO_SYNC, "it doesn't sync files: a crash may damage the latest captures"
        ):
            os.fsync(target)
    finally:
        os.close(target)
    return size


def set_mode(file: int | str, mode: int, shortcomings: Shortcomings) -> None:
    """Set the permissions of a file or directory, by its descriptor or path."""
    with shortcomings.tolerating(
        _NO_MODE, "it doesn't set permissions: its mount decides who may read captures"
    ):
        os.chmod(file, mode)


def sync_directory(directory: str | int, shortcomings: Shortcomings) -> None:
    """Sync a directory, by its path or descriptor: the names in it, not the files."""
    if isinstance(directory, int):
        with shortcomings.tolerating(
            _NO_DIRECTORY_SYNC, "it doesn't sync directories: a crash may lose the latest captures"
        ):
            os.fsync(directory)
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_directory(descriptor, shortcomings)
    finally:
        os.close(descriptor)


def publish(hidden: str, path: str, shortcomings: Shortcomings) -> None:
    """
    Rename a synced file or directory, and sync the directory that it is in.

    If this raises, it has its hidden name again. If even that fails, the new name stays, and this
    returns: what everybody can see has to be known to us.
    """
    os.rename(hidden, path)
    try:
        sync_directory(os.path.dirname(path), shortcomings)
    except OSError:
        try:
            os.rename(path, hidden)
        except OSError:
            return
        raise


def try_out(path: str, *, mode: int, shortcomings: Shortcomings) -> None:
    """
    Find out what a file system doesn't support, with a small file, which is removed.

    @param path: of the file. Nothing may exist there.
    @param mode: the permissions that files are to have.

    @raise OSError: if no file can be written there.
    """
    try:
        write_file(path, [b"pcapsvc"], mode=mode, shortcomings=shortcomings)
    finally:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
    sync_directory(os.path.dirname(path), shortcomings)
