"""
A packet system in memory, for tests of the service and of software that builds on it.

It passes the same tests as the real one: see C{tests/contracts}.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from mmap import mmap
from typing import Any, BinaryIO

import msgspec
from msgspec.structs import replace
from twisted.internet import defer
from zope.interface import implementer

from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.core.filter import FilterRejected, Program
from pcapsvc.core.link_type import kept_length
from pcapsvc.core.network_interface import NetworkInterface
from pcapsvc.core.packet_header import PacketHeader
from pcapsvc.core.pcap_file import MICROSECOND_TICKS, file_header
from pcapsvc.core.read_pace import Ring
from pcapsvc.core.recording import PacketCounts
from pcapsvc.interfaces.capture import (
    IPacketDumper,
    IPacketHandle,
    IRecordWriter,
    ISieve,
    IStandbyHandle,
    IStandbyPacketSystem,
    PacketSink,
)

_PACKET_HEADER = struct.Struct("=IIII")
# What stdio holds back of a file (setbuf(3)).
_STDIO_BUFFER_BYTES = 4096
# Why an interface that is down can't be captured on.
_DOWN = "the interface is down"
_UNKNOWN = "no such interface"


class MemoryInterface(msgspec.Struct):
    """
    An interface of a L{MemoryPacketSystem}.

    @ivar link_type: its link-layer type, as libpcap numbers it.
    @ivar ticks_per_second: the unit of its packets' time stamps.
    @ivar problem: why it can't be captured on; L{None} if it can.
    @ivar handles: the handles that are open on it.
    @ivar index: its index, which it keeps when it is renamed.
    """

    link_type: int = 1
    ticks_per_second: int = MICROSECOND_TICKS
    problem: str | None = None
    handles: list[MemoryHandle] = msgspec.field(default_factory=list)
    index: int = msgspec.field(default_factory=itertools.count(1).__next__)


@implementer(IStandbyPacketSystem)
class MemoryPacketSystem:
    """
    A packet system whose packets a test delivers.

    It knows no filters except those that the test adds.

    @ivar interfaces: the interfaces, by name.
    @ivar filters: for each filter that can be compiled, a function that says whether a packet passes it.
    @ivar seconds: the time at which packets arrive, in seconds since the Unix epoch.
    @ivar problem: why nothing can be captured; L{None} if it can.
    @ivar opening: makes the Deferred that is awaited before a handle is opened; by default it has fired.
    """

    def __init__(self, *interfaces: str) -> None:
        self.interfaces = {name: MemoryInterface() for name in interfaces}
        self.filters: dict[str, Callable[[bytes], bool]] = {"": lambda data: True}
        self.seconds = 1_700_000_000.0
        self.problem: OSError | None = None
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
        renamed = self.interfaces[name] = self.interfaces.pop(interface)
        for handle in renamed.handles:
            handle.is_named = name == handle.name

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

    def check(self) -> defer.Deferred[None]:
        """See whether anything can be captured: see L{IHostInterfaces.check}."""
        return defer.succeed(None) if self.problem is None else defer.fail(self.problem)

    def list_interfaces(self) -> defer.Deferred[Sequence[NetworkInterface]]:
        """The interfaces: see L{IHostInterfaces.list_interfaces}."""
        found = [
            NetworkInterface(name=name, index=each.index, is_up=each.problem != _DOWN, link_type="ether")
            for name, each in self.interfaces.items()
        ]
        return defer.succeed(sorted(found, key=lambda interface: interface.index))

    def compile_filter(self, interface: str | None, *, snap_length: int, bpf: str) -> defer.Deferred[Program]:
        """Compile a filter, and open nothing: see L{IHostInterfaces.compile_filter}."""

        async def compile_it() -> Program:
            await self.opening()
            if interface is not None and interface not in self.interfaces:
                raise CaptureUnavailable(interface, _UNKNOWN)
            return self.compile(bpf)

        return defer.Deferred.fromCoroutine(compile_it())

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

    def open_dumper(
        self,
        file: str | int,
        *,
        link_type: int,
        snap_length: int,
        ticks_per_second: int = MICROSECOND_TICKS,
    ) -> IPacketDumper:
        """Create a pcap file: see L{IPacketSystem.open_dumper}."""
        own = os.dup(file) if isinstance(file, int) else file
        stream = open(own, "wb", buffering=_STDIO_BUFFER_BYTES)  # noqa: SIM115 - the dumper closes it
        return MemoryDumper(stream, link_type, snap_length, ticks_per_second)

    def open_records(self, memory: mmap, start: int, end: int, *, link_type: int) -> IRecordWriter:
        """Write packets into memory: see L{IPacketSystem.open_records}."""
        return MemoryRecordWriter(memory, start, end)

    def open_sieve(
        self, interface: str, *, link_type: int, kept: int, snap_length: int, bpf: str
    ) -> defer.Deferred[ISieve]:
        """Filter packets that were recorded: see L{IPacketSystem.open_sieve}."""

        async def open_it() -> ISieve:
            await self.opening()
            return MemorySieve(self.compile(bpf), kept_length(link_type, snap_length))

        return defer.Deferred.fromCoroutine(open_it())

    def _open(
        self, interface: str, snap_length: int, program: MemoryProgram, *, promiscuous: bool
    ) -> MemoryHandle:
        found = self.interfaces.get(interface)
        if found is None:
            raise CaptureUnavailable(interface, _UNKNOWN)
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


class MemoryProgram(Program, frozen=True, kw_only=True):
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

    @ivar name: the name by which its interface was asked for.
    @ivar is_named: whether the interface has that name; L{None} if that is not known.
    @ivar lost: whether its interface is gone.
    @ivar closed: whether it was closed.
    @ivar dropped: how many packets it had no room for.
    @ivar promiscuous: whether the interface receives what is addressed to others, because of it.
    """

    is_behind = False

    def __init__(
        self, name: str, interface: MemoryInterface, snap_length: int, program: MemoryProgram
    ) -> None:
        self.name = name
        self._interface = interface
        self._filter = program
        self._waiting: deque[tuple[PacketHeader, bytes]] = deque()
        self._received = self.dropped = 0
        self._reading = False
        # A descriptor that is readable while packets wait, so that select() and reactors can be used.
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.program: Program = program
        self.link_type = interface.link_type
        self.ticks_per_second = interface.ticks_per_second
        self.snap_length = kept_length(self.link_type, snap_length)
        self.ring = Ring(blocks=32, block_bytes=256 << 10, block_seconds=0.01)
        self.is_named: bool | None = True
        self.lost = False
        self.closed = False
        self.promiscuous = True

    def arrive(self, data: bytes, seconds: float) -> None:
        """A packet arrives."""
        if self._filter.passes(data):
            self._received += 1
            # A float has no room for all nanoseconds since the epoch.
            whole, rest = divmod(seconds, 1)
            more, ticks = divmod(round(rest * self.ticks_per_second), self.ticks_per_second)
            time = int(whole) + more, ticks
            self._waiting.append((PacketHeader(*time, len(data)), data))
            os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        """The descriptor: see L{IPacketHandle.fileno}."""
        return -1 if self.closed else self._event

    def read(self, count: int, sink: PacketSink) -> int:
        """Read packets: see L{IPacketHandle.read}."""
        if self.closed:
            raise ValueError("pcap is closed")
        if self.lost and not self._waiting:
            raise CaptureUnavailable(self.name, "The interface disappeared")
        callback: Callable[[Any, bytes], object] = sink if callable(sink) else getattr(sink, "dump")  # noqa: B009
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

    def is_up(self) -> bool:
        """Whether the interface exists and is up: see L{IPacketHandle.is_up}."""
        return not self.lost and self._interface.problem is None

    def check_up(self) -> None:
        """Fail if the interface is down."""
        if self._interface.problem is not None:
            raise CaptureUnavailable(self.name, self._interface.problem)

    def begin(self, program: MemoryProgram) -> None:
        """Capture from here on, with this filter."""
        self.promiscuous = True
        self.program = self._filter = program
        self._received = 0

    def set_filter(self, program: Program) -> None:
        """Continue with another filter: see L{IPacketHandle.set_filter}."""
        assert isinstance(program, MemoryProgram)
        if self.lost:
            raise CaptureUnavailable(self.name, "The interface disappeared")
        self._filter = program

    def counts(self, *, hardware: bool = True) -> PacketCounts | None:
        """What the kernel would say: see L{IPacketHandle.counts}."""
        if self.lost:
            return None
        received, missed = self._received + self.dropped, 0 if hardware else None
        return PacketCounts(received=received, dropped=self.dropped, interface_dropped=missed)

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

    reports_failures = True

    def __init__(
        self,
        file: BinaryIO,
        link_type: int,
        snap_length: int,
        ticks_per_second: int = MICROSECOND_TICKS,
    ) -> None:
        self._file = file
        self._has_failed = False
        file.write(file_header(link_type, snap_length, ticks_per_second=ticks_per_second))

    def dump(self, header: Any, data: bytes) -> None:
        """Write one packet: see L{IPacketDumper.dump}."""
        try:
            self._file.write(_PACKET_HEADER.pack(*header.getts(), len(data), header.getlen()))
            self._file.write(data)
        except OSError:
            self._has_failed = True

    def size(self) -> int:
        """The size of the file: see L{IPacketDumper.size}."""
        if self._has_failed:
            raise OSError("not all packets could be written")
        return self._file.tell()

    def write(self, records: memoryview, packets: int) -> None:
        """Write packets as they are in a file: see L{IPacketDumper.write}."""
        self._file.write(records)

    def flush(self) -> None:
        """Write what is buffered: see L{IPacketDumper.flush}."""
        self._file.flush()

    def close(self) -> None:
        """Close the file: see L{IPacketDumper.close}."""
        with suppress(OSError):
            self._file.close()


@implementer(IRecordWriter)
class MemoryRecordWriter:
    """Writes packets into memory as libpcap does. Beyond its end, it would overwrite what is there."""

    def __init__(self, memory: mmap, start: int, end: int) -> None:
        self._memory = memory
        self._start, self._at, self._end = start, start, end
        self._is_closed = False

    def dump(self, header: Any, data: bytes) -> None:
        """Write one packet."""
        record = _PACKET_HEADER.pack(*header.getts(), len(data), header.getlen()) + data
        if self._is_closed or self._at + len(record) > self._end:
            raise AssertionError("written where there is no room: the real thing would lose it")
        self._memory[self._at : self._at + len(record)] = record
        self._at += len(record)

    def size(self) -> int:
        """How many bytes were written: see L{IRecordWriter.size}."""
        return self._at - self._start

    def close(self) -> None:
        """Write no more: see L{IRecordWriter.close}."""
        self._is_closed = True


@implementer(ISieve)
class MemorySieve:
    """
    Sifts packets.

    @ivar closed: whether it was closed.
    """

    looks_beyond = False

    def __init__(self, program: MemoryProgram, snap_length: int) -> None:
        self._program = program
        self._snap_length = snap_length
        self.closed = False

    def sift(self, records: memoryview) -> tuple[int, memoryview]:
        """Sift packets: see L{ISieve.sift}."""
        assert not self.closed
        packets, passed, at = 0, bytearray(), 0
        while at < len(records):
            *time, kept, length = _PACKET_HEADER.unpack_from(records, at)
            at += _PACKET_HEADER.size
            data = bytes(records[at : at + kept])
            at += kept
            if self._program.passes(data):
                packets += 1
                data = data[: self._snap_length]
                passed += _PACKET_HEADER.pack(*time, len(data), length) + data
        return packets, memoryview(passed)

    def close(self) -> None:
        """Free its memory: see L{ISieve.close}."""
        self.closed = True
