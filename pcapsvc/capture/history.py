"""Records an interface all the time, and remembers the newest packets."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.capture.packet_memory import PacketMemory
from pcapsvc.capture.past import PastReader, Taken
from pcapsvc.capture.port import ICaptureReactor
from pcapsvc.core.errors import CaptureUnavailable, PcapsvcError
from pcapsvc.core.filter import everything
from pcapsvc.core.history import (
    HistoryBounds,
    HistoryState,
    LookBack,
    Missing,
    MissingReason,
    Outage,
    PastPackets,
    Reach,
)
from pcapsvc.core.read_pace import ReadPace
from pcapsvc.interfaces.capture import IPacketHandle, IPacketSystem, IReadHook, ISieve

# After a read that found packets, how long the next ones gather, in seconds, if the ring holds them.
_PAUSE_SECONDS = 0.02
_FEW_PACKETS = 64
# How many packets are read between two looks at the clock, and how long that may take, in seconds.
_STEP_PACKETS = 8192
_READ_SECONDS = 0.05
# How often an interface that is not there, or down, is looked for, in seconds; and one that is there, since
# it may have been renamed.
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 0.25
_COMPARE_SECONDS = 5.0
# How often old packets are released, in seconds: at most, and as a part of the history.
_EXPIRE_SECONDS = 5.0
_EXPIRE_SHARE = 1 / 64
# How many outages are remembered.
_MOST_OUTAGES = 256


@implementer(IReadDescriptor)
class HistoryRecorder:
    """
    The history of an interface.

    It is recorded again after the interface was down or away, even if it has another index then.

    @param interface: its name.
    @param hook: makes what happens before each read of a handle; L{None} is nothing.
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
        # The timers, by what they do.
        self._timers: dict[Callable[[], object], IDelayedCall] = {}
        self._opening: Deferred[None] | None = None
        self._is_running = False
        self._problem: str | None = "it has not begun"
        self._reported: str | None = None
        self._reach = Reach(seconds=bounds.seconds, started=None, released=None)
        self._outages: deque[Outage] = deque(maxlen=_MOST_OUTAGES)
        # How many packets were dropped for earlier handles, and for this one.
        self._dropped_earlier = self._dropped_now = 0
        self._pace: ReadPace | None = None

    # As a service

    def start(self) -> None:
        """Begin to record."""
        self._is_running = True
        self._open()
        self._expire()
        self._compare_later()

    def stop(self) -> None:
        """Stop, and forget everything."""
        self._is_running = False
        if self._opening is not None:
            self._opening.cancel()
        self._close("the daemon is stopping")
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function later, once."""

        def call() -> None:
            del self._timers[function]
            function()

        if function not in self._timers:
            self._timers[function] = self._reactor.callLater(seconds, call)

    def _no_later(self, function: Callable[[], object]) -> None:
        timer = self._timers.pop(function, None)
        if timer is not None:
            timer.cancel()

    def _expire(self) -> None:
        if self._memory is not None:
            self._memory.expire(self._reactor.seconds())
        oldest = self._wall_clock() - self.bounds.seconds
        while self._outages and (self._outages[0].ended or oldest) < oldest:
            self._outages.popleft()
        self._later(min(_EXPIRE_SECONDS, self.bounds.seconds * _EXPIRE_SHARE), self._expire)

    # Opening and closing

    def _open(self) -> None:
        self._opening = Deferred.fromCoroutine(self._open_handle())
        self._opening.addErrback(self._failed_to_open)

    async def _open_handle(self) -> None:
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
        if self._memory is None or handle.link_type != self._link_type:
            if self._memory is not None:
                self._memory.close()
                self._memory = None
                self._reach = replace(self._reach, started=None, released=None)
            self._memory = PacketMemory(
                size_bytes=self.bounds.size_bytes,
                seconds=self.bounds.seconds,
                snap_length=self.bounds.snap_length,
                open_writer=lambda memory, start, end: self._system.open_records(
                    memory, start, end, link_type=handle.link_type
                ),
            )
            self._link_type = handle.link_type
        # What follows is another handle's.
        self._memory.begin_slot(self._reactor.seconds())

    def _begin(self) -> None:
        assert self._handle is not None
        now = self._reactor.seconds()
        self._pace = ReadPace(self._handle.ring, hand_over_seconds=self._hand_over, now=now)
        if self._reach.started is None:
            self._reach = replace(self._reach, started=self._wall_clock())
        self._is_working()
        self._watch()

    def _failed_to_open(self, failure: Failure) -> None:
        self._opening = None
        if failure.check(CancelledError):  # type: ignore[no-untyped-call]
            return
        error: Any = failure.value
        if isinstance(error, CaptureUnavailable):
            self._fails(error.reason)
        elif isinstance(error, PcapsvcError | OSError):
            self._fails(str(error))
        else:
            self._log.failure("the history of {interface} failed", failure, interface=self.interface)
            self._fails("internal error")
        self._later(_RETRY_SECONDS, self._open)

    def _close(self, reason: str) -> None:
        """Give up the handle, if there is one."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        self._reactor.removeReader(self)
        for function in (self._go_on, self._look):
            self._no_later(function)
        handle.close()
        _close(self._hook)
        self._hook = None
        self._dropped_earlier, self._dropped_now = self.dropped, 0
        for reader in list(self._readers):
            reader.lose(reason)

    def _lose(self, reason: str) -> None:
        """The interface is gone."""
        self._close(reason)
        self._fails(reason)
        self._later(_RETRY_SECONDS, self._open)

    def _fails(self, problem: str) -> None:
        """Nothing is recorded for now."""
        if self._reach.started is not None and not (self._outages and self._outages[-1].ended is None):
            self._outages.append(Outage(began=self._wall_clock()))
        self._problem = problem
        if problem != self._reported:
            self._reported = problem
            self._log.warn(
                "the history of {interface} is not being recorded: {problem}",
                interface=self.interface,
                problem=problem,
            )

    def _is_working(self) -> None:
        if self._outages and self._outages[-1].ended is None:
            self._outages[-1] = replace(self._outages[-1], ended=self._wall_clock())
        if self._reported is not None:
            self._log.info("the history of {interface} is being recorded again", interface=self.interface)
        self._problem = self._reported = None

    def _compare_later(self) -> None:
        self._later(_COMPARE_SECONDS, self._look_for_name)

    def _look_for_name(self) -> None:
        finding = self._find(self.interface)
        finding.addCallbacks(
            self.compare,
            lambda failure: self._log.failure(
                "looking for {interface} failed", failure, interface=self.interface
            ),
        )
        finding.addBoth(lambda _: self._compare_later() if self._is_running else None)

    def compare(self, index: int | None) -> None:
        """
        Give up the handle if its interface has another name by now: another one may have this.

        @param index: of the interface that has the name; L{None} if none has.
        """
        if self._handle is not None and index != self._handle.index:
            self._lose("the interface was renamed" if self._handle.is_up() else "the interface is gone")

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
        if pause is not None and self._handle is not None:
            self._reactor.removeReader(self)
            self._later(pause, self._go_on)

    def _go_on(self) -> None:
        pause = self._read()
        if pause is not None and self._handle is not None:
            self._later(pause, self._go_on)
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
        # Nobody waits for few packets, either: each read costs as much as a few hundred.
        return _PAUSE_SECONDS if packets < _FEW_PACKETS else pause

    def _watch(self) -> None:
        if self._handle is None or self._look in self._timers:
            return
        try:
            self._reactor.addReader(self)
        except OSError:
            self._later(_PAUSE_SECONDS, self._go_on)

    def pull(self) -> int:
        """Read what has arrived. Return how many packets there were."""
        if self._handle is None or self._memory is None:
            return 0
        until = self._reactor.seconds() + _READ_SECONDS
        total = 0
        try:
            while True:
                if self._hook is not None:
                    self._hook.before_read(self._handle)
                now = self._reactor.seconds()
                read = self._memory.read(self._handle, _STEP_PACKETS, now=now, dropped=self.dropped)
                total += read
                if read < _STEP_PACKETS or now >= until:
                    break
            counts = self._handle.counts(hardware=False) if total else None
            if counts is not None:
                self._dropped_now = counts.dropped
        except CaptureUnavailable as error:
            self._lose(error.reason)
        except Exception as error:  # noqa: BLE001 - whatever it is, recording begins anew
            self._log.failure("the history of {interface} failed", interface=self.interface)
            self._lose(f"internal error: {type(error).__name__}")
        if total:
            for reader in self._readers:
                reader.notify()
        elif self._handle is not None and self._look not in self._timers and not self._handle.is_up():
            # This read may have taken the error that the reactor would have found.
            self._reactor.removeReader(self)
            self._later(0, self._look)
        return total

    def connectionLost(self, reason: Failure) -> None:
        """The reactor found an error on the socket, and reads it no more: the interface went down or away."""
        if self._handle is not None:
            self._later(_PAUSE_SECONDS, self._look)

    def _look(self) -> None:
        """See whether the interface is up again. That it is gone shows in a read."""
        self.pull()
        if self._handle is None:
            return
        if self._handle.is_up():
            self._is_working()
            self._watch()
        else:
            self._fails("the interface is down")
            self._later(_LOOK_SECONDS, self._look)

    # For captures

    @property
    def index(self) -> int | None:
        """The index of the interface; L{None} if nothing is being recorded."""
        return None if self._handle is None else self._handle.index

    @property
    def dropped(self) -> int:
        """How many packets the kernel has dropped since the daemon's start."""
        return self._dropped_earlier + self._dropped_now

    @property
    def reach(self) -> Reach:
        """How complete it is."""
        released = None if self._memory is None else self._memory.released
        return replace(self._reach, released=released, outages=tuple(self._outages))

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
            problem=self._problem,
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
            raise CaptureUnavailable(self.interface, self._problem or "nothing was recorded yet")
        reader = PastReader(
            self.interface,
            self._memory,
            self._memory.end,
            link_type=self._link_type,
            program=replace(everything(snap_length), bpf=bpf),
            sieve=sieve,
            pull=self.pull,
            dropped=lambda: self.dropped,
            detach=self._readers.remove,
        )
        self._readers.append(reader)
        if self._handle is None:
            reader.lose(self._problem or "the interface is gone")
        return reader

    def look_back(
        self, reader: PastReader, wanted: LookBack, *, max_packets: int, max_bytes: int
    ) -> tuple[Callable[[], Taken], Callable[[Taken], PastPackets]]:
        """
        The past for a reader that was just attached.

        @param max_packets: how many packets of it there is room for.
        @param max_bytes: the size that a file with them may have.

        @return: a function that takes it, to be called in a thread; and one that says what was taken.
        """
        assert self._memory is not None
        now = self._wall_clock()
        reach = self.reach
        since = max(wanted.since, now - self.bounds.seconds)
        position, dropped = self._memory.find(since)
        dropped = 0 if dropped is None else self.dropped - dropped
        missing = reach.missing(wanted.since, now)
        if dropped:
            missing.append(Missing(reason=MissingReason.DROPS, packets=dropped))
        take = reader.take(position, max_packets=max_packets, max_bytes=max_bytes)

        def report(taken: Taken) -> PastPackets:
            first = taken.first
            found = list(missing)
            if taken.is_overtaken and taken.reason is None:
                seconds = None if first is None else max(0.0, first - (reach.since(now) or now))
                found.append(Missing(reason=MissingReason.SIZE, seconds=seconds))
            if taken.reason is not None:
                begins = max(wanted.since, reach.since(now) or now)
                seconds = None if first is None else max(0.0, first - begins)
                found.append(Missing(reason=MissingReason.LIMIT, seconds=seconds))
            return PastPackets(
                seconds=wanted.seconds, first=first, packets=taken.packets, missing=tuple(found)
            )

        return take, report


def _close(hook: IReadHook | None) -> None:
    if hook is not None:
        hook.close()
