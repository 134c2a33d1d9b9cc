"""How much processor time something takes."""

from __future__ import annotations

import time
from collections.abc import Callable


def takes_less(seconds: float, work: Callable[..., object], *arguments: object, rounds: int = 5) -> bool:
    """
    Whether something takes less processor time of this thread, in one of several rounds at least.

    What is expensive takes long each time. Once in a while anything does: if a hypervisor pauses the machine,
    that may count as processor time of whatever was running.
    """
    return any(_cpu_seconds(work, *arguments) < seconds for _ in range(rounds))


def _cpu_seconds(work: Callable[..., object], *arguments: object) -> float:
    began = time.thread_time()
    work(*arguments)
    return time.thread_time() - began
