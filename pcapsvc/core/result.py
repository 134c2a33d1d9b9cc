"""Verdicts on requests, and the receipts of destinations."""

from __future__ import annotations

import msgspec

from pcapsvc.core.errors import Problem


class StartedCapture(msgspec.Struct, frozen=True, kw_only=True):
    """A capture that was started for a request."""

    capture_id: str
    interface: str


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
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


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """
    The captures of a request were ended, as another request asked.

    @ivar captures: those that were running; none if there was nothing to end.
    """

    captures: tuple[StartedCapture, ...]


class NotForThisNode(msgspec.Struct, frozen=True, kw_only=True):
    """The request is addressed to other nodes."""


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """The request is invalid, or this node can't meet it. Sending it again would not help."""

    problems: tuple[Problem, ...]


class Busy(msgspec.Struct, frozen=True, kw_only=True):
    """
    The request is valid, but there is no capacity for it now.

    @ivar reason: which limit is reached.
    """

    reason: str


Verdict = Accepted | Ended | NotForThisNode | Rejected | Busy


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """
    Confirms that a destination has stored a capture.

    @ivar location: the path or URL of the capture. It contains no secret.
    """

    destination: str
    location: str
