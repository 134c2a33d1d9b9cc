"""
How much memory this process may use: the limits of its control groups and of the host.

A process that exceeds the limit of a control group is killed, or slowed down to a crawl; no allocation
fails. So there is no other way than to look before. See cgroups(7) and, in the kernel's documentation,
"Control Group v2" and "Memory Resource Controller".
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec

from pcapsvc.kernel_file import read_kernel_file

MIB = 1 << 20

#: What the process needs for itself, in bytes.
PROCESS_BYTES = 64 * MIB

# An unlimited group of version 1 has the largest number of pages.
_UNLIMITED = 1 << 60


class _Files(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a version, in a group's directory."""

    limits: tuple[str, ...]
    usage: str
    # Of memory.stat: pages of files, which the kernel takes back when it needs memory.
    reclaimable: frozenset[str]


_VERSION_1 = _Files(
    limits=("memory.limit_in_bytes",),
    usage="memory.usage_in_bytes",
    reclaimable=frozenset({"total_inactive_file", "total_active_file"}),
)
_VERSION_2 = _Files(
    # Over memory.high, a process is not killed, but throttled.
    limits=("memory.max", "memory.high"),
    usage="memory.current",
    reclaimable=frozenset({"inactive_file", "active_file"}),
)


class ProcessMemory:
    """
    The memory that this process may use.

    @param proc: the directory of the process in proc(5).
    @param meminfo: the path of the host's own figures.
    """

    def __init__(self, proc: str = "/proc/self", meminfo: str = "/proc/meminfo") -> None:
        self._meminfo = meminfo
        self._groups = tuple(_groups(proc))

    def limit_bytes(self) -> int | None:
        """The lowest of all limits; L{None} if none is known."""
        limits = [_limit(directory, files) for directory, files in self._groups]
        # Of a group of version 1, this includes ancestors that are not visible.
        above = [
            _statistics(directory).get("hierarchical_memory_limit")
            for directory, files in self._groups[:1]
            if files is _VERSION_1
        ]
        total = _meminfo(self._meminfo, "MemTotal")
        return min((limit for limit in (*limits, *above, total) if limit is not None), default=None)

    def at_most(self, wanted_bytes: int) -> int:
        """
        As much of C{wanted_bytes} as captures may use within the limits. In a very small group that is at
        least a quarter of the limit, so that small captures remain possible.
        """
        limit = self.limit_bytes()
        return wanted_bytes if limit is None else min(wanted_bytes, max(limit - PROCESS_BYTES, limit // 4))

    def free_bytes(self, enough: int) -> int | None:
        """
        How much may still be used now, within all limits; L{None} if none is known.

        @param enough: if there is as much as this, it need not be known exactly: the statistics of a group
            take the kernel up to a millisecond.
        """
        free = [
            room for directory, files in self._groups if (room := _free(directory, files, enough)) is not None
        ]
        available = _meminfo(self._meminfo, "MemAvailable")
        return min([*free, *([] if available is None else [available])], default=None)


def _groups(proc: str) -> Iterator[tuple[str, _Files]]:
    """The directories of this process's memory groups and of their ancestors, as far as they are visible."""
    paths: dict[str, str] = {}
    for line in _read(f"{proc}/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for name in controllers.split(","):
            paths[name] = path
    for line in _read(f"{proc}/mountinfo").splitlines():
        # proc(5): optional fields end with a hyphen.
        before, _, after = line.partition(" - ")
        fields, (kind, *_, options) = before.split(" "), [*after.split(" "), ""][:3] if after else ["", ""]
        if kind == "cgroup2":
            group, files = paths.get(""), _VERSION_2
        elif kind == "cgroup" and "memory" in options.split(","):
            group, files = paths.get("memory"), _VERSION_1
        else:
            continue
        if group is not None and len(fields) > 4:
            root, mounted = _unescaped(fields[3]), _unescaped(fields[4])
            for directory in _ancestors(root, mounted, group):
                yield directory, files


def _ancestors(root: str, mounted: str, path: str) -> Iterator[str]:
    """
    The directory of a group, and those above it, up to where its hierarchy is mounted.

    @param root: which group is mounted there. If it is neither the process's nor above it, the process is in
        another namespace, and only the mounted one is visible.
    """
    root = root.rstrip("/")
    relative = path[len(root) :].strip("/") if f"{path}/".startswith(f"{root}/") else ""
    directory = os.path.join(mounted, relative) if relative and ".." not in relative.split("/") else mounted
    while True:
        yield directory
        if directory == mounted:
            return
        directory = os.path.dirname(directory)


def _limit(directory: str, files: _Files) -> int | None:
    limits = [_number(_read(f"{directory}/{name}")) for name in files.limits]
    return min((limit for limit in limits if limit is not None and limit < _UNLIMITED), default=None)


def _free(directory: str, files: _Files, enough: int) -> int | None:
    limit = _limit(directory, files)
    used = None if limit is None else _number(_read(f"{directory}/{files.usage}"))
    if limit is None or used is None:
        return None
    if limit - used >= enough:
        return limit - used
    statistics = _statistics(directory)
    reclaimable = sum(statistics.get(name, 0) for name in files.reclaimable)
    return max(0, limit - max(0, used - reclaimable))


def _statistics(directory: str) -> dict[str, int]:
    pairs = (line.split() for line in _read(f"{directory}/memory.stat").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _meminfo(path: str, name: str) -> int | None:
    """One of the host's figures, in bytes; L{None} if it isn't there."""
    _, _, rest = f"\n{_read(path)}".partition(f"\n{name}:")
    words = rest.split(None, 1)
    return int(words[0]) * 1024 if words and words[0].isdecimal() else None


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() else None


def _read(path: str) -> str:
    """A file's text; empty if it can't be read, because then there is nothing to be known."""
    try:
        return os.fsdecode(read_kernel_file(path))
    except OSError:
        return ""


def _unescaped(path: str) -> str:
    """A path of mountinfo, in which white space is escaped in octal."""
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(octal, character)
    return path
