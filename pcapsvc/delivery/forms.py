"""
The file of a capture in the form that each destination wants: as it is, or compressed.

Destinations that want the same form share one file. Each form is delivered as soon as it is there, and waits
for no other. The file that they are made of is needed until every form is on disk, delivered, or in memory by
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from msgspec.structs import replace
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact, compressed
from pcapsvc.core.compression import COMPRESSIONS, UNCOMPRESSED
from pcapsvc.core.errors import FAULT, STOPPED, EncoderError
from pcapsvc.core.event import DeliveryFailed, EventFactory
from pcapsvc.core.recording import Content
from pcapsvc.delivery.compressor import Compressor
from pcapsvc.delivery.outboxes import Outboxes
from pcapsvc.generated_file import GeneratedFile
from pcapsvc.interfaces.delivery import IDelivery
from pcapsvc.interfaces.lifecycle import IHurriable
from pcapsvc.interfaces.reports import IReporter


@implementer(IDelivery, IHurriable)
class Forms(Service):
    """
    Delivers captures to all destinations, compressed as C{artifact.compressions} says.

    If a file can't be compressed, the destinations that want it so don't get it, which is reported, and the
    others do. If time is short at a stop, what is not compressed yet is delivered, or left to the spool, as
    it is: better a large file than none.
    """

    _log = Logger()

    def __init__(
        self,
        outboxes: Outboxes,
        compressor: Compressor,
        reporter: IReporter,
        events: EventFactory,
    ) -> None:
        self._outboxes = outboxes
        self._compressor = compressor
        self._reporter = reporter
        self._events = events
        self._is_hurried = False
        self._making: dict[Deferred[Content], None] = {}

    def startService(self) -> None:
        """Compress what is to be compressed."""
        super().startService()  # type: ignore[no-untyped-call]
        self._is_hurried = False

    def hurry(self) -> None:
        """Compress nothing more: see L{IHurriable}."""
        self._is_hurried = True
        for making in reversed(list(self._making)):
            making.cancel()

    def deliver(self, artifact: Artifact, on_disk: Callable[[], object]) -> Deferred[None]:
        """See L{IDelivery.deliver}."""
        return Deferred.fromCoroutine(self._deliver(artifact, on_disk))

    async def _deliver(self, artifact: Artifact, on_disk: Callable[[], object]) -> None:
        forms: dict[str, list[str]] = {}
        for name in self._outboxes.destinations(artifact):
            forms.setdefault(artifact.compressions.get(name, UNCOMPRESSED), []).append(name)
        if forms.keys() <= {UNCOMPRESSED} and not isinstance(artifact.content, GeneratedFile):
            await self._outboxes.deliver(artifact, on_disk)
            return
        needing = set(forms)

        def no_longer_needed(form: str) -> None:
            if form in needing:
                needing.remove(form)
                if not needing:
                    on_disk()

        deliveries = [
            Deferred.fromCoroutine(self._deliver_form(artifact, form, to, partial(no_longer_needed, form)))
            for form, to in forms.items()
        ]
        await DeferredList(deliveries)

    async def _deliver_form(
        self, artifact: Artifact, form: str, to: Collection[str], done: Callable[[], None]
    ) -> None:
        """
        Deliver one form.

        @param to: the destinations that want it.
        @param done: called when it doesn't need the artifact's content any more. Further calls do nothing.
        """
        content: Content | None = None
        if not self._is_hurried and (form != UNCOMPRESSED or self._is_to_be_kept(artifact.content)):
            try:
                content = await self._make(artifact, form)
            except (CancelledError, EncoderError) as error:
                if not (isinstance(error, CancelledError) and self._is_hurried):
                    self._failed(artifact, to, f"{_what(form)}: {str(error) or STOPPED}")
                    done()
                    return
            except Exception:  # noqa: BLE001 - these deliveries fail, and no others
                self._log.failure("{capture_id}: internal error", capture_id=artifact.capture_id)
                self._failed(artifact, to, FAULT)
                done()
                return
        if content is None:
            await self._outboxes.deliver(artifact, done, to)
            done()
            return
        if not isinstance(content, GeneratedFile):
            done()

        def close(content: Content = content) -> None:
            content.close()
            done()

        if form == UNCOMPRESSED:
            artifact = replace(artifact, content=content)
        else:
            artifact = compressed(artifact, content, COMPRESSIONS[form])
        try:
            await self._outboxes.deliver(artifact, close, to)
        finally:
            close()

    def _is_to_be_kept(self, content: Content) -> bool:
        """Whether a file as it is should be in memory, rather than be made whenever it is read."""
        return isinstance(content, GeneratedFile) and self._compressor.may_keep(content.size)

    async def _make(self, artifact: Artifact, form: str) -> Content:
        key = f"{artifact.capture_id}/{form}"
        if form == UNCOMPRESSED:
            making = self._compressor.keep(key, artifact.content)
        else:
            making = self._compressor.compress(key, artifact.content, COMPRESSIONS[form])
        self._making[making] = None
        try:
            return await making
        finally:
            self._making.pop(making)

    def _failed(self, artifact: Artifact, to: Collection[str], problem: str) -> None:
        for destination in to:
            data = DeliveryFailed(destination=destination, problem=problem)
            self._reporter.report(self._events.event(data, artifact.labels, artifact.capture_id))


def _what(form: str) -> str:
    return "not encoded" if form == UNCOMPRESSED else f"not compressed with {form}"
