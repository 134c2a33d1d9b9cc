"""C{/metrics}, in the text format of Prometheus."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from pcapsvc.interfaces.captures import ICaptureRegistry
from pcapsvc.net.http_resource import Answer, Resource
from pcapsvc.net.shared import Shared
from pcapsvc.reports.metrics.prometheus import CollectorRegistry, generate_latest
from pcapsvc.reports.metrics.reporter import Metrics

# https://prometheus.io/docs/instrumenting/exposition_formats/
_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# How long an answer is good: whoever asks more often costs nothing.
_KEEP_SECONDS = 0.5
# How long one turn of the reactor may take for the progress of captures, in seconds. That of one takes some
# 10 us.
_TURN_SECONDS = 0.001


class MetricsResource(Resource):
    """
    The metrics.

    @param captures: knows the captures that are running.
    """

    allowedMethods = (b"GET", b"HEAD")
    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        registry: CollectorRegistry,
        metrics: Metrics,
        captures: ICaptureRegistry,
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._registry = registry
        self._metrics = metrics
        self._captures = captures
        self._text = Shared(
            reactor, lambda: Deferred.fromCoroutine(self._generate()), keep_seconds=_KEEP_SECONDS
        )

    async def render_GET(self, request: Any) -> Answer:
        """See L{Resource}."""
        return Answer(media_type=_MEDIA_TYPE, body=await self._text.get())

    async def _generate(self) -> bytes:
        await self._count_running()
        return generate_latest(self._registry)

    async def _count_running(self) -> None:
        """Count what the running captures have by now, a few in each turn of the reactor."""
        until = self._reactor.seconds() + _TURN_SECONDS
        for capture_id in [*self._captures.running]:
            # It may have ended in the meantime.
            if (capture := self._captures.running.get(capture_id)) is None:
                continue
            try:
                self._metrics.progressed(capture_id, capture.progress())
            except Exception:  # noqa: BLE001 - the others are counted, nevertheless
                self._log.failure("{capture_id}: the progress is unknown", capture_id=capture_id)
            if self._reactor.seconds() >= until:
                await deferLater(self._reactor, 0)
                until = self._reactor.seconds() + _TURN_SECONDS
