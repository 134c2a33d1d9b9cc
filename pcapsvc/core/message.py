"""What a source received."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """
    A message that may be a request.

    @ivar source: the name of the source that received it.
    @ivar body: as it was received.
    @ivar sent_at: when the broker accepted it, by its own clock, in seconds since the Unix epoch; L{None}
        if the broker doesn't say.
    """

    source: str
    body: bytes
    sent_at: float | None = None
