"""C{[delivery]}: how captures are delivered, and the spool for those that can't be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import field

from pcapsvc.core.errors import Problem, shown
from pcapsvc.settings.kinds import (
    MIB,
    AbsolutePath,
    Count,
    Flag,
    Seconds,
    SecondsOrNone,
    Size,
    whole_number,
)
from pcapsvc.settings.rules import at_most
from pcapsvc.settings.section import Conflict, Section

if TYPE_CHECKING:
    from pcapsvc.settings.settings import Settings


class DeliverySettings(Section, frozen=True, kw_only=True):
    """
    The attempts for each destination, and the spool.

    @ivar timeout_seconds: how long one attempt may take; L{None} is no limit.
    @ivar concurrency: how many attempts may be under way at once, for each destination.
    @ivar spool_dir: the directory of the spool; L{None} if there is none.
    @ivar spool_first: whether a capture is on disk, and no longer in memory, before the first attempt.
    @ivar spool_size_bytes: how much the spool may hold.
    @ivar retry_interval_seconds: how often a spooled capture is tried again.
    """

    name: ClassVar[str] = "delivery"
    table: ClassVar[str | None] = "delivery"

    attempts: Count = 5
    first_delay_seconds: Seconds = field(name="firstdelay", default=1)
    max_delay_seconds: Seconds = field(name="maxdelay", default=60)
    timeout_seconds: SecondsOrNone | None = field(name="timeout", default=300)
    concurrency: Annotated[int, whole_number(1, 64)] = 4
    spool_dir: AbsolutePath | None = field(name="spooldir", default=None)
    spool_first: Flag = field(name="spoolfirst", default=True)
    max_age_seconds: Seconds = field(name="maxage", default=86400)
    spool_size_bytes: Size = field(name="spoolsize", default=1024 * MIB)
    retry_interval_seconds: Seconds = field(name="retryinterval", default=60)

    def directories(self) -> Iterator[tuple[str, str]]:
        """The spool's."""
        if self.spool_dir is not None:
            yield "spooldir", self.spool_dir

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """Delays in order, and a spool with room for any capture."""
        yield from at_most(
            type(self), "firstdelay", self.first_delay_seconds, "maxdelay", self.max_delay_seconds
        )
        max_bytes = settings.general.max_bytes
        if self.spool_dir is not None and max_bytes >= self.spool_size_bytes:
            yield Conflict(
                path="delivery.spoolsize",
                others=("delivery.spooldir", "general.maxbytes"),
                value=shown(self.spool_size_bytes),
                rule=f"must be more than general.maxbytes, which is {max_bytes}",
            )
