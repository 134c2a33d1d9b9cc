"""What became of a request: the verdicts that its source hears, and the events that the world hears."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pcapsvc.core.errors import Problem
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.recording import Recording


@dataclass(frozen=True, kw_only=True)
class StartedCapture:
    """A capture that has begun."""

    capture_id: str
    interface: str


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """
    The captures have begun.

    @ivar problems: of those interfaces on which none could, though others go on.
    """

    captures: tuple[StartedCapture, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NotForThisNode:
    """The request names other nodes."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """The request can't be done, and trying it again cannot help."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True, kw_only=True)
class Busy:
    """
    The request is good, and there is no room for it now.

    @ivar reason: what there is too much of, in words.
    """

    reason: str


Verdict = Accepted | NotForThisNode | Rejected | Busy


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """
    A destination has a capture.

    @ivar location: where: a path, or a URL. It holds no secret.
    """

    destination: str
    location: str


@dataclass(frozen=True, kw_only=True)
class RequestRefused:
    """A request for this node led to no capture at all."""

    source: str
    verdict: Rejected | Busy


@dataclass(frozen=True, kw_only=True)
class CaptureStarted:
    """
    A capture has begun, for a request of a source.

    @ivar started: when, in seconds since the Unix epoch.
    @ivar progress: answers the packets captured by now, and the bytes in memory, until
        the capture stops.
    """

    capture_id: str
    source: str
    plan: CapturePlan
    link_type: int
    started: float
    progress: Callable[[], tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class CaptureStopped:
    """A capture has ended with a recording, which may hold no packet."""

    capture_id: str
    recording: Recording


@dataclass(frozen=True, kw_only=True)
class CaptureFailed:
    """A capture has ended with nothing."""

    capture_id: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class CaptureDelivered:
    """A destination has a capture."""

    capture_id: str
    receipt: Receipt


@dataclass(frozen=True, kw_only=True)
class DeliveryPostponed:
    """
    An attempt to deliver failed, and another will be made.

    @ivar attempts: how many have been made by now; where C{spooled}, since the daemon
        started or the capture was spooled.
    @ivar next_try: when the next one is due, in seconds since the Unix epoch.
    @ivar spooled: whether the capture waits in the spool for it, or in memory.
    """

    capture_id: str
    destination: str
    problem: str
    attempts: int
    next_try: float
    spooled: bool = False


@dataclass(frozen=True, kw_only=True)
class DeliveryFailed:
    """
    A destination does not have a capture when it had its turn.

    @ivar spooled: whether the capture is kept in the spool for it. Else the destination
        will not get it.
    """

    capture_id: str
    destination: str
    problem: str
    spooled: bool = False


@dataclass(frozen=True, kw_only=True)
class CaptureDone:
    """
    Every destination has had its turn: nothing more will be heard of a capture, but of
    its deliveries from the spool.
    """

    capture_id: str


Event = (
    RequestRefused
    | CaptureStarted
    | CaptureStopped
    | CaptureFailed
    | CaptureDelivered
    | DeliveryPostponed
    | DeliveryFailed
    | CaptureDone
)
