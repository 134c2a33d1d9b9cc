"""How much of the machine the tests may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pcapsvc.host.memory import ProcessMemory
from peers import nursery
from peers.proc import processor_seconds_of

# Of a process, with the programs that it starts: some have a Java program, or a browser.
_PROCESS_BYTES = 500 << 20
# Most of the time a test of the whole waits for a server.
_PROCESSES_PER_PROCESSOR = 7


def processors(proc: Path = Path("/proc/self"), mounted: Path = Path("/sys/fs/cgroup")) -> float:
    """
    How many processors this process may use at a time: as many as it may run on, or fewer, if its control
    group, or one above it, has a quota (cgroups(7)), as containers have.

    @param proc: its directory in proc(5).
    @param mounted: where control groups are.
    """
    return min([float(len(os.sched_getaffinity(0))), *_quotas(proc, mounted)])


def most_processes(
    processors: float, proc: Path = Path("/proc/self"), meminfo: Path = Path("/proc/meminfo")
) -> int:
    """
    How many processes may run tests at the same time.

    @param processors: how many there are.
    @param proc: the directory of this process in proc(5). Its control groups may have limits of memory.
    @param meminfo: what is known of the host's memory (proc(5)).
    """
    most = int(_PROCESSES_PER_PROCESSOR * processors)
    free = ProcessMemory(str(proc), str(meminfo)).free_bytes(most * _PROCESS_BYTES)
    return max(1, most if free is None else min(most, free // _PROCESS_BYTES))


def pressure(path: Path = Path("/proc/pressure/cpu")) -> float:
    """
    For which share of the last ten seconds something that could run had to wait for a processor, in percent;
    0 if the kernel doesn't say (Documentation/accounting/psi.rst of Linux).

    @param path: of the kernel's answer.
    """
    try:
        line = path.read_text().splitlines()[0]
    except OSError:
        return 0.0
    return float(dict(field.split("=") for field in line.split()[1:])["avg10"])


def processor_seconds() -> float:
    """
    How many seconds of processors this process has taken, and all that it has started: those that have ended
    and were waited for, and those that still run, such as the servers of tests.
    """
    running = sum(map(processor_seconds_of, _descendants(os.getpid())))
    return sum(os.times()[:4]) + running + nursery.processor_seconds()


def _descendants(pid: int) -> Iterator[int]:
    # Those of each thread (proc(5), /proc/pid/task/tid/children).
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children: list[str] = []
        with suppress(OSError):
            children = path.read_text().split()
        for child in map(int, children):
            yield child
            yield from _descendants(child)


def _quotas(proc: Path, mounted: Path) -> Iterator[float]:
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for group in _with_those_above(mounted / ("" if not controllers else "cpu"), path):
            if not controllers:
                yield from _quota(group / "cpu.max")
            elif "cpu" in controllers.split(","):
                yield from _quota(group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")


def _with_those_above(root: Path, path: str) -> Iterator[Path]:
    # A container may see its own group only, where the hierarchy is mounted.
    yield root
    for name in path.strip("/").split("/"):
        root /= name
        yield root


def _quota(*files: Path) -> Iterator[float]:
    """Of a number of microseconds, and those of the period; if there is one, and it is limited."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
    except (OSError, ValueError):
        return
    if quota.isdecimal() and int(quota):
        yield int(quota) / int(period)
