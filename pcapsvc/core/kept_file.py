"""The captures that a store keeps on a disk of this host, and how old they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec

from pcapsvc.core.artifact import is_file_name

# 2020, in seconds since the Unix epoch. A clock with an earlier time has not been set yet.
_EARLIEST = 1_577_836_800.0
# How far the time stamp of a file may be from the one that was noted, in seconds: FAT counts in two seconds,
# and a server of files may set it once more when a file is closed.
_MOST_MODIFIED_SECONDS = 3
# file_name() makes none that is longer.
_LONGEST_NAME = 255


class KeptFile(msgspec.Struct, frozen=True, kw_only=True):
    """
    A capture, as it was written.

    @ivar name: of its file.
    @ivar size: in bytes.
    @ivar written: when, in seconds since the Unix epoch, by a L{SteadyClock}.
    @ivar modified: the time stamp that its file had then, in whole seconds since the Unix epoch.
    @ivar owner: the user id that its file had.
    """

    name: str
    size: int
    written: float
    modified: int
    owner: int

    def line(self) -> str:
        """This as a line of a ledger, without its end."""
        return f"{self.written:.3f} {self.size} {self.modified} {self.owner} {self.name}"

    def is_like(self, *, size: int, modified: float, owner: int) -> bool:
        """Whether a file of its name is still as it was written."""
        near = abs(modified - self.modified) <= _MOST_MODIFIED_SECONDS
        return (self.size, self.owner) == (size, owner) and near


def read_line(line: str) -> KeptFile | None:
    """What L{KeptFile.line} made a line of; L{None} if it didn't make this one."""
    parts = line.split(" ")
    if len(parts) != 5 or len(line) > 2 * _LONGEST_NAME or not line.isascii():
        return None
    name = parts[4]
    if len(name) > _LONGEST_NAME or not is_file_name(name):
        return None
    try:
        size, modified, owner = (int(part) for part in parts[1:4])
        file = KeptFile(name=name, size=size, written=float(parts[0]), modified=modified, owner=owner)
    except ValueError:
        return None
    # What is written in another way, such as "1_0", isn't ours.
    return file if math.isfinite(file.written) and size >= 0 and file.line() == line else None


class SteadyClock:
    """
    A clock that goes on steadily from the time at which it was made, whatever the wall clock is set to.

    @param wall_clock: returns the time in seconds since the Unix epoch.
    @param seconds: returns the seconds of a monotonic clock.
    """

    def __init__(self, wall_clock: Callable[[], float], seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._began = seconds()
        self._began_at = wall_clock()

    def now(self) -> float:
        """The time, in seconds since the Unix epoch."""
        return self._began_at + self._seconds() - self._began

    def is_sane(self, written: float) -> bool:
        """Whether a time can be compared with that of this clock."""
        return (written >= _EARLIEST or written >= self._began_at) and written <= self.now()

    def age(self, written: float) -> float:
        """
        How long ago this time was, in seconds. If one of the clocks was not set, it counts from when this one
        was made, so that nothing is old for that reason.
        """
        now = self.now()
        return now - written if self.is_sane(written) else now - self._began_at


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is kept.

    @ivar max_bytes: of all files; L{None} is no limit.
    @ivar max_age_seconds: of each file; L{None} is no limit.
    """

    max_bytes: int | None = None
    max_age_seconds: float | None = None


#: Why files are removed.
REMOVAL_REASONS = ("size", "age")


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """
    A capture that was removed.

    @ivar reason: one of L{REMOVAL_REASONS}.
    @ivar age: in seconds.
    """

    name: str
    size: int
    age: float
    reason: str


class KeptFiles(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a store keeps.

    @ivar removed: how many files were removed since the start, by reason.
    """

    files: int = 0
    bytes: int = 0
    removed: Mapping[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(REMOVAL_REASONS, 0))
