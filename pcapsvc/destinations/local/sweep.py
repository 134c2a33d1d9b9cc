"""Removes the oldest captures in a directory, if there are too many, or if they are too old."""

from __future__ import annotations

import errno
import os
import stat

import msgspec

from pcapsvc.core.kept_file import KeptFile, Limits, Removal, SteadyClock, read_line
from pcapsvc.destinations.local.ledger import Ledger

#: How many files are looked at, and how many are removed, before others may use the list.
FILES_A_TURN, REMOVALS_A_TURN = 2000, 100
# How often to look for files that somebody else has removed, in seconds: at least, and before any of many
# captures is removed because of the size of all.
_LOOK_SECONDS, _LOOK_SECONDS_IF_FULL = 600.0, 60.0
# A file that has no name yet may still get it within this time, in seconds.
_NAMELESS_SECONDS = 3600.0
# Some file systems (FUSE, or those of servers) still show a file's hidden name as a second link for a while
# after it is gone, in seconds. NFS has the longest while by default, with 60 (acregmax in nfs(5)).
_LINKED_SECONDS = 120.0
# After so many failures, the others are left for later.
_MOST_FAILURES = 10


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """
    What was done in one turn.

    @ivar has_more: whether there is more to do.
    @ivar problems: why files could not be removed: of each errno, one, by its words.
    """

    removals: tuple[Removal, ...]
    has_more: bool
    problems: tuple[str, ...]


class Sweeper:
    """
    Removes captures that are in the list. A file is only removed if it still is as it was written. A copy of
    it, or another file by its name, stays, and so does one that has a second hard link: it is there for
    somebody who wants to keep it.

    The newest capture is not removed to make room.

    It blocks: call it in threads.

    @param directory: an absolute path.
    """

    def __init__(self, directory: str, ledger: Ledger, limits: Limits, clock: SteadyClock) -> None:
        self._directory = directory
        self._ledger = ledger
        self._limits = limits
        self._clock = clock
        # The lines whose files are still to be looked at; None if all have been.
        self._looking: list[str] | None = []
        self._looked = -_LOOK_SECONDS

    def turn(self) -> Swept:
        """
        Do a part of the work.

        @raise OSError: if the directory or the list can't be used.
        """
        directory_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self._ledger.opened(directory_fd):
                if self._look(directory_fd):
                    return Swept(removals=(), has_more=True, problems=())
                return self._remove(directory_fd)
        finally:
            os.close(directory_fd)

    def _look(self, directory_fd: int) -> bool:
        """
        Look for captures that somebody else has removed or changed, from time to time.

        @return: whether there are more to look at.
        """
        if not self._looking:
            now = self._clock.now()
            if now - self._looked < self._look_seconds():
                return False
            self._looked = now
            self._looking = [*self._ledger.lines()]
            self._looking.reverse()
        gone = []
        for line in self._looking[-FILES_A_TURN:]:
            file = read_line(line)
            if file is None:
                continue
            links = self._links(directory_fd, file)
            if links == 1 or (links and self._may_seem_linked(file)):
                continue
            if self._may_get_its_name(file):
                self._ledger.overlook(line)
            else:
                gone.append(line)
        del self._looking[-FILES_A_TURN:]
        self._ledger.strike(gone, directory_fd)
        return bool(self._looking)

    def _look_seconds(self) -> float:
        """How long it is good to have looked, in seconds."""
        if self._limits.max_bytes is None or self._ledger.bytes <= self._limits.max_bytes:
            return _LOOK_SECONDS
        # Something is about to be removed. It takes no time to look at a few files.
        return 0.0 if len(self._ledger) <= FILES_A_TURN else _LOOK_SECONDS_IF_FULL

    def _may_get_its_name(self, file: KeptFile) -> bool:
        """Whether another process may be about to do that."""
        return self._clock.age(file.written) < _NAMELESS_SECONDS

    def _may_seem_linked(self, file: KeptFile) -> bool:
        """Whether a second link of a capture may be the hidden name that it had while it was written."""
        return self._clock.age(file.written) < _LINKED_SECONDS

    def _links(self, directory_fd: int, file: KeptFile) -> int:
        """How many hard links the file of a capture has; 0 if it isn't there as it was written."""
        try:
            found = os.stat(file.name, dir_fd=directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return 0
        is_like = file.is_like(size=found.st_size, modified=found.st_mtime, owner=found.st_uid)
        return found.st_nlink if is_like and stat.S_ISREG(found.st_mode) else 0

    def _remove(self, directory_fd: int) -> Swept:
        removals: list[Removal] = []
        problems: dict[str, None] = {}
        struck: list[str] = []
        failures = 0
        # From here on, what is removed counts no longer.
        size, number = self._ledger.bytes, len(self._ledger)
        for line in self._ledger.lines():
            file = read_line(line)
            if file is None:
                continue
            reason = self._reason(file, size, number)
            if reason is None and self._clock.is_sane(file.written):
                # All others are younger.
                break
            if reason is None:
                continue
            if len(removals) == REMOVALS_A_TURN:
                self._ledger.strike(struck, directory_fd)
                return Swept(removals=tuple(removals), has_more=True, problems=tuple(problems))
            try:
                links = self._links(directory_fd, file)
                if links > 1 and self._may_seem_linked(file):
                    # Another look will tell. Until then it doesn't count, so that no younger one makes room.
                    size, number = size - file.size, number - 1
                    continue
                if links == 1:
                    os.unlink(file.name, dir_fd=directory_fd)
                    age = self._clock.age(file.written)
                    removals.append(Removal(name=file.name, size=file.size, age=age, reason=reason))
            except OSError as error:
                problems[os.strerror(error.errno or errno.EIO)] = None
                failures += 1
                if failures == _MOST_FAILURES:
                    break
                continue
            struck.append(line)
            size, number = size - file.size, number - 1
        self._ledger.strike(struck, directory_fd)
        return Swept(removals=tuple(removals), has_more=False, problems=tuple(problems))

    def _reason(self, file: KeptFile, size: int, number: int) -> str | None:
        """
        Why a capture is to be removed; L{None} if it is kept.

        @param size: of all captures, in bytes.
        @param number: how many there are.
        """
        max_age, max_bytes = self._limits.max_age_seconds, self._limits.max_bytes
        if max_age is not None and self._clock.age(file.written) > max_age:
            return "age"
        if max_bytes is not None and size > max_bytes and number > 1:
            return "size"
        return None
