"""Which captures a request means on a node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pcapsvc.core.compression import CompressionChoice, compression_warnings, compressions
from pcapsvc.core.errors import Problem, RequestRejected
from pcapsvc.core.history import LookBack, look_back
from pcapsvc.core.labels import Labels
from pcapsvc.core.link_type import LEAST_COOKED_BYTES
from pcapsvc.core.pcap_file import FILE_HEADER_BYTES, PACKET_HEADER_BYTES
from pcapsvc.core.request import CaptureRequest, RequestBounds
from pcapsvc.core.session import CaptureLimits


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """
    What requests depend on of a node.

    @ivar name: the host name, as used in file names and tags.
    @ivar interfaces_by_alias: the names of the interfaces that carry an alias, in their order.
    @ivar default_timeout_seconds: the idle time-out of a request that has none.
    @ivar snap_length: the snap length of a request that has none, in bytes.
    @ivar format: the format of the files of a request that names none.
    @ivar compressions: how each destination that is enabled wants its files, by its name.
    """

    name: str
    bounds: RequestBounds
    default_timeout_seconds: int
    snap_length: int
    interfaces_by_alias: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    format: str = "pcap"
    compressions: Mapping[str, CompressionChoice] = msgspec.field(default_factory=dict)


class CapturePlan(msgspec.Struct, frozen=True, kw_only=True):
    """
    One capture on one interface, with all that it needs.

    @ivar alias: the alias by which the interface was asked for, or L{None}.
    @ivar is_alias_too: whether an alias of this node has the name by which the interface was asked for.
    @ivar bpf: which packets, as a filter of pcap-filter(7); empty for every packet.
    @ivar snap_length: how much of each packet is captured, in bytes.
    @ivar options: what the request says about each destination that is enabled, as in L{CaptureRequest}.
    @ivar via: the name of the source that the request arrived through.
    @ivar look_back: the past that it begins with; L{None} if it begins now.
    @ivar format: the name of the encoder of its file.
    @ivar compressions: how the file is compressed for each destination, by its name: one of
        L{pcapsvc.core.compression.CHOICES}. For a destination that is not in it, it isn't.
    @ivar warnings: what the sender should know about the request, as far as it can be done.
    @ivar most_bytes: the size that its file may grow to, in bytes.
    """

    node: str
    interface: str
    alias: str | None
    bpf: str
    snap_length: int
    limits: CaptureLimits
    request: CaptureRequest
    options: Mapping[str, Mapping[str, Any]]
    via: str
    look_back: LookBack | None = None
    format: str = "pcap"
    compressions: Mapping[str, str] = msgspec.field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()
    is_alias_too: bool = False

    @property
    def labels(self) -> Labels:
        """What the events about this capture repeat."""
        request = self.request
        return Labels(
            via=self.via,
            requestid=request.requestid,
            alertid=request.alertid,
            customer=request.customer,
            tags=request.tags,
            interface=self.interface,
        )

    @property
    def most_bytes(self) -> int:
        """The byte limit, or less if the packet limit and the snap length don't allow for as much."""
        if self.limits.max_packets is None:
            return self.limits.max_bytes
        largest_packet = PACKET_HEADER_BYTES + max(self.snap_length, LEAST_COOKED_BYTES)
        all_packets = self.limits.max_packets * largest_packet
        return min(self.limits.max_bytes, FILE_HEADER_BYTES + all_packets)


def plan_captures(
    request: CaptureRequest, node: NodeView, via: str, *, now: float, sent_at: float | None = None
) -> tuple[CapturePlan, ...]:
    """
    The captures that a request means on this node: one for each interface, each
    interface once, whether it is there now or not.

    @param via: the name of the source that the request arrived through.
    @param now: the time, in seconds since the Unix epoch.
    @param sent_at: when the request's broker accepted it, likewise; L{None} if that isn't known.

    @raise RequestRejected: if a destination can't have that many captures of one request.
    """
    interfaces = _interfaces(request, node)
    problems = [
        problem
        for fields in node.bounds.options
        if fields.check_several is not None and fields.destination in request.options
        for problem in fields.check_several(request.options[fields.destination], len(interfaces))
    ]
    if problems:
        raise RequestRejected(problems)
    snap_length = node.snap_length if request.snap is None else request.snap
    past = None
    if request.before is not None:
        past = look_back(
            request.before,
            snap_length=snap_length,
            sent_at=sent_at,
            now=now,
            past_only=bool(request.pastonly),
            # A rolling capture will have a past, even if it doesn't begin with one.
            is_optional=bool(request.beforeoptional or request.rolling),
        )
    warnings = (*request.warnings, *compression_warnings(request.compress, node.compressions))
    bpf = request.filter
    enabled = {fields.destination for fields in node.bounds.options if fields.check is not None}
    return tuple(
        CapturePlan(
            node=node.name,
            interface=interface,
            alias=alias,
            bpf=bpf,
            snap_length=snap_length,
            limits=_limits(request, node),
            request=request,
            options={name: said for name, said in request.options.items() if name in enabled},
            via=via,
            look_back=past,
            format=request.format or node.format,
            compressions=compressions(request.compress, node.compressions),
            warnings=warnings,
            is_alias_too=alias is None and interface in node.interfaces_by_alias,
        )
        for interface, alias in interfaces.items()
    )


def _limits(request: CaptureRequest, node: NodeView) -> CaptureLimits:
    packets, idle = request.packets, request.timeout
    if not request.rolling:
        packets = node.bounds.max_packets if packets is None else packets
        idle = node.default_timeout_seconds if idle is None else idle
    return CaptureLimits(
        max_packets=packets,
        max_bytes=node.bounds.max_bytes if request.bytes is None else request.bytes,
        idle_seconds=idle,
        duration_seconds=node.bounds.max_duration_seconds if request.duration is None else request.duration,
        is_rolling=bool(request.rolling),
        kept_seconds=request.before if request.rolling else None,
    )


def _interfaces(request: CaptureRequest, node: NodeView) -> dict[str, str | None]:
    """The interfaces that a request means, each with the first alias by which it means it."""
    if request.interface is not None:
        return dict.fromkeys(request.interface)
    meant: dict[str, str | None] = {}
    for alias in request.alias or ():
        for interface in node.interfaces_by_alias.get(alias, ()):
            meant.setdefault(interface, alias)
    return meant
