"""What the statuses of HTTP mean for another attempt."""

from __future__ import annotations

# Request Timeout, Locked (RFC 4918), Too Early, Too Many Requests; and of 5xx all but Not Implemented and
# HTTP Version Not Supported.
_PASSING = frozenset({408, 423, 425, 429})
_LASTING = frozenset({501, 505})


def is_passing_error(status: int) -> bool:
    """Whether a status is an error that may pass by itself."""
    return status in _PASSING or (status >= 500 and status not in _LASTING)
