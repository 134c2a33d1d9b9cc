"""The tree of resources of the API."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService
from twisted.web.resource import Resource as TwistedResource

from pcapsvc.core.rate import RequestRate
from pcapsvc.interfaces.delivery import IReadableStore
from pcapsvc.settings.interface import interfaces_by_alias
from pcapsvc.settings.section import BuildContext
from pcapsvc.web.captures import CaptureList
from pcapsvc.web.description import Description
from pcapsvc.web.event_stream import Events, EventStreams
from pcapsvc.web.filters import Filters
from pcapsvc.web.health import Health, Readiness
from pcapsvc.web.interfaces import Interfaces
from pcapsvc.web.node import NodeResource, NodeState
from pcapsvc.web.page import add_page
from pcapsvc.web.pcap_file import Places

# More than one, so that a file doesn't wait for another whose disk hangs.
_DISK_THREADS = 4


def mount(root: TwistedResource, context: BuildContext, node: Any) -> MultiService:
    """
    Add the API to a tree.

    @param root: the resource at C{/}. What it has at C{captures} receives requests.
    @param node: the L{pcapsvc.app.Node} whose API it is.

    @return: what has to run for it.
    """
    services = MultiService()
    add_page(root)
    settings, reactor = node.settings, context.reactor
    state = NodeState(node, wall_clock=context.wall_clock)
    state.setServiceParent(services)
    places = Places(
        reactor=reactor,
        captures=node.captures,
        files=node.files,
        in_spool=None if node.spool is None else node.spool.locate,
        run_in_thread=context.threads(_DISK_THREADS),
        # One after the other: each has a whole file in memory.
        copy_in_thread=context.threads(1),
        stores={name: each for name, each in node.destinations.items() if IReadableStore.providedBy(each)},
    )
    root.putChild(b"captures", CaptureList(root.getStaticEntity(b"captures"), places))
    streams = EventStreams(reactor)
    node.reporter.add(streams)
    root.putChild(b"events", Events(streams))
    root.putChild(b"filters", _filters(node, reactor))
    root.putChild(b"healthz", Health())
    root.putChild(
        b"interfaces",
        Interfaces(
            reactor,
            node.packets,
            aliases={interface.name: interface.alias for interface in settings.interfaces},
            standby=settings.capture.standby,
            histories=node.histories,
        ),
    )
    root.putChild(b"node", NodeResource(state))
    root.putChild(b"openapi.json", Description())
    root.putChild(
        b"readyz",
        Readiness(reactor, node.packets, is_open=lambda: bool(node.pipeline.is_open), sources=node.sources),
    )
    return services


def _filters(node: Any, reactor: Any) -> Filters:
    general = node.settings.general
    return Filters(
        reactor,
        node.packets,
        interfaces_by_alias=interfaces_by_alias(node.settings.interfaces),
        snap_length=general.snap_length,
        max_characters=general.max_filter_characters,
        rate=RequestRate(general.max_request_rate),
    )
