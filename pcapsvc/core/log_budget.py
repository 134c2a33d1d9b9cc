"""How much may be logged, whoever causes it."""

from __future__ import annotations

from enum import Enum

#: A log grows by up to this in the long run: 58 MiB an hour.
BYTES_A_SECOND = 16 * 1024
#: How much may be logged at once.
BURST_BYTES = 1024 * 1024
#: After how long it is reported what was not logged.
REPORT_SECONDS = 10.0


class Importance(Enum):
    """
    How important a line is: its value is the share of L{BURST_BYTES} that it has to leave to more
    important ones.
    """

    #: Requests, refusals and packets: whoever may send them can cause any number of lines.
    NOISE = 0.5
    #: What becomes of captures.
    CAPTURE = 0.25
    #: Errors, and what people do in the manhole.
    ERROR = 0.0


class LogBudget:
    """
    A token bucket of bytes, which all lines share. Lines that it refuses are counted.

    @param bytes_a_second: how fast it fills.
    @param burst_bytes: how much it holds.
    """

    def __init__(self, *, bytes_a_second: float = BYTES_A_SECOND, burst_bytes: float = BURST_BYTES) -> None:
        self._rate = bytes_a_second
        self._burst = burst_bytes
        self._left = burst_bytes
        self._filled: float | None = None
        self._refused: dict[str, int] = {}
        self._refused_since = 0.0

    def allows(self, importance: Importance, kind: str, now: float) -> bool:
        """
        Whether a line may be logged. If not, it is counted.

        @param kind: what the line is about, for the report.
        @param now: the time in seconds, by a clock that never goes back.
        """
        if self._filled is not None:
            self._left = min(self._burst, self._left + (now - self._filled) * self._rate)
        self._filled = now
        if self._left > importance.value * self._burst:
            return True
        if not self._refused:
            self._refused_since = now
        self._refused[kind] = self._refused.get(kind, 0) + 1
        return False

    def charge(self, size: int) -> None:
        """
        Count a line that is logged. The last one may go into debt.

        @param size: in bytes.
        """
        self._left -= size

    def has_report(self) -> bool:
        """Whether lines were refused since the last report."""
        return bool(self._refused)

    def report(self, now: float, *, at_once: bool = False) -> str | None:
        """
        How many lines were refused since the last report, by kind. L{None} if there were none, or
        the first of them was less than L{REPORT_SECONDS} ago.

        @param at_once: whether to report them in any case.
        """
        if not self._refused or not (at_once or now - self._refused_since >= REPORT_SECONDS):
            return None
        refused, self._refused = self._refused, {}
        count = sum(refused.values())
        kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(refused.items()))
        return f"{count} {'line was' if count == 1 else 'lines were'} not logged, to bound the log: {kinds}"
