"""So many lines in the log a second, and a count of the others."""

from __future__ import annotations


class LineLimit:
    """
    Says which lines are logged.

    @param per_second: at most so many lines a second.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second: int | None = None
        self._lines = 0
        self._left_out = 0

    def may_log(self, now: float) -> bool:
        """
        Whether one more line is logged; else it is counted.

        @param now: the time in seconds of any clock.
        """
        if (second := int(now)) != self._second:
            self._second, self._lines = second, 0
        if self._lines == self._per_second:
            self._left_out += 1
            return False
        self._lines += 1
        return True

    def take_left_out(self) -> int:
        """How many lines were left out, since this was asked last."""
        left_out, self._left_out = self._left_out, 0
        return left_out
