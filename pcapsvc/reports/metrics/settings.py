"""The metrics, which have no keys: they are there if the HTTP source listens."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.application.service import IService, Service

from pcapsvc.interfaces.requests import http_host
from pcapsvc.settings.section import BuildContext, ServiceSection


class MetricsSettings(ServiceSection, frozen=True, kw_only=True):
    """C{/metrics}, beside the API."""

    name: ClassVar[str] = "metrics"

    def build(self, context: BuildContext, node: Any) -> IService:
        """What measures the reactor's lag; without an HTTP source, a service that does nothing."""
        if (host := http_host(node.sources.values())) is None:
            return Service()
        from pcapsvc.reports.metrics.lag import ReactorLag
        from pcapsvc.reports.metrics.prometheus import CollectorRegistry, ProcessCollector
        from pcapsvc.reports.metrics.reporter import Metrics
        from pcapsvc.reports.metrics.resource import MetricsResource
        from pcapsvc.reports.metrics.state import NodeCollector

        # Not the library's own, which other code in this process could add to.
        registry = CollectorRegistry()
        metrics = Metrics(registry, sources=[*node.sources], destinations=[*node.destinations])
        registry.register(NodeCollector(node))
        ProcessCollector(registry=registry)
        node.reporter.add(metrics)
        resource = MetricsResource(context.reactor, registry, metrics, node.captures)
        host.root.putChild(b"metrics", resource)
        return ReactorLag(context.reactor, metrics.lagged)
