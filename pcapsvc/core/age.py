"""Whether a request is too old: it would miss the packets that it was about, and capture others."""

from __future__ import annotations

from pcapsvc.core.errors import Problem

#: How far the clocks of a broker and of a node may be apart, in seconds, before it counts as age.
CLOCK_SKEW_SECONDS = 5.0


def too_old(sent_at: float, now: float, max_age_seconds: float | None) -> Problem | None:
    """
    The problem with a request that is too old; L{None} if it isn't.

    @param sent_at: when its broker accepted it, in seconds since the Unix epoch.
    @param now: the time here, likewise.
    @param max_age_seconds: how old it may be, by the same clock; L{None} is no bound.
    """
    age = now - sent_at
    if max_age_seconds is None or age <= max_age_seconds + CLOCK_SKEW_SECONDS:
        return None
    return Problem(
        path="request",
        rule=f"was sent {age:.0f} s ago, and must be at most {max_age_seconds:g} s old on this node",
    )
