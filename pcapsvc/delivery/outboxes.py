"""All destinations as one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from twisted.internet.defer import Deferred, DeferredList
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.interfaces.delivery import IDelivery


@implementer(IDelivery)
class Outboxes:
    """Delivers each capture to every destination, independently of the others."""

    def __init__(self, outboxes: Sequence[Outbox]) -> None:
        self._outboxes = tuple(outboxes)
        self.destinations = tuple(outbox.destination for outbox in self._outboxes)

    def deliver(
        self, artifact: Artifact, on_disk: Callable[[], object], to: Collection[str] | None = None
    ) -> Deferred[None]:
        """See L{IDelivery.deliver}."""
        chosen = [outbox for outbox in self._outboxes if to is None or outbox.destination in to]
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
