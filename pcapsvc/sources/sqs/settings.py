"""C{[sqs]}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar
from urllib.parse import urlsplit

from msgspec import Meta, field

from pcapsvc.core.errors import Problem
from pcapsvc.settings.kinds import Endpoint, Flag, Line, Region, converted, one_of, whole_number
from pcapsvc.settings.rules import access_key_pair
from pcapsvc.settings.secret import Secret, revealed
from pcapsvc.settings.section import BuildContext, Conflict, SecretKeys, SourceSection

if TYPE_CHECKING:
    from pcapsvc.interfaces.requests import IRequestSink, IRequestSource
    from pcapsvc.settings.settings import Settings

# How long after the longest capture a message is recognized if it is delivered again.
_REMEMBERED_AFTER_SECONDS = 3600


def _queue_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("must be an http:// or https:// URL with a host, and a port from 1 to 65535 if any")
    return url


class SqsSettings(SourceSection, frozen=True, kw_only=True):
    """
    A queue of Amazon SQS, or of a service that speaks its protocol.

    @ivar endpoint: the service's URL; L{None} is Amazon's own.
    @ivar unmatched: what happens to a message for another node.
    """

    name: ClassVar[str] = "sqs"
    table: ClassVar[str | None] = "sqs"
    secrets: ClassVar[tuple[SecretKeys, ...]] = (
        SecretKeys(field="access_key", key="accesskey", file_key="accesskeyfile"),
    )

    listen: Flag = False
    region: Region | None = None
    access_id: Line | None = field(name="accessid", default=None)
    access_key: Secret | None = field(name="accesskey", default=None)
    url: (
        Annotated[
            str,
            Meta(pattern=r"\Ahttps?://[^\s@\x00-\x1f\x7f]+\Z", description="an http:// or https:// URL"),
            converted(_queue_url),
        ]
        | None
    ) = None
    endpoint: Endpoint | None = None
    # Both as in the SQS API Reference, "ReceiveMessage".
    wait_seconds: Annotated[int, whole_number(0, 20, "a whole number of seconds,")] = field(
        name="waitseconds", default=20
    )
    chunk_size: Annotated[int, whole_number(1, 10)] = field(name="chunksize", default=10)
    unmatched: Annotated[str, one_of("release", "delete")] = "release"

    def is_enabled(self) -> bool:
        """Whether requests are accepted from it."""
        return self.listen

    def uses_twisted_tls(self) -> bool:
        """It uses Python's."""
        return False

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """Credentials are complete, and listening needs a queue."""
        yield from access_key_pair(type(self), self.access_id, self.access_key)
        if self.listen and self.url is None:
            yield Conflict(path="sqs.listen", others=("sqs.url",), rule="needs sqs.url")

    def build(self, context: BuildContext, sink: IRequestSink) -> IRequestSource:
        """The source."""
        from pcapsvc.sources.sqs.source import SQSSource

        assert self.url is not None
        return SQSSource(
            context.reactor,
            sink,
            url=self.url,
            region=self.region,
            endpoint=self.endpoint,
            access_id=self.access_id,
            access_key=revealed(self.access_key),
            wait_seconds=self.wait_seconds,
            chunk_size=self.chunk_size,
            unmatched=self.unmatched,
            remembered_seconds=context.settings.general.max_duration_seconds + _REMEMBERED_AFTER_SECONDS,
            wall_clock=context.wall_clock,
        )
