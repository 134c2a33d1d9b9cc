"""C{[reports.redis]}."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pcapsvc.settings.kinds import Flag, Line
from pcapsvc.settings.redis import RedisServerSection
from pcapsvc.settings.secret import revealed
from pcapsvc.settings.section import BuildContext, ReporterSection

if TYPE_CHECKING:
    from pcapsvc.interfaces.reports import IReporter


class RedisReportsSettings(RedisServerSection, ReporterSection, frozen=True, kw_only=True):
    """The channel of a Redis server that events are published to."""

    name: ClassVar[str] = "redis"
    table: ClassVar[str | None] = "reports.redis"
    switch: ClassVar[str | None] = "send"
    inherits: ClassVar[str | None] = "redis"

    send: Flag = False
    channel: Line = "capture-events"

    def is_enabled(self) -> bool:
        """Whether events are published."""
        return self.send

    def uses_twisted_tls(self) -> bool:
        """If it is encrypted."""
        return self.tls

    def build(self, context: BuildContext) -> IReporter:
        """The channel."""
        from pcapsvc.reports.channel import build_channel
        from pcapsvc.reports.redis.publisher import RedisPublisher

        publisher = RedisPublisher(
            context.reactor,
            host=self.host,
            port=self.port,
            channel=self.channel,
            username=self.username,
            password=revealed(self.auth),
            tls=self.tls,
            ca_file=self.ca_file,
        )
        return build_channel(context, publisher, self.name)
