"""
The spool's directory. A crash at any instant leaves it readable.

::

    SPOOLDIR/
      lock                           locked while a process uses the directory
      1795316400104-f3a9c2d41b07-s3/ one capture for one destination; its name says that it is complete
        capture.pcap
        manifest.json
      .new-…                         being written
      .gone-…                        delivered or dropped; being removed
      broken/                        quarantine: what was damaged, and is never delivered

One rename creates an entry, after everything in it is synced. One rename ends it, before anything in it is
removed. In between, it is never changed.

Only this process's user may write to the directory. Even so, no link in it is followed, and no pipe is
waited for: an entry with anything but regular files is damaged.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import msgspec

from pcapsvc import durable
from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import SpoolError
from pcapsvc.core.spool_entry import (
    LONGEST_MANIFEST_BYTES,
    SpoolEntry,
    decode_entry,
    encode_entry,
    entry_name,
    is_entry_name,
    make_entry,
)
from pcapsvc.delivery import tree
from pcapsvc.positioned_reader import PositionedReader

#: The permissions of an entry's files: they hold other people's packets.
FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700

_CAPTURE, _MANIFEST = "capture.pcap", "manifest.json"
_LOCK, _BROKEN, _NEW, _GONE = "lock", "broken", ".new-", ".gone-"

# For opening what may be anything: links are not followed, and pipes don't block (open(2)).
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# The errors of flock(2) on file systems without locks.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL})
# What is replaced in the names in broken/, because they are logged.
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class QuarantinedEntry(msgspec.Struct, frozen=True, kw_only=True):
    """
    Something in quarantine.

    @ivar size: of its files, in bytes.
    @ivar written: when it was last modified, in seconds since the Unix epoch.
    """

    name: str
    size: int
    written: float


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is in the directory.

    @ivar entries: the complete ones. The bytes of their captures are not checked yet.
    @ivar quarantined: everything in quarantine.
    @ivar damaged: what was quarantined just now, and why.
    @ivar unreadable: the entries that can't be read, and why. They stay where they are.
    @ivar leftovers: what was to be removed and can't be, and why.
    """

    entries: tuple[SpoolEntry, ...]
    quarantined: tuple[QuarantinedEntry, ...]
    damaged: tuple[tuple[str, str], ...]
    unreadable: tuple[tuple[str, str], ...]
    leftovers: tuple[tuple[str, str], ...]


class Damaged(SpoolError):
    """An entry is not what was written."""


class SpoolFile:
    """
    The capture of an entry: a L{pcapsvc.core.recording.Content}.

    @ivar size: in bytes.
    """

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self.size = size

    def open(self) -> BinaryIO:
        """A reader. The caller closes it. The file is opened when it is first read."""
        return io.BufferedReader(_LateFile(self._path, self.size))

    def close(self) -> None:
        """Do nothing: the file exists until the entry is removed."""


class _LateFile(PositionedReader):
    """
    A regular file that is opened when it is first read, in the thread that reads: the disk may hang.

    @param size: in bytes.
    """

    def __init__(self, path: str, size: int) -> None:
        super().__init__()
        self._path = path
        self._size = size
        self._file: BinaryIO | None = None

    def descriptor(self) -> int:
        if self._file is None:
            self._file = _open_file(self._path)
        return self._file.fileno()

    def end(self) -> int:
        return self._size

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


class SpoolFolder:
    """
    The directory. Its methods block: call them in threads, and one at a time, except for L{read}, L{remove}
    and a L{write} that was cancelled.

    @param path: absolute. It must exist.
    @ivar shortcomings: what its file system turns out not to support.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock: int | None = None
        self.shortcomings = durable.Shortcomings()

    def is_open(self) -> bool:
        """
        Whether the directory is locked by us, still the one that was opened, and nobody else may write
        to it by now.
        """
        if self._lock is None:
            return False
        try:
            self._check_owner()
            there = os.stat(self._in(_LOCK))
        except (OSError, SpoolError):
            return False
        return os.path.samestat(there, os.fstat(self._lock))

    def open(self, is_ended: Callable[[], bool]) -> Found | None:
        """
        Lock the directory for this process, and list it.

        @return: what is in it; L{None} if C{is_ended} has become true, as the list is of no use then.

        @raise SpoolError: if it can't be used, others may write to it, or another process uses it.
        """
        self.close()
        with self._spool_errors():
            self._check_owner()
            self._lock = os.open(self._in(_LOCK), os.O_RDWR | os.O_CREAT | _SAFELY, FILE_MODE)
            try:
                with self.shortcomings.tolerating(
                    _NO_LOCKS, "it has no locks: make sure that only one process uses it"
                ):
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = self._list(is_ended)
                self._try_out()
                return found
            except BlockingIOError:
                self.close()
                raise SpoolError(f"{self._path}: another process uses it") from None
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Unlock the directory. A second call does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(
        self,
        artifact: Artifact,
        source: BinaryIO,
        destination: str,
        problem: str,
        created: float,
        cancelled: Callable[[], bool],
    ) -> SpoolEntry:
        """
        Write an entry: all of it, or nothing.

        @param source: the capture. It is closed.
        @param cancelled: whether the work has been cancelled.

        @raise SpoolError: if it can't be written.
        """
        new = self._in(_NEW + secrets.token_hex(8))
        name = entry_name(artifact.capture_id, destination, created)
        with source, self._spool_errors():
            os.mkdir(new, _DIRECTORY_MODE)
            try:
                # Whatever the umask says.
                durable.set_mode(new, _DIRECTORY_MODE, self.shortcomings)
                digest = hashlib.sha256()
                chunks = _hashed(durable.read_chunks(source, cancelled), digest)
                size = self._write_file(os.path.join(new, _CAPTURE), chunks)
                if size != artifact.content.size:
                    raise SpoolError(f"only {size} of {artifact.content.size} bytes could be read")
                entry = make_entry(
                    artifact,
                    destination,
                    size=size,
                    sha256=digest.hexdigest(),
                    created=created,
                    problem=problem,
                )
                self._write_file(os.path.join(new, _MANIFEST), [encode_entry(entry)])
                durable.sync_directory(new, self.shortcomings)
                durable.publish(new, self._in(name), self.shortcomings)
            except BaseException:
                _try_to_remove(new)
                raise
            return entry

    def read(self, name: str) -> tuple[SpoolEntry, SpoolFile]:
        """
        Read an entry, and check every byte of it.

        @raise Damaged: if it is not what was written.
        @raise SpoolError: if it can't be read, or others may write to the directory by now.
        """
        with self._spool_errors():
            self._check_owner()
            entry = self._entry(name)
            path = os.path.join(self._in(name), _CAPTURE)
            digest = hashlib.sha256()
            with _open_file(path) as file:
                while chunk := file.read(durable.CHUNK_BYTES):
                    digest.update(chunk)
            if digest.hexdigest() != entry.sha256:
                raise Damaged(f"{path}: the checksum is wrong")
            return entry, SpoolFile(path, entry.size)

    def has(self, name: str) -> bool:
        """
        Whether there is anything of this name.

        @raise SpoolError: if that can't be found out.
        """
        with self._spool_errors():
            try:
                os.lstat(self._in(name))
            except FileNotFoundError:
                return False
            return True

    def locate(self, name: str) -> tuple[SpoolEntry, str]:
        """
        An entry, and the path of its capture, whose bytes are not checked.

        @raise SpoolError: if it can't be read, or others may write to the directory by now.
        """
        with self._spool_errors():
            self._check_owner()
            return self._entry(name), os.path.join(self._in(name), _CAPTURE)

    def remove(self, name: str) -> None:
        """
        Remove an entry. When this returns, no restart will find it again.

        @raise SpoolError: if it fails. The entry may or may not be there then.
        """
        gone = self._in(_GONE + name)
        with self._spool_errors():
            try:
                os.rename(self._in(name), gone)
            except FileNotFoundError:
                pass  # an earlier call did it, but may not have completed
            durable.sync_directory(self._path, self.shortcomings)
        # The next start removes what is left.
        _try_to_remove(gone)

    def content(self, entry: SpoolEntry) -> SpoolFile:
        """The capture of an entry that was just written."""
        return SpoolFile(os.path.join(self._in(entry.entry_name), _CAPTURE), entry.size)

    def quarantine(self, name: str) -> QuarantinedEntry:
        """
        Move a damaged entry into quarantine.

        @raise SpoolError: if it can't be moved.
        """
        with self._spool_errors():
            return self._quarantine(name)

    def remove_quarantined(self, name: str) -> None:
        """
        Remove something from quarantine, if it is still there.

        @raise SpoolError: if it can't be removed.
        """
        with self._spool_errors():
            try:
                tree.remove(os.path.join(self._broken(), name))
            except FileNotFoundError:
                pass

    def _try_out(self) -> None:
        path = self._in(_GONE + secrets.token_hex(8))
        try:
            durable.try_out(path, mode=FILE_MODE, shortcomings=self.shortcomings)
        except OSError:
            # Such as a full disk. What is there can be delivered, and new entries have errors of their own.
            pass

    def _write_file(self, path: str, chunks: Iterable[bytes]) -> int:
        return durable.write_file(path, chunks, mode=FILE_MODE, shortcomings=self.shortcomings)

    def _in(self, name: str) -> str:
        return os.path.join(self._path, name)

    def _check_owner(self) -> None:
        found = os.stat(self._path)
        if not _is_ours(found):
            raise SpoolError(
                f"{self._path}: must belong to this process's user, {os.geteuid()}, and nobody else may write"
                f" to it; it belongs to {found.st_uid}, and its mode is {stat.S_IMODE(found.st_mode):04o}"
            )

    def _list(self, is_ended: Callable[[], bool]) -> Found | None:
        entries: list[SpoolEntry] = []
        damaged: list[tuple[str, str]] = []
        unreadable: list[tuple[str, str]] = []
        leftovers: list[tuple[str, str]] = []
        broken = self._in(_BROKEN)
        if os.path.lexists(broken) and not tree.is_directory(broken):
            # Moved out of the way, it is quarantined below.
            os.rename(broken, self._in(_NEW + secrets.token_hex(8)))
        for name in sorted(os.listdir(self._path)):
            if is_ended():
                return None
            try:
                try:
                    if name.startswith(_GONE):
                        why = _try_to_remove(self._in(name))
                        if why is not None:
                            leftovers.append((name, why))
                    elif name.startswith(_NEW):
                        raise Damaged("it is incomplete")
                    elif is_entry_name(name):
                        entries.append(self._entry(name))
                except Damaged as error:
                    self._quarantine(name)
                    damaged.append((name, str(error)))
            except OSError as error:
                unreadable.append((name, error.strerror or str(error)))
        quarantined = tuple(self._quarantined(name) for name in _names_in(broken) if not is_ended())
        if is_ended():
            return None
        return Found(
            entries=tuple(entries),
            quarantined=quarantined,
            damaged=tuple(damaged),
            unreadable=tuple(unreadable),
            leftovers=tuple(leftovers),
        )

    def _entry(self, name: str) -> SpoolEntry:
        """An entry. Everything is checked except for the bytes of its capture."""
        # If nothing has this name, that is another error: it says nothing about the entry.
        found = os.lstat(self._in(name))
        if not stat.S_ISDIR(found.st_mode):
            raise Damaged(f"{self._in(name)}: is not a directory")
        if not _is_ours(found):
            # Left behind by somebody who was able to write to the spool for a while.
            raise Damaged(f"{self._in(name)}: belongs to somebody else, or others may write to it")
        path, _ = self._regular_file(name, _MANIFEST)
        try:
            with _open_file(path) as file:
                entry = decode_entry(file.read(LONGEST_MANIFEST_BYTES + 1))
        except SpoolError as error:
            raise Damaged(f"{path} {error}") from None
        if entry.entry_name != name:
            raise Damaged(f"{path}: belongs to another entry, {entry.entry_name}")
        path, size = self._regular_file(name, _CAPTURE)
        if size != entry.size:
            raise Damaged(f"{path}: has {size} bytes instead of {entry.size}")
        return entry

    def _regular_file(self, name: str, file: str) -> tuple[str, int]:
        """The path and the size of a file of an entry."""
        path = os.path.join(self._in(name), file)
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            os.lstat(self._in(name))
            raise Damaged(f"{path}: is missing") from None
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{path}: is not a regular file")
        return path, found.st_size

    def _quarantine(self, name: str) -> QuarantinedEntry:
        new = f"{_UNSAFE.sub('_', name.lstrip('.'))[:200]}.{secrets.token_hex(4)}"
        os.rename(self._in(name), os.path.join(self._broken(), new))
        durable.sync_directory(self._path, self.shortcomings)
        return self._quarantined(new)

    def _broken(self) -> str:
        """The path of the quarantine, which is created if it is missing."""
        path = self._in(_BROKEN)
        try:
            os.mkdir(path, _DIRECTORY_MODE)
        except FileExistsError:
            if not tree.is_directory(path):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        return path

    def _quarantined(self, name: str) -> QuarantinedEntry:
        path = os.path.join(self._in(_BROKEN), name)
        return QuarantinedEntry(name=name, size=tree.size_of(path), written=os.lstat(path).st_mtime)

    @contextmanager
    def _spool_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename if isinstance(error.filename, str) else self._path
            raise SpoolError(f"{where}: {error.strerror or error}") from error


def _hashed(chunks: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    """The same chunks, added to a digest."""
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _is_ours(found: os.stat_result) -> bool:
    """Whether a directory belongs to our user, and nobody else may write to it."""
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _names_in(path: str) -> list[str]:
    """What is in a directory, sorted; nothing if there is no directory."""
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def _open_file(path: str) -> BinaryIO:
    """A reader of a regular file. L{OSError} if it is anything else."""
    file = os.open(path, os.O_RDONLY | _SAFELY)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "is not a regular file", path)
    return os.fdopen(file, "rb")


def _try_to_remove(path: str) -> str | None:
    """Remove whatever is there, if anything. If that fails, the reason."""
    try:
        tree.remove(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        return error.strerror or str(error)
    return None
