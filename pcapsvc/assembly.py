"""Builds the parts that every node has: the capturer, the pipeline and the outboxes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from twisted.application.service import IService

from pcapsvc.capture.buffer import MOST_BEYOND_BYTES
from pcapsvc.capture.capturer import Capturer
from pcapsvc.capture.histories import Histories
from pcapsvc.capture_files import CaptureFiles
from pcapsvc.captures import Captures
from pcapsvc.core.admission import Admission
from pcapsvc.core.plan import NodeView
from pcapsvc.core.rate import RequestRate
from pcapsvc.core.request import RequestBounds
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.compressor import Compressor
from pcapsvc.delivery.forms import Forms
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.delivery.outboxes import Outboxes
from pcapsvc.delivery.settings import DeliverySettings
from pcapsvc.host.descriptors import most_captures
from pcapsvc.host.memory import ProcessMemory
from pcapsvc.interfaces.capture import IStandbyPacketSystem
from pcapsvc.interfaces.delivery import IDestination, IEncoder
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.judge import Judge
from pcapsvc.packets.filter_compiler import FilterCompiler
from pcapsvc.packets.handle import libpcap_path
from pcapsvc.packets.libpcap import STREAM_BUFFER_BYTES
from pcapsvc.packets.own_sockets import SocketTable
from pcapsvc.packets.own_traffic import OwnTrafficFilter
from pcapsvc.packets.pcapy_system import PcapySystem
from pcapsvc.packets.ring import ring_bytes
from pcapsvc.packets.standby import StandbySystem
from pcapsvc.pipeline import Pipeline
from pcapsvc.settings import Settings
from pcapsvc.settings.interface import capture_bytes, histories, interfaces_by_alias
from pcapsvc.settings.section import BuildContext, DestinationSection, EncoderSection
from pcapsvc.threads import ThreadPools, patient

if TYPE_CHECKING:
    from pcapsvc.delivery.rounds import Rounds
    from pcapsvc.delivery.spool import Spool

# Files are compressed on half of the processors at most: captures come first.
_COMPRESSING_THREADS = max(1, (os.cpu_count() or 1) // 2)
# How many interfaces are opened at a time, and handles closed: nearly all of that is waiting for the kernel.
_OPENING_THREADS = 32


def build_capturer(
    context: BuildContext, pools: ThreadPools, system: IStandbyPacketSystem | None
) -> tuple[StandbySystem, Histories, Capturer, list[list[IService]]]:
    """
    The packet system, the histories, the capturer, and services that they need, which stop after them.
    """
    settings, reactor = context.settings, context.reactor
    threads = pools.new(_OPENING_THREADS)
    services: list[list[IService]] = []
    if system is None:
        # Whoever has standby handles wants captures to start at once: so the compiler is ready as well.
        compiler = FilterCompiler(reactor, libpcap_path(), keep_ready=bool(settings.capture.standby))
        pcapy_system = PcapySystem(
            compiler=compiler,
            run_in_thread=threads.run,
            close_descriptor=threads.close_descriptor,
            buffer_size_bytes=ring_bytes(settings.capture.buffer_size_bytes),
            read_timeout_ms=settings.capture.read_timeout_ms,
            promiscuous=settings.general.promiscuous,
            nanoseconds=settings.general.nanoseconds,
        )
        services.append([pcapy_system, compiler])
        system = pcapy_system
    packets = StandbySystem(
        reactor,
        system,
        interfaces=settings.capture.standby,
        snap_length=settings.general.snap_length,
    )
    own_traffic = OwnTrafficFilter(reactor, compile_now=packets.compile_now, table=SocketTable)
    hook = own_traffic.watch if settings.general.exclude_self else None
    remembered = Histories(
        reactor,
        packets,
        histories(settings),
        find=packets.find,
        hook=hook,
        wall_clock=context.wall_clock,
        read_timeout_ms=settings.capture.read_timeout_ms,
    )
    capturer = Capturer(
        reactor,
        packets,
        run_in_thread=threads.run,
        close_descriptor=threads.close_descriptor,
        hook=hook,
        histories=remembered,
        wall_clock=context.wall_clock,
        read_timeout_ms=settings.capture.read_timeout_ms,
        packet_debug=settings.general.packet_debug,
        panic=settings.general.panic,
    )
    return packets, remembered, capturer, services


def build_pipeline(
    context: BuildContext,
    capturer: Capturer,
    encoders: Mapping[str, IEncoder],
    outboxes: list[Outbox],
    reporter: IReporter,
    captures: Captures,
    files: CaptureFiles,
    pools: ThreadPools,
) -> tuple[Pipeline, Forms]:
    """
    The pipeline, and what its files go through.

    @param pools: has the threads that compress them.
    """
    settings = context.settings
    general = settings.general
    memory = ProcessMemory()
    admission = Admission(
        max_captures=general.max_captures,
        max_memory_bytes=capture_bytes(settings, memory),
        max_in_memory=most_captures(),
        free_bytes=memory.free_bytes,
        held_bytes=captures.held_bytes,
        capture_overhead_bytes=(
            ring_bytes(settings.capture.buffer_size_bytes) + MOST_BEYOND_BYTES + STREAM_BUFFER_BYTES
        ),
        spare=files,
    )
    files.ask(admission.refuse_spare)
    threads = pools.new(_COMPRESSING_THREADS)
    compressor = Compressor(
        patient(threads.run, context.reactor), admission, close_descriptor=threads.close_descriptor
    )
    forms = Forms(Outboxes(outboxes), compressor, reporter, context.events)
    pipeline = Pipeline(
        judge=Judge(
            _view(settings),
            admission=admission,
            rate=RequestRate(general.max_request_rate),
            wall_clock=context.wall_clock,
            now=context.reactor.seconds,
            max_request_age_seconds=general.max_request_age_seconds,
            ignore_unknown=general.unknown_keys == "ignore",
            log_requests=general.log_requests,
        ),
        capturer=capturer,
        encoders=encoders,
        delivery=forms,
        reporter=reporter,
        events=context.events,
        captures=captures,
        files=files,
        admission=admission,
        wall_clock=context.wall_clock,
    )
    return pipeline, forms


def _view(settings: Settings) -> NodeView:
    """What requests are validated against, and planned with."""
    general = settings.general
    interfaces = interfaces_by_alias(settings.interfaces)
    destinations = [section for section in settings.sections if isinstance(section, DestinationSection)]
    options = (section.option_fields() for section in destinations)
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
            formats=tuple(section.name for section in settings.enabled(EncoderSection)),
            options=tuple(each for each in options if each is not None),
        ),
        default_timeout_seconds=general.default_timeout_seconds,
        snap_length=general.snap_length,
        interfaces_by_alias=interfaces,
        format=general.format,
        compressions={each.name: each.compression() for each in destinations if each.is_enabled()},
    )


def build_delivery(
    context: BuildContext,
    destinations: list[IDestination],
    reporter: IReporter,
) -> tuple[list[Outbox], list[Rounds], list[Spool]]:
    """An outbox for each destination; if there is a spool, the rounds through it, and the spool."""
    chosen = context.settings.section(DeliverySettings)
    spool = None if chosen.spool_dir is None else _spool(context, chosen.spool_dir, reporter)
    outboxes = [
        Outbox(
            context.reactor,
            destination,
            slots=chosen.concurrency,
            timeout_seconds=chosen.timeout_seconds,
            policy=RetryPolicy(
                attempts=chosen.attempts,
                first_delay_seconds=chosen.first_delay_seconds,
                max_delay_seconds=chosen.max_delay_seconds,
            ),
            spool_interval_seconds=chosen.retry_interval_seconds,
            reporter=reporter,
            events=context.events,
            spool=spool,
            spool_first=chosen.spool_first,
            # Then time is left to deliver from memory what a disk that hangs doesn't take.
            stop_wait_seconds=context.settings.general.stop_timeout_seconds / 4,
            wall_clock=context.wall_clock,
        )
        for destination in destinations
    ]
    if spool is None:
        return outboxes, [], []
    from pcapsvc.delivery.rounds import Rounds

    interval_seconds = chosen.retry_interval_seconds
    return outboxes, [Rounds(context.reactor, spool, outboxes, interval_seconds=interval_seconds)], [spool]


def _spool(context: BuildContext, directory: str, reporter: IReporter) -> Spool:
    # Imported here: nodes without a spool do without.
    from pcapsvc.delivery.folder import SpoolFolder
    from pcapsvc.delivery.spool import SPOOL_THREADS, Spool

    chosen = context.settings.section(DeliverySettings)
    return Spool(
        context.reactor,
        SpoolFolder(directory),
        run_in_thread=context.threads(SPOOL_THREADS),
        reporter=reporter,
        events=context.events,
        max_bytes=chosen.spool_size_bytes,
        max_age_seconds=chosen.max_age_seconds,
        wall_clock=context.wall_clock,
    )
