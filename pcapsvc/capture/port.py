"""A capture on the reactor: reads a handle into a buffer until the session says that it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.capture.buffer import RecordingBuffer
from pcapsvc.capture.clocks import both_clocks
from pcapsvc.capture.rolling import RollingBuffer
from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.core.history import PastPackets
from pcapsvc.core.link_type import file_link_type
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.read_pace import ReadPace
from pcapsvc.core.recording import Progress, Recording
from pcapsvc.core.session import EXACT_SECONDS, CaptureSession, StopReason
from pcapsvc.interfaces.capture import ICapture, IPacketReader, IReadHook, ISnapshot

# How many packets are read between two looks at the clock: about 2 ms.
_STEP_PACKETS = 8192
# How long reading everything that has arrived may take, in seconds, if more packets keep arriving. The
# default ring holds about 38,000 packets of 128 bytes, which take 10 to 20 ms.
_READ_ALL_SECONDS = 0.05

# How long emptying the ring may take if no time limit is at stake, in seconds: a million packets.
_RING_SECONDS = 0.5
# For these reasons, a capture ends without having waited for what the kernel holds back, unlike at a
# deadline.
_BEFORE_ANY_LIMIT = frozenset({StopReason.CANCELLED, StopReason.SHUTDOWN, StopReason.DEVICE_LOST})

# How long after an error of the socket it is read again, so that a lasting one doesn't keep the reactor busy;
# and how often the interface is looked at from then on, in seconds.
_RESUME_SECONDS = 0.02
_LOOK_SECONDS = 0.25

_Error = TypeVar("_Error", bound=BaseException)


class ICaptureReactor(IReactorFDSet, IReactorTime):
    """What a capture needs of the reactor."""


@implementer(ICapture, IReadDescriptor)
class CapturePort:
    """
    One capture, from its open handle to its recording. Its limits apply from here on, since packets are kept
    from here on.

    @param handle: owned from here on, as are C{buffer} and C{hook}.
    @param hook: closed with the handle; the buffer calls it before each read.
    @param past: what is in the buffer already; L{None} if it didn't ask for anything.
    @param wall_clock: the time in seconds since the Unix epoch.
    @param hand_over_seconds: how long the kernel may hold back a packet that has arrived. A deadline is
        checked this much later, when everything that arrived before it can be read.
    @param pausing: those captures of this reactor that pause after each read, because many packets arrive.
        This one adds and removes itself.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: ICaptureReactor,
        handle: IPacketReader,
        buffer: RecordingBuffer,
        plan: CapturePlan,
        *,
        hook: IReadHook | None = None,
        past: PastPackets | None = None,
        capture_id: str,
        wall_clock: Callable[[], float],
        hand_over_seconds: float,
        pausing: set[CapturePort],
    ) -> None:
        self._reactor = reactor
        self._handle = handle
        self._hook = hook
        self._buffer = buffer
        self._wall_clock = wall_clock
        self._hand_over = hand_over_seconds
        self._timer: IDelayedCall | None = None
        self._looking: IDelayedCall | None = None
        self._pausing: IDelayedCall | None = None
        self._all_pausing = pausing
        self._end: Deferred[StopReason] = Deferred(lambda _: self.end(StopReason.CANCELLED))
        self._ended: Deferred[StopReason] | None = self._end
        self._began, self.started = both_clocks(reactor.seconds, wall_clock)
        self._pace = ReadPace(handle.ring, hand_over_seconds=hand_over_seconds, now=self._began)
        self._session = CaptureSession(
            plan.limits, snap_length=plan.snap_length, now=self._began, wall=self.started
        )
        self.plan = plan
        self.past = past
        self.capture_id = capture_id
        self.link_type = file_link_type(handle.link_type)
        self.compile_seconds = handle.program.compile_seconds

    def begin(self, reason: StopReason | None = None) -> None:
        """
        Read packets from here on, until the first limit is reached: it may take a while until the other
        captures of the request are prepared, and the ring would not hold the packets for long.

        @param reason: why it is over already, with what is in the buffer; L{None} if it isn't.
        """
        if self._buffer.packets:
            now = self._reactor.seconds()
            reached = self._session.begins_with(self._buffer.packets, self._buffer.size, now)
            reason = reason or reached
        if reason is not None:
            self.end(reason)
            return
        try:
            self._reactor.addReader(self)
            self._await_deadline()
        except OSError as error:
            self._fail(CaptureUnavailable(self.plan.interface, str(error)))

    def start(self) -> Deferred[Recording]:
        """Have the recording: see L{ICapture.start}."""
        recording: Deferred[Recording] = self._end.addCallbacks(self._keep, self._give_up)
        return recording

    def end(self, reason: StopReason) -> None:
        """End now, with what there is: see L{ICapture.end}."""
        if (ended := self._stop_reading()) is not None:
            ended.callback(reason)

    def discard(self) -> None:
        """Give up, before L{start}: see L{ICapture.discard}."""
        self._stop_reading()
        self._close()
        # Reading may have failed; that no longer matters.
        self._end.addErrback(lambda _: None)

    def held_bytes(self) -> int:
        """The size of the file by now: see L{ICapture.held_bytes}."""
        return self._buffer.written

    def whole_bytes(self) -> int:
        """The size of the file up to the last packet: see L{ICapture.whole_bytes}."""
        return self._buffer.flush()

    def read_at(self, offset: int, count: int) -> bytes:
        """Read the file: see L{ICapture.read_at}."""
        return self._buffer.read_at(offset, count)

    def snapshot(self) -> ISnapshot:
        """What it holds now: see L{ICapture.snapshot}."""
        assert isinstance(self._buffer, RollingBuffer)
        return self._buffer.snapshot()

    def progress(self) -> Progress:
        """What there is by now: see L{ICapture.progress}. Once it has ended, the counts are unknown."""
        held = self._buffer.held
        counts = None if self.has_ended else self._handle.counts(hardware=False)
        counts = counts and counts.with_at_least(self._buffer.packets)
        return Progress(
            packets=held.packets,
            bytes=held.bytes,
            seconds=self._reactor.seconds() - self._began,
            received=None if counts is None else counts.received,
            dropped=None if counts is None else counts.dropped,
            rolling=held.rolling,
        )

    def fileno(self) -> int:
        """The handle's descriptor, for the reactor; -1 if nothing is read any more."""
        return -1 if self._ended is None else self._handle.fileno()

    def logPrefix(self) -> str:
        """For the reactor's log."""
        return f"capture {self.capture_id}"

    def doRead(self) -> None:
        """
        Packets have arrived. All of them are read, and those that arrive in the meantime: more than a ring
        holds if the last turn of the reactor was a long one, so that none are lost in the next.

        If there were many, the descriptor isn't watched for a while, so that there will be many again.
        """
        pause = self._read_all()
        if pause is not None and self._ended is not None:
            self._reactor.removeReader(self)
            self._pausing = self._reactor.callLater(pause, self._go_on)
            self._all_pausing.add(self)

    def _go_on(self) -> None:
        self._pausing = None
        pause = self._read_all()
        if self._ended is None:
            return
        if pause is not None:
            self._pausing = self._reactor.callLater(pause, self._go_on)
        else:
            self._watch()

    def _watch(self) -> None:
        """Have the reactor report packets, and errors of the socket; if it can't now, look later."""
        self._all_pausing.discard(self)
        try:
            self._reactor.addReader(self)
        except OSError:
            self._pausing = self._reactor.callLater(_RESUME_SECONDS, self._go_on)

    def keep_up(self) -> None:
        """Read what has arrived, in the middle of other work."""
        if self._ended is not None:
            self._read_all()

    @property
    def has_ended(self) -> bool:
        """Whether nothing is read any more."""
        return self._ended is None

    def _read_all(self) -> float | None:
        """
        Read everything that the kernel has handed over, within a time limit.

        @return: how long to pause then, in seconds; L{None} if the descriptor is to be watched.
        """
        until = self._reactor.seconds() + _READ_ALL_SECONDS
        packets, size = self._buffer.packets, self._buffer.size
        while self._read(_STEP_PACKETS):
            if self._reactor.seconds() >= until:
                return None
        return self._pace.pause_after(
            self._buffer.packets - packets,
            self._buffer.size - size,
            self._reactor.seconds(),
            captures=len(self._all_pausing),
        )

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor found an error on the socket, and reads it no more: the interface went down or away.

        While it is down, the capture waits, within its limits. From here on it also looks by itself: the
        kernel doesn't report that an interface that was down already is gone.
        """
        self._stop_looking()
        if self._ended is not None:
            self._looking = self._reactor.callLater(_RESUME_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        # It reports the error, if the interface is gone.
        self._read(_STEP_PACKETS)
        if self._ended is not None:
            self._looking = self._reactor.callLater(_LOOK_SECONDS, self._look)
            if self._pausing is None:
                self._watch()

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _await_deadline(self) -> None:
        wait = self._session.next_deadline() + self._hand_over - self._reactor.seconds()
        self._timer = self._reactor.callLater(max(0.0, wait), self._deadline)

    def _deadline(self) -> None:
        """
        A time limit is reached, unless packets that arrived have moved it. If reading them takes long, other
        work gets its turn in between.
        """
        self._timer = None
        if self._session.time_passed(self._reactor.seconds()) is not None:
            self._read_all()
        if self._ended is None:
            return
        reason = self._session.time_passed(self._reactor.seconds())
        if reason is None or self._session.is_behind():
            self._await_deadline()
        else:
            self.end(reason)

    def _read(self, packets: int) -> bool:
        """
        Read up to about this many packets, and end the capture if a limit is reached.

        @return: whether there may be more to read.
        """
        try:
            while packets > 0 and self._ended is not None:
                count, is_all, reason = self._read_batch()
                if reason is not None:
                    self.end(reason)
                elif is_all:
                    return False
                elif self._handle.is_behind:
                    break
                packets -= count
        except CaptureUnavailable as error:
            self._log.info("{capture_id}: {reason}", capture_id=self.capture_id, reason=error.reason)
            self.end(StopReason.DEVICE_LOST)
        except Exception as error:  # noqa: BLE001 - whatever it is, this capture ends, and nothing else does
            self._fail(self._explained(error))
        return self._ended is not None

    def _read_batch(self) -> tuple[int, bool, StopReason | None]:
        """
        The number of packets read, whether that is all for now, and the limit that was reached.

        @raise CaptureUnavailable: if the interface is gone, and no limit was reached before.
        """
        began, wall = both_clocks(self._reactor.seconds, self._wall_clock)
        self._note_dropped(began)
        batch = self._session.next_batch(began, wall)
        before, size = self._buffer.packets, self._buffer.size
        lost: CaptureUnavailable | None = None
        try:
            self._buffer.read(batch)
        except CaptureUnavailable as error:
            # What was read before counts, and what is left in the ring is still read.
            lost = error
        now, wall = both_clocks(self._reactor.seconds, self._wall_clock)
        if now - began > EXACT_SECONDS:
            self._note_dropped(now)
        late = self._session.stalled(now, wall)
        if late is not None:
            self._buffer.cut(before, size, late.belongs)
        self._buffer.show()
        count = self._buffer.packets - before
        is_behind = self._handle.is_behind
        reason = self._session.recorded(count, self._buffer.size, now, is_behind=is_behind)
        if lost is not None and reason is None:
            raise lost
        return count, count < batch.packets and not is_behind, reason

    def _note_dropped(self, now: float) -> None:
        if (counts := self._handle.counts(hardware=False)) is not None:
            self._session.dropped(counts.dropped, now)

    def _fail(self, error: Exception) -> None:
        if (ended := self._stop_reading()) is not None:
            ended.errback(error)

    def _stop_reading(self) -> Deferred[StopReason] | None:
        """Return what to fire at the end of the capture; L{None} if that was done before."""
        ended, self._ended = self._ended, None
        if ended is None:
            return None
        self._reactor.removeReader(self)
        self._all_pausing.discard(self)
        self._stop_looking()
        if self._pausing is not None:
            self._pausing.cancel()
            self._pausing = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return ended

    def _close(self) -> None:
        self._close_handle()
        self._buffer.discard()

    def _close_handle(self) -> None:
        self._handle.close()
        if self._hook is not None:
            self._hook.close()

    def _give_up(self, failure: Failure) -> Deferred[Recording]:
        self._close()
        return fail(failure)

    def _keep(self, reason: StopReason) -> Deferred[Recording]:
        return Deferred.fromCoroutine(self._settle(reason))

    async def _settle(self, reason: StopReason) -> Recording:
        try:
            if reason in _BEFORE_ANY_LIMIT:
                await deferLater(self._reactor, self._hand_over)
                self._read_what_was_held_back()
            counts = self._handle.counts()
            content = self._buffer.finish()
            self._close_handle()
        except BaseException as error:  # noqa: BLE001 - all of them are raised again
            self._close()
            raise self._explained(error) from None
        return Recording(
            capture_id=self.capture_id,
            plan=self.plan,
            started=self.started,
            link_type=self.link_type,
            reason=reason,
            packets=self._buffer.held.packets,
            counts=counts and counts.with_at_least(self._buffer.packets),
            content=content,
            past=self.past,
            rolling=self._buffer.held.rolling,
            ended=self._wall_clock(),
        )

    def _read_what_was_held_back(self) -> None:
        """Read what arrived before the end, and is handed over after it. The limits apply to it as well."""
        until = self._reactor.seconds() + _RING_SECONDS
        reported_lost = False
        while self._reactor.seconds() < until:
            try:
                _, is_all, reason = self._read_batch()
            except CaptureUnavailable:
                # libpcap reports once that the interface is gone; then what had arrived can be read.
                if reported_lost:
                    return
                reported_lost = True
                continue
            if is_all or reason is not None:
                return

    def _explained(self, error: _Error) -> _Error | CaptureUnavailable:
        if isinstance(error, OSError):
            return CaptureUnavailable(self.plan.interface, f"the packets could not be stored: {error}")
        return error
