"""Records an interface all the time, and remembers the newest packets."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec.structs import replace
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.capture.clocks import both_clocks
from pcapsvc.capture.history_health import HistoryHealth
from pcapsvc.capture.packet_memory import PacketMemory
from pcapsvc.capture.past import PastReader, Taken
from pcapsvc.capture.port import ICaptureReactor
from pcapsvc.capture.timers import Timers
from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.core.filter import everything
from pcapsvc.core.history import (
    HistoryBounds,
    HistoryState,
    LookBack,
    PastPackets,
    Reach,
    past_packets,
)
from pcapsvc.core.read_pace import ReadPace
from pcapsvc.interfaces.capture import IPacketHandle, IPacketSystem, IReadHook, ISieve

_RENAMED, _GONE = "the interface was renamed", "the interface is gone"
# After a read that found packets, how long the next ones gather, in seconds, if the ring holds them.
_PAUSE_SECONDS = 0.02
_FEW_PACKETS = 64
# How many packets are read between two looks at the clock, and how long reading may take, in seconds: what
# arrives in the meantime is read in the next turn of the reactor.
_STEP_PACKETS = 8192
_READ_SECONDS = 0.01
# How long emptying the ring of an interface that is gone may take, in seconds, in many turns of the reactor.
_RING_SECONDS = 0.5
# How often an interface that is not there is looked for, in seconds; how often it is seen whether one that is
# there is up; and whether it was renamed.
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 0.25
_COMPARE_SECONDS = 5.0
# How often old packets are released, in seconds: at most, and as a part of the history.
_EXPIRE_SECONDS = 5.0
_EXPIRE_SHARE = 1 / 64
# How long after memory was returned more is, in seconds.
_RETURN_SECONDS = 0.02


@implementer(IReadDescriptor)
class HistoryRecorder:
    """
    The history of an interface.

    It is recorded again after the interface was down or away, even if it has another index then.

    @param interface: its name.
    @param hook: makes the hook of a handle; L{None} is nothing.
    @param find: finds the index of an interface by its name.
    @param wall_clock: the time in seconds since the Unix epoch.
    @param hand_over_seconds: how long the kernel may hold back a packet that has arrived.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: ICaptureReactor,
        system: IPacketSystem,
        interface: str,
        bounds: HistoryBounds,
        *,
        find: Callable[[str], Deferred[int | None]],
        hook: Callable[[str], IReadHook] | None = None,
        wall_clock: Callable[[], float] = time.time,
        hand_over_seconds: float,
    ) -> None:
        self.interface = interface
        self.bounds = bounds
        self._reactor = reactor
        self._system = system
        self._find = find
        self._make_hook = hook
        self._wall_clock = wall_clock
        self._hand_over = hand_over_seconds
        self._hook: IReadHook | None = None
        self._handle: IPacketHandle | None = None
        self._memory: PacketMemory | None = None
        self._link_type = -1
        self._readers: list[PastReader] = []
        self._timers = Timers(reactor)
        self._opening: Deferred[None] | None = None
        self._is_running = False
        # Why the handle is about to be closed; L{None} if it isn't. And whether there may be more to read.
        self._leaving: str | None = None
        self._leave_by, self._times_lost = 0.0, 0
        self._is_behind = False
        # When the handle's interface certainly had the name.
        self._named_at = 0.0
        self._health = HistoryHealth(interface, bounds.seconds, now=reactor.seconds)
        # How many packets were dropped for earlier handles, and for this one.
        self._dropped_earlier = self._dropped_now = 0
        self._pace: ReadPace | None = None

    # As a service

    def start(self) -> None:
        """Begin to record."""
        self._is_running = True
        self._open()
        self._expire()
        self._find_name_later()

    def stop(self) -> None:
        """Stop, and forget everything."""
        self._is_running = False
        if self._opening is not None:
            self._opening.cancel()
        self._close("the daemon is stopping")
        self._timers.cancel_all()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _expire(self) -> None:
        is_more = self._memory is not None and self._memory.expire(self._reactor.seconds())
        self._health.expire()
        wait = min(_EXPIRE_SECONDS, self.bounds.seconds * _EXPIRE_SHARE)
        self._timers.start(_RETURN_SECONDS if is_more else wait, self._expire)

    # Opening and closing

    def _open(self) -> None:
        self._opening = Deferred.fromCoroutine(self._open_handle())
        self._opening.addErrback(self._failed_to_open)

    async def _open_handle(self) -> None:
        self._named_at = self._reactor.seconds()
        hook = None if self._make_hook is None else self._make_hook(self.interface)
        try:
            handle = await self._system.open(
                self.interface, snap_length=self.bounds.snap_length, bpf=self.bounds.bpf
            )
        except BaseException:
            _close(hook)
            raise
        try:
            self._use(handle)
            if hook is not None:
                hook.before_read(handle)
        except BaseException:
            handle.close()
            _close(hook)
            raise
        finally:
            self._opening = None
        self._handle, self._hook = handle, hook
        self._begin()

    def _use(self, handle: IPacketHandle) -> None:
        """Have memory for the packets of a handle."""
        if self._memory is not None and handle.link_type == self._link_type:
            return
        if self._memory is not None:
            self._memory.close()
            self._memory = None
            self._health.begins_anew()
        self._memory = PacketMemory(
            size_bytes=self.bounds.size_bytes,
            seconds=self.bounds.seconds,
            snap_length=handle.snap_length,
            open_writer=lambda memory, start, end: self._system.open_records(
                memory, start, end, link_type=handle.link_type
            ),
            ticks_per_second=handle.ticks_per_second,
        )
        self._link_type = handle.link_type

    def _begin(self) -> None:
        assert self._handle is not None
        now, ring = self._reactor.seconds(), self._handle.ring
        self._pace = ReadPace(ring, hand_over_seconds=self._hand_over, now=now)
        self._health.works()
        self._watch()
        self._timers.start(_LOOK_SECONDS, self._look)

    def _failed_to_open(self, failure: Failure) -> None:
        self._opening = None
        if failure.check(CancelledError) or not self._is_running:  # type: ignore[no-untyped-call]
            return
        self._health.failed(failure)
        self._timers.start(_RETRY_SECONDS, self._open)

    def _close(self, reason: str) -> None:
        """Give up the handle, if there is one."""
        if (handle := self._handle) is None:
            return
        self._handle = None
        self._leaving, self._times_lost = None, 0
        self._unwatch()
        self._timers.cancel(self._lose)
        handle.close()
        _close(self._hook)
        self._hook = None
        self._dropped_earlier, self._dropped_now = self.dropped, 0
        for reader in list(self._readers):
            reader.lose(reason)

    def _leave(self, reason: str, *, since: float | None = None) -> None:
        """
        Give up the handle, once everything was read that had arrived: the kernel may hold it back.

        @param since: since when it may not have recorded what it should; L{None} is now.
        """
        if self._leaving is None:
            self._leaving = reason
            self._leave_by = self._reactor.seconds() + self._hand_over + _RING_SECONDS
            self._health.fails(reason, since=since)
            self._unwatch()
            self._timers.start(self._hand_over, self._lose)

    def _lose(self) -> None:
        """Everything was handed over that had arrived."""
        self.pull()
        if self._is_behind and self._reactor.seconds() < self._leave_by:
            self._timers.start(0, self._lose)
            return
        self._close(self._leaving or "it is not being recorded")
        self._timers.start(_RETRY_SECONDS, self._open)

    def _unwatch(self) -> None:
        self._reactor.removeReader(self)
        self._timers.cancel(self._go_on, self._look)

    def _find_name_later(self) -> None:
        if self._is_running:
            self._timers.start(_COMPARE_SECONDS, self._find_name)

    def _find_name(self) -> None:
        asked, finding = self._reactor.seconds(), self._find(self.interface)
        finding.addCallbacks(self._looked_up, self._health.not_looked_for, callbackArgs=(asked,))
        finding.addBoth(lambda _: self._find_name_later())

    def _looked_up(self, index: int | None, asked: float) -> None:
        if self._handle is not None and index == self._handle.index:
            self._named_at = max(self._named_at, asked)
        self.compare(index)

    def compare(self, index: int | None) -> None:
        """
        Give up the handle if its interface has another name by now: another one may have this.

        @param index: of the interface that has the name; L{None} if none has.
        """
        if self._handle is not None and index != self._handle.index:
            self._leave(_RENAMED if self._handle.is_up() else _GONE, since=self._named_at)

    # Reading

    def fileno(self) -> int:
        """The handle's descriptor, for the reactor; -1 if nothing is read."""
        return -1 if self._handle is None else self._handle.fileno()

    def logPrefix(self) -> str:
        """For the reactor's log."""
        return f"history of {self.interface}"

    def doRead(self) -> None:
        """Packets have arrived. They are read; then the descriptor isn't watched until more may have."""
        pause = self._read()
        if pause is not None and self._is_read:
            self._reactor.removeReader(self)
            self._timers.start(pause, self._go_on)

    def _go_on(self) -> None:
        pause = self._read()
        if pause is not None and self._is_read:
            self._timers.start(pause, self._go_on)
        else:
            self._watch()

    def _read(self) -> float | None:
        """
        Read what has arrived.

        @return: how long to wait until more is read, in seconds; L{None} if the descriptor is to be watched.
        """
        before = 0 if self._memory is None else self._memory.recorded_bytes
        packets = self.pull()
        if not packets or self._memory is None or self._pace is None:
            return None
        pause = self._pace.pause_after(packets, self._memory.recorded_bytes - before, self._reactor.seconds())
        if self._is_behind:
            return None
        # Nobody waits for few packets, either: each read costs as much as a few hundred.
        return _PAUSE_SECONDS if packets < _FEW_PACKETS else pause

    @property
    def _is_read(self) -> bool:
        """Whether the handle is read until it fails."""
        return self._handle is not None and self._leaving is None

    def _watch(self) -> None:
        if not self._is_read or self._go_on in self._timers:
            return
        try:
            self._reactor.addReader(self)
        except OSError:
            self._timers.start(_PAUSE_SECONDS, self._go_on)

    def pull(self) -> int:
        """Read what has arrived. Return how many packets there were."""
        if self._handle is None or self._memory is None:
            return 0
        before = self._memory.end.number
        try:
            self._is_behind = self._read_for(self._handle, self._memory)
        except CaptureUnavailable as error:
            # libpcap reports it once. What had arrived can be read after that.
            self._leave(error.reason, since=self._named_at if error.reason == _RENAMED else None)
            self._times_lost += 1
            self._is_behind = self._times_lost == 1
        except OSError as error:
            self._leave(f"the packets could not be stored: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, recording begins anew
            self._log.failure("the history of {interface} failed", interface=self.interface)
            self._leave(f"internal error: {type(error).__name__}")
        packets = self._memory.end.number - before
        for reader in self._readers if packets else ():
            reader.notify()
        return packets

    def _is_named(self, handle: IPacketHandle) -> bool:
        """Whether the interface still has its name, unless it takes long to find that out."""
        if is_named := handle.is_named:
            self._named_at = self._reactor.seconds()
        return is_named is not False

    def _read_for(self, handle: IPacketHandle, memory: PacketMemory) -> bool:
        """Read for a while. Return whether there may be more."""
        until = self._reactor.seconds() + _READ_SECONDS
        is_more, before = True, memory.end.number
        while is_more and self._reactor.seconds() < until:
            if not self._is_named(handle):
                raise CaptureUnavailable(self.interface, _RENAMED)
            if self._hook is not None:
                self._hook.before_read(handle)
            now, wall = self._clocks()
            read = memory.read(handle, _STEP_PACKETS, now=now, ahead=wall - now, dropped=self.dropped)
            is_more = read == _STEP_PACKETS
        if memory.end.number > before and (counts := handle.counts(hardware=False)) is not None:
            self._dropped_now = counts.dropped
        return is_more

    def connectionLost(self, reason: Failure) -> None:
        """The reactor found an error on the socket, and reads it no more: the interface went down or away."""
        if self._is_read:
            self._timers.start(_PAUSE_SECONDS, self._go_on)

    def _look(self) -> None:
        """
        See whether the interface is up: the socket has the error only until the next read, whoever needs that
        one; and whether it was renamed, though nothing arrives. That the interface is gone shows in a read.
        """
        if self._handle is None or not self._is_read:
            return
        if not self._is_named(self._handle):
            self.pull()
        elif self._handle.is_up():
            if self._health.problem is not None:
                self._health.works()
            self._watch()
        else:
            self._health.fails("the interface is down")
            self.pull()
        if self._is_read:
            self._timers.start(_LOOK_SECONDS, self._look)

    def _clocks(self) -> tuple[float, float]:
        return both_clocks(self._reactor.seconds, self._wall_clock)

    # For captures

    @property
    def index(self) -> int | None:
        """The index of the interface; L{None} if nothing is being recorded."""
        return self._handle.index if self._handle is not None and self._is_read else None

    @property
    def is_behind(self) -> bool:
        """Whether more may have arrived than the last L{pull} has read."""
        return self._is_behind and self._handle is not None

    @property
    def dropped(self) -> int:
        """How many packets the kernel has dropped since the daemon's start."""
        return self._dropped_earlier + self._dropped_now

    @property
    def reach(self) -> Reach:
        """How complete it is."""
        now, wall = self._clocks()
        released = None if self._memory is None else self._memory.released(wall - now)
        return self._health.reach(released, wall=wall)

    def state(self) -> HistoryState:
        """How far back it reaches now."""
        now = self._wall_clock()
        since = self.reach.since(now)
        return HistoryState(
            interface=self.interface,
            bounds=self.bounds,
            since=since,
            seconds=0.0 if since is None else max(0.0, now - since),
            packets=0 if self._memory is None else self._memory.packets,
            bytes=0 if self._memory is None else self._memory.bytes,
            dropped=self.dropped,
            problem=self._health.problem,
        )

    @property
    def link_type(self) -> int | None:
        """The link type of what is recorded, as libpcap numbers it; L{None} if nothing was."""
        return None if self._memory is None else self._link_type

    def attach(self, sieve: ISieve | None, snap_length: int, bpf: str) -> PastReader:
        """
        Read what is recorded from here on.

        @param sieve: which packets are wanted; L{None} is all. It is owned by the reader.
        @param snap_length: to which it cuts them, in bytes.
        @param bpf: its filter.

        @raise CaptureUnavailable: if there is nothing to read.
        """
        if self._memory is None:
            raise CaptureUnavailable(self.interface, self._health.problem or "nothing was recorded yet")
        reader = PastReader(
            self.interface,
            self._memory,
            self._memory.end,
            link_type=self._link_type,
            program=replace(everything(snap_length), bpf=bpf),
            sieve=sieve,
            pull=self.pull,
            is_behind=lambda: self._is_behind,
            dropped=lambda: self.dropped,
            detach=self._readers.remove,
        )
        self._readers.append(reader)
        if self._handle is None:
            reader.lose(self._health.problem or _GONE)
        return reader

    def look_back(
        self, reader: PastReader, wanted: LookBack, *, max_packets: int, max_bytes: int
    ) -> tuple[Callable[..., Taken], Callable[[Taken], PastPackets]]:
        """
        The past for a reader that was just attached.

        @param max_packets: how many packets of it there is room for.
        @param max_bytes: the size that a file with them may have.

        @return: a function that takes it, to be called in a thread: see L{PastReader.take}; and one that says
            what was taken.
        """
        assert self._memory is not None
        reach = self.reach
        monotonic, now = self._clocks()
        oldest = now - self.bounds.seconds
        position, dropped = self._memory.find(max(wanted.since, oldest), ahead=now - monotonic)
        dropped = 0 if dropped is None else self.dropped - dropped
        until = self._memory.find(wanted.until, ahead=now - monotonic)[0] if wanted.past_only else None
        take = reader.take(position, until, max_packets=max_packets, max_bytes=max_bytes)

        def report(taken: Taken) -> PastPackets:
            return past_packets(
                wanted,
                reach,
                now,
                first=taken.first,
                packets=taken.packets,
                dropped=dropped,
                is_overtaken=taken.is_overtaken,
                is_limited=taken.reason is not None,
                is_cut=reader.looks_beyond or self.bounds.snap_length < wanted.snap_length,
            )

        return take, report


def _close(hook: IReadHook | None) -> None:
    if hook is not None:
        hook.close()
