"""Builds a node: creates its parts, connects them, and decides the order in which they stop."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.application.service import IService, MultiService

from pcapsvc.assembly import build_capturer, build_delivery, build_pipeline
from pcapsvc.capture_files import CaptureFiles
from pcapsvc.captures import Captures
from pcapsvc.core.event import EventFactory
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.delivery.settings import DeliverySettings
from pcapsvc.host.descriptors import DescriptorLimit, most_connections
from pcapsvc.host.memory_check import MemoryCheck
from pcapsvc.host.permission import PermissionCheck
from pcapsvc.host.signals import Signals
from pcapsvc.host.systemd import Readiness
from pcapsvc.interfaces.capture import IHistories, IStandbyPacketSystem
from pcapsvc.interfaces.delivery import IDestination, IEncoder
from pcapsvc.interfaces.reports import IEventChannel, IReporter
from pcapsvc.interfaces.requests import IRequestSource
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.lifecycle import OrderedServices
from pcapsvc.net.names import NameLookups
from pcapsvc.packets.standby import StandbySystem
from pcapsvc.pipeline import Intake, Pipeline
from pcapsvc.reports.fan_out import FanOutReporter
from pcapsvc.reports.log import LogReporter
from pcapsvc.reports.progress import ProgressReports
from pcapsvc.reports.settings import ReportsSettings
from pcapsvc.settings import Settings
from pcapsvc.settings.interface import history_bytes
from pcapsvc.settings.section import (
    BuildContext,
    DestinationSection,
    EncoderSection,
    ReporterSection,
    ServiceSection,
    SourceSection,
)
from pcapsvc.threads import ThreadPools, patient
from pcapsvc.web.settings import WebSettings

if TYPE_CHECKING:
    from pcapsvc.delivery.spool import Spool


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """
    The parts of a node.

    @ivar service: starts and stops everything, in order.
    @ivar captures: the running and the most recent captures.
    @ivar files: the files of captures that are in memory.
    @ivar pipeline: accepts requests.
    @ivar sources: the sources of requests, by name.
    @ivar destinations: the destinations of captures, by name.
    @ivar reporters: the reporters of events, by name.
    @ivar reporter: passes every event to all of them, and to those that are added later.
    @ivar encoders: encode recordings for delivery, by the names of their formats.
    @ivar packets: the packet system.
    @ivar histories: the recent past of the interfaces that have one.
    @ivar outboxes: the outbox of each destination, by its name.
    @ivar spool: the captures that wait on disk; L{None} if there is no spool.
    """

    service: IService
    settings: Settings
    captures: Captures
    files: CaptureFiles
    pipeline: Pipeline
    sources: Mapping[str, IRequestSource]
    destinations: Mapping[str, IDestination]
    reporters: Mapping[str, IReporter]
    reporter: FanOutReporter
    encoders: Mapping[str, IEncoder]
    packets: StandbySystem
    histories: IHistories
    outboxes: Mapping[str, Outbox]
    spool: Spool | None

    @property
    def channels(self) -> Mapping[str, IEventChannel]:
        """The channels on which events are published, by name."""
        return {name: each for name, each in self.reporters.items() if IEventChannel.providedBy(each)}


def build(
    settings: Settings,
    reactor: Any,
    *,
    system: IStandbyPacketSystem | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Node:
    """
    A node, not started.

    @param system: the packet system; L{None} is libpcap.
    @param wall_clock: the time in seconds since the Unix epoch.

    @raise SettingsError: if the settings turn out to be wrong only now.
    """
    pools, hosted = ThreadPools(reactor), MultiService()  # type: ignore[no-untyped-call]
    context = _context(settings, reactor, pools, wall_clock)
    destinations = {section.name: section.build(context) for section in settings.enabled(DestinationSection)}
    captures = Captures([*destinations], lambda name, options: destinations[name].route(options) is not None)
    reporters = _reporters(context, captures)
    reporter = FanOutReporter([*reporters.values()])
    outboxes, rounds, spool = build_delivery(context, [*destinations.values()], reporter)
    packets, remembered, capturer, below = build_capturer(context, pools, system)
    encoders = {each.name: each.build(context) for each in settings.enabled(EncoderSection)}
    files = CaptureFiles(reactor)
    pipeline, forms = build_pipeline(context, capturer, encoders, outboxes, reporter, captures, files, pools)
    sources = {section.name: section.build(context, pipeline) for section in settings.enabled(SourceSection)}
    stop_order: list[IService | list[IService]] = [
        # A source has to know that it is stopping before its requests are refused for that reason.
        [_readiness(context), *sources.values(), Intake(pipeline)],
        # No attempt from the spool begins while the last captures are delivered.
        [pipeline, forms, *rounds, *_progress_reports(context, captures, reporter)],
        [*outboxes],
        *spool,
        [remembered, files],
        [packets],
        *below,
        _services(*encoders.values(), *destinations.values(), *reporters.values()),
        [pools, NameLookups(reactor, pools.new().run)],
        [hosted, *_host_checks(settings, system)],
    ]
    service = OrderedServices(reactor, stop_order, stop_timeout_seconds=settings.general.stop_timeout_seconds)
    node = Node(
        service=service,
        settings=settings,
        captures=captures,
        files=files,
        pipeline=pipeline,
        sources=sources,
        destinations=destinations,
        reporters=reporters,
        reporter=reporter,
        encoders=encoders,
        packets=packets,
        histories=remembered,
        outboxes={outbox.destination: outbox for outbox in outboxes},
        spool=spool[0] if spool else None,
    )
    _host(hosted, Signals(reactor, hurry=service.hurry), context, node)
    return node


def _host(hosted: MultiService, signals: Signals, context: BuildContext, node: Node) -> None:
    """Add what looks at the node from outside: it starts first, and stops last."""
    services = [section.build(context, node) for section in context.settings.enabled(ServiceSection)]
    for each in (*services, signals):
        each.setServiceParent(hosted)  # type: ignore[no-untyped-call]


def _services(*parts: object) -> list[IService]:
    return [part for part in parts if IService.providedBy(part)]


def _readiness(context: BuildContext) -> Readiness:
    stop_timeout_seconds = context.settings.general.stop_timeout_seconds
    return Readiness(
        context.reactor, os.environ.get("NOTIFY_SOCKET"), stop_timeout_seconds=stop_timeout_seconds
    )


def _host_checks(settings: Settings, system: IStandbyPacketSystem | None) -> list[IService]:
    checks: list[IService] = [DescriptorLimit(), _memory_check(settings)]
    return checks if system is not None else [*checks, PermissionCheck()]


def _memory_check(settings: Settings) -> MemoryCheck:
    return MemoryCheck(settings.general.max_memory_bytes, history_bytes=history_bytes(settings))


def _reporters(context: BuildContext, captures: Captures) -> dict[str, IReporter]:
    return {
        "log": LogReporter(context.reactor),
        "captures": captures,
        **{section.name: section.build(context) for section in context.settings.enabled(ReporterSection)},
    }


def _progress_reports(
    context: BuildContext, captures: Captures, reporter: FanOutReporter
) -> list[ProgressReports]:
    seconds = context.settings.section(ReportsSettings).progress_seconds
    if seconds is None:
        return []
    return [ProgressReports(context.reactor, captures, reporter, context.events, interval_seconds=seconds)]


def _api_url(settings: Settings) -> str | None:
    """Where others reach this node's HTTP API; L{None} if that isn't known, or there is none."""
    web = settings.find(WebSettings)
    return None if web is None else web.url


def _new_id() -> str:
    return uuid.uuid4().hex


def _context(
    settings: Settings,
    reactor: Any,
    pools: ThreadPools,
    wall_clock: Callable[[], float],
) -> BuildContext:
    def threads(most: int) -> RunInThread:
        return pools.new(most).run

    name, api = settings.general.node_name, _api_url(settings)
    return BuildContext(
        settings=settings,
        reactor=reactor,
        threads=threads,
        patient_threads=lambda most: patient(threads(most), reactor),
        # Twice the attempts, because an attempt that timed out may leave a thread that hangs for a while.
        destination_threads=partial(threads, 2 * settings.section(DeliverySettings).concurrency),
        wall_clock=wall_clock,
        events=EventFactory(name, wall_clock=wall_clock, new_id=_new_id, api=api),
        most_connections=most_connections(),
    )
