"""What tests of pcapctl share: events as nodes report them, and a source of events in memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from pcapsvc.client.tally import Tally
from pcapsvc.core.errors import Problem
from pcapsvc.core.event import (
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureProgress,
    CaptureStarted,
    CaptureStopped,
    DeliveryFailed,
    DeliverySpooled,
    EventFactory,
    Payload,
    RequestAccepted,
    RequestBusy,
    RequestRejected,
)
from pcapsvc.core.history import PastPackets
from pcapsvc.core.labels import Labels
from pcapsvc.core.recording import PacketCounts
from pcapsvc.core.result import StartedCapture
from pcapsvc.core.rolling import RollingPackets
from pcapsvc.core.session import CaptureLimits, StopReason

REQUEST = "r-1"
_ids = itertools.count(1)


def event(
    node: str, data: Payload, subject: str | None = None, *, requestid: str = REQUEST
) -> dict[str, Any]:
    """An event of a node, as it arrives."""
    factory = EventFactory(
        node, wall_clock=lambda: 1_700_000_000.0, new_id=lambda: str(next(_ids)), api="http://web-1:8480"
    )
    interface = None if subject is None else "eth0"
    labels = Labels(via="redis", requestid=requestid, interface=interface)
    decoded: dict[str, Any] = json.loads(factory.event(data, labels, subject).json)
    return decoded


def accepted(node: str, *captures: str, problems: tuple[Problem, ...] = ()) -> dict[str, Any]:
    """It accepts, with a capture on eth0 for each id."""
    all_started = tuple(StartedCapture(capture_id=capture, interface="eth0") for capture in captures)
    return event(node, RequestAccepted(captures=all_started, problems=problems))


def rejected(node: str) -> dict[str, Any]:
    """It rejects."""
    problem = Problem(path="packets", value="9", rule="must be at most 5 on this node")
    return event(node, RequestRejected(problems=(problem,)))


def busy(node: str) -> dict[str, Any]:
    """It is busy."""
    return event(node, RequestBusy(reason="too many captures"))


def started(
    node: str, capture: str, rolling: RollingPackets | None = None, past: PastPackets | None = None
) -> dict[str, Any]:
    """A capture has started: up to 100 packets, for up to a minute; or a rolling one."""
    limits = CaptureLimits(max_packets=100, max_bytes=10_000, idle_seconds=20, duration_seconds=60)
    if rolling is not None:
        limits = replace(limits, max_packets=None, idle_seconds=None, is_rolling=True)
    data = CaptureStarted(
        bpf="udp",
        snap_length=512,
        limits=limits,
        started=1_700_000_000.0,
        link_type=1,
        history=past,
        rolling=rolling,
    )
    return event(node, data, capture)


def progress(
    node: str, capture: str, packets: int, seconds: float, rolling: RollingPackets | None = None
) -> dict[str, Any]:
    """It makes progress."""
    data = CaptureProgress(
        packets=packets, bytes=24, seconds=seconds, received=packets, dropped=3, rolling=rolling
    )
    return event(node, data, capture)


def stopped(node: str, capture: str, packets: int = 100, past: PastPackets | None = None) -> dict[str, Any]:
    """It has stopped."""
    data = CaptureStopped(
        reason=StopReason.PACKETS,
        packets=packets,
        bytes=24 + packets,
        counts=PacketCounts(received=packets, dropped=0, interface_dropped=None),
        file="web-1-eth0-1-a.pcap" if packets else None,
        history=past,
    )
    return event(node, data, capture)


def delivered(node: str, capture: str, destination: str = "local") -> dict[str, Any]:
    """It is delivered."""
    data = CaptureDelivered(destination=destination, location="/captures/a.pcap", seconds=0.1)
    return event(node, data, capture)


def undelivered(node: str, capture: str, destination: str = "s3") -> dict[str, Any]:
    """It is lost to a destination."""
    return event(node, DeliveryFailed(destination=destination, problem="refused"), capture)


def spooled(node: str, capture: str, destination: str = "s3") -> dict[str, Any]:
    """It is in the spool."""
    return event(node, DeliverySpooled(destination=destination, problem="refused"), capture)


def failed(node: str, capture: str) -> dict[str, Any]:
    """It has failed."""
    return event(node, CaptureFailed(problem="no room"), capture)


def done(node: str, capture: str) -> dict[str, Any]:
    """It is done."""
    return event(node, CaptureDone(), capture)


def whole(node: str, capture: str, past: PastPackets | None = None) -> list[dict[str, Any]]:
    """All events of a capture for which all is well."""
    return [
        accepted(node, capture),
        started(node, capture, past=past),
        stopped(node, capture, past=past),
        delivered(node, capture),
        done(node, capture),
    ]


def tally(*events: dict[str, Any], now: float = 0.0) -> Tally:
    """The tally of these events."""
    counted = Tally(REQUEST)
    for each in events:
        counted.add(each, now)
    return counted


class MemoryEvents:
    """
    Events in memory, with a clock that goes on while they are waited for.

    @param script: what arrives, each with the time at which it does, in seconds.
    """

    def __init__(self, *script: tuple[float, dict[str, Any] | str]) -> None:
        self._script = sorted(script, key=lambda item: item[0])
        self.now = 0.0

    def clock(self) -> float:
        """The time."""
        return self.now

    def take(self, seconds: float) -> Iterator[dict[str, Any] | str]:
        """What has arrived in this time."""
        self.now += seconds
        while self._script and self._script[0][0] <= self.now:
            yield self._script.pop(0)[1]
