"""Times as JSON has them."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(seconds: float) -> str:
    """
    A time in the format of RFC 3339, in UTC, with microseconds.

    @param seconds: since the Unix epoch.
    """
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
