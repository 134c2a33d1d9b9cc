"""How many requests a source may bring, and how much time they may take."""

from __future__ import annotations

# A request that takes so long, in seconds, is an ordinary one: a capture or two are opened.
_ORDINARY_SECONDS = 0.1
# Of the time of one that takes longer, so many times as much must pass before the next.
_REST = 4


class RequestRate:
    """
    A bucket of tokens for each source: as many as may come in a second, and filled
    again at that rate. So a source that was silent may bring a second's worth at once.
    Requests that take long, such as those of costly filters, take tokens by their time.

    @param per_second: how many requests a second each source may bring; L{None} is no bound.
    """

    def __init__(self, per_second: int | None) -> None:
        self._per_second = per_second
        # By source: the tokens that were left, and when.
        self._buckets: dict[str, tuple[float, float]] = {}

    def refusal(self, source: str, now: float) -> str | None:
        """
        Why a request of a source comes too soon; L{None} where it doesn't, and is counted.

        @param now: the time in seconds of any clock. Where it was put back, no time has passed.
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

        @param now: the time in seconds of any clock. If it was put back, no time has passed.

        @return: whether there was enough left; if not, nothing is used.
        """
        left, before = self._left.get(source, (self._most, now))
        left = min(self._most, left + max(0.0, now - before) * self._share)
        enough = left >= seconds
        self._left[source] = (left - seconds if enough else left, now)
        return enough
