"""C{[redis]}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from msgspec import field

from pcapsvc.core.errors import Problem
from pcapsvc.settings.kinds import CertificatesFile, Flag, Host, Line, Port
from pcapsvc.settings.rules import certificate_name
from pcapsvc.settings.secret import Secret, revealed
from pcapsvc.settings.section import BuildContext, Conflict, Option, SecretKeys, SourceSection

if TYPE_CHECKING:
    from pcapsvc.interfaces.requests import IRequestSink, IRequestSource
    from pcapsvc.settings.settings import Settings


class RedisSettings(SourceSection, frozen=True, kw_only=True):
    """A channel of a Redis server."""

    name: ClassVar[str] = "redis"
    table: ClassVar[str | None] = "redis"
    secrets: ClassVar[tuple[SecretKeys, ...]] = (SecretKeys(field="auth", key="auth", file_key="authfile"),)
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
    host: Host = "localhost"
    port: Port = 6379
    channel: Line = "capture"
    username: Line | None = None
    auth: Secret | None = None
    tls: Flag = False
    ca_file: CertificatesFile | None = field(name="cafile", default=None)

    def is_enabled(self) -> bool:
        """Whether requests are accepted from it."""
        return self.listen

    def uses_twisted_tls(self) -> bool:
        """Always, because its client library imports it."""
        return True

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """A user needs a password, a CA file needs TLS, and TLS needs a valid name."""
        if self.username is not None and self.auth is None:
            yield Conflict(
                path="redis.username",
                others=("redis.auth", "redis.authfile"),
                rule="needs redis.auth or redis.authfile",
            )
        if self.ca_file is not None and not self.tls:
            yield Conflict(
                path="redis.cafile", others=("redis.tls",), rule="has no effect without redis.tls = true"
            )
        if self.listen and self.tls:
            yield from certificate_name(type(self), self.host, "tls")

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
