"""The captures that are running, and the last ones that are done: list, get, end, watch."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.event import (
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureProgress,
    CaptureStarted,
    CaptureStopped,
    DeliveryFailed,
    DeliveryPostponed,
    DeliverySpooled,
    Event,
)
from pcapsvc.core.session import StopReason
from pcapsvc.core.timestamp import rfc3339
from pcapsvc.interfaces.capture import ICapture
from pcapsvc.interfaces.captures import CAPTURE_STATES, EndResult, ICaptureRegistry, ICaptures
from pcapsvc.interfaces.reports import IReporter

#: How many captures are remembered after they are done.
REMEMBERED_CAPTURES = 1000

# What is known of a file that was delivered.
_FILE = ("file", "media_type", "bytes")


class _Entry(msgspec.Struct, kw_only=True):
    """
    A capture that has started.

    @ivar number: later captures have larger ones.
    @ivar facts: the part of its state that does not change.
    @ivar destinations: the names of those that it is for.
    @ivar ended: when it stopped or failed, in seconds since the Unix epoch.
    @ivar stopped: what is known since it stopped with a recording.
    @ivar problem: why it failed.
    @ivar deliveries: the state of each delivery, by destination.
    """

    number: int
    facts: dict[str, Any]
    destinations: tuple[str, ...]
    ended: float | None = None
    stopped: dict[str, Any] | None = None
    problem: str | None = None
    done: bool = False
    deliveries: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)

    @property
    def state(self) -> str:
        """One of L{CAPTURE_STATES}."""
        if self.problem is not None:
            return "failed"
        if self.done:
            return "done"
        return "capturing" if self.stopped is None else "delivering"


@implementer(ICaptures, ICaptureRegistry, IReporter)
class Captures:
    """
    See L{ICaptures}. Events update it; the pipeline registers each capture that it starts.

    @param destinations: the names of all destinations.
    @param is_for: whether a capture is for one of them, by its name and what the request says of it.
    """

    _log = Logger()

    def __init__(
        self,
        destinations: Sequence[str],
        is_for: Callable[[str, Mapping[str, Any]], bool] = lambda name, options: True,
    ) -> None:
        self._destinations = tuple(destinations)
        self._is_for = is_for
        self._numbers = itertools.count()
        # Only while they run, because each holds a handle.
        self._running: dict[str, ICapture] = {}
        self._current: dict[str, _Entry] = {}
        self._past: OrderedDict[str, _Entry] = OrderedDict()
        self._watchers: dict[object, Callable[[Mapping[str, Any]], object]] = {}

    def add(self, capture: ICapture) -> None:
        """See L{ICaptureRegistry.add}."""
        self._running[capture.capture_id] = capture

    @property
    def running(self) -> Mapping[str, ICapture]:
        """See L{ICaptureRegistry.running}."""
        return MappingProxyType(self._running)

    def report(self, event: Event) -> None:
        """Update the capture that an event is about."""
        if (capture_id := event.subject) is None or isinstance(event.data, CaptureProgress):
            return
        if isinstance(event.data, CaptureStarted):
            self._current[capture_id] = _Entry(
                number=next(self._numbers),
                facts=_facts(event, event.data),
                destinations=self._destinations_of(capture_id),
            )
        elif isinstance(event.data, CaptureStopped | CaptureFailed | CaptureDone):
            self._running.pop(capture_id, None)
        # The spool may deliver a capture long after it is done.
        entry = self._current.get(capture_id) or self._past.get(capture_id)
        if entry is not None:
            if entry.ended is None and isinstance(event.data, CaptureStopped | CaptureFailed):
                entry.ended = event.time
            self._update(entry, capture_id, event)
            self._notify(capture_id, entry)

    def _destinations_of(self, capture_id: str) -> tuple[str, ...]:
        capture = self._running.get(capture_id)
        if capture is None:
            return self._destinations
        options = capture.plan.options
        return tuple(name for name in self._destinations if self._is_for(name, options.get(name, {})))

    def _update(self, entry: _Entry, capture_id: str, event: Event) -> None:
        match event.data:
            case CaptureStopped() as stopped:
                entry.stopped = stopped.values()
                if stopped.packets:
                    entry.deliveries = {name: {"state": "pending"} for name in entry.destinations}
            case CaptureFailed(problem=problem):
                # Perhaps after it has stopped, if its recording can't be encoded.
                entry.problem = problem
                entry.deliveries.clear()
            case CaptureDone():
                self._is_done(entry, capture_id)
            case CaptureDelivered() as delivered:
                values = delivered.values()
                entry.deliveries[delivered.destination] = {
                    "state": "delivered",
                    "location": delivered.location,
                    **{key: values[key] for key in _FILE if values[key] is not None},
                }
            case DeliveryPostponed() as postponed:
                values = postponed.values()
                entry.deliveries[postponed.destination] = {
                    "state": "spooled" if postponed.spooled else "retrying",
                    **{key: values[key] for key in ("problem", "attempts", "next_try")},
                }
            case DeliverySpooled(destination=destination, problem=problem):
                entry.deliveries[destination] = {"state": "spooled", "problem": problem}
            case DeliveryFailed(destination=destination, problem=problem):
                entry.deliveries[destination] = {"state": "failed", "problem": problem}

    def _is_done(self, entry: _Entry, capture_id: str) -> None:
        entry.done = True
        if self._current.pop(capture_id, None) is None:
            return
        self._past[capture_id] = entry
        if len(self._past) > REMEMBERED_CAPTURES:
            self._past.popitem(last=False)

    def held_bytes(self) -> int:
        """How much memory the files of the running captures hold."""
        return sum(capture.held_bytes() for capture in self._running.values())

    def list(
        self, state: str | None = None, *, requestid: str | None = None, limit: int | None = None
    ) -> Sequence[Mapping[str, Any]]:
        """See L{ICaptures.list}."""
        found = self._find(state, requestid)
        return [self._state(*item) for item in found[:limit]]

    def ids(
        self, state: str | None = None, *, requestid: str | None = None, limit: int | None = None
    ) -> Sequence[str]:
        """See L{ICaptures.ids}."""
        return [capture_id for capture_id, _ in self._find(state, requestid)[:limit]]

    def _find(self, state: str | None, requestid: str | None) -> Sequence[tuple[str, _Entry]]:
        """The captures that are meant, the newest first."""
        if state is not None and state not in CAPTURE_STATES:
            raise ValueError(f"state must be one of {', '.join(CAPTURE_STATES)}, not {state!r}")
        known = [
            item
            for item in (*self._current.items(), *self._past.items())
            if state in (None, item[1].state)
            and requestid in (None, item[1].facts["request"].get("requestid"))
        ]
        known.sort(key=lambda item: item[1].number, reverse=True)
        return known

    def get(self, capture_id: str) -> Mapping[str, Any] | None:
        """See L{ICaptures.get}."""
        entry = self._current.get(capture_id) or self._past.get(capture_id)
        return None if entry is None else self._state(capture_id, entry)

    def end(self, capture_id: str) -> EndResult:
        """See L{ICaptures.end}."""
        if (capture := self._running.get(capture_id)) is not None:
            self._log.info("{capture_id}: ended by a request", capture_id=capture_id)
            capture.end(StopReason.CANCELLED)
            return EndResult.ENDED
        known = capture_id in self._current or capture_id in self._past
        return EndResult.ALREADY_ENDED if known else EndResult.UNKNOWN

    def watch(self, callback: Callable[[Mapping[str, Any]], object]) -> Callable[[], None]:
        """See L{ICaptures.watch}."""
        key = object()
        self._watchers[key] = callback

        def unsubscribe() -> None:
            self._watchers.pop(key, None)

        return unsubscribe

    def _notify(self, capture_id: str, entry: _Entry) -> None:
        if not self._watchers:
            return
        state = self._state(capture_id, entry)
        for key, callback in list(self._watchers.items()):
            if key not in self._watchers:
                continue  # another watcher has unsubscribed it
            try:
                callback(state)
            except Exception:  # noqa: BLE001 - a watcher must not change what happens to captures
                self._log.failure("a watcher of captures failed")

    def _state(self, capture_id: str, entry: _Entry) -> dict[str, Any]:
        state = {**entry.facts, "state": entry.state}
        if entry.ended is not None:
            state["ended"] = rfc3339(entry.ended)
        if entry.problem is not None:
            state["problem"] = entry.problem
        elif entry.stopped is not None:
            state.update(entry.stopped)
        elif (capture := self._running.get(capture_id)) is not None:
            state.update(capture.progress().values())
        state["deliveries"] = [{"destination": name, **what} for name, what in entry.deliveries.items()]
        return state


def _facts(event: Event, started: CaptureStarted) -> dict[str, Any]:
    labels = event.labels
    asked = {
        "customer": labels.customer,
        "requestid": labels.requestid,
        "alertid": labels.alertid,
        "alertstr": started.alertstr,
        "tags": labels.tags,
    }
    values = started.values()
    del values["alertstr"]
    return {
        "id": event.subject,
        "state": "capturing",
        "source": labels.via,
        "node": event.node,
        "interface": labels.interface,
        "request": {name: value for name, value in asked.items() if value is not None},
        **values,
    }
