"""C{[reports.kafka]}."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pcapsvc.settings.kafka import KafkaClusterSection, Topic
from pcapsvc.settings.kinds import Flag
from pcapsvc.settings.section import BuildContext, ReporterSection

if TYPE_CHECKING:
    from pcapsvc.interfaces.reports import IReporter

# One for what is published, and one to disconnect with while the other is blocked.
_THREADS = 2


class KafkaReportsSettings(KafkaClusterSection, ReporterSection, frozen=True, kw_only=True):
    """The topic of a Kafka cluster that events are published to."""

    name: ClassVar[str] = "kafka"
    table: ClassVar[str | None] = "reports.kafka"
    switch: ClassVar[str | None] = "send"
    inherits: ClassVar[str | None] = "kafka"

    send: Flag = False
    topic: Topic = "capture-events"

    def is_enabled(self) -> bool:
        """Whether events are published."""
        return self.send

    def build(self, context: BuildContext) -> IReporter:
        """The channel."""
        from pcapsvc.reports.channel import build_channel
        from pcapsvc.reports.kafka.publisher import KafkaPublisher

        publisher = KafkaPublisher(
            context.reactor,
            servers=self.server,
            topic=self.topic,
            client_id=self.client_id,
            security=self.security(),
            run_in_thread=context.threads(_THREADS),
        )
        return build_channel(context, publisher, self.name)
