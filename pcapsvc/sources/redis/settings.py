"""C{[redis]}."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pcapsvc.settings.kinds import Flag
from pcapsvc.settings.redis import RedisServerSection
from pcapsvc.settings.secret import revealed
from pcapsvc.settings.section import BuildContext, Option, SourceSection

if TYPE_CHECKING:
    from pcapsvc.interfaces.requests import IRequestSink, IRequestSource


class RedisSettings(RedisServerSection, SourceSection, frozen=True, kw_only=True):
    """A channel of a Redis server."""

    name: ClassVar[str] = "redis"
    table: ClassVar[str | None] = "redis"
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            name="redischannel",
            key="channel",
            kind="text",
            implies="listen",
            help="Redis channel to subscribe to. Like every option of Redis, it enables listening, "
            "unless the configuration says listen = false.",
        ),
        Option(
            name="redisnode",
            key="host",
            kind="text",
            implies="listen",
            help="Host name or address of the Redis server.",
        ),
        Option(name="redisport", key="port", kind="number", implies="listen", help="Port of Redis."),
    )

    listen: Flag = False

    def is_enabled(self) -> bool:
        """Whether requests are accepted from it."""
        return self.listen

    def uses_twisted_tls(self) -> bool:
        """If the connection is encrypted."""
        return self.tls

    def build(self, context: BuildContext, sink: IRequestSink) -> IRequestSource:
        """The source."""
        from pcapsvc.sources.redis.source import RedisSource

        return RedisSource(
            context.reactor,
            sink,
            host=self.host,
            port=self.port,
            channel=self.channel,
            username=self.username,
            password=revealed(self.auth),
            tls=self.tls,
            ca_file=self.ca_file,
            wall_clock=context.wall_clock,
        )
