"""
What has become of a request on each node, by the events about it.

Events may arrive twice, late, or in another order (see docs/events.md), so a state never goes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import unquote

import msgspec

from pcapsvc.client.status import ExitStatus
from pcapsvc.core.text import one_line

#: How long after its end the outcome of its delivery may be missing: in a queue, events have no order.
LATE_SECONDS = 3.0
#: How long a capture that has reported its progress may be without, or this many times as long as before.
SILENT_SECONDS = 15.0
SILENT_TIMES = 3
#: How much longer than its limit a capture may take, if it doesn't report its progress.
GRACE_SECONDS = 30.0
#: How many captures and refusals are counted, and how many destinations of each. A server may lie for hours.
MOST_ROWS = 10_000
MOST_DESTINATIONS = 100
#: How many of the latest events are recognized if they arrive twice.
MOST_SEEN = 50_000

# Numbers in events are smaller.
_LARGEST = 2**63
# Of a text, in characters. Names longer than that are of no node, interface or capture.
_LONGEST = 1000
_LONGEST_NAME = 300
_MOST_MISSING = 20
_MOST_PROBLEMS = 100
# Later ones win.
_STATES = ("accepted", "capturing", "delivering", "done", "failed")
_REFUSED = ("rejected", "busy")
_UNREACHED = "no answer"
# Those of which the events say how much is used.
_LIMITS = ("packets", "bytes", "duration")
_OUTCOMES = ("postponed", "spooled", "failed", "delivered")


class Row(msgspec.Struct, kw_only=True):
    """
    One capture; or a node, or one of its interfaces, that refuses; or a node that can't be reached.

    @ivar node: its name; its address, if it can't be reached and asked for it.
    @ivar capture_id: L{None} if there is none.
    @ivar state: one of C{accepted}, C{capturing}, C{delivering}, C{done}, C{failed}, C{rejected}, C{busy},
        C{no answer}.
    @ivar words: why it refuses, has failed, or can't be reached.
    @ivar api: the URL of the node's API; L{None} if the node doesn't say.
    @ivar captured: how many packets were captured so far, also those that a rolling capture has released.
    @ivar rate: packets a second, lately; L{None} if unknown.
    @ivar deliveries: the state and the location or the problem, by destination.
    @ivar file: the name of the file; L{None} if it is unknown, or there is none.
    @ivar progress_seconds: how far apart its reports of progress are, at most.
    @ivar heard_at: when the last event about it arrived, in seconds of a monotonic clock.
    @ivar missing: what is missing of the past that the request asked for, as events have it.
    @ivar fetched: where its file was saved by this program; L{None} if it wasn't.
    @ivar is_to_merge: whether it was fetched, to become a part of one file that isn't there yet.
    """

    node: str
    interface: str | None = None
    capture_id: str | None = None
    state: str = "accepted"
    words: str | None = None
    api: str | None = None
    limits: Mapping[str, float] = msgspec.field(default_factory=dict)
    packets: int = 0
    captured: int = 0
    bytes: int = 0
    seconds: float = 0.0
    rate: float | None = None
    dropped: int | None = None
    reason: str | None = None
    file: str | None = None
    deliveries: dict[str, tuple[str, str]] = msgspec.field(default_factory=dict)
    began_at: float | None = None
    heard_at: float = 0.0
    progress_seconds: float | None = None
    has_stopped: bool = False
    missing: Sequence[Mapping[str, Any]] = ()
    fetched: str | None = None
    is_to_merge: bool = False
    fetch_problem: str | None = None

    @property
    def is_refused(self) -> bool:
        """Whether it will not be captured."""
        return self.state in _REFUSED

    @property
    def is_unreached(self) -> bool:
        """Whether the request could not be sent to the node."""
        return self.state == _UNREACHED

    @property
    def is_over(self) -> bool:
        """Whether the node reports that nothing more will happen, except from the spool."""
        return self.state in ("done", "failed") or self.is_refused or self.is_unreached

    @property
    def is_delivered(self) -> bool:
        """Whether all is well: every destination has it, or this program; or there was no packet."""
        if self.state != "done" or self.fetch_problem is not None:
            return False
        if self.has_stopped and self.file is None:
            return True
        states = [state for state, _ in self.deliveries.values()]
        return all(state == "delivered" for state in states) and bool(states or self.fetched)

    def is_silent(self, now: float) -> bool:
        """Whether the node should have reported something by now: it may have been killed."""
        if self.is_over or self.state == "delivering":
            return False
        quiet = now - self.heard_at
        if self.progress_seconds is not None:
            return quiet > max(SILENT_SECONDS, SILENT_TIMES * self.progress_seconds)
        return quiet > self.limits.get("duration", 0) + GRACE_SECONDS

    def is_settled(self, now: float) -> bool:
        """Whether there is nothing to wait for."""
        if not self.is_over:
            return False
        if self.state != "done" or (self.has_stopped and self.file is None):
            return True
        outcomes = [state for state, _ in self.deliveries.values() if state != "postponed"]
        return bool(self.has_stopped and outcomes) or now - self.heard_at > LATE_SECONDS

    def nearest_limit(self, now: float) -> tuple[str, float] | None:
        """The limit that is nearest to being reached, and how much of it is used, up to 1.0."""
        seconds = self.seconds
        if self.state == "capturing" and self.began_at is not None:
            seconds = max(seconds, now - self.began_at)
        used = {"packets": self.packets, "bytes": self.bytes, "duration": seconds}
        shares = {name: min(1.0, used[name] / limit) for name, limit in self.limits.items() if limit}
        return max(shares.items(), key=lambda item: item[1]) if shares else None


class Tally:
    """
    @param requestid: that of the request. Other events are ignored.

    @ivar ignored: how many captures, refusals and outcomes were not counted, as there were too many.
    """

    def __init__(self, requestid: str) -> None:
        self._requestid = requestid
        self._rows: dict[tuple[str, str], Row] = {}
        # Of their ids, which may have any length, the hashes: those of different texts differ.
        self._seen: dict[int, None] = {}
        self.ignored = 0

    @property
    def rows(self) -> Sequence[Row]:
        """All of them, by node and interface."""
        return sorted(self._rows.values(), key=lambda row: (row.node, row.interface or ""))

    @property
    def nodes(self) -> set[str]:
        """The nodes that have answered."""
        return {row.node for row in self._rows.values() if not row.is_unreached}

    @property
    def unreached(self) -> int:
        """How many nodes could not be sent the request."""
        return sum(row.is_unreached for row in self._rows.values())

    def refuse(self, node: str, words: str) -> None:
        """A node has refused in its answer. If an event says so as well, that replaces it."""
        if node not in self.nodes:
            self._row(node, "").state = "rejected"
            self._row(node, "").words = words

    def miss(self, place: str, words: str) -> None:
        """A node could not be sent the request."""
        self._row(place, "").state = _UNREACHED
        self._row(place, "").words = words

    def add(self, event: Mapping[str, Any], now: float) -> Row | None:
        """
        Count an event.

        @param now: when it arrived, in seconds of a monotonic clock.

        @return: one of the rows that have changed; L{None} if the event is about something else, or known.
        """
        try:
            data, kind = event["data"], str(event["type"]).removeprefix("pcapsvc.")
            node = unquote(str(event["source"]).rpartition("/")[2])
            if data.get("requestid") != self._requestid or not self._is_new(event["id"]):
                return None
            return self._add(kind, _name(node), event.get("subject"), data, now)
        except _TooMany:
            self.ignored += 1
            return None
        except (KeyError, TypeError, AttributeError, ValueError):
            # It is not one of ours, or from a version to come.
            return None

    def _is_new(self, event_id: object) -> bool:
        known = hash(str(event_id))
        if known in self._seen:
            return False
        self._seen[known] = None
        if len(self._seen) > MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        return True

    def _add(
        self, kind: str, node: str, subject: str | None, data: Mapping[str, Any], now: float
    ) -> Row | None:
        api = None if data.get("api") is None else _name(data["api"])
        if kind == "request.accepted":
            return self._accepted(node, data, api, now)
        if kind in ("request.rejected", "request.busy"):
            row = self._counted(node, "")
            row.state = kind.removeprefix("request.")
            problems = islice(data.get("problems", ()), _MOST_PROBLEMS)
            row.words = _text(data.get("reason") or "; ".join(map(_words, problems)))
            row.api, row.heard_at = api or row.api, now
            return row
        if not isinstance(subject, str):
            return None
        row = self._counted(node, _name(subject))
        row.capture_id, row.interface = subject, _name(data.get("interface") or row.interface or "")
        row.api, row.heard_at = api or row.api, now
        area, _, what = kind.partition(".")
        if area == "delivery":
            _deliver(row, what, data)
        elif area == "capture":
            _capture(row, what, data, now)
        return row

    def _accepted(self, node: str, data: Mapping[str, Any], api: str | None, now: float) -> Row | None:
        row = None
        for each in data["captures"]:
            capture_id, interface = _name(each["id"]), _name(each["interface"])
            row = self._counted(node, capture_id)
            row.capture_id, row.interface = capture_id, interface
            row.api, row.heard_at = api, now
        for number, problem in enumerate(data.get("problems", ())):
            refused = self._counted(node, f" {number}")
            refused.state, refused.words, refused.heard_at = "rejected", _words(problem), now
            row = row or refused
        return row

    def _counted(self, node: str, key: str) -> Row:
        if (node, key) not in self._rows and len(self._rows) >= MOST_ROWS:
            raise _TooMany
        return self._row(node, key)

    def _row(self, node: str, key: str) -> Row:
        return self._rows.setdefault((node, key), Row(node=node))

    def is_settled(self, now: float) -> bool:
        """Whether every node that has answered is done."""
        return all(row.is_settled(now) or row.is_silent(now) for row in self._rows.values())

    def running(self) -> Iterator[Row]:
        """The captures that have not stopped, as far as is known."""
        return (row for row in self._rows.values() if row.state in ("accepted", "capturing"))

    def status(self, *, missing: int = 0) -> ExitStatus:
        """
        What to exit with now.

        @param missing: how many nodes were expected, and have not answered.
        """
        rows = [row for row in self._rows.values() if not row.is_unreached]
        if not rows:
            return ExitStatus.NO_ANSWER
        if all(row.is_refused for row in rows):
            return ExitStatus.PARTLY if missing > 0 else ExitStatus.REJECTED
        if missing <= 0 and not self.ignored and all(row.is_delivered for row in rows):
            return ExitStatus.DELIVERED
        return ExitStatus.PARTLY


def _capture(row: Row, what: str, data: Mapping[str, Any], now: float) -> None:
    history = data.get("history")
    if isinstance(history, dict) and isinstance(history.get("missing"), list) and not row.has_stopped:
        row.missing = [_plain(each) for each in history["missing"][:_MOST_MISSING]]
    match what:
        case "started":
            _advance(row, "capturing")
            limits = {name: _number(data["limits"], name) for name in data["limits"] if name in _LIMITS}
            if "rolling" in data:
                # Its size ends nothing.
                limits.pop("bytes", None)
                row.captured = int(_number(data["rolling"], "captured"))
            row.limits = limits
            row.began_at = now if row.began_at is None else row.began_at
        case "progress":
            _advance(row, "capturing")
            _progress(row, data)
        case "stopped":
            packets, size, dropped = _counts(data)
            _advance(row, "delivering")
            row.has_stopped, row.reason = True, _text(data.get("reason") or "")
            row.file = None if data.get("file") is None else _text(data["file"])
            row.packets, row.bytes, row.dropped, row.rate = packets, size, dropped, None
        case "failed":
            _advance(row, "failed")
            row.words = _text(data.get("problem"))
        case "done":
            _advance(row, "done")


def _progress(row: Row, data: Mapping[str, Any]) -> None:
    seconds, (packets, size, dropped) = _number(data, "seconds"), _counts(data)
    captured = int(_number(data["rolling"], "captured")) if "rolling" in data else packets
    row.progress_seconds = max(row.progress_seconds or 0.0, seconds - row.seconds)
    if row.has_stopped or seconds <= row.seconds:
        return
    row.rate = (captured - row.captured) / (seconds - row.seconds)
    row.captured, row.seconds = captured, seconds
    row.packets, row.bytes, row.dropped = packets, size, dropped


def _number(data: Mapping[str, Any], name: str) -> float:
    """
    A number in an event.

    @raise ValueError: if it is none.
    """
    value = data[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _LARGEST:
        raise ValueError(f"{name} is not a number")
    return value


def _counts(data: Mapping[str, Any]) -> tuple[int, int, int | None]:
    """The packets, bytes and drops in an event."""
    dropped = None if data.get("dropped") is None else int(_number(data, "dropped"))
    return int(_number(data, "packets")), int(_number(data, "bytes")), dropped


def _deliver(row: Row, what: str, data: Mapping[str, Any]) -> None:
    if what not in _OUTCOMES:
        return
    _advance(row, "delivering")
    destination = _name(data["destination"])
    known = row.deliveries.get(destination)
    if known is None and len(row.deliveries) >= MOST_DESTINATIONS:
        raise _TooMany
    if known is None or _OUTCOMES.index(known[0]) <= _OUTCOMES.index(what):
        row.deliveries[destination] = (what, _text(data.get("location") or data.get("problem") or ""))


def _advance(row: Row, state: str) -> None:
    if row.state not in _STATES or _STATES.index(state) > _STATES.index(row.state):
        row.state = state


class _TooMany(Exception):
    """There is no room for another one."""


def _name(value: object) -> str:
    """
    What is not shown alone, but compared and asked for.

    @raise ValueError: if it's too long to be a name.
    """
    text = str(value)
    if len(text) > _LONGEST_NAME:
        raise ValueError("too long")
    return text


def _text(value: object) -> str:
    """What is only shown. Secrets are hidden before it is cut, since half of one is not recognized."""
    return one_line(str(value), most=_LONGEST)


def _plain(missing: object) -> Mapping[str, Any]:
    """A part of the past that is missing, with what is shown of it; nothing if it is something else."""
    known = missing if isinstance(missing, dict) else {}
    reason = known.get("reason")
    numbers = {
        name: value for name in ("seconds", "packets") if isinstance(value := known.get(name), int | float)
    }
    return {"reason": _text(reason), **numbers} if isinstance(reason, str) else {}


def _words(problem: Mapping[str, Any]) -> str:
    value = problem.get("value")
    return one_line(
        f"{problem.get('path')}{'' if value is None else f' = {value}'}: {problem.get('rule')}", most=1000
    )
