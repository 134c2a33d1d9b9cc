"""What a rolling capture holds: the newest packets."""

from __future__ import annotations

from typing import Any

import msgspec

from pcapsvc.core.timestamp import rfc3339


class RollingPackets(msgspec.Struct, frozen=True, kw_only=True):
    """
    The newest packets of a capture, which released the others to make room for them.

    @ivar seconds: how old they may be at the end, as the request says; L{None} if it doesn't.
    @ivar first: the time stamp of the first one, in seconds since the Unix epoch; L{None} if there is none.
    @ivar captured: how many packets were captured so far.
    @ivar captured_bytes: the size that a file with all of them would have.
    @ivar released: how many of them are not held any more.
    """

    seconds: float | None = None
    first: float | None = None
    captured: int = 0
    captured_bytes: int = 0
    released: int = 0

    def values(self) -> dict[str, Any]:
        """It in values that JSON has; what is unknown, or isn't there, is L{None}."""
        return {
            "seconds": self.seconds,
            "first": None if self.first is None else rfc3339(self.first),
            "captured": self.captured,
            "captured_bytes": self.captured_bytes,
            "released": self.released,
        }
