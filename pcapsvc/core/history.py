"""The recent past of an interface: what a request may ask for, what is kept, and what a capture got of it."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

from pcapsvc.core.errors import Problem
from pcapsvc.core.session import EXACT_SECONDS
from pcapsvc.core.timestamp import rfc3339

#: The longest past that can be kept, or asked for, in seconds: a week.
LONGEST_SECONDS = 7 * 86_400


class MissingReason(Enum):
    """Why a part of the past that was asked for is not in a capture."""

    #: The interface's history is bounded by fewer seconds.
    TOO_SHORT = "too_short"
    #: The interface's history is bounded by its size.
    SIZE = "size"
    #: The kernel dropped packets, because its buffer was full.
    DROPS = "drops"
    #: The interface was down, or gone.
    DOWN = "down"
    #: Recording began later.
    STARTED = "started"
    #: A limit of the capture left room for the newest packets only.
    LIMIT = "limit"
    #: The history keeps fewer bytes of each packet than the capture would, or than its filter looks at.
    SNAP = "snap"
    #: The interface has no history, and the request does without.
    NONE = "none"


class LookBack(msgspec.Struct, frozen=True, kw_only=True):
    """
    The part of the past that a request asks for.

    @ivar seconds: how many seconds before it was sent, as it says.
    @ivar since: from when on packets belong to it, in seconds since the Unix epoch.
    @ivar until: when the request arrived, likewise: what arrives later is not of the past.
    @ivar snap_length: how much of each packet it asks for, in bytes.
    @ivar past_only: whether it asks for nothing else.
    @ivar is_optional: whether it can do without, if the interface has no history.
    """

    seconds: float
    since: float
    until: float
    snap_length: int
    past_only: bool = False
    is_optional: bool = False


def look_back(
    seconds: float,
    *,
    snap_length: int,
    sent_at: float | None,
    now: float,
    past_only: bool = False,
    is_optional: bool = False,
) -> LookBack:
    """
    The past that a request asks for. It counts from when the request was sent: what it is about happened
    before that.

    @param seconds: how far it looks back.
    @param snap_length: how much of each packet it asks for, in bytes.
    @param sent_at: when its broker accepted it, in seconds since the Unix epoch; L{None} if that isn't known.
    @param now: the time here, likewise. Nothing is sent later, though the broker's clock may say so; and no
        past reaches further back than L{LONGEST_SECONDS}, wherever that clock is.
    """
    sent = now if sent_at is None else min(sent_at, now)
    return LookBack(
        seconds=seconds,
        since=max(sent - seconds, now - LONGEST_SECONDS),
        until=now,
        snap_length=snap_length,
        past_only=past_only,
        is_optional=is_optional,
    )


def no_history(interface: str) -> Problem:
    """The problem that a request asks for the past of an interface of which none is kept."""
    return Problem(
        path="before",
        rule=f"can't be used on {interface}: this node keeps no history of it ([[interface]] history); with"
        " 'beforeoptional' it would be captured from now on",
    )


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """
    A part of the past that is missing.

    @ivar seconds: how long it is; L{None} if that isn't known.
    @ivar packets: how many packets it had; L{None} if that isn't known.
    """

    reason: MissingReason
    seconds: float | None = None
    packets: int | None = None


class PastPackets(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a capture got of the past.

    @ivar seconds: how many seconds the request asked for.
    @ivar first: the time stamp of the first packet, in seconds since the Unix epoch; L{None} if there is
        none.
    @ivar packets: how many packets of the past there are.
    """

    seconds: float
    first: float | None = None
    packets: int = 0
    missing: tuple[Missing, ...] = ()

    def values(self) -> dict[str, Any]:
        """It in values that JSON has; what is unknown, or isn't there, is L{None}."""
        return {
            "requested": self.seconds,
            "first": None if self.first is None else rfc3339(self.first),
            "packets": self.packets,
            "missing": [
                {
                    "reason": one.reason.value,
                    "seconds": None if one.seconds is None else round(one.seconds, 3),
                    "packets": one.packets,
                }
                for one in self.missing
            ],
        }


class HistoryBounds(msgspec.Struct, frozen=True, kw_only=True):
    """
    How much of an interface's past is kept.

    @ivar seconds: how far back, at most.
    @ivar size_bytes: how much memory it occupies.
    @ivar snap_length: how much of each packet is kept, in bytes.
    @ivar bpf: a filter of pcap-filter(7) for what is kept; empty for every packet.
    """

    seconds: float
    size_bytes: int
    snap_length: int
    bpf: str = ""


class HistoryState(msgspec.Struct, frozen=True, kw_only=True):
    """
    How far back the history of an interface reaches now.

    @ivar interface: the interface's name, as configured.
    @ivar since: the time from which on packets are kept, in seconds since the Unix epoch; L{None} if nothing
        was recorded yet.
    @ivar seconds: how long ago that is.
    @ivar packets: how many packets are kept.
    @ivar bytes: how much memory they occupy.
    @ivar dropped: how many packets the kernel has dropped since the daemon's start.
    @ivar problem: why nothing is being recorded now; L{None} if it is.
    """

    interface: str
    bounds: HistoryBounds
    since: float | None
    seconds: float
    packets: int
    bytes: int
    dropped: int
    problem: str | None

    def values(self) -> dict[str, Any]:
        """It in values that JSON has; what isn't there is L{None}."""
        return {
            "seconds": round(self.seconds, 3),
            "since": None if self.since is None else rfc3339(self.since),
            "packets": self.packets,
            "bytes": self.bytes,
            "dropped": self.dropped,
            "problem": self.problem,
            "bounds": {
                "seconds": self.bounds.seconds,
                "bytes": self.bounds.size_bytes,
                "snap_length": self.bounds.snap_length,
                "bpf": self.bounds.bpf,
            },
        }


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """
    A time in which nothing could be recorded.

    @ivar began: when, in seconds since the Unix epoch.
    @ivar ended: likewise; L{None} if it lasts.
    """

    began: float
    ended: float | None = None


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """
    How complete a history is. All times are in seconds since the Unix epoch.

    @ivar started: when recording began; L{None} if it has not.
    @ivar released: the time stamp of the oldest packet that is kept since others were overwritten; L{None}
        if none were.
    @ivar outages: when nothing could be recorded since.
    """

    seconds: float
    started: float | None
    released: float | None
    outages: tuple[Outage, ...] = ()

    def since(self, now: float) -> float | None:
        """From when on packets are kept; L{None} if nothing was recorded yet."""
        if self.started is None:
            return None
        return max(self.started, now - self.seconds, self.released or self.started)

    def missing(self, since: float, until: float) -> list[Missing]:
        """What is not kept of a part of the past."""
        found: list[Missing] = []
        short = until - self.seconds - since
        known = (
            # A request for all of the history is on its way for a moment.
            (MissingReason.TOO_SHORT, until - self.seconds if short >= EXACT_SECONDS else None),
            (MissingReason.STARTED, until if self.started is None else self.started),
            (MissingReason.SIZE, self.released),
        )
        for reason, begins in known:
            if begins is not None and begins > since:
                found.append(Missing(reason=reason, seconds=begins - since))
                since = begins
        down = sum(
            max(0.0, min(until, until if outage.ended is None else outage.ended) - max(since, outage.began))
            for outage in self.outages
        )
        if down:
            found.append(Missing(reason=MissingReason.DOWN, seconds=down))
        return found


def past_packets(
    wanted: LookBack,
    reach: Reach,
    now: float,
    *,
    first: float | None,
    packets: int,
    dropped: int,
    is_overtaken: bool,
    is_limited: bool,
    is_cut: bool,
) -> PastPackets:
    """
    What a capture got of the past, and what is missing of it.

    @param reach: how complete the history was at C{now}, in seconds since the Unix epoch.
    @param first: the time stamp of the first packet, likewise; L{None} if there is none.
    @param dropped: how many packets the kernel had dropped since then.
    @param is_overtaken: whether the oldest were overwritten before they could be read.
    @param is_limited: whether a limit left room for the newest only.
    @param is_cut: whether the history keeps fewer bytes of each packet than the capture is to have, or than
        its filter looks at.
    """
    missing = reach.missing(wanted.since, now)
    if dropped:
        missing.append(Missing(reason=MissingReason.DROPS, packets=dropped))
    if is_overtaken or is_limited:
        begins = max(wanted.since, reach.since(now) or now)
        reason = MissingReason.LIMIT if is_limited else MissingReason.SIZE
        seconds = None if first is None else max(0.0, first - begins)
        missing.append(Missing(reason=reason, seconds=seconds))
    if is_cut:
        missing.append(Missing(reason=MissingReason.SNAP))
    return PastPackets(seconds=wanted.seconds, first=first, packets=packets, missing=tuple(missing))
