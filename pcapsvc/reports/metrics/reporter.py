"""
The metrics of a node.

Their names follow the conventions of Prometheus (U{https://prometheus.io/docs/practices/naming/}). The values
of all labels are known beforehand, so that each series exists from the start, and none is ever added: no id
is a label.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from itertools import product
from typing import Any, TypeVar

from zope.interface import implementer

import pcapsvc
from pcapsvc.core.event import (
    CaptureDelivered,
    CaptureFailed,
    CaptureStopped,
    DeliveryFailed,
    DeliveryPostponed,
    DeliverySpooled,
    Event,
    RequestAccepted,
    RequestBusy,
    RequestRejected,
)
from pcapsvc.core.recording import PacketCounts, Progress
from pcapsvc.core.session import StopReason
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.reports.metrics.prometheus import CollectorRegistry, Counter, Gauge, Histogram

#: What became of a request.
VERDICTS = ("accepted", "rejected", "busy")
#: Why a capture ended. The last one is if it has no file.
REASONS = (*(reason.value for reason in StopReason), "failed")
#: What became of an attempt to deliver, or of a capture that isn't attempted to be delivered any more.
OUTCOMES = ("delivered", "postponed", "spooled", "failed")
#: Where packets were dropped: for lack of room in the kernel's ring, or in the interface's hardware.
PLACES = ("kernel", "interface")

# In seconds. An upload may take as long as [delivery] timeout allows.
_DELIVERY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# Packets are lost from about 50 ms at the highest rates.
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

_VERDICT_OF: Mapping[type, str] = {
    RequestAccepted: "accepted",
    RequestRejected: "rejected",
    RequestBusy: "busy",
}
_OUTCOME_OF: Mapping[type, str] = {
    CaptureDelivered: "delivered",
    DeliveryPostponed: "postponed",
    DeliverySpooled: "spooled",
    DeliveryFailed: "failed",
}


_Metric = TypeVar("_Metric", Counter, Histogram)


@implementer(IReporter)
class Metrics:
    """
    Counts what is reported.

    @param registry: has the metrics.
    @param sources: the names of all sources.
    @param destinations: the names of all destinations.
    """

    def __init__(
        self, registry: CollectorRegistry, *, sources: Collection[str], destinations: Collection[str]
    ) -> None:
        self._known = {"source": frozenset(sources), "destination": frozenset(destinations)}

        def counter(name: str, text: str, **labels: Collection[str]) -> Counter:
            return _with_series(Counter(f"pcapsvc_{name}", text, tuple(labels), registry=registry), labels)

        self._requests = counter(
            "requests", "Requests for this node, by verdict.", source=sources, verdict=VERDICTS
        )
        self._captures = counter("captures", "Captures that have ended, by reason.", reason=REASONS)
        self._packets = counter("capture_packets", "Packets captured, including those of running captures.")
        self._bytes = counter("capture_bytes", "Bytes captured, including those of running captures.")
        dropped = counter("packets_dropped", "Packets that captures have missed, by place.", where=PLACES)
        self._dropped = {place: dropped.labels(place) for place in PLACES}
        self._attempts = counter(
            "delivery_attempts",
            "Delivery attempts, by outcome.",
            destination=destinations,
            outcome=OUTCOMES,
        )
        self._delivery_seconds = _with_series(
            Histogram(
                "pcapsvc_delivery_seconds",
                "Duration of successful delivery attempts.",
                ("destination",),
                buckets=_DELIVERY_BUCKETS,
                registry=registry,
            ),
            {"destination": destinations},
        )
        self._lag = Histogram(
            "pcapsvc_reactor_lag_seconds",
            "Delay of timed calls in the reactor.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        build_info = Gauge(
            "pcapsvc_build_info",
            "The running version. Always 1.",
            ("version", "python"),
            registry=registry,
        )
        build_info.labels(pcapsvc.__version__, platform.python_version()).set(1)
        # What was counted of the captures that are running.
        self._counted: dict[str, _Counted] = {}

    def report(self, event: Event) -> None:
        """See L{IReporter.report}."""
        data = event.data
        if (verdict := _VERDICT_OF.get(type(data))) is not None:
            if event.labels.via in self._known["source"]:
                self._requests.labels(event.labels.via, verdict).inc()
        elif isinstance(data, CaptureStopped):
            self._captures.labels(data.reason.value).inc()
            self._count(event.subject, data, data.counts)
            self._counted.pop(event.subject or "", None)
        elif isinstance(data, CaptureFailed):
            self._captures.labels("failed").inc()
            self._counted.pop(event.subject or "", None)
        elif (outcome := _OUTCOME_OF.get(type(data))) is not None:
            self._delivery(data, outcome)

    def _delivery(self, data: Any, outcome: str) -> None:
        # The spool may have captures for a destination that isn't enabled any more.
        if data.destination not in self._known["destination"]:
            return
        self._attempts.labels(data.destination, outcome).inc()
        if isinstance(data, CaptureDelivered):
            self._delivery_seconds.labels(data.destination).observe(data.seconds)

    def progressed(self, capture_id: str, progress: Progress) -> None:
        """Count what a running capture has by now. The rest is counted when it has stopped."""
        counts = None
        if progress.dropped is not None:
            counts = PacketCounts(received=0, dropped=progress.dropped, interface_dropped=None)
        self._count(capture_id, progress, counts)

    def _count(
        self, capture_id: str | None, found: CaptureStopped | Progress, counts: PacketCounts | None
    ) -> None:
        packets, size = found.packets, found.bytes
        if found.rolling is not None:
            # Those count as well that it has released.
            packets, size = found.rolling.captured, found.rolling.captured_bytes
        before = self._counted.setdefault(capture_id or "", _Counted())
        before.raise_to("packets", packets, self._packets)
        before.raise_to("bytes", size, self._bytes)
        if counts is not None:
            before.raise_to("kernel", counts.dropped, self._dropped["kernel"])
            before.raise_to("interface", counts.interface_dropped or 0, self._dropped["interface"])

    def lagged(self, seconds: float) -> None:
        """A timed call of the reactor was this late."""
        self._lag.observe(max(0.0, seconds))


class _Counted(dict[str, int]):
    """What was counted of a capture."""

    def raise_to(self, what: str, now: int, counter: Counter) -> None:
        """Count how much more of something there is than before."""
        more = now - self.get(what, 0)
        if more > 0:
            self[what] = now
            counter.inc(more)


def _with_series(metric: _Metric, labels: Mapping[str, Collection[str]]) -> _Metric:
    """A metric that has a series for each combination of its labels' values."""
    if labels:
        for values in product(*labels.values()):
            metric.labels(*values)
    return metric
