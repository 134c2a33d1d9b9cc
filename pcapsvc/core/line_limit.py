"""A limit on log lines per second, with a count of those that were suppressed."""

from __future__ import annotations


class LineLimit:
    """
    Decides which lines are logged.

    @param per_second: how many lines may be logged in each second.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second: int | None = None
        self._lines = 0
        self._suppressed = 0

    def may_log(self, now: float) -> bool:
        """
        Whether another line may be logged. If not, it is counted.

        @param now: the time in seconds, by any clock.
        """
        if (second := int(now)) != self._second:
            self._second, self._lines = second, 0
        if self._lines == self._per_second:
            self._suppressed += 1
            return False
        self._lines += 1
        return True

    def take_suppressed(self) -> int:
        """Return how many lines were suppressed since the last call."""
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
