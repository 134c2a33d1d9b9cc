"""What became of captures, for whoever asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from zope.interface import implementer

from pcapsvc.core.artifact import file_name
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.result import (
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureStarted,
    CaptureStopped,
    DeliveryFailed,
    DeliveryPostponed,
    Event,
)
from pcapsvc.interfaces.reports import IReporter

#: How many captures that have ended are remembered.
REMEMBERED_CAPTURES = 1000


# What a request says of itself, for those who asked.
_LABELS = ("customer", "alertid", "alertstr", "tags")


@dataclass(kw_only=True)
class _Entry:
    facts: dict[str, Any]
    # Of the running capture, which is not to be kept beyond its end.
    progress: Callable[[], tuple[int, int]] | None
    stopped: dict[str, Any] | None = None
    problem: str | None = None
    done: bool = False
    deliveries: dict[str, dict[str, Any]] = field(default_factory=dict)


@implementer(IReporter)
class Ledger:
    """
    Remembers the captures that run, and the last ones that have ended.

    @param destinations: the names of all destinations.
    """

    def __init__(self, destinations: Sequence[str]) -> None:
        self._destinations = tuple(destinations)
        self._running: dict[str, _Entry] = {}
        self._ended: OrderedDict[str, _Entry] = OrderedDict()

    def report(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, CaptureStarted):
            self._running[event.capture_id] = _Entry(facts=_facts(event), progress=event.progress)
            return
        capture_id = getattr(event, "capture_id", "")
        entry = self._running.get(capture_id)
        if isinstance(event, CaptureDelivered | DeliveryPostponed | DeliveryFailed):
            # From the spool, a capture may be delivered long after it is done.
            entry = entry or self._ended.get(capture_id)
            if entry is not None:
                self._delivery(entry, event)
        elif entry is not None:
            self._capture(entry, event)

    def _capture(self, entry: _Entry, event: Event) -> None:
        match event:
            case CaptureStopped():
                entry.stopped, entry.progress = _stopped(event), None
                if event.recording.packets:
                    entry.deliveries = {name: {"state": "pending"} for name in self._destinations}
            case CaptureFailed():
                entry.problem, entry.progress = event.problem, None
            case CaptureDone():
                entry.done = True
                self._ended[event.capture_id] = self._running.pop(event.capture_id)
                if len(self._ended) > REMEMBERED_CAPTURES:
                    self._ended.popitem(last=False)

    def _delivery(self, entry: _Entry, event: CaptureDelivered | DeliveryPostponed | DeliveryFailed) -> None:
        match event:
            case CaptureDelivered():
                location = event.receipt.location
                entry.deliveries[event.receipt.destination] = {"state": "delivered", "location": location}
            case DeliveryPostponed():
                entry.deliveries[event.destination] = {
                    "state": "spooled" if event.spooled else "retrying",
                    "problem": event.problem,
                    "attempts": event.attempts,
                    "next_try": _time(event.next_try),
                }
            case DeliveryFailed():
                state = "spooled" if event.spooled else "failed"
                entry.deliveries[event.destination] = {"state": state, "problem": event.problem}

    def lookup(self, capture_id: str) -> Mapping[str, Any] | None:
        """
        What is known of a capture, in values that JSON has; L{None} where nothing is.

        C{state} is C{capturing}, C{delivering}, C{done} or C{failed}. Times are those of
        RFC 3339.
        """
        entry = self._running.get(capture_id) or self._ended.get(capture_id)
        return None if entry is None else _state(entry)


def _state(entry: _Entry) -> dict[str, Any]:
    state = {**entry.facts, "state": _name_of_state(entry)}
    if entry.problem is not None:
        state["problem"] = entry.problem
    elif entry.stopped is not None:
        state.update(entry.stopped)
    elif entry.progress is not None:
        state["packets"], state["bytes"] = entry.progress()
    state["deliveries"] = [{"destination": name, **what} for name, what in entry.deliveries.items()]
    return state


def _name_of_state(entry: _Entry) -> str:
    if entry.problem is not None:
        return "failed"
    if entry.done:
        return "done"
    return "capturing" if entry.stopped is None else "delivering"


def _facts(started: CaptureStarted) -> dict[str, Any]:
    """What doesn't change any more; the state has its place here."""
    return {
        "id": started.capture_id,
        "state": "capturing",
        "source": started.source,
        **_plan(started.plan),
        "started": _time(started.started),
        "link_type": started.link_type,
    }


def _plan(plan: CapturePlan) -> dict[str, Any]:
    request = plan.request
    asked = {name: getattr(request, name) for name in _LABELS}
    return {
        "node": plan.node,
        "interface": plan.interface,
        "request": {name: value for name, value in asked.items() if value is not None},
        "bpf": plan.bpf,
        "snap_length": plan.snap_length,
        "limits": {
            "packets": plan.limits.max_packets,
            "bytes": plan.limits.max_bytes,
            "timeout": plan.limits.idle_seconds,
            "duration": plan.limits.duration_seconds,
        },
    }


def _stopped(event: CaptureStopped) -> dict[str, Any]:
    recording = event.recording
    counts = recording.counts
    return {
        "reason": recording.reason.value,
        "packets": recording.packets,
        "bytes": recording.content.size,
        "received": None if counts is None else counts.received,
        "dropped": None if counts is None else counts.dropped,
        "interface_dropped": None if counts is None else counts.interface_dropped,
        "file": file_name(recording) if recording.packets else None,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
