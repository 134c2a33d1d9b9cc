"""The metrics that are read when somebody asks for them: the present state of the node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pcapsvc_{name}", text, value=value)
