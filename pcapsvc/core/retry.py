"""When a failed attempt is repeated."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

import msgspec

#: The longest wait that a remote may ask for, in seconds. After days, nothing would be left to deliver.
LONGEST_ASKED_SECONDS = 3600.0

# More doublings change nothing: every maximum is shorter.
_MOST_DOUBLINGS = 62


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """
    Exponential back-off with jitter: each failure doubles the delay, and up to half of it is taken
    off at random, so that what failed together is not repeated together.

    @ivar attempts: how many there are, including the first one; L{None} is no limit.
    @ivar first_delay_seconds: the delay after the first failure.
    @ivar max_delay_seconds: the longest delay that is not asked for by the remote.
    @ivar patience_seconds: the longest delay of all. If the remote asks for more, there is no further
        attempt. L{None} is no limit.
    @ivar retry_lasting: whether errors that are not retryable are retried as well, at the longest delay:
        somebody may fix what causes them.
    """

    attempts: int | None
    first_delay_seconds: float
    max_delay_seconds: float
    patience_seconds: float | None = None
    retry_lasting: bool = False

    def next_delay(
        self, failures: int, *, retryable: bool, chance: float, asked_seconds: float | None = None
    ) -> float | None:
        """
        How long to wait after a failure, in seconds; L{None} if there is no further attempt.

        @param retryable: whether the last error was.
        @param failures: as in L{delay_after}; so is the rest.
        """
        if not retryable:
            return self.max_delay_seconds if self.retry_lasting else None
        delay = self.delay_after(failures, chance=chance, asked_seconds=asked_seconds)
        if delay is not None and self.patience_seconds is not None and delay > self.patience_seconds:
            return None
        return delay

    def delay_after(
        self, failures: int, *, chance: float, asked_seconds: float | None = None
    ) -> float | None:
        """
        How long to wait after a retryable failure, in seconds; L{None} if the attempts are used up.

        @param failures: how many attempts have failed so far, 1 or more.
        @param chance: a random number from 0 to 1.
        @param asked_seconds: how long the remote asks us to wait, which is honoured up to
            L{LONGEST_ASKED_SECONDS}; L{None} if it doesn't.
        """
        if self.attempts is not None and failures >= self.attempts:
            return None
        return self.wait_after(failures, chance=chance, asked_seconds=asked_seconds)

    def wait_after(self, failures: int, *, chance: float, asked_seconds: float | None = None) -> float:
        """How long to wait, regardless of the number of attempts: see L{delay_after}."""
        doubled = self.first_delay_seconds * 2.0 ** min(failures - 1, _MOST_DOUBLINGS)
        own = min(doubled, self.max_delay_seconds) * (0.5 + chance / 2)
        return max(own, honoured_seconds(asked_seconds))


def honoured_seconds(asked_seconds: float | None) -> float:
    """How much of the wait that a remote asks for is honoured, in seconds."""
    return min(asked_seconds or 0.0, LONGEST_ASKED_SECONDS)


def asked_delay(retry_after: str | None, date: str | None) -> float | None:
    """
    How long a server asks us to wait, in seconds; L{None} if it doesn't, or can't be understood
    (RFC 9110, section 10.2.3).

    @param retry_after: its header C{Retry-After}: seconds, or a date.
    @param date: its header C{Date}, as a date is by the server's own clock.
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
    # The zone "-0000" gives a time without a zone (email.utils).
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
