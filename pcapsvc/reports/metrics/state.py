"""The metrics that are read when somebody asks for them: the present state of the node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pcapsvc.core.history import HistoryState
from pcapsvc.core.kept_file import KeptFiles
from pcapsvc.interfaces.delivery import IReadableStore
from pcapsvc.reports.metrics.prometheus import Collector, CounterMetricFamily, GaugeMetricFamily, Metric


class NodeCollector(Collector):
    """
    The state of a node.

    @param node: the L{pcapsvc.app.Node}.
    """

    def __init__(self, node: Any) -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        """See L{Collector}."""
        node, spool = self._node, self._node.spool
        yield _gauge("captures_running", "Captures that are running.", len(node.captures.running))
        yield _gauge("spool_entries", "Captures waiting in the spool.", spool.entries if spool else 0)
        yield _gauge("spool_bytes", "Disk space used by the spool.", spool.size if spool else 0)
        yield _gauge(
            "spool_limit_bytes",
            "Disk space that the spool may use ([delivery] spoolsize); 0 without a spool.",
            spool.max_bytes if spool else 0,
        )
        yield _gauge_by(
            "source",
            "source_connected",
            "Whether a source is connected.",
            {name: source.state().connected for name, source in node.sources.items()},
        )
        channels = node.channels
        yield _counter_by(
            "channel",
            "events_dropped",
            "Events that were not published: the queue was full, or the broker refused them.",
            {name: channel.dropped for name, channel in channels.items()},
        )
        yield _gauge_by(
            "channel",
            "channel_connected",
            "0 if events can't reach a channel, otherwise 1.",
            # Of an SQS queue, nothing is known before the first event. That may take days, and is no outage.
            {
                name: (state := channel.state()).connected or state.problem is None
                for name, channel in channels.items()
            },
        )
        yield from _kept(
            {
                name: kept
                for name, each in node.destinations.items()
                if IReadableStore.providedBy(each) and (kept := each.kept()) is not None
            }
        )
        yield from _histories(node.histories.states())


def _kept(stores: Mapping[str, KeptFiles]) -> Iterator[Metric]:
    """What the destinations on this host keep, and have removed."""
    yield _gauge_by(
        "destination",
        "kept_files",
        "Captures in a directory whose old captures are removed.",
        {name: kept.files for name, kept in stores.items()},
    )
    yield _gauge_by(
        "destination",
        "kept_bytes",
        "Size of these captures.",
        {name: kept.bytes for name, kept in stores.items()},
    )
    removed = CounterMetricFamily(
        "pcapsvc_removed_files", "Captures that were removed, by reason.", labels=["destination", "reason"]
    )
    for name, kept in stores.items():
        for reason, number in kept.removed.items():
            removed.add_metric([name, reason], float(number))
    yield removed


def _histories(states: Sequence[HistoryState]) -> Iterator[Metric]:
    """How far back the history of each interface reaches."""
    yield _gauge_by(
        "interface",
        "history_seconds",
        "How far back the history of an interface reaches.",
        {state.interface: state.seconds for state in states},
    )
    yield _gauge_by(
        "interface",
        "history_packets",
        "Packets in the history of an interface.",
        {state.interface: state.packets for state in states},
    )
    yield _gauge_by(
        "interface",
        "history_bytes",
        "Memory that these packets occupy.",
        {state.interface: state.bytes for state in states},
    )
    yield _counter_by(
        "interface",
        "history_dropped",
        "Packets that the history of an interface has missed, as the kernel dropped them.",
        {state.interface: state.dropped for state in states},
    )
    yield _gauge_by(
        "interface",
        "history_recording",
        "Whether an interface is being recorded.",
        {state.interface: state.problem is None for state in states},
    )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pcapsvc_{name}", text, value=value)


def _gauge_by(label: str, name: str, text: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"pcapsvc_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family


def _counter_by(label: str, name: str, text: str, values: Mapping[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"pcapsvc_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
