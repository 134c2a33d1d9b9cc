"""The CPU time and the memory of a process, as the kernel counts them."""

from __future__ import annotations

import os
import time
from pathlib import Path

# The memory files of captures, as /proc/PID/fd shows them.
_MEMORY_FILE = "/memfd:pcapsvc-"
# The clock of all CPU time of a process (CPUCLOCK_SCHED in linux/posix-timers.h).
_CPU_CLOCK = 2


def cpu_seconds(pid: int) -> float:
    """
    The CPU time of a process so far, including threads that have ended.

    It is read from the clock of clock_getcpuclockid(3), which counts nanoseconds; C{/proc/PID/stat} counts
    ticks. It can be read until the process is waited for.
    """
    return time.clock_gettime((~pid << 3) | _CPU_CLOCK)


def memory(pid: int) -> tuple[int, int]:
    """The resident bytes of a process: now, and the peak since L{reset_peak} (proc(5), C{status})."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    now, most = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def reset_peak(pid: int) -> None:
    """Reset the peak of the resident memory (proc(5), C{clear_refs})."""
    Path("/proc", str(pid), "clear_refs").write_text("5")


def memory_files(pid: int) -> int:
    """The size of the memory files of a daemon's captures, which the resident size doesn't include."""
    taken: dict[int, int] = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            if os.readlink(entry.path).startswith(_MEMORY_FILE):
                # One file may be open more than once.
                file = os.stat(entry.path)
                taken[file.st_ino] = file.st_blocks * 512
        except FileNotFoundError:
            continue
    return sum(taken.values())
