"""
In-memory fakes, for tests of the service and of software that builds on it.

The packet system has a module of its own: L{pcapsvc.testing_packets}.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from msgspec.structs import replace
from twisted.application.service import Service
from twisted.internet import defer
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import Problem
from pcapsvc.core.event import Event, EventFactory, Payload
from pcapsvc.core.history import HistoryState, PastPackets
from pcapsvc.core.message import Message
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.recording import Progress, Recording
from pcapsvc.core.report_queue import Report
from pcapsvc.core.result import Accepted, Busy, Receipt, Verdict
from pcapsvc.core.session import StopReason
from pcapsvc.core.source_state import SourceState
from pcapsvc.delivery.entry import Entry, Input, SpooledCapture, State
from pcapsvc.delivery.ispool import ISpool
from pcapsvc.interfaces.capture import ICapture, IHistories, ISnapshot
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.reports import IPublisher, IReporter, Published
from pcapsvc.interfaces.requests import IRequestSink, IRequestSource
from pcapsvc.net.connectivity import Connectivity

_EVENT_NUMBERS = itertools.count()


def run_now(function: Callable[..., Any], *args: Any) -> defer.Deferred[Any]:
    """A L{pcapsvc.interfaces.threads.RunInThread} without threads: it calls the function right away."""
    return defer.maybeDeferred(function, *args)


@implementer(IRequestSink)
class MemorySink:
    """
    A sink that records requests, and answers each with a given verdict.

    @ivar verdict: the verdict on every request.
    @ivar answer: makes the Deferred of each verdict; by default it has fired with C{verdict}.
    @ivar submitted: the source and the body of each request.
    @ivar sent_at: when each was sent.
    """

    def __init__(self, verdict: Verdict | None = None) -> None:
        self.verdict: Verdict = Accepted(captures=()) if verdict is None else verdict
        self.submitted: list[tuple[str, bytes]] = []
        self.sent_at: list[float | None] = []
        self.answer: Callable[[], defer.Deferred[Verdict]] = lambda: defer.succeed(self.verdict)

    def hold(self) -> list[defer.Deferred[Verdict]]:
        """From now on, verdicts don't fire by themselves: each is appended to the list that this returns."""
        held: list[defer.Deferred[Verdict]] = []

        def answer() -> defer.Deferred[Verdict]:
            held.append(defer.Deferred(lambda verdict: verdict.callback(Busy(reason="given up"))))
            return held[-1]

        self.answer = answer
        return held

    def submit(self, message: Message) -> defer.Deferred[Verdict]:
        """Record the request."""
        self.submitted.append((message.source, message.body))
        self.sent_at.append(message.sent_at)
        return self.answer()


@implementer(IRequestSource)
class MemorySource(Service):
    """
    A source whose messages and connections the test determines.

    @param wall_clock: returns the time in seconds since the Unix epoch.
    """

    def __init__(
        self,
        sink: IRequestSink,
        *,
        name: str = "memory",
        wall_clock: Callable[[], float] = lambda: 1_700_000_000.0,
    ) -> None:
        self.name: str = name
        self._sink = sink
        self._connectivity = Connectivity(wall_clock)

    def startService(self) -> None:
        """Start. It isn't connected yet."""
        super().startService()  # type: ignore[no-untyped-call]
        self._connectivity.started()

    def stopService(self) -> None:
        """Stop."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._connectivity.stopped()

    def state(self) -> SourceState:
        """Connected between L{connect} and L{lose}: see L{IRequestSource.state}."""
        return self._connectivity.state

    def connect(self) -> None:
        """From now on, it is connected."""
        self._connectivity.connected()

    def lose(self, problem: str) -> None:
        """From now on, it isn't connected."""
        self._connectivity.failed(problem)

    def receive(self, body: bytes, sent_at: float | None = None) -> defer.Deferred[Verdict]:
        """Submit a message."""
        return self._sink.submit(Message(source=self.name, body=body, sent_at=sent_at))


def event_factory(
    node: str = "sensor1", wall_clock: Callable[[], float] = lambda: 1_700_000_000.0
) -> EventFactory:
    """Makes events whose ids are unique in this process."""
    return EventFactory(node, wall_clock=wall_clock, new_id=lambda: f"event-{next(_EVENT_NUMBERS)}")


@implementer(IReporter)
class MemoryReporter:
    """
    A reporter that records events.

    @ivar events: all events, in order.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []

    def report(self, event: Event) -> None:
        """Record the event."""
        self.events.append(event)

    @property
    def data(self) -> list[Payload]:
        """The payloads of all events, in order."""
        return [event.data for event in self.events]


@implementer(IPublisher)
class MemoryPublisher:
    """
    A publisher to a broker in memory.

    @ivar opening: makes the Deferred of each connection; by default, it is there.
    @ivar answer: makes the Deferred of each answer from the events; by default, they have arrived.
    @ivar published: the JSON of the events that have arrived, in order, decoded.
    @ivar losing: the Deferred of whoever waits for the loss of the connection.
    @ivar closed: how often it was disconnected.
    @ivar closing: makes the Deferred of each disconnection.
    """

    server = "broker.example"
    target = "topic 'capture-events'"
    most = 5
    most_bytes = 100_000

    def __init__(self) -> None:
        self.opening: Callable[[], defer.Deferred[bool]] = lambda: defer.succeed(True)
        self.answer: Callable[[Sequence[Report]], defer.Deferred[Published]] = self.arrive
        self.published: list[dict[str, Any]] = []
        self.losing: defer.Deferred[None] = defer.Deferred()
        self.closed = 0
        self.closing: Callable[[], defer.Deferred[None]] = lambda: defer.succeed(None)

    def arrive(self, reports: Sequence[Report]) -> defer.Deferred[Published]:
        """Have all of these arrive."""
        self.published += [json.loads(report.json) for report in reports]
        return defer.succeed(Published(arrived=reports))

    def open(self) -> defer.Deferred[bool]:
        """Connect: see L{IPublisher.open}."""
        return self.opening()

    def publish(self, reports: Sequence[Report]) -> defer.Deferred[Published]:
        """Publish: see L{IPublisher.publish}."""
        return self.answer(tuple(reports))

    def when_lost(self) -> defer.Deferred[None]:
        """Wait for the loss: see L{IPublisher.when_lost}."""
        self.losing = defer.Deferred()
        return self.losing

    def close(self) -> defer.Deferred[None]:
        """Disconnect: see L{IPublisher.close}."""
        self.closed += 1
        return self.closing()

    def described(self, problem: Exception) -> tuple[str, str]:
        """A problem in words: see L{IPublisher.described}."""
        return type(problem).__name__, str(problem)


@implementer(ICapture)
class MemoryCapture:
    """
    A capture that is running. Its file is written by the test.

    @ivar data: the file so far.
    @ivar reasons: why it was ended, each time.
    @ivar snapshots: what was taken of it.
    """

    past: PastPackets | None = None
    link_type = 1
    compile_seconds = 0.0
    started = 1_700_000_000.75

    def __init__(self, capture_id: str, plan: CapturePlan, data: bytes = b"") -> None:
        self.capture_id = capture_id
        self.plan = plan
        self.data = data
        self.reasons: list[StopReason] = []
        self.snapshots: list[MemorySnapshot] = []

    def start(self) -> defer.Deferred[Recording]:
        """Run: see L{ICapture.start}. The test says when it ends."""
        return defer.Deferred()

    def end(self, reason: StopReason) -> None:
        """Keep the reason: see L{ICapture.end}."""
        self.reasons.append(reason)

    def discard(self) -> None:
        """Nothing is to be given up: see L{ICapture.discard}."""

    def held_bytes(self) -> int:
        """The size of the file: see L{ICapture.held_bytes}."""
        return len(self.data)

    def whole_bytes(self) -> int:
        """The size of the file: see L{ICapture.whole_bytes}."""
        return len(self.data)

    def read_at(self, offset: int, count: int) -> bytes:
        """A part of the file: see L{ICapture.read_at}."""
        return self.data[offset : offset + count]

    def snapshot(self) -> MemorySnapshot:
        """A copy of the file: see L{ICapture.snapshot}."""
        self.snapshots.append(MemorySnapshot(self.data))
        return self.snapshots[-1]

    def progress(self) -> Progress:
        """What there is so far: see L{ICapture.progress}."""
        return Progress(packets=5, bytes=len(self.data), seconds=1.5, received=7, dropped=2)


@implementer(ISnapshot)
class MemorySnapshot:
    """
    What a L{MemoryCapture} had at some time.

    @ivar closed: whether it is closed.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.closed = False

    def copy(self) -> MemoryContent:
        """A file: see L{ISnapshot.copy}."""
        return MemoryContent(self._data)

    def close(self) -> None:
        """See L{ISnapshot.close}."""
        self.closed = True


@implementer(IHistories)
class MemoryHistories:
    """
    Histories of which the test says how far back they reach.

    @ivar known: the state of each.
    """

    def __init__(self, *known: HistoryState) -> None:
        self.known = known

    def states(self) -> Sequence[HistoryState]:
        """See L{IHistories.states}."""
        return self.known


class MemoryContent:
    """
    A file in memory: a L{pcapsvc.core.recording.Content}.

    @ivar is_closed: whether its memory is free.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.is_closed = False

    def open(self) -> BinaryIO:
        """A reader: see L{Content.open}."""
        return io.BytesIO(self._data)

    def close(self) -> None:
        """Free it: see L{Content.close}."""
        self.is_closed = True


@implementer(IDestination)
class MemoryDestination:
    """
    A destination that stores artifacts in memory.

    @ivar routes: a capture takes the one that its option C{endpoint} names, or the first.
    @ivar is_for: whether captures with some options are for it: the default is that all are.
    @ivar problems: what is wrong with options: the default accepts any.
    @ivar files: the name and the bytes of each artifact.
    @ivar artifacts: each artifact.
    @ivar answer: makes the Deferred of each delivery; by default it has fired.
    """

    def __init__(self, name: str = "memory", routes: tuple[str, ...] = ("usual",)) -> None:
        self.name = name
        self.routes = routes
        self.is_for: Callable[[Mapping[str, Any]], bool] = lambda options: True
        self.problems: Callable[[Mapping[str, Any]], Iterable[Problem]] = lambda options: ()
        self.files: dict[str, bytes] = {}
        self.artifacts: list[Artifact] = []
        self.answer: Callable[[], defer.Deferred[Any]] = lambda: defer.succeed(None)

    def route(self, options: Mapping[str, Any]) -> str | None:
        """Which route a capture takes: see L{IDestination.route}."""
        if not self.is_for(options):
            return None
        endpoint = str(options.get("endpoint"))
        return endpoint if endpoint in self.routes else self.routes[0]

    def check(self, options: Mapping[str, Any]) -> Iterator[Problem]:
        """What is wrong with options: see L{IDestination.check}."""
        return iter(self.problems(options))

    def store(self, artifact: Artifact) -> defer.Deferred[Receipt]:
        """Keep an artifact: see L{IDestination.store}."""

        def keep(_: object) -> Receipt:
            with artifact.content.open() as file:
                self.files[artifact.name] = file.read()
            return Receipt(destination=self.name, location=f"memory:{artifact.name}")

        self.artifacts.append(artifact)
        return self.answer().addCallback(keep)


@implementer(ISpool)
class MemorySpool:
    """
    A spool in memory. It never drops anything, and nothing in it is ever damaged.

    @ivar seconds: returns the time by which entries are due.
    @ivar files: the bytes of each capture, by its name and its destination's.
    @ivar entries: their entries, likewise.
    @ivar writing: makes the Deferred of each that is written; the default writes it at once.
    @ivar removing: makes the Deferred of each that is removed; the default removes it at once.
    """

    def __init__(self, seconds: Callable[[], float] = lambda: 0.0) -> None:
        self.seconds = seconds
        self.files: dict[tuple[str, str], bytes] = {}
        self.entries: dict[tuple[str, str], Entry] = {}
        self.writing: Callable[[], defer.Deferred[Any]] = lambda: defer.succeed(None)
        self.removing: Callable[[], defer.Deferred[Any]] = lambda: defer.succeed(None)
        self._artifacts: dict[tuple[str, str], Artifact] = {}

    def write(self, entry: Entry, artifact: Artifact, problem: str) -> defer.Deferred[Artifact]:
        """Write a capture: see L{ISpool.write}."""

        def written(_: object) -> Artifact:
            key = (artifact.name, entry.destination)
            with artifact.content.open() as file:
                self.files[key] = file.read()
            self.entries[key] = entry
            self._artifacts[key] = replace(artifact, content=MemoryContent(self.files[key]))
            entry.spooled = SpooledCapture(
                name=artifact.name, size=artifact.content.size, since=self.seconds()
            )
            entry.problem = problem
            entry.on(Input.WRITTEN)
            return self._artifacts[key]

        return self.writing().addCallback(written)

    def end_listing(self) -> None:
        """There is no list: see L{ISpool.end_listing}."""

    def read(self, entry: Entry) -> defer.Deferred[Artifact]:
        """Read a capture: see L{ISpool.read}."""
        return defer.succeed(self._artifacts[self._key(entry)])

    def remove(self, entry: Entry) -> defer.Deferred[None]:
        """Remove a capture: see L{ISpool.remove}."""

        def removed(_: object) -> None:
            key = self._key(entry)
            del self.files[key], self.entries[key], self._artifacts[key]
            entry.on(Input.REMOVED)

        def not_removed(failure: Failure) -> Failure:
            entry.on(Input.NOT_REMOVED)
            return failure

        return self.removing().addCallbacks(removed, not_removed)

    def put_back(self, entry: Entry) -> bool:
        """Leave an entry to the spool: see L{ISpool.put_back}."""
        return entry.on(Input.PUT_AWAY) is State.SPOOLED

    def due(self, destination: str) -> list[Entry]:
        """What is due: see L{ISpool.due}."""
        return [
            entry
            for (_, name), entry in self.entries.items()
            if name == destination and entry.state is State.SPOOLED and entry.due <= self.seconds()
        ]

    def destinations(self) -> set[str]:
        """The names of the destinations: see L{ISpool.destinations}."""
        return {destination for _, destination in self.entries}

    def tidy(self) -> defer.Deferred[None]:
        """Do nothing: see L{ISpool.tidy}."""
        return defer.succeed(None)

    def vanish(self) -> None:
        """Lose everything, as a real one does whose directory goes away."""
        for entry in self.entries.values():
            entry.on(Input.VANISH)
        self.files.clear()
        self.entries.clear()
        self._artifacts.clear()

    def _key(self, entry: Entry) -> tuple[str, str]:
        return next(key for key, known in self.entries.items() if known is entry)
