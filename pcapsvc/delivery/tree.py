"""
Directories of any depth: no recursion, no path longer than the directory's own, one descriptor at a time.

Links are never followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

# For opening a directory, and no link to one.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_directory(path: str) -> bool:
    """Whether something is a directory, not a link to one. L{OSError} if there is nothing."""
    return stat.S_ISDIR(os.lstat(path).st_mode)


def remove(path: str) -> None:
    """
    Remove a directory and its contents, or whatever else is there.

    @raise OSError: if something can't be removed. What was removed until then stays removed.
    """
    if not is_directory(path):
        os.unlink(path)
        return
    for directory, name, found in _contents(path):
        if stat.S_ISDIR(found.st_mode):
            os.rmdir(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)
    os.rmdir(path)


def size_of(path: str) -> int:
    """
    The size of a directory's files, or of whatever else is there, in bytes. What can't be read isn't counted.

    @raise OSError: if nothing is there.
    """
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size
    size = 0
    try:
        for _, _, found in _contents(path):
            if not stat.S_ISDIR(found.st_mode):
                size += found.st_size
    except OSError:
        pass
    return size


def _contents(path: str) -> Iterator[tuple[int, str, os.stat_result]]:
    """
    Everything in a directory, at any depth; a directory comes after its contents.

    @return: the descriptor of the directory that holds it, its name there, and what it is.
    """
    directory = os.open(path, _DIRECTORY)
    try:
        here, names = os.fstat(directory), os.listdir(directory)
        above: list[tuple[str, os.stat_result, os.stat_result, list[str]]] = []
        while names or above:
            if names:
                name = names.pop()
                found = os.lstat(name, dir_fd=directory)
                if not stat.S_ISDIR(found.st_mode):
                    yield directory, name, found
                    continue
                above.append((name, found, here, names))
                directory = _move(directory, name)
                here, names = os.fstat(directory), os.listdir(directory)
            else:
                name, found, here, names = above.pop()
                directory = _move(directory, "..")
                if not os.path.samestat(os.fstat(directory), here):
                    # Somebody moved it: this is a directory of something else.
                    raise OSError(errno.ESTALE, "was moved in the meantime", path)
                yield directory, name, found
    finally:
        os.close(directory)


def _move(directory: int, name: str) -> int:
    """Open a directory that is in another one, and close that."""
    opened = os.open(name, _DIRECTORY, dir_fd=directory)
    os.close(directory)
    return opened
