"""C{[general]} and C{[capture]}: the node itself, and how it captures."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import field

from pcapsvc.core.errors import Problem, shown
from pcapsvc.host.memory import ProcessMemory
from pcapsvc.settings.kinds import (
    MAX_SNAP_LENGTH,
    MIB,
    Count,
    Flag,
    Host,
    InterfaceNames,
    Line,
    Seconds,
    SecondsOrNone,
    Size,
    SnapLength,
    converted,
    is_host,
    none_if_zero,
    one_of,
    whole_number,
)
from pcapsvc.settings.rules import at_most
from pcapsvc.settings.section import EncoderSection, Option, Section

if TYPE_CHECKING:
    from pcapsvc.settings.settings import Settings


class GeneralSettings(Section, frozen=True, kw_only=True):
    """
    The limits of captures and requests, and this node's name.

    @ivar max_request_age_seconds: how long ago a request may have been sent; L{None} is no limit.
    @ivar max_request_rate: how many requests a second each source may deliver; L{None} is no limit.
    @ivar format: the name of the encoder of captures.
    @ivar panic: whether a packet that can't be decoded for C{packetdebug} ends its capture.
    """

    name: ClassVar[str] = "general"
    table: ClassVar[str | None] = "general"
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            name="maxpackets", key="maxpackets", kind="number", help="Maximum number of packets per capture."
        ),
        Option(
            name="panic",
            key="panic",
            kind="flag",
            only=True,
            help="Fail a capture if one of its packets can't be decoded for the log.",
        ),
    )

    max_packets: Count = field(name="maxpackets", default=50000)
    snap_length: SnapLength = field(name="snaplength", default=512)
    default_timeout_seconds: Seconds = field(name="defaulttimeout", default=60)
    max_timeout_seconds: Seconds = field(name="maxtimeout", default=3600)
    max_duration_seconds: Seconds = field(name="maxduration", default=3600)
    max_bytes: Size = field(name="maxbytes", default=100_000_000)
    packet_debug: Flag = field(name="packetdebug", default=False)
    log_requests: Flag = field(name="logrequests", default=False)
    max_captures: Count = field(name="maxcaptures", default=32)
    max_memory_bytes: Size = field(name="maxmemory", default=1024 * MIB)
    max_snap_length: SnapLength = field(name="maxsnaplength", default=MAX_SNAP_LENGTH)
    max_filter_characters: Count = field(name="maxfilter", default=512)
    promiscuous: Flag = True
    node_name: Host = field(name="nodename", default_factory=lambda: socket.gethostname())
    unknown_keys: Annotated[str, one_of("reject", "ignore")] = field(name="unknownkeys", default="reject")
    stop_timeout_seconds: Seconds = field(name="stoptimeout", default=20)
    max_request_age_seconds: SecondsOrNone | None = field(name="maxrequestage", default=60)
    max_request_rate: Annotated[int, whole_number(0, 10**6), converted(none_if_zero)] | None = field(
        name="maxrequestrate", default=100
    )
    exclude_self: Flag = field(name="excludeself", default=False)
    format: Line = "pcap"
    nanoseconds: Flag = False
    panic: Flag = False

    @classmethod
    def dependent_defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The defaults that must not contradict a limit that was given without them."""
        usual = cls()
        memory = ProcessMemory().at_most(usual.max_memory_bytes)
        most_bytes = usual.max_bytes if "max_memory_bytes" in given else min(usual.max_bytes, memory)
        return {
            "max_bytes": most_bytes,
            "default_timeout_seconds": min(
                usual.default_timeout_seconds, given.get("max_timeout_seconds", usual.max_timeout_seconds)
            ),
            "snap_length": min(usual.snap_length, given.get("max_snap_length", usual.max_snap_length)),
            "max_memory_bytes": max(memory, given.get("max_bytes", most_bytes)),
        }

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """A name, limits in order, and a known format."""
        if not is_host(self.node_name):
            yield Problem(
                path="general.nodename",
                value=shown(self.node_name),
                rule="must be set, as the name of this host can't be used",
            )
        yield from at_most(
            type(self),
            "defaulttimeout",
            self.default_timeout_seconds,
            "maxtimeout",
            self.max_timeout_seconds,
        )
        yield from at_most(type(self), "snaplength", self.snap_length, "maxsnaplength", self.max_snap_length)
        yield from at_most(type(self), "maxbytes", self.max_bytes, "maxmemory", self.max_memory_bytes)
        formats = [section.name for section in settings.enabled(EncoderSection)]
        if self.format not in formats:
            yield Problem(
                path="general.format",
                value=shown(self.format),
                rule=f"must be one of {', '.join(formats)}",
            )


class CaptureSettings(Section, frozen=True, kw_only=True):
    """
    How the kernel hands packets over.

    @ivar standby: the interfaces on which an open handle waits for the next capture.
    """

    name: ClassVar[str] = "capture"
    table: ClassVar[str | None] = "capture"

    buffer_size_bytes: Annotated[int, whole_number(65536, 1024 * MIB, "a whole number of bytes,")] = field(
        name="buffersize", default=8 * MIB
    )
    # The idle time may be judged 2 × readtimeout + 8 ms late, and time limits are to hold within 100 ms.
    read_timeout_ms: Annotated[int, whole_number(1, 40, "a whole number of milliseconds,")] = field(
        name="readtimeout", default=10
    )
    standby: InterfaceNames = ()
