"""
In-memory fakes, for tests of the service and of software that builds on it.

The packet system passes the same tests as the real one: see C{tests/contracts}.
"""

from __future__ import annotations

import io
import itertools
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from twisted.internet import defer
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import CaptureUnavailable, Problem
from pcapsvc.core.event import Event, EventFactory, Payload
from pcapsvc.core.filter import FilterRejected, Program
from pcapsvc.core.message import Message
from pcapsvc.core.recording import PacketCounts
from pcapsvc.core.result import Accepted, Busy, Receipt, Verdict
from pcapsvc.delivery.entry import Entry, Input, SpooledCapture, State
from pcapsvc.delivery.ispool import ISpool
from pcapsvc.interfaces.capture import (
    IPacketDumper,
    IPacketHandle,
    IStandbyHandle,
    IStandbyPacketSystem,
    PacketSink,
)
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.interfaces.requests import IRequestSink

_PACKET_HEADER = struct.Struct("=IIII")
# What stdio holds back of a file (setbuf(3)).
_STDIO_BUFFER_BYTES = 4096
_EVENT_NUMBERS = itertools.count()
# Why an interface that is down can't be captured on.
_DOWN = "the interface is down"


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


@dataclass
class _Header:
    """The part of pcapy's packet header that is used: the time of arrival, and the length on the wire."""

    seconds: float
    length: int

    def getlen(self) -> int:
        """The length on the wire, in bytes."""
        return self.length


@dataclass
class MemoryInterface:
    """
    An interface of a L{MemoryPacketSystem}.

    @ivar link_type: the link-layer type of captures on it.
    @ivar problem: why it can't be captured on; L{None} if it can.
    @ivar handles: the handles that are open on it.
    @ivar index: its index, which it keeps when it is renamed.
    """

    link_type: int = 1
    problem: str | None = None
    handles: list[MemoryHandle] = field(default_factory=list)
    index: int = field(default_factory=itertools.count(1).__next__)


@implementer(IStandbyPacketSystem)
class MemoryPacketSystem:
    """
    A packet system whose packets a test delivers.

    It knows no filters except those that the test adds.

    @ivar interfaces: the interfaces, by name.
    @ivar filters: for each filter that can be compiled, a function that says whether a packet passes it.
    @ivar seconds: the time at which packets arrive, in seconds since the Unix epoch.
    @ivar opening: makes the Deferred that is awaited before a handle is opened; by default it has fired.
    """

    def __init__(self, *interfaces: str) -> None:
        self.interfaces = {name: MemoryInterface() for name in interfaces}
        self.filters: dict[str, Callable[[bytes], bool]] = {"": lambda data: True}
        self.seconds = 1_700_000_000.0
        self.opening: Callable[[], defer.Deferred[Any]] = lambda: defer.succeed(None)

    def deliver(self, interface: str, *packets: bytes) -> None:
        """Let packets arrive on an interface, unless it is down."""
        if self.interfaces[interface].problem == _DOWN:
            return
        for handle in self.interfaces[interface].handles:
            for data in packets:
                handle.arrive(data, self.seconds)

    def lose(self, interface: str) -> None:
        """Remove an interface. Packets that have arrived can still be read."""
        for handle in self.interfaces.pop(interface).handles:
            handle.lost = True

    def rename(self, interface: str, name: str) -> None:
        """Rename an interface. Its handles capture on it as before."""
        self.interfaces[name] = self.interfaces.pop(interface)

    def down(self, interface: str) -> None:
        """Take an interface down: nothing arrives, and it can't be opened."""
        self.interfaces[interface].problem = _DOWN

    def up(self, interface: str) -> None:
        """Bring an interface up again."""
        self.interfaces[interface].problem = None

    def find(self, interface: str) -> defer.Deferred[int | None]:
        """Find an interface by its name: see L{IStandbyPacketSystem.find}."""
        found = self.interfaces.get(interface)
        return defer.succeed(None if found is None else found.index)

    @property
    def open_handles(self) -> int:
        """How many handles are open."""
        return sum(len(interface.handles) for interface in self.interfaces.values())

    def open(self, interface: str, *, snap_length: int, bpf: str) -> defer.Deferred[IPacketHandle]:
        """Start to capture: see L{IPacketSystem.open}."""

        async def open_it() -> IPacketHandle:
            await self.opening()
            program = self.compile(bpf)
            return self._open(interface, snap_length, program, promiscuous=True)

        return defer.Deferred.fromCoroutine(open_it())

    def open_standby(self, interface: str, *, snap_length: int) -> defer.Deferred[IStandbyHandle]:
        """Open a handle that lets no packet pass: see L{IStandbyPacketSystem.open_standby}."""

        async def open_it() -> IStandbyHandle:
            await self.opening()
            nothing = MemoryProgram(bpf="", instructions=b"", passes=lambda data: False)
            return _MemoryStandbyHandle(self, self._open(interface, snap_length, nothing, promiscuous=False))

        return defer.Deferred.fromCoroutine(open_it())

    def compile_now(self, handle: IPacketHandle, bpf: str) -> Program:
        """Compile a filter: see L{IPacketSystem.compile_now}."""
        return self.compile(bpf)

    def open_dumper(self, file: str | int, *, link_type: int, snap_length: int) -> IPacketDumper:
        """Create a pcap file: see L{IPacketSystem.open_dumper}."""
        own = os.dup(file) if isinstance(file, int) else file
        return MemoryDumper(open(own, "wb", buffering=_STDIO_BUFFER_BYTES), link_type, snap_length)

    def _open(
        self, interface: str, snap_length: int, program: MemoryProgram, *, promiscuous: bool
    ) -> MemoryHandle:
        found = self.interfaces.get(interface)
        if found is None:
            raise CaptureUnavailable(interface, "no such interface")
        if found.problem is not None:
            raise CaptureUnavailable(interface, found.problem)
        handle = MemoryHandle(interface, found, snap_length, program)
        handle.promiscuous = promiscuous
        found.handles.append(handle)
        return handle

    def compile(self, bpf: str) -> MemoryProgram:
        """Compile a filter that the test has added."""
        if bpf not in self.filters:
            raise FilterRejected(bpf, "libpcap says: syntax error")
        return MemoryProgram(bpf=bpf, instructions=b"", passes=self.filters[bpf])


@dataclass(frozen=True, kw_only=True)
class MemoryProgram(Program):
    """
    A filter of a L{MemoryPacketSystem}.

    @ivar passes: whether a packet passes it.
    """

    passes: Callable[[bytes], bool]

    def without(self, left_out: Program) -> MemoryProgram:
        """A filter that lets pass what this one does, except what C{left_out} lets pass."""
        assert isinstance(left_out, MemoryProgram)
        return replace(self, passes=lambda data: self.passes(data) and not left_out.passes(data))


@implementer(IStandbyHandle)
class _MemoryStandbyHandle:
    def __init__(self, system: MemoryPacketSystem, handle: MemoryHandle) -> None:
        self._system = system
        self.handle = handle
        self._armed = False

    @property
    def index(self) -> int:
        return self.handle.index

    def check(self) -> None:
        self.handle.read(1000, _discard)

    def arm(self, bpf: str) -> defer.Deferred[IPacketHandle]:
        self._armed = True

        async def arm_it() -> IPacketHandle:
            try:
                await self._system.opening()
                program = self._system.compile(bpf)
                self.handle.read(1000, _discard)
                self.handle.check_up()
            except BaseException:
                self.handle.close()
                raise
            self.handle.begin(program)
            return self.handle

        return defer.Deferred.fromCoroutine(arm_it())

    def close(self) -> None:
        if not self._armed:
            self.handle.close()


def _discard(header: object, data: bytes) -> None:
    """For packets that nobody wants."""


@implementer(IPacketHandle)
class MemoryHandle:
    """
    A handle of a L{MemoryPacketSystem}.

    @ivar lost: whether its interface is gone.
    @ivar closed: whether it was closed.
    @ivar promiscuous: whether the interface receives what is addressed to others, because of it.
    """

    def __init__(
        self, name: str, interface: MemoryInterface, snap_length: int, program: MemoryProgram
    ) -> None:
        self._name = name
        self._interface = interface
        self._filter = program
        self._waiting: deque[tuple[_Header, bytes]] = deque()
        self._received = 0
        self._reading = False
        # A descriptor that is readable while packets wait, so that select() and reactors can be used.
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.program: Program = program
        self.link_type = interface.link_type
        self.snap_length = snap_length
        self.lost = False
        self.closed = False
        self.promiscuous = True

    def arrive(self, data: bytes, seconds: float) -> None:
        """A packet arrives."""
        if self._filter.passes(data):
            self._received += 1
            self._waiting.append((_Header(seconds, len(data)), data))
            os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        """The descriptor: see L{IPacketHandle.fileno}."""
        return -1 if self.closed else self._event

    def read(self, count: int, sink: PacketSink) -> int:
        """Read packets: see L{IPacketHandle.read}."""
        if self.closed:
            raise ValueError("pcap is closed")
        if self.lost and not self._waiting:
            raise CaptureUnavailable(self._name, "The interface disappeared")
        callback = sink if callable(sink) else sink.dump
        read = 0
        self._reading = True
        try:
            while self._waiting and read < count:
                header, data = self._waiting.popleft()
                if self._filter.passes(data):
                    read += 1
                    callback(header, data[: self.snap_length])
        finally:
            self._reading = False
            if not self._waiting and not self.lost:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._event)
        return read

    @property
    def index(self) -> int:
        """The index of its interface."""
        return self._interface.index

    def check_up(self) -> None:
        """Fail if the interface is down."""
        if self._interface.problem is not None:
            raise CaptureUnavailable(self._name, self._interface.problem)

    def begin(self, program: MemoryProgram) -> None:
        """Capture from here on, with this filter."""
        self.promiscuous = True
        self.program = self._filter = program
        self._received = 0

    def set_filter(self, program: Program) -> None:
        """Continue with another filter: see L{IPacketHandle.set_filter}."""
        assert isinstance(program, MemoryProgram)
        if self.lost:
            raise CaptureUnavailable(self._name, "The interface disappeared")
        self._filter = program

    def counts(self) -> PacketCounts | None:
        """What the kernel would say: see L{IPacketHandle.counts}."""
        if self.lost:
            return None
        return PacketCounts(received=self._received, dropped=0, interface_dropped=0)

    def close(self) -> None:
        """Stop capturing: see L{IPacketHandle.close}."""
        if self._reading:
            raise AssertionError("closed within read: the real thing would crash")
        if not self.closed:
            self.closed = True
            os.close(self._event)
            self._interface.handles.remove(self)


@implementer(IPacketDumper)
class MemoryDumper:
    """Writes a pcap file as libpcap does: buffered until it is closed, or stdio's buffer is full."""

    def __init__(self, file: BinaryIO, link_type: int, snap_length: int) -> None:
        self._file = file
        # draft-ietf-opsawg-pcap, section 4.
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, snap_length, link_type))

    def dump(self, header: Any, data: bytes) -> None:
        """Write one packet: see L{IPacketDumper.dump}."""
        seconds, fraction = divmod(header.seconds, 1)
        self._file.write(_PACKET_HEADER.pack(int(seconds), round(fraction * 1e6), len(data), header.length))
        self._file.write(data)

    def close(self) -> None:
        """Close the file: see L{IPacketDumper.close}."""
        self._file.close()


@implementer(IDestination)
class MemoryDestination:
    """
    A destination that stores artifacts in memory.

    @ivar routes: a capture takes the one that its option C{endpoint} names, or the first.
    @ivar problems: what is wrong with options: the default accepts any.
    @ivar files: the name and the bytes of each artifact.
    @ivar artifacts: each artifact.
    @ivar answer: makes the Deferred of each delivery; by default it has fired.
    """

    def __init__(self, name: str = "memory", routes: tuple[str, ...] = ("usual",)) -> None:
        self.name = name
        self.routes = routes
        self.problems: Callable[[Mapping[str, Any]], Iterable[Problem]] = lambda options: ()
        self.files: dict[str, bytes] = {}
        self.artifacts: list[Artifact] = []
        self.answer: Callable[[], defer.Deferred[Any]] = lambda: defer.succeed(None)

    def route(self, options: Mapping[str, Any]) -> str:
        """Which route a capture takes: see L{IDestination.route}."""
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
            self._artifacts[key] = replace(artifact, content=_Bytes(self.files[key]))
            entry.spooled = SpooledCapture(
                name=artifact.name, size=artifact.content.size, since=self.seconds()
            )
            entry.problem = problem
            entry.on(Input.WRITTEN)
            return self._artifacts[key]

        return self.writing().addCallback(written)

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


class _Bytes:
    """The content of a capture that a spool holds."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def open(self) -> BinaryIO:
        return io.BytesIO(self._data)

    def close(self) -> None:
        """Nothing is to be closed."""
