"""
Events: what happens to requests, captures and deliveries, as data that may leave the process.

An L{Event} is a header and a payload. The header is that of CloudEvents 1.0
(U{https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md}); there is one payload
class for each event type. C{event.schema.json}, next to this file, describes their JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from pcapsvc.core.errors import Problem
from pcapsvc.core.history import PastPackets
from pcapsvc.core.labels import Labels
from pcapsvc.core.mask import of_process
from pcapsvc.core.recording import PacketCounts, Progress
from pcapsvc.core.result import Accepted, Busy, Rejected, StartedCapture
from pcapsvc.core.rolling import RollingPackets
from pcapsvc.core.session import CaptureLimits, StopReason
from pcapsvc.core.timestamp import rfc3339

# The fields of payloads in which a server or a library may have a say.
_FOREIGN = ("problem", "location")


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """
    The data of an event: frozen, and made of plain values.

    @cvar type: the CloudEvents type.
    """

    type: ClassVar[str]

    def values(self) -> dict[str, Any]:
        """The payload in values that JSON has; what is absent is L{None}."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


class RequestAccepted(Payload, frozen=True, kw_only=True):
    """
    The captures of a request are about to start.

    @ivar problems: of those interfaces that can't be captured on, if others can.
    @ivar warnings: the labels that were changed or left out, and the destinations that get another
        compression.
    """

    type: ClassVar[str] = "pcapsvc.request.accepted"
    captures: tuple[StartedCapture, ...]
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    def values(self) -> dict[str, Any]:
        """See L{Payload.values}."""
        captures = [{"id": one.capture_id, "interface": one.interface} for one in self.captures]
        return {
            "captures": captures,
            "problems": _problems(self.problems),
            "warnings": _problems(self.warnings),
        }


class RequestRejected(Payload, frozen=True, kw_only=True):
    """A request for this node is invalid, or can't be met here; sending it again would not help."""

    type: ClassVar[str] = "pcapsvc.request.rejected"
    problems: tuple[Problem, ...]

    def values(self) -> dict[str, Any]:
        """See L{Payload.values}."""
        return {"problems": _problems(self.problems)}


class RequestBusy(Payload, frozen=True, kw_only=True):
    """A request for this node is valid, but there is no capacity for it now."""

    type: ClassVar[str] = "pcapsvc.request.busy"
    reason: str


class CaptureStarted(Payload, frozen=True, kw_only=True):
    """
    A capture has started.

    @ivar alertstr: as in the request.
    @ivar snap_length: how much of each packet is captured, in bytes.
    @ivar link_type: the link-layer type of the file, a number of draft-ietf-opsawg-pcaplinktype.
    @ivar started: when, in seconds since the Unix epoch.
    @ivar history: what it has of the past; L{None} if the request didn't ask for any.
    @ivar rolling: what it holds if it is a rolling capture; L{None} if it isn't.
    """

    type: ClassVar[str] = "pcapsvc.capture.started"
    bpf: str
    snap_length: int
    limits: CaptureLimits
    started: float
    link_type: int
    alertstr: int | str | None = None
    history: PastPackets | None = None
    rolling: RollingPackets | None = None

    def values(self) -> dict[str, Any]:
        """See L{Payload.values}. The limits have the names of the request's fields."""
        limits = {
            "packets": self.limits.max_packets,
            "bytes": self.limits.max_bytes,
            "timeout": self.limits.idle_seconds,
            "duration": self.limits.duration_seconds,
        }
        return {
            **super().values(),
            "limits": {name: limit for name, limit in limits.items() if limit is not None},
            "started": rfc3339(self.started),
            "history": _history(self.history),
            "rolling": _rolling(self.rolling),
        }


class CaptureProgress(Payload, frozen=True, kw_only=True):
    """
    A capture is running. The fields are those of L{Progress}.
    """

    type: ClassVar[str] = "pcapsvc.capture.progress"
    packets: int
    bytes: int
    seconds: float
    received: int | None = None
    dropped: int | None = None
    rolling: RollingPackets | None = None

    @classmethod
    def of(cls, progress: Progress) -> CaptureProgress:
        """The event of a capture's progress."""
        return cls(
            packets=progress.packets,
            bytes=progress.bytes,
            seconds=round(progress.seconds, 3),
            received=progress.received,
            dropped=progress.dropped,
            rolling=progress.rolling,
        )

    def values(self) -> dict[str, Any]:
        """See L{Payload.values}."""
        return {**super().values(), "rolling": _rolling(self.rolling)}


class CaptureStopped(Payload, frozen=True, kw_only=True):
    """
    A capture has stopped, with a recording.

    @ivar packets: how many are in the file, perhaps none.
    @ivar bytes: the size of the recording, as a pcap file.
    @ivar counts: the kernel's statistics; L{None} if the interface was gone before they could be read.
    @ivar file: the name of the file, before it is compressed; L{None} if there is no packet in it, so that
        it is not delivered.
    @ivar history: as in L{CaptureStarted}, likewise C{rolling}.
    """

    type: ClassVar[str] = "pcapsvc.capture.stopped"
    reason: StopReason
    packets: int
    bytes: int
    counts: PacketCounts | None
    file: str | None
    history: PastPackets | None = None
    rolling: RollingPackets | None = None

    def values(self) -> dict[str, Any]:
        """See L{Payload.values}. The statistics are on the same level as the others."""
        counts = self.counts
        return {
            "reason": self.reason.value,
            "packets": self.packets,
            "bytes": self.bytes,
            "received": None if counts is None else counts.received,
            "dropped": None if counts is None else counts.dropped,
            "interface_dropped": None if counts is None else counts.interface_dropped,
            "file": self.file,
            "history": _history(self.history),
            "rolling": _rolling(self.rolling),
        }


class CaptureFailed(Payload, frozen=True, kw_only=True):
    """A capture has ended without a file: nothing was recorded, or the recording can't be encoded."""

    type: ClassVar[str] = "pcapsvc.capture.failed"
    problem: str


class CaptureFile(Payload, frozen=True, kw_only=True):
    """
    The file of a capture is complete. Only webhooks that are sent events get this one.

    @ivar file: its name.
    @ivar media_type: its media type (RFC 6838).
    @ivar bytes: its size.
    """

    type: ClassVar[str] = "pcapsvc.capture.file"
    file: str
    media_type: str
    bytes: int


class CaptureDone(Payload, frozen=True, kw_only=True):
    """A capture is delivered, spooled or lost for each destination. Only the spool may still deliver it."""

    type: ClassVar[str] = "pcapsvc.capture.done"


class CaptureDelivered(Payload, frozen=True, kw_only=True):
    """
    A destination has a capture.

    @ivar location: its path or URL there. It contains no secret.
    @ivar seconds: how long the successful attempt took.
    @ivar file: the name of the file, which C{puturl} may store under another one.
    @ivar media_type: the file's media type (RFC 6838).
    @ivar bytes: the size of the file.
    """

    type: ClassVar[str] = "pcapsvc.delivery.delivered"
    destination: str
    location: str
    seconds: float
    file: str | None = None
    media_type: str | None = None
    bytes: int | None = None


class DeliveryPostponed(Payload, frozen=True, kw_only=True):
    """
    A delivery attempt failed, and another will follow.

    @ivar attempts: how many have been made so far; from the spool, since the daemon started or the
        capture was spooled.
    @ivar next_try: when the next one is due, in seconds since the Unix epoch.
    @ivar spooled: whether the capture had been left in the spool before this attempt.
    """

    type: ClassVar[str] = "pcapsvc.delivery.postponed"
    destination: str
    problem: str
    attempts: int
    next_try: float
    spooled: bool = False

    def values(self) -> dict[str, Any]:
        """See L{Payload.values}."""
        return {**super().values(), "next_try": rfc3339(self.next_try)}


class DeliverySpooled(Payload, frozen=True, kw_only=True):
    """A capture could not be delivered to a destination yet, and is in the spool for it."""

    type: ClassVar[str] = "pcapsvc.delivery.spooled"
    destination: str
    problem: str


class DeliveryFailed(Payload, frozen=True, kw_only=True):
    """A capture will not be delivered to a destination."""

    type: ClassVar[str] = "pcapsvc.delivery.failed"
    destination: str
    problem: str


class ReportsDropped(Payload, frozen=True, kw_only=True):
    """
    A channel could not keep up, or was not there, and events were dropped. Reported to this channel only.

    @ivar dropped: how many since the last such event.
    @ivar since: when the first of them was dropped, in seconds since the Unix epoch.
    """

    type: ClassVar[str] = "pcapsvc.reports.dropped"
    channel: str
    dropped: int
    since: float

    def values(self) -> dict[str, Any]:
        """See L{Payload.values}."""
        return {**super().values(), "since": rfc3339(self.since)}


class Event(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """
    Something that happened on a node.

    @ivar id: unique among all events.
    @ivar time: when, in seconds since the Unix epoch.
    @ivar subject: the id of the capture that it is about; L{None} if it is about something else.
    @ivar api: the URL of the node's HTTP API; L{None} if others can't reach one.
    """

    id: str
    node: str
    time: float
    subject: str | None
    labels: Labels
    data: Payload
    api: str | None = None

    @property
    def type(self) -> str:
        """The CloudEvents type."""
        return self.data.type

    @cached_property
    def json(self) -> bytes:
        """The event in the structured mode of CloudEvents 1.0: one line in UTF-8, encoded only once."""
        encoded = msgspec.json.encode(as_json(self))
        # SQS accepts no character that XML 1.0 doesn't ("SendMessage" in its API Reference). JSON escapes the
        # others; and this can only be in a text.
        return encoded.replace(b"\xef\xbf\xbe", rb"\ufffe").replace(b"\xef\xbf\xbf", rb"\uffff")


class EventFactory:
    """
    Makes the events of a node.

    @param node: the node's name.
    @param wall_clock: returns the time in seconds since the Unix epoch.
    @param new_id: returns a string that it has never returned before, on any node.
    @param api: as in L{Event}.
    """

    def __init__(
        self,
        node: str,
        *,
        wall_clock: Callable[[], float],
        new_id: Callable[[], str],
        api: str | None = None,
    ) -> None:
        self._node = node
        self._api = api
        self._wall_clock = wall_clock
        self._new_id = new_id

    def event(
        self,
        data: Payload,
        labels: Labels,
        subject: str | None = None,
        *,
        id: str | None = None,
        time: float | None = None,
    ) -> Event:
        """
        An event that happens now, unless there is another time.

        @param subject: as in L{Event}; likewise C{id} and C{time}, for an event that must be the same if it
            is made again.
        """
        return Event(
            id=self._new_id() if id is None else id,
            node=self._node,
            time=self._wall_clock() if time is None else time,
            subject=subject,
            labels=labels,
            data=_without_secrets(data),
            api=self._api,
        )


def verdict_payload(verdict: Accepted | Rejected | Busy) -> Payload:
    """What an event says of a verdict."""
    match verdict:
        case Accepted():
            return RequestAccepted(
                captures=verdict.captures, problems=verdict.problems, warnings=verdict.warnings
            )
        case Rejected():
            return RequestRejected(problems=verdict.problems)
        case Busy():
            return RequestBusy(reason=verdict.reason)


def as_json(event: Event) -> dict[str, Any]:
    """
    An event in the structured mode of CloudEvents 1.0, in values that JSON has. Attributes and
    data without a value are left out. All text can be encoded in UTF-8.
    """
    document = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"/pcapsvc/nodes/{quote(event.node, safe='', errors='replace')}",
        "type": event.type,
        "subject": event.subject,
        "time": rfc3339(event.time),
        "datacontenttype": "application/json",
        "data": {"api": event.api, **event.labels.as_mapping(), **event.data.values()},
    }
    return _plain(document)  # type: ignore[no-any-return]


def _without_secrets(data: Payload) -> Payload:
    """A payload in which the words of servers and libraries have no secret of the configuration."""
    words = {name: getattr(data, name) for name in _FOREIGN if hasattr(data, name)}
    masked = {name: of_process(text) for name, text in words.items()}
    return data if masked == words else replace(data, **masked)


def _history(past: PastPackets | None) -> dict[str, Any] | None:
    return None if past is None else past.values()


def _rolling(rolling: RollingPackets | None) -> dict[str, Any] | None:
    return None if rolling is None else rolling.values()


def _problems(problems: tuple[Problem, ...]) -> list[dict[str, str | None]]:
    return [problem.as_mapping() for problem in problems]


def _plain(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode("utf-8")
        case Mapping():
            return {key: _plain(item) for key, item in value.items() if item is not None}
        case list():
            return [_plain(item) for item in value]
    return value
