"""
Imports prometheus-client without snappy, and without Python's HTTP servers.

The library loads snappy if it is there, for a protocol that isn't used here. With what that loads in turn, it
is more than twice as large as all the rest (1.7 MB of 2.4). Of the rest, a third are the servers (0.5 MB and
5 ms), from whose classes the library derives some that aren't used here either.
"""

from __future__ import annotations

from pcapsvc.lean_import import replaced, with_classes

_HTTP, _SOCKETS, _WSGI = "http.server", "socketserver", "wsgiref.simple_server"
with (
    replaced("snappy", None),
    replaced(_HTTP, with_classes(_HTTP, "BaseHTTPRequestHandler")),
    replaced(_SOCKETS, with_classes(_SOCKETS, "ThreadingMixIn")),
    replaced(_WSGI, with_classes(_WSGI, "make_server", "WSGIRequestHandler", "WSGIServer")),
):
    from prometheus_client import (
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        ProcessCollector,
        disable_created_metrics,
        generate_latest,
    )
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector

__all__ = [
    "Collector",
    "CollectorRegistry",
    "Counter",
    "CounterMetricFamily",
    "Gauge",
    "GaugeMetricFamily",
    "Histogram",
    "Metric",
    "ProcessCollector",
    "generate_latest",
]

# Prometheus does not need when a counter began, and in this format it would be a series of its own.
disable_created_metrics()  # type: ignore[no-untyped-call]
