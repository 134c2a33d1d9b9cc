"""
The spool's folder on disk. A crash at any instant leaves it readable.

::

    SPOOLDIR/
      lock                           held, as long as a process uses the folder
      1795316400104-f3a9c2d41b07-s3/ one capture for one destination: whole, by its name
        capture.pcap
        manifest.json
      .new-…                         being written
      .gone-…                        delivered, or dropped: being taken away
      broken/                        what was not whole: never delivered

One rename makes an entry, after all in it is on the disk, and one rename ends it,
before anything in it is taken away. In between it is not changed.

Nobody but this process's user may write to the folder. Even so, what is found in it is
never followed elsewhere, nor waited for: what is no plain file, or no folder, is broken.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

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

#: What the files of an entry may be done with: by us alone, as they are packets of others.
FILE_MODE = 0o600
_FOLDER_MODE = 0o700

_CAPTURE, _MANIFEST = "capture.pcap", "manifest.json"
_LOCK, _BROKEN, _NEW, _GONE = "lock", "broken", ".new-", ".gone-"

# To open what may be anything: no link is followed, and no pipe's other end waited for (open(2)).
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What stands for itself in the name of what is put into broken/, as it comes to the log: all but this.
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, kw_only=True)
class QuarantinedEntry:
    """
    Something in C{broken/}.

    @ivar size: of its files, in bytes.
    @ivar written: when it was last written to, in seconds since the Unix epoch.
    """

    name: str
    size: int
    written: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """
    What is in the folder.

    @ivar entries: the whole ones; their bytes are not looked at yet.
    @ivar broken: all that is in C{broken/}.
    @ivar set_aside: what was put there just now, and why.
    @ivar unreadable: the entries that can't be read, and why; they stay where they are.
    """

    entries: tuple[SpoolEntry, ...]
    quarantined: tuple[QuarantinedEntry, ...]
    damaged: tuple[tuple[str, str], ...]
    unreadable: tuple[tuple[str, str], ...]


class Damaged(SpoolError):
    """An entry is not what was once written."""


class SpoolFile:
    """
    The capture of an entry: a L{pcapsvc.core.recording.Content}.

    @ivar size: in bytes.
    """

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self.size = size

    def open(self) -> BinaryIO:
        """A reader of its own."""
        return _open_file(self._path)

    def close(self) -> None:
        """Do nothing: the entry lasts until it is removed."""


class SpoolFolder:
    """
    The folder. All of it blocks: to be called in threads, one call at a time but for
    L{read} and for a L{write} that was cancelled.

    @param path: absolute. It must exist.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock: int | None = None

    def is_open(self) -> bool:
        """Whether the folder is ours, and still the one that was opened."""
        if self._lock is None:
            return False
        try:
            there = os.stat(self._in(_LOCK))
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._lock))

    def open(self) -> Found:
        """
        Take the folder for this process, and look through it.

        @raise SpoolError: where it can't be used, others may write to it, or another process uses it.
        """
        self.close()
        with self._problems_told():
            self._check_owner()
            self._lock = os.open(self._in(_LOCK), os.O_RDWR | os.O_CREAT | _SAFELY, FILE_MODE)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self._look_through()
            except BlockingIOError:
                self.close()
                raise SpoolError(f"{self._path}: another process uses it") from None
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let others have the folder. A second call does nothing."""
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
        Keep a capture: all of it, or nothing.

        @param source: the capture; it is closed.
        @param cancelled: whether nobody waits for it any more.

        @raise SpoolError: where it can't be kept.
        """
        new = self._in(_NEW + secrets.token_hex(8))
        name = entry_name(artifact.capture_id, destination, created)
        with source, self._problems_told():
            os.mkdir(new, _FOLDER_MODE)
            try:
                os.chmod(new, _FOLDER_MODE)  # whatever the umask says
                digest = hashlib.sha256()
                chunks = _hashed(durable.read_chunks(source, cancelled), digest)
                size = durable.write_file(os.path.join(new, _CAPTURE), chunks, mode=FILE_MODE)
                if size != artifact.content.size:
                    raise SpoolError(f"{size} bytes could be read, of {artifact.content.size}")
                entry = make_entry(
                    artifact,
                    destination,
                    size=size,
                    sha256=digest.hexdigest(),
                    created=created,
                    problem=problem,
                )
                durable.write_file(os.path.join(new, _MANIFEST), [encode_entry(entry)], mode=FILE_MODE)
                durable.sync_directory(new)
                durable.publish(new, self._in(name))
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
            return entry

    def read(self, name: str) -> tuple[SpoolEntry, SpoolFile]:
        """
        An entry, every byte of it checked.

        @raise Damaged: where it is not what was written.
        @raise SpoolError: where it can't be read.
        """
        with self._problems_told():
            entry = self._entry(name)
            path = os.path.join(self._in(name), _CAPTURE)
            digest = hashlib.sha256()
            with _open_file(path) as file:
                while chunk := file.read(durable.CHUNK_BYTES):
                    digest.update(chunk)
            if digest.hexdigest() != entry.sha256:
                raise Damaged(f"{path}: its bytes are not those that were written")
            return entry, SpoolFile(path, entry.size)

    def remove(self, name: str) -> None:
        """
        Take an entry away. From the moment that this returns, no restart finds it again.

        @raise SpoolError: where it can't be; it may or may not be there then.
        """
        gone = self._in(_GONE + name)
        with self._problems_told():
            try:
                os.rename(self._in(name), gone)
            except FileNotFoundError:
                pass  # an earlier call did it, and may not have come to its end
            durable.sync_directory(self._path)
        # The next start does what is left undone here.
        _take_away(gone, ignore_errors=True)

    def content(self, entry: SpoolEntry) -> SpoolFile:
        """The capture of an entry that was just written."""
        return SpoolFile(os.path.join(self._in(entry.entry_name), _CAPTURE), entry.size)

    def quarantine(self, name: str) -> QuarantinedEntry:
        """
        Put an entry that is not whole into C{broken/}.

        @raise SpoolError: where it can't be.
        """
        with self._problems_told():
            return self._quarantine(name)

    def remove_quarantined(self, name: str) -> None:
        """
        Take away something in C{broken/}, if it is still there.

        @raise SpoolError: where it can't be.
        """
        with self._problems_told():
            try:
                _take_away(os.path.join(self._broken(), name))
            except FileNotFoundError:
                pass

    def _in(self, name: str) -> str:
        return os.path.join(self._path, name)

    def _check_owner(self) -> None:
        found = os.stat(self._path)
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SpoolError(
                f"{self._path}: must belong to this process's user, {os.geteuid()}, and nobody else may write"
                f" to it; it belongs to {found.st_uid}, with the mode {stat.S_IMODE(found.st_mode):04o}"
            )

    def _look_through(self) -> Found:
        entries: list[SpoolEntry] = []
        damaged: list[tuple[str, str]] = []
        unreadable: list[tuple[str, str]] = []
        broken = self._in(_BROKEN)
        if os.path.lexists(broken) and not _is_folder(broken):
            # It leaves its place, and is set aside below.
            os.rename(broken, self._in(_NEW + secrets.token_hex(8)))
        for name in sorted(os.listdir(self._path)):
            try:
                try:
                    if name.startswith(_GONE):
                        _take_away(self._in(name), ignore_errors=True)
                    elif name.startswith(_NEW):
                        raise Damaged("it was not written to its end")
                    elif is_entry_name(name):
                        entries.append(self._entry(name))
                except Damaged as error:
                    self._quarantine(name)
                    damaged.append((name, str(error)))
            except OSError as error:
                unreadable.append((name, error.strerror or str(error)))
        return Found(
            entries=tuple(entries),
            quarantined=tuple(self._quarantined(name) for name in _names_in(broken)),
            damaged=tuple(damaged),
            unreadable=tuple(unreadable),
        )

    def _entry(self, name: str) -> SpoolEntry:
        """An entry, of which all is checked but the bytes of its capture."""
        # Where there is nothing of this name, nothing is known of the entry: that is another error.
        if not _is_folder(self._in(name)):
            raise Damaged(f"{self._in(name)}: is no folder")
        path, _ = self._plain_file(name, _MANIFEST)
        try:
            with _open_file(path) as file:
                entry = decode_entry(file.read(LONGEST_MANIFEST_BYTES + 1))
        except SpoolError as error:
            raise Damaged(f"{path} {error}") from None
        if entry.entry_name != name:
            raise Damaged(f"{path}: is of another entry, {entry.entry_name}")
        path, size = self._plain_file(name, _CAPTURE)
        if size != entry.size:
            raise Damaged(f"{path}: has {size} bytes, and {entry.size} were written")
        return entry

    def _plain_file(self, name: str, file: str) -> tuple[str, int]:
        """The path and the size of a file of an entry."""
        path = os.path.join(self._in(name), file)
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            os.lstat(self._in(name))
            raise Damaged(f"{path}: is missing") from None
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{path}: is no plain file")
        return path, found.st_size

    def _quarantine(self, name: str) -> QuarantinedEntry:
        aside = f"{_UNSAFE.sub('_', name.lstrip('.'))[:200]}.{secrets.token_hex(4)}"
        os.rename(self._in(name), os.path.join(self._broken(), aside))
        durable.sync_directory(self._path)
        return self._quarantined(aside)

    def _broken(self) -> str:
        """The path of C{broken/}, which is made sure to be a folder."""
        path = self._in(_BROKEN)
        try:
            os.mkdir(path, _FOLDER_MODE)
        except FileExistsError:
            if not _is_folder(path):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        return path

    def _quarantined(self, name: str) -> QuarantinedEntry:
        path = os.path.join(self._in(_BROKEN), name)
        # A walk would begin by following a link.
        walk = os.walk(path) if _is_folder(path) else [(self._in(_BROKEN), [], [name])]
        size = 0
        for folder, _, files in walk:
            size += sum(os.lstat(os.path.join(folder, file)).st_size for file in files)
        return QuarantinedEntry(name=name, size=size, written=os.lstat(path).st_mtime)

    @contextmanager
    def _problems_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename if isinstance(error.filename, str) else self._path
            raise SpoolError(f"{where}: {error.strerror or error}") from error


def _hashed(chunks: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    """The same chunks, each of which is added to a digest."""
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _is_folder(path: str) -> bool:
    """Whether something is a folder, and no link to one. L{OSError} where there is nothing."""
    return stat.S_ISDIR(os.lstat(path).st_mode)


def _names_in(path: str) -> list[str]:
    """What is in a folder, sorted; nothing where there is no folder."""
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def _open_file(path: str) -> BinaryIO:
    """A reader of a plain file. L{OSError} where it is anything else."""
    file = os.open(path, os.O_RDONLY | _SAFELY)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "is no plain file", path)
    return os.fdopen(file, "rb")


def _take_away(path: str, *, ignore_errors: bool = False) -> None:
    """Remove a folder with all in it, or whatever else is there. No link is followed."""
    try:
        if _is_folder(path):
            shutil.rmtree(path, ignore_errors=ignore_errors)
        else:
            os.unlink(path)
    except OSError:
        if not ignore_errors:
            raise
