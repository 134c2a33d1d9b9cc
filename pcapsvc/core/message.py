"""What a source received."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """
    A message that may be a request.

    A C{Struct}, as one is made for every message: a frozen dataclass takes a microsecond to make, and all
    that is done with a message for another node takes three.

    @ivar source: the name of the source that received it.
    @ivar body: as it was received.
    @ivar sent_at: when the broker accepted it, by its own clock, in seconds since the Unix epoch; L{None}
        if the broker doesn't say.
    """

    source: str
    body: bytes
    sent_at: float | None = None
