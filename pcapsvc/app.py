"""The composition: which parts there are, who knows whom, and in which order they stop."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.application.service import IService

from pcapsvc.capture.capturer import Capturer
from pcapsvc.captures import Captures
from pcapsvc.core.admission import Admission
from pcapsvc.core.event import EventFactory
from pcapsvc.core.plan import NodeView
from pcapsvc.core.rate import RequestRate
from pcapsvc.core.request import RequestBounds
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.delivery import Delivery
from pcapsvc.delivery.folder import SpoolFolder
from pcapsvc.delivery.lane import Lane
from pcapsvc.delivery.redelivery import Redelivery
from pcapsvc.delivery.settings import DeliverySettings
from pcapsvc.delivery.spool import Spool
from pcapsvc.encoders.pcap import PcapEncoder
from pcapsvc.host.descriptors import DescriptorLimit, most_captures
from pcapsvc.host.permission import PermissionCheck
from pcapsvc.host.signals import Signals
from pcapsvc.host.systemd import Readiness
from pcapsvc.interfaces.capture import IPatientPacketSystem
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.lifecycle import OrderedServices
from pcapsvc.packets.meanwhile import Meanwhile, reading
from pcapsvc.packets.own_sockets import SocketTable
from pcapsvc.packets.own_traffic import OwnTrafficFilter
from pcapsvc.packets.pcapy_system import PcapySystem
from pcapsvc.packets.standby import StandbySystem
from pcapsvc.pipeline import Pipeline
from pcapsvc.reports.fan_out import FanOutReporter
from pcapsvc.reports.log import LogReporter
from pcapsvc.settings import Settings
from pcapsvc.settings.section import BuildContext, DestinationSection, ServiceSection, SourceSection
from pcapsvc.threads import Threads

# One writes, and the others read for each way of each destination.
_SPOOL_THREADS = 5


def build(
    settings: Settings,
    reactor: Any,
    *,
    system: IPatientPacketSystem | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> IService:
    """
    The whole service, not started.

    @param system: where packets come from; L{None} is libpcap.
    @param wall_clock: the time in seconds since the Unix epoch.
    """
    threads = Threads(reactor)
    # A destination that hangs may take all threads of its own, and no other's.
    pools = [threads]

    def threads_of_its_own(most: int) -> RunInThread:
        pools.append(Threads(reactor, most=most))
        return pools[-1].run

    captures = Captures([section.name for section in settings.enabled(DestinationSection)])
    context = BuildContext(
        settings=settings,
        reactor=reactor,
        threads=threads_of_its_own,
        # Twice the attempts: one that was given up may leave a thread that hangs on for a while.
        destination_threads=partial(threads_of_its_own, 2 * settings.section(DeliverySettings).concurrency),
        wall_clock=wall_clock,
        captures=captures,
    )
    destinations = [section.build(context) for section in settings.enabled(DestinationSection)]
    log_reporter = LogReporter(reactor)
    reporter = FanOutReporter([log_reporter, captures])
    events = EventFactory(settings.general.node_name, wall_clock=wall_clock, new_id=lambda: uuid.uuid4().hex)
    delivery, redelivery, spool = _deliveries(
        settings, reactor, destinations, reporter, events, threads_of_its_own, wall_clock
    )
    packets = StandbySystem(
        reactor,
        system or _packet_system(settings, threads, reading(lambda: capturer.read_all())),
        interfaces=settings.capture.standby,
        snap_length=settings.general.snap_length,
    )
    capturer = Capturer(
        reactor,
        OwnTrafficFilter(reactor, packets, table=SocketTable) if settings.general.exclude_self else packets,
        wall_clock=wall_clock,
        read_timeout_ms=settings.capture.read_timeout_ms,
        packet_debug=settings.general.packet_debug,
        panic=settings.general.panic,
    )
    pipeline = Pipeline(
        _node(settings),
        capturer=capturer,
        encoder=PcapEncoder(),
        delivery=delivery,
        reporter=reporter,
        events=events,
        captures=captures,
        admission=Admission(
            max_captures=settings.general.max_captures,
            max_memory_bytes=settings.general.max_memory_bytes,
            max_in_memory=most_captures(),
        ),
        rate=RequestRate(settings.general.max_request_rate),
        wall_clock=wall_clock,
        now=reactor.seconds,
        max_request_age_seconds=settings.general.max_request_age_seconds,
        ignore_unknown=settings.general.unknown_keys == "ignore",
        log_requests=settings.general.log_requests,
    )
    sources = [section.build(context, pipeline) for section in settings.enabled(SourceSection)]
    hosted = [section.build(context, None) for section in settings.enabled(ServiceSection)]
    signals = Signals(reactor, hurry=lambda: services.hurry())
    checks = [] if system is not None else [PermissionCheck()]
    readiness = Readiness(
        reactor,
        os.environ.get("NOTIFY_SOCKET"),
        stop_timeout_seconds=settings.general.stop_timeout_seconds,
    )
    services = OrderedServices(
        reactor,
        # What waits in the spool must begin no new attempt while captures have their last.
        [
            [readiness, *sources],
            [pipeline, *redelivery],
            delivery,
            *spool,
            packets,
            pools,
            log_reporter,
            [*hosted, signals, DescriptorLimit(), *checks],
        ],
        stop_timeout_seconds=settings.general.stop_timeout_seconds,
    )
    return services


def _node(settings: Settings) -> NodeView:
    general = settings.general
    interfaces: dict[str, tuple[str, ...]] = {}
    for interface in settings.interfaces:
        for alias in interface.alias:
            interfaces[alias] = (*interfaces.get(alias, ()), interface.name)
    return NodeView(
        name=general.node_name,
        bounds=RequestBounds(
            max_packets=general.max_packets,
            max_bytes=general.max_bytes,
            max_timeout_seconds=general.max_timeout_seconds,
            max_duration_seconds=general.max_duration_seconds,
            max_snap_length=general.max_snap_length,
            max_filter_characters=general.max_filter_characters,
            aliases=frozenset(interfaces),
            options=tuple(
                fields
                for section in settings.sections
                if isinstance(section, DestinationSection) and (fields := section.option_fields()) is not None
            ),
        ),
        default_timeout_seconds=general.default_timeout_seconds,
        snap_length=general.snap_length,
        interfaces_by_alias=interfaces,
    )


def _packet_system(settings: Settings, threads: Threads, meanwhile: Meanwhile) -> IPatientPacketSystem:
    return PcapySystem(
        meanwhile=meanwhile,
        close_descriptor=threads.close_descriptor,
        buffer_size_bytes=settings.capture.buffer_size_bytes,
        read_timeout_ms=settings.capture.read_timeout_ms,
        promiscuous=settings.general.promiscuous,
    )


def _deliveries(
    settings: Settings,
    reactor: Any,
    destinations: list[IDestination],
    reporter: IReporter,
    events: EventFactory,
    threads_of_its_own: Callable[[int], RunInThread],
    wall_clock: Callable[[], float],
) -> tuple[Delivery, list[Redelivery], list[Spool]]:
    """What delivers; and where there is a spool, what delivers from there, and the spool."""
    chosen = settings.section(DeliverySettings)
    lanes = [
        Lane(reactor, destination, at_once=chosen.concurrency, timeout_seconds=chosen.timeout_seconds)
        for destination in destinations
    ]
    spools: list[Spool] = []
    redeliveries: list[Redelivery] = []
    if chosen.spool_dir is not None:
        spool = Spool(
            reactor,
            SpoolFolder(chosen.spool_dir),
            threads_of_its_own(_SPOOL_THREADS),
            reporter=reporter,
            events=events,
            max_bytes=chosen.spool_size_bytes,
            max_age_seconds=chosen.max_age_seconds,
            retry_seconds=chosen.retry_interval_seconds,
            wall_clock=wall_clock,
        )
        spools.append(spool)
        redeliveries.append(
            Redelivery(
                reactor,
                spool,
                lanes,
                interval_seconds=chosen.retry_interval_seconds,
                reporter=reporter,
                events=events,
                wall_clock=wall_clock,
            )
        )
    delivery = Delivery(
        reactor,
        lanes,
        policy=RetryPolicy(
            attempts=chosen.attempts,
            first_delay_seconds=chosen.first_delay_seconds,
            max_delay_seconds=chosen.max_delay_seconds,
        ),
        reporter=reporter,
        events=events,
        spool=spools[0] if spools else None,
        spool_first=chosen.spool_first,
        wall_clock=wall_clock,
    )
    return delivery, redeliveries, spools
