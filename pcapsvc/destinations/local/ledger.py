"""
The list of the captures in a directory that pcapsvc has written, so that it removes no other file.

It is a hidden file in the directory itself: a line for each capture, in the order in which they were written,
and the same line again, with a dash before it, when it is removed. A capture is in the list before its file
has its name.

All of it blocks: call it in threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pcapsvc.core.artifact import is_file_name
from pcapsvc.core.kept_file import KeptFile, SteadyClock, read_line
from pcapsvc.durable import Shortcomings, sync_directory, write_file

#: The name of the list.
LEDGER = ".pcapsvc-captures"

# The list is written anew if more lines than this, and more than half of them, are of captures that are gone.
_MOST_DEAD_LINES = 1000
_CHUNK_BYTES = 256 * 1024
_LONGEST_LINE = 1024
# It is read as a whole. This is some two million captures.
_MOST_BYTES = 256 << 20
_LOCK_SECONDS = 5.0

# Not every file system has locks, or syncs.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF})
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_OPEN = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Ledger:
    """
    The list of one directory, for use in several threads, and by several processes.

    @ivar notes: why captures are missing in the list. They are stored nevertheless.
    @ivar bytes: the size of all captures in it.
    """

    def __init__(self, clock: SteadyClock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # The lines of captures, the oldest first.
        self._lines: dict[str, None] = {}
        # Those of captures whose files have no name yet, and those that are not in the file.
        self._nameless: set[str] = set()
        self._unwritten: dict[str, None] = {}
        # What the file was when it was last read or written: its device, inode and size. How many lines it
        # has, and whether the last one has no end.
        self._known: tuple[int, int, int] | None = None
        self._written = 0
        self._is_torn = False
        self.notes = Shortcomings()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._lines)

    def record(self, directory_fd: int, name: str, found: os.stat_result) -> KeptFile | None:
        """
        Note a capture, before its file gets its name.

        @param found: what its file is like.

        @return: it, for L{confirm} or L{abandon}; L{None} if this is not the name of a capture.
        """
        if not is_file_name(name):
            return None
        file = KeptFile(
            name=name,
            size=found.st_size,
            written=round(self._clock.now(), 3),
            modified=int(found.st_mtime),
            owner=found.st_uid,
        )
        line = file.line()
        with self._lock:
            self._nameless.add(line)
            self._unwritten[line] = None
        try:
            with self.opened(directory_fd):
                pass
        except OSError as error:
            self.notes.note(f"captures are missing in {LEDGER}, and are not removed: {error.strerror}")
        return file

    def confirm(self, file: KeptFile) -> None:
        """The file of a capture has its name."""
        line = file.line()
        with self._lock:
            self._nameless.discard(line)
            if line not in self._lines:
                self._lines[line] = None
                self.bytes += file.size

    def abandon(self, file: KeptFile) -> None:
        """The file of a capture has not got its name."""
        with self._lock:
            self._nameless.discard(file.line())
            self._unwritten.pop(file.line(), None)

    def lines(self) -> Iterator[str]:
        """The lines of all captures, the oldest first."""
        return iter(self._lines)

    def overlook(self, line: str) -> None:
        """Count a capture no longer, until the list is read again."""
        file = read_line(line)
        if line in self._lines and file is not None:
            del self._lines[line]
            self.bytes -= file.size

    def strike(self, lines: Iterable[str], directory_fd: int) -> None:
        """Take captures out of the list, within L{opened}."""
        struck = list(lines)
        for line in struck:
            self.overlook(line)
            self._unwritten.pop(line, None)
        if struck:
            self._append([f"-{line}" for line in struck])
        dead = self._written - len(self._lines) - len(self._nameless)
        if dead > _MOST_DEAD_LINES and 2 * dead > self._written:
            self._write_anew(directory_fd)

    @contextmanager
    def opened(self, directory_fd: int) -> Iterator[None]:
        """
        Within this, the list is as it is in its file, and nobody else changes it.

        @raise OSError: if the file can't be used.
        """
        deadline = time.monotonic() + _LOCK_SECONDS
        with self._lock:
            while True:
                self._file = os.open(LEDGER, _OPEN, 0o600, dir_fd=directory_fd)
                try:
                    _check(directory_fd, self._file)
                    _lock_file(self._file, deadline)
                    # Another process may have written it anew.
                    found = os.stat(LEDGER, dir_fd=directory_fd, follow_symlinks=False)
                    if os.path.samestat(found, os.fstat(self._file)):
                        self._read()
                        if self._append([*self._unwritten]):
                            self._unwritten.clear()
                        yield
                        return
                finally:
                    os.close(self._file)
                if time.monotonic() > deadline:
                    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _read(self) -> None:
        """Read the file, if it isn't known as it is."""
        found = os.fstat(self._file)
        if self._known == (found.st_dev, found.st_ino, found.st_size):
            return
        lines: dict[str, None] = {}
        written = 0
        rest = b""
        offset = 0
        while chunk := os.pread(self._file, _CHUNK_BYTES, offset):
            offset += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            rest = rest[:_LONGEST_LINE]
            written += len(whole)
            for raw in whole:
                line = raw.decode("ascii", "replace")
                if line.startswith("-"):
                    lines.pop(line[1:], None)
                elif read_line(line) is not None:
                    lines[line] = None
        # A crash, or a full disk, has left half of a line.
        self._is_torn = bool(rest)
        written += self._is_torn
        for line in self._nameless:
            lines.pop(line, None)
        # What is named, but not written yet.
        lines.update((line, None) for line in self._unwritten if line not in self._nameless)
        files = (read_line(line) for line in lines)
        self._lines = lines
        self.bytes = sum(file.size for file in files if file is not None)
        self._remember(written)

    def _append(self, lines: list[str]) -> bool:
        """
        Write lines.

        @return: whether there was room for them. If there isn't, captures must be removed all the more.
        """
        if not lines:
            return True
        text = "".join(f"{line}\n" for line in lines)
        try:
            _write(self._file, ("\n" * self._is_torn + text).encode("ascii"))
            self._is_torn = False
            self._remember(self._written + len(lines))
            _sync(self._file)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            # Perhaps a part of it was written.
            self._known = None
            self.notes.note(f"the list of captures, {LEDGER}, can't be kept up to date: {error.strerror}")
            return False
        return True

    def _remember(self, written: int) -> None:
        found = os.fstat(self._file)
        self._known = (found.st_dev, found.st_ino, found.st_size)
        self._written = written

    def _write_anew(self, directory_fd: int) -> None:
        """Write the file without the captures that are gone."""
        hidden = f"{LEDGER}.{secrets.token_hex(4)}"
        lines = [*self._lines, *self._nameless]
        chunks = (f"{line}\n".encode("ascii") for line in lines)
        try:
            write_file(hidden, chunks, mode=0o600, shortcomings=self.notes, directory=directory_fd)
            os.rename(hidden, LEDGER, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        except OSError:
            # It is as good as before, only longer.
            _remove(hidden, directory_fd)
            return
        sync_directory(directory_fd, self.notes)
        found = os.stat(LEDGER, dir_fd=directory_fd, follow_symlinks=False)
        self._known, self._written = (found.st_dev, found.st_ino, found.st_size), len(lines)
        self._is_torn = False


def _check(directory_fd: int, file: int) -> None:
    """Only what nobody else can have written is believed."""
    found = os.fstat(file)
    is_ours = found.st_uid == os.geteuid() or found.st_uid == _own_id(directory_fd)
    if not stat.S_ISREG(found.st_mode) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or not is_ours:
        raise OSError(errno.EPERM, f"{LEDGER} belongs to somebody else, or others may write to it")
    if found.st_size > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"{LEDGER} is larger than 256 MiB")


def _own_id(directory_fd: int) -> int:
    """The user id that our files have there: a server of files, or a mount, may choose another one."""
    name = f".pcapsvc.{secrets.token_hex(4)}"
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    try:
        return os.fstat(file).st_uid
    finally:
        os.close(file)
        _remove(name, directory_fd)


def _lock_file(file: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return
        else:
            return


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _sync(file: int) -> None:
    try:
        os.fdatasync(file)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _remove(name: str, directory_fd: int) -> None:
    try:
        os.unlink(name, dir_fd=directory_fd)
    except OSError:
        pass
