"""How many requests a source may deliver, and how much time they may take."""

from __future__ import annotations

# A request that takes up to this long, in seconds, is an ordinary one: it opens a capture or two.
_ORDINARY_SECONDS = 0.1
# After one that takes longer, this many times as long must pass before the next.
_REST = 4


class RequestRate:
    """
    A token bucket for each source. It holds one second's worth of requests, and is refilled at that
    rate, so a source that was silent may deliver a second's worth at once. Requests that take long,
    such as those with costly filters, use up tokens in proportion to their time.

    @param per_second: how many requests a second each source may deliver; L{None} is unlimited.
    """

    def __init__(self, per_second: int | None) -> None:
        self._per_second = per_second
        # By source: the tokens that were left, and when.
        self._buckets: dict[str, tuple[float, float]] = {}

    def refusal(self, source: str, now: float) -> str | None:
        """
        Count a request.

        @return: why it comes too soon; L{None} if it doesn't.

        @param now: the time in seconds of any clock. If it was set back, no time has passed.
        """
        if self._per_second is None:
            return None
        tokens, before = self._buckets.get(source, (float(self._per_second), now))
        tokens = min(self._per_second, tokens + max(0.0, now - before) * self._per_second)
        admitted = tokens >= 1
        self._buckets[source] = (tokens - 1 if admitted else tokens, now)
        if admitted:
            return None
        if tokens < 0:
            return f"the requests from {source} take too much time"
        return f"more than {self._per_second} requests a second come from {source}"

    def took(self, source: str, seconds: float) -> None:
        """Take note of how long it took to judge a request that was admitted, and to begin its captures."""
        if self._per_second is not None and seconds > _ORDINARY_SECONDS:
            tokens, before = self._buckets[source]
            self._buckets[source] = (
                tokens - (seconds - _ORDINARY_SECONDS) * _REST * self._per_second,
                before,
            )


class TimeBudget:
    """
    A share of the time for each source, for work whose size a sender chooses and that is done before it is
    known whether the request is for this node, so that L{RequestRate} doesn't count it.

    @param share: how much of the time each source may use.
    @param most_seconds: how much a source that was silent may use at once.
    """

    def __init__(self, *, share: float, most_seconds: float) -> None:
        self._share = share
        self._most = most_seconds
        # By source: the seconds that were left, and when.
        self._left: dict[str, tuple[float, float]] = {}

    def spend(self, source: str, seconds: float, now: float) -> bool:
        """
        Use some of a source's time.

        @param now: the time in seconds of any clock. If it was set back, no time has passed.

        @return: whether there was enough left; if not, nothing is used.
        """
        left, before = self._left.get(source, (self._most, now))
        left = min(self._most, left + max(0.0, now - before) * self._share)
        enough = left >= seconds
        self._left[source] = (left - seconds if enough else left, now)
        return enough
