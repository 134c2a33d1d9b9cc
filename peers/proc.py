"""What the kernel does for a process, and knows of it."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)
# Looked up here: after a fork in a process with threads, the loader's lock may be held forever.
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def processor_seconds_of(pid: int) -> float:
    """
    How many seconds of processors a process has taken, with the children that it has waited for; 0 if it is
    gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0.0
    # See proc(5), /proc/pid/stat. The name, its second field, may have spaces and parentheses.
    return sum(map(int, stat.rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")
