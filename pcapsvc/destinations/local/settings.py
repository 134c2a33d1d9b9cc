"""The local directory's keys. They are in C{[general]}, except for those of C{[local]}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from msgspec import field

from pcapsvc.core.compression import UNCOMPRESSED, CompressionChoice
from pcapsvc.core.errors import Problem
from pcapsvc.settings.kinds import AbsolutePath, Compress, Flag, Seconds, Size
from pcapsvc.settings.section import BuildContext, Conflict, DestinationSection, Option, Section

if TYPE_CHECKING:
    from pcapsvc.destinations.local.retention import Retention
    from pcapsvc.interfaces.delivery import IDestination
    from pcapsvc.settings.settings import Settings


class RetentionSettings(Section, frozen=True, kw_only=True):
    """
    C{[local]}: how much the local directory keeps.

    @ivar max_bytes: of all captures together; L{None} is no limit.
    @ivar max_age_seconds: of each capture; L{None} is no limit.
    """

    name: ClassVar[str] = "retention"
    table: ClassVar[str | None] = "local"

    max_bytes: Size | None = field(name="maxsize", default=None)
    max_age_seconds: Seconds | None = field(name="maxage", default=None)


class LocalSettings(DestinationSection, frozen=True, kw_only=True):
    """
    A directory of this host.

    @ivar local_dir: its path.
    @ivar compress: how its files are compressed.
    """

    name: ClassVar[str] = "local"
    table: ClassVar[str | None] = "general"
    switch: ClassVar[str] = "writelocal"
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            name="writelocal",
            key="writelocal",
            kind="flag",
            help="Write captures to a local directory. Needs --destdir, or the key localdir.",
        ),
        Option(
            name="destdir",
            key="localdir",
            kind="text",
            help="Directory for local captures.",
        ),
    )

    write_local: Flag = field(name="writelocal", default=False)
    local_dir: AbsolutePath | None = field(name="localdir", default=None)
    compress: Compress = field(name="localcompress", default=UNCOMPRESSED)

    def is_enabled(self) -> bool:
        """Whether captures are written there."""
        return self.write_local

    def uses_twisted_tls(self) -> bool:
        """It doesn't."""
        return False

    def compression(self) -> CompressionChoice:
        """As C{localcompress} says."""
        return CompressionChoice(usual=self.compress)

    def directories(self) -> Iterator[tuple[str, str]]:
        """The one for captures."""
        if self.local_dir is not None:
            yield "localdir", self.local_dir

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """Writing needs a directory."""
        if self.write_local and self.local_dir is None:
            yield Conflict(
                path="general.writelocal",
                others=("general.localdir",),
                rule="needs a directory: general.localdir or --destdir",
            )

    def build(self, context: BuildContext) -> IDestination:
        """The directory."""
        from pcapsvc.destinations.local.destination import LocalDirectory

        assert self.local_dir is not None
        return LocalDirectory(
            directory=self.local_dir,
            run_in_thread=context.destination_threads(),
            retention=_retention(context, self.local_dir),
        )


def _retention(context: BuildContext, directory: str) -> Retention | None:
    """What removes old captures; L{None} if all are kept."""
    chosen = context.settings.section(RetentionSettings)
    if chosen.max_bytes is None and chosen.max_age_seconds is None:
        return None
    from pcapsvc.core.kept_file import Limits, SteadyClock
    from pcapsvc.destinations.local.retention import Retention

    return Retention(
        context.reactor,
        directory=directory,
        limits=Limits(max_bytes=chosen.max_bytes, max_age_seconds=chosen.max_age_seconds),
        run_in_thread=context.threads(1),
        clock=SteadyClock(context.wall_clock, context.reactor.seconds),
    )
