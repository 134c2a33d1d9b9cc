"""Events, rows and numbers in words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from pcapsvc.client.status import NoAnswer
from pcapsvc.client.tally import Row
from pcapsvc.core.mask import of_process
from pcapsvc.core.text import counted, one_line

_LONGEST = 1000
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
# Why a part of the past is missing: see docs/lookback.md.
_MISSING = {
    "too_short": "the history is shorter",
    "size": "the history's memory was full",
    "drops": "dropped by the kernel",
    "down": "the interface was down",
    "started": "recording began later",
    "limit": "no room within the limits",
    "snap": "packets may be cut",
    "none": "no history is kept",
}


def size(number: float) -> str:
    """A number of bytes: C{8.2 kB}."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return ""


def duration(seconds: float) -> str:
    """A time: C{4.2 s}, C{3:07}, C{1:00:00}."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def clean(text: object) -> str:
    """A text from outside, for a terminal."""
    return one_line(str(text), most=_LONGEST)


def json_text(value: object, *, indent: int | None = None) -> str:
    """
    What a server has sent, as JSON in ASCII, without the secrets that it may repeat.

    @raise NoAnswer: if it can't be written as JSON.
    """
    try:
        text = json.dumps(value, indent=indent, separators=None if indent else (",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        raise NoAnswer("what was sent is nested too deeply, or has a number that JSON doesn't have") from None
    return _JSON_STRING.sub(lambda found: json.dumps(of_process(json.loads(found[0]))), text)


def event_line(event: Mapping[str, Any]) -> str:
    """An event on one line: when, where, and what."""
    kind = str(event.get("type", "")).removeprefix("pcapsvc.")
    data = event["data"]
    node = clean(unquote(str(event.get("source", "")).rpartition("/")[2]))
    place = f"{node}:{clean(data['interface'])}" if "interface" in data else node
    when = clean(event.get("time", ""))[11:23]
    try:
        words = _event_words(kind, data)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
        # From a version to come.
        words = clean(kind)
    subject = f" {clean(event['subject'])}" if "subject" in event else ""
    return f"{when} {place}{subject} {words}"


def _event_words(kind: str, data: Mapping[str, Any]) -> str:
    match kind:
        case "request.accepted":
            ids = ", ".join(f"{each['id']} on {each['interface']}" for each in data["captures"])
            return clean("accepted: " + "; ".join([ids, *map(problem_words, data.get("problems", ()))]))
        case "request.rejected":
            return clean("rejected: " + "; ".join(map(problem_words, data["problems"])))
        case "request.busy":
            return clean(f"busy: {data['reason']}")
        case "capture.started":
            limits = data["limits"]
            most = f"{size(limits['bytes'])}, {duration(limits['duration'])}"
            if "rolling" in data:
                most = f"the newest {most}"
            else:
                most = f"up to {counted(limits['packets'], 'packet')}, {most}"
            if "timeout" in limits:
                most += f", {duration(limits['timeout'])} idle"
            lacks = missing_words(data["history"]["missing"]) if "history" in data else ""
            return clean(
                "; ".join(filter(None, (f"capturing {data['bpf'] or 'every packet'}, {most}", lacks)))
            )
        case "capture.progress":
            return clean(f"{_amount(data)} in {duration(data['seconds'])}")
        case "capture.stopped":
            return clean(f"stopped ({data['reason']}): {_amount(data)}")
        case "capture.failed":
            return clean(f"failed: {data['problem']}")
        case "capture.done":
            return "done"
        case "delivery.delivered":
            return clean(f"delivered to {data['destination']}: {data['location']}")
        case "delivery.postponed" | "delivery.spooled" | "delivery.failed":
            state = {"failed": "not delivered"}.get(kind[9:], kind[9:])
            return clean(f"{state} ({data['destination']}): {data['problem']}")
        case "reports.dropped":
            return clean(f"{data['dropped']} events were not published to {data['channel']}")
    return clean(kind)


def _amount(data: Mapping[str, Any]) -> str:
    dropped = data.get("dropped")
    lost = f", {dropped} dropped" if dropped else ""
    of_all = f" of {data['rolling']['captured']}" if "rolling" in data else ""
    return f"{counted(data['packets'], 'packet')}{of_all}, {size(data['bytes'])}{lost}"


def problem_words(problem: Mapping[str, Any]) -> str:
    """A problem with a request."""
    value = problem.get("value")
    return f"{problem['path']}{'' if value is None else f' = {value}'}: {problem['rule']}"


def missing_words(missing: Sequence[Mapping[str, Any]]) -> str:
    """What is missing of the past; empty if nothing is."""
    parts = []
    for each in missing:
        amounts = [duration(each["seconds"])] if "seconds" in each else []
        amounts += [counted(each["packets"], "packet")] if "packets" in each else []
        why = _MISSING.get(each["reason"], each["reason"])
        parts.append(f"{', '.join(amounts)} ({why})" if amounts else str(why))
    return f"missing of the past: {', '.join(parts)}" if parts else ""


def missing(row: Row) -> str:
    """What a capture doesn't have of the past that it was to begin with; empty if it has all of it."""
    try:
        return clean(missing_words(row.missing))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
        # From a version to come.
        return "some of the past is missing"


def place(row: Row) -> str:
    """The node and the interface of a row."""
    return clean(row.node if row.interface is None else f"{row.node}:{row.interface}")


def where(row: Row) -> str:
    """Where a capture was delivered to, or why not."""
    if row.capture_id is None or row.state == "failed":
        return clean(row.words or "")
    if row.has_stopped and row.file is None:
        return "no packets"
    parts = [row.fetched] if row.fetched else []
    if row.fetch_problem:
        parts.append(f"not fetched: {row.fetch_problem}")
    for destination, (state, words) in row.deliveries.items():
        if state == "delivered":
            parts.append(words if "/" in words else f"{destination}: {words}")
        else:
            parts.append(f"{destination}: {'not delivered' if state == 'failed' else state}: {words}")
    return clean("; ".join(parts))


def where_briefly(row: Row) -> str:
    """The same, in few words: the destinations, and how each of them is."""
    if row.capture_id is None or row.state == "failed" or (row.has_stopped and row.file is None):
        return where(row)
    is_fetched = row.fetched or row.is_to_merge
    parts = ["fetched"] if is_fetched else ["not fetched"] if row.fetch_problem else []
    for destination, (outcome, _) in row.deliveries.items():
        parts.append(destination if outcome == "delivered" else f"{destination}: {outcome}")
    return clean(", ".join(parts))


def state(row: Row, now: float) -> str:
    """The state of a row, in one or two words."""
    if row.is_silent(now):
        return "silent"
    if row.state == "done":
        if row.is_delivered:
            return "nothing" if row.has_stopped and row.file is None else "delivered"
        states = {each for each, _ in row.deliveries.values()}
        if row.is_to_merge and not states:
            return "fetched"
        if row.fetch_problem is not None and states <= {"delivered"}:
            return "not fetched"
        return "spooled" if states and states <= {"spooled", "delivered"} else "not delivered"
    return {"accepted": "starting"}.get(row.state, row.state)
