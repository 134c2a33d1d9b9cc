"""C{[reports.sqs]}."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pcapsvc.settings.kinds import Flag
from pcapsvc.settings.secret import revealed
from pcapsvc.settings.section import BuildContext, ReporterSection
from pcapsvc.settings.sqs import SqsQueueSection

if TYPE_CHECKING:
    from pcapsvc.interfaces.reports import IReporter


class SqsReportsSettings(SqsQueueSection, ReporterSection, frozen=True, kw_only=True):
    """The queue that events are sent to."""

    name: ClassVar[str] = "sqs"
    table: ClassVar[str | None] = "reports.sqs"
    switch: ClassVar[str | None] = "send"
    inherits: ClassVar[str | None] = "sqs"

    send: Flag = False

    def is_enabled(self) -> bool:
        """Whether events are sent."""
        return self.send

    def build(self, context: BuildContext) -> IReporter:
        """The channel."""
        from pcapsvc.reports.channel import build_channel
        from pcapsvc.reports.sqs.publisher import THREADS, SqsPublisher

        assert self.url is not None
        publisher = SqsPublisher(
            context.reactor,
            url=self.url,
            region=self.region,
            endpoint=self.endpoint,
            access_id=self.access_id,
            access_key=revealed(self.access_key),
            run_in_thread=context.threads(THREADS),
        )
        return build_channel(context, publisher, self.name)
