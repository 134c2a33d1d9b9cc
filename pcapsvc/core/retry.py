"""When something that failed is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

#: The longest wait that a remote may ask for, in seconds. A day would outlive what is to be delivered.
LONGEST_ASKED_SECONDS = 3600.0

# From here on doubling changes nothing, as every longest wait is shorter.
_MOST_DOUBLINGS = 62


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """
    Exponential back-off with jitter: each failure doubles the wait, and chance takes up
    to half of it away, so that what failed together is not tried again together.

    @ivar attempts: how many there are, the first one included; L{None} is no bound.
    @ivar first_delay_seconds: the wait after the first failure.
    @ivar max_delay_seconds: the longest wait of our own.
    """

    attempts: int | None
    first_delay_seconds: float
    max_delay_seconds: float

    def delay_after(
        self, failures: int, *, chance: float, asked_seconds: float | None = None
    ) -> float | None:
        """
        How long to wait, in seconds; L{None} where the attempts are used up.

        @param failures: how many attempts have failed by now, 1 or more.
        @param chance: from 0 to 1: how much of what chance may take away is left.
        @param asked_seconds: how long the remote asks to be left alone, which is
            honoured up to L{LONGEST_ASKED_SECONDS}; L{None} where it doesn't say.
        """
        if self.attempts is not None and failures >= self.attempts:
            return None
        return self.wait_after(failures, chance=chance, asked_seconds=asked_seconds)

    def wait_after(self, failures: int, *, chance: float, asked_seconds: float | None = None) -> float:
        """How long to wait, in seconds, however many attempts there are: see L{delay_after}."""
        doubled = self.first_delay_seconds * 2.0 ** min(failures - 1, _MOST_DOUBLINGS)
        own = min(doubled, self.max_delay_seconds) * (0.5 + chance / 2)
        return max(own, honoured_seconds(asked_seconds))


def honoured_seconds(asked_seconds: float | None) -> float:
    """How much of a wait that a remote asks for it gets, in seconds."""
    return min(asked_seconds or 0.0, LONGEST_ASKED_SECONDS)


def asked_delay(retry_after: str | None, date: str | None) -> float | None:
    """
    How long a server asks to be left alone, in seconds; L{None} where it doesn't, or
    can't be understood (RFC 9110, section 10.2.3).

    @param retry_after: its header C{Retry-After}: seconds, or a date.
    @param date: its header C{Date}: a date is taken by the server's own clock.
    """
    words = (retry_after or "").strip()
    if words.isascii() and words.isdigit():
        return float(words[:12])
    until, now = _timestamp(words), _timestamp(date or "")
    return None if until is None or now is None else max(0.0, until - now)


def _timestamp(date: str) -> float | None:
    try:
        parsed = parsedate_to_datetime(date)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
    # A zone of "-0000" makes a time without one (email.utils).
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
