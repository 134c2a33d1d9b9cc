"""All destinations as one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.interfaces.delivery import IDelivery


@implementer(IDelivery)
class Outboxes:
    """Delivers each capture to every destination that it is for, independently of the others."""

    _log = Logger()

    def __init__(self, outboxes: Sequence[Outbox]) -> None:
        self._outboxes = tuple(outboxes)

    def destinations(self, artifact: Artifact) -> list[str]:
        """The names of those that a capture is for: some are only for captures whose requests say so."""
        return [
            outbox.destination
            for outbox in self._outboxes
            if outbox.route(artifact.options.get(outbox.destination, {})) is not None
        ]

    def deliver(
        self, artifact: Artifact, on_disk: Callable[[], object], to: Collection[str] | None = None
    ) -> Deferred[None]:
        """See L{IDelivery.deliver}."""
        names = self.destinations(artifact) if to is None else to
        chosen = [outbox for outbox in self._outboxes if outbox.destination in names]
        if not chosen:
            self._log.warn(
                "{capture_id}: for no destination: the node has none but those that a request names",
                capture_id=artifact.capture_id,
            )
        return Deferred.fromCoroutine(self._deliver(chosen, artifact, on_disk))

    async def _deliver(
        self, outboxes: Sequence[Outbox], artifact: Artifact, on_disk: Callable[[], object]
    ) -> None:
        in_memory = {outbox.destination for outbox in outboxes}

        def one_on_disk(destination: str) -> None:
            in_memory.discard(destination)
            if not in_memory:
                on_disk()

        deliveries = []
        for outbox in outboxes:
            name = outbox.destination
            deliveries.append(outbox.deliver(artifact, lambda name=name: one_on_disk(name)))  # type: ignore[misc]
        await DeferredList(deliveries)
