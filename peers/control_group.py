"""A control group with a memory limit, which only processes of the test are in (cgroups(7))."""

from __future__ import annotations

import itertools
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path
from unittest import SkipTest

_PATIENCE_SECONDS = 180.0
_MOUNTED = Path("/sys/fs/cgroup")
_ENTER = 'echo $$ > "$1" && shift && exec "$@"'
_numbers = itertools.count()


def _parent() -> tuple[Path, int]:
    """
    The group to make groups in, and its version.

    In version 1 that is the group of this process. In version 2 a group that has processes can't distribute
    memory ("no internal processes"): the closest one above that does is used. Either way, the limits of all
    groups above still apply.
    """
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path.strip("/")))
    directory = _MOUNTED / "memory" / own.get("memory", "")
    if "memory" in own and (directory / "memory.limit_in_bytes").exists():
        return directory, 1
    directory = _MOUNTED / own.get("", "")
    while directory != _MOUNTED.parent:
        distributed = directory / "cgroup.subtree_control"
        if distributed.exists() and "memory" in distributed.read_text().split():
            return directory, 2
        directory = directory.parent
    raise SkipTest("this system has no control groups that limit memory")


def _remove(directory: Path) -> None:
    """Remove a group, as soon as the last process in it is gone."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return directory.rmdir()
        except FileNotFoundError:
            return None
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def clean_up_after(pid: int) -> None:
    """Remove the groups of a process that was killed, after what ran in them has ended."""
    try:
        parent, _ = _parent()
    except SkipTest:
        return
    for directory in parent.glob(f"pcapsvc-{pid}-*"):
        with suppress(OSError):
            _remove(directory)


class ControlGroup:
    """
    A group with a memory limit, without swap. It is removed with this object.

    @ivar directory: of the group.
    @ivar version: of control groups, 1 or 2.
    @ivar wrapper: the prefix of a command that is to run in the group.

    @raise SkipTest: no such group can be made here: the kernel has none, or this process may not.
    """

    def __init__(self, limit_bytes: int) -> None:
        parent, self.version = _parent()
        self.directory = parent / f"pcapsvc-{os.getpid()}-{next(_numbers)}"
        try:
            self.directory.mkdir()
        except OSError as error:
            raise SkipTest(f"control groups can't be made here: {error}") from None
        self._finalizer = weakref.finalize(self, _remove, self.directory)
        limit, swap = (
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            if self.version == 1
            else ("memory.max", "memory.swap.max")
        )
        (self.directory / limit).write_text(str(limit_bytes))
        if (self.directory / swap).exists():
            # In version 1, it is the limit of memory and swap together.
            (self.directory / swap).write_text(str(limit_bytes if self.version == 1 else 0))
        self.wrapper = ("sh", "-c", _ENTER, "sh", str(self.directory / "cgroup.procs"))

    def processes(self) -> set[int]:
        """The processes in it."""
        return {int(line) for line in (self.directory / "cgroup.procs").read_text().split()}

    def most_bytes(self) -> int | None:
        """The most memory in use at once; L{None} if it is not counted (version 2, before Linux 5.19)."""
        peak = self.directory / ("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")
        return int(peak.read_text()) if peak.exists() else None

    def kills(self) -> int:
        """How many processes the kernel has killed because of the limit."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        pairs = (line.split() for line in (self.directory / name).read_text().splitlines())
        return next(int(value) for key, value in pairs if key == "oom_kill")

    def remove(self) -> None:
        """Remove it. Everything in it must have been ended."""
        self._finalizer()
