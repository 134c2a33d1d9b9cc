"""C{[reports]}: what applies to every channel that events are published to."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta, field

from pcapsvc.settings.kinds import converted, whole_number
from pcapsvc.settings.section import Section

_SHORTEST_SECONDS = 0.1
_LONGEST_SECONDS = 3600
_INTERVAL_RULE = f"0, or a number of seconds from {_SHORTEST_SECONDS} to {_LONGEST_SECONDS}"


def _interval(seconds: float) -> float | None:
    if seconds and not _SHORTEST_SECONDS <= seconds <= _LONGEST_SECONDS:
        raise ValueError(f"must be {_INTERVAL_RULE}")
    return seconds or None


class ReportsSettings(Section, frozen=True, kw_only=True):
    """
    What applies to every channel.

    @ivar progress_seconds: how often the progress of captures is reported; L{None} is never.
    @ivar queue: how many events wait for each channel.
    """

    name: ClassVar[str] = "reports"
    table: ClassVar[str | None] = "reports"

    progress_seconds: Annotated[float, Meta(description=_INTERVAL_RULE), converted(_interval)] | None = field(
        name="progressinterval", default=1
    )
    queue: Annotated[int, whole_number(100, 1_000_000)] = 10_000
