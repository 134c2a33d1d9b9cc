"""The monotonic clock and the wall clock at once."""

from __future__ import annotations

from collections.abc import Callable

# How far apart two looks at clocks may be that count as one, in seconds, and how often it is tried.
_AT_ONCE_SECONDS = 0.001
_MOST_LOOKS = 4


def both_clocks(monotonic: Callable[[], float], wall_clock: Callable[[], float]) -> tuple[float, float]:
    """
    The time by both clocks at once: between two looks, other programs may have had the processor.

    @return: by each, in seconds.
    """
    now = monotonic()
    for _ in range(_MOST_LOOKS):
        wall, looked = wall_clock(), monotonic()
        if looked - now < _AT_ONCE_SECONDS:
            break
        now = looked
    return now, wall
