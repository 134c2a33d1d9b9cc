"""C{[kafka]}."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pcapsvc.settings.kafka import KafkaClusterSection
from pcapsvc.settings.kinds import Flag, Line
from pcapsvc.settings.section import BuildContext, SourceSection

if TYPE_CHECKING:
    from pcapsvc.interfaces.requests import IRequestSink, IRequestSource


class KafkaSettings(KafkaClusterSection, SourceSection, frozen=True, kw_only=True):
    """
    A topic of a Kafka cluster.

    @ivar group: the consumer group to share requests with; L{None} consumes all of them.
    """

    name: ClassVar[str] = "kafka"
    table: ClassVar[str | None] = "kafka"
    switch: ClassVar[str] = "listen"

    listen: Flag = False
    group: Line | None = None

    def is_enabled(self) -> bool:
        """Whether requests are accepted from it."""
        return self.listen

    def build(self, context: BuildContext, sink: IRequestSink) -> IRequestSource:
        """The source."""
        from pcapsvc.sources.kafka.source import KafkaSource

        return KafkaSource(
            context.reactor,
            sink,
            servers=self.server,
            topic=self.topic,
            group=self.group,
            client_id=self.client_id,
            security=self.security(),
            wall_clock=context.wall_clock,
        )
