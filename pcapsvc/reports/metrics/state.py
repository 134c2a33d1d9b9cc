"""The metrics that are read when somebody asks for them: the present state of the node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pcapsvc.core.history import HistoryState
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
        connected = GaugeMetricFamily(
            "pcapsvc_source_connected", "Whether a source is connected.", labels=["source"]
        )
        for name, source in node.sources.items():
            connected.add_metric([name], float(source.state().connected))
        yield connected
        dropped = CounterMetricFamily(
            "pcapsvc_events_dropped",
            "Events that were not published: the queue was full, or the broker refused them.",
            labels=["channel"],
        )
        publishing = GaugeMetricFamily(
            "pcapsvc_channel_connected", "Whether events reach a channel.", labels=["channel"]
        )
        for name, channel in node.channels.items():
            dropped.add_metric([name], channel.dropped)
            publishing.add_metric([name], float(channel.state().connected))
        yield dropped
        yield publishing
        yield from _histories(node.histories.states())


def _histories(states: Sequence[HistoryState]) -> Iterator[Metric]:
    """How far back the history of each interface reaches."""
    reach = GaugeMetricFamily(
        "pcapsvc_history_seconds", "How far back the history of an interface reaches.", labels=["interface"]
    )
    packets = GaugeMetricFamily(
        "pcapsvc_history_packets", "Packets in the history of an interface.", labels=["interface"]
    )
    size = GaugeMetricFamily(
        "pcapsvc_history_bytes", "Memory that these packets occupy.", labels=["interface"]
    )
    dropped = CounterMetricFamily(
        "pcapsvc_history_dropped",
        "Packets that the history of an interface has missed, as the kernel dropped them.",
        labels=["interface"],
    )
    recording = GaugeMetricFamily(
        "pcapsvc_history_recording", "Whether an interface is being recorded.", labels=["interface"]
    )
    for state in states:
        reach.add_metric([state.interface], state.seconds)
        packets.add_metric([state.interface], state.packets)
        size.add_metric([state.interface], state.bytes)
        dropped.add_metric([state.interface], state.dropped)
        recording.add_metric([state.interface], float(state.problem is None))
    yield from (reach, packets, size, dropped, recording)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pcapsvc_{name}", text, value=value)
