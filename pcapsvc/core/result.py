"""Verdicts on requests, and the receipts of destinations."""

from __future__ import annotations

from dataclasses import dataclass

from pcapsvc.core.errors import Problem


@dataclass(frozen=True, kw_only=True)
class StartedCapture:
    """A capture that was started for a request."""

    capture_id: str
    interface: str


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """
    The captures were started.

    @ivar problems: of interfaces that can't be captured on, if others can.
    @ivar warnings: what the sender should know: labels that were changed or left out, and destinations that
        get another compression.
    @ivar filter: which packets are captured, as a filter of pcap-filter(7); empty for every packet.
    """

    captures: tuple[StartedCapture, ...]
    filter: str = ""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ended:
    """
    The captures of a request were ended, as another request asked.

    @ivar captures: those that were running; none if there was nothing to end.
    """

    captures: tuple[StartedCapture, ...]


@dataclass(frozen=True, kw_only=True)
class NotForThisNode:
    """The request is addressed to other nodes."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """The request is invalid, or this node can't meet it. Sending it again would not help."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True, kw_only=True)
class Busy:
    """
    The request is valid, but there is no capacity for it now.

    @ivar reason: which limit is reached.
    """

    reason: str


Verdict = Accepted | Ended | NotForThisNode | Rejected | Busy


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """
    Confirms that a destination has stored a capture.

    @ivar location: the path or URL of the capture. It contains no secret.
    """

    destination: str
    location: str
