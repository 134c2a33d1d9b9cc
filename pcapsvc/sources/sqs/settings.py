"""C{[sqs]}."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import field

from pcapsvc.settings.kinds import Flag, one_of, whole_number
from pcapsvc.settings.secret import revealed
from pcapsvc.settings.section import BuildContext, SourceSection
from pcapsvc.settings.sqs import SqsQueueSection

if TYPE_CHECKING:
    from pcapsvc.interfaces.requests import IRequestSink, IRequestSource

# How long after the longest capture a message is recognized if it is delivered again.
_REMEMBERED_AFTER_SECONDS = 3600


class SqsSettings(SqsQueueSection, SourceSection, frozen=True, kw_only=True):
    """
    A queue that is polled.

    @ivar unmatched: what happens to a message for another node.
    """

    name: ClassVar[str] = "sqs"
    table: ClassVar[str | None] = "sqs"
    switch: ClassVar[str] = "listen"

    listen: Flag = False
    # Both as in the SQS API Reference, "ReceiveMessage".
    wait_seconds: Annotated[int, whole_number(0, 20, "a whole number of seconds,")] = field(
        name="waitseconds", default=20
    )
    chunk_size: Annotated[int, whole_number(1, 10)] = field(name="chunksize", default=10)
    unmatched: Annotated[str, one_of("release", "delete")] = "release"

    def is_enabled(self) -> bool:
        """Whether requests are accepted from it."""
        return self.listen

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
