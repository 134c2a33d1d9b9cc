"""Whether requests can arrive through a source."""

from __future__ import annotations

import msgspec


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """
    The state of a source.

    @ivar connected: whether requests can arrive through it now.
    @ivar since: when C{connected} last changed, or, if it hasn't changed yet, when the source was started; in
        seconds since the Unix epoch. L{None} before the first start.
    @ivar problem: why it isn't connected: one line that contains no secret. L{None} if it is connected, if no
        attempt has failed yet, or if it isn't running.
    """

    connected: bool = False
    since: float | None = None
    problem: str | None = None
