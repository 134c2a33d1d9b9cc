"""From a plan to a capture that has begun."""

from __future__ import annotations

import os
import secrets
import select
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.capture.buffer import RecordingBuffer
from pcapsvc.capture.histories import Histories, hand_over_seconds
from pcapsvc.capture.port import CapturePort, ICaptureReactor
from pcapsvc.capture.rolling import RollingBuffer
from pcapsvc.core.errors import NO_ROOM, NodeBusy, RequestRejected
from pcapsvc.core.history import Missing, MissingReason, PastPackets, no_history
from pcapsvc.core.link_type import kept_length
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.session import StopReason
from pcapsvc.interfaces.capture import ICapture, ICapturer, IPacketReader, IPacketSystem, IReadHook, ISieve
from pcapsvc.interfaces.threads import RunInThread

if TYPE_CHECKING:
    from pcapsvc.capture.decode import PacketLog
    from pcapsvc.capture.history import HistoryRecorder
    from pcapsvc.capture.past import PastReader, Taken

# How long captures may go without being read while the reactor has other work, in seconds. The default ring
# holds what arrives in 0.3 s at 100,000 packets of 128 bytes a second.
_KEEP_UP_SECONDS = 0.01

# How long a capture waits for the recording of what had arrived before it, in seconds, if that is much.
_RING_SECONDS = 0.5


@implementer(ICapturer)
class Capturer:
    """
    Prepares captures on a packet system.

    @param run_in_thread: for what takes long.
    @param close_descriptor: closes a descriptor. To free a file of 200 MB takes 40 ms.
    @param hook: makes the hook of a capture's handle, by the interface's name; called before the handle is
        opened. L{None} is nothing.
    @param histories: remember the recent past; L{None} if nothing does.
    @param read_timeout_ms: after how long the kernel hands over a block that isn't full.
    @param packet_debug: whether each packet of every capture is logged.
    @param panic: whether a packet that can't be decoded for the log fails its capture.
    """

    def __init__(
        self,
        reactor: ICaptureReactor,
        system: IPacketSystem,
        *,
        run_in_thread: RunInThread,
        close_descriptor: Callable[[int], object] = os.close,
        hook: Callable[[str], IReadHook] | None = None,
        histories: Histories | None = None,
        wall_clock: Callable[[], float],
        read_timeout_ms: int,
        packet_debug: bool = False,
        panic: bool = False,
    ) -> None:
        self._reactor = reactor
        self._system = system
        self._run_in_thread = run_in_thread
        self._close_descriptor = close_descriptor
        self._hook = hook
        self._histories = histories
        self._wall_clock = wall_clock
        self._hand_over_seconds = hand_over_seconds(read_timeout_ms)
        self._packet_debug = packet_debug
        self._panic = panic
        self._ports: list[CapturePort] = []
        self._pausing: set[CapturePort] = set()
        self._kept_up = 0.0

    def prepare(self, plan: CapturePlan) -> Deferred[ICapture]:
        """Open what a capture needs: see L{ICapturer.prepare}."""
        return Deferred.fromCoroutine(self._prepare(plan))

    async def _prepare(self, plan: CapturePlan) -> ICapture:
        log_class: type[PacketLog] | None = None
        if self._packet_debug or plan.request.packetdebug:
            # The first import takes a tenth of a second.
            log_class = await self._run_in_thread(_packet_log_class)
        try:
            recorder = await self._recorder(plan)
            if recorder is None:
                port, reason = await self._open(plan, log_class)
            else:
                port, reason = await self._look_back(plan, recorder, log_class)
        except MemoryError:
            raise NodeBusy("there is no memory for a capture") from None
        except OSError as error:
            what = "there is no room for a capture" if error.errno in NO_ROOM else "no capture can be started"
            raise NodeBusy(f"{what}: {error}") from None
        self._ports = [*(each for each in self._ports if not each.has_ended), port]
        port.begin(reason)
        return port

    async def _recorder(self, plan: CapturePlan) -> HistoryRecorder | None:
        """The history that a capture begins with; L{None} if it begins now."""
        if plan.look_back is None:
            return None
        recorder = None if self._histories is None else await self._histories.find(plan.interface)
        if recorder is None and not plan.look_back.is_optional:
            raise RequestRejected([no_history(plan.interface)])
        return recorder

    async def _open(
        self, plan: CapturePlan, log_class: type[PacketLog] | None
    ) -> tuple[CapturePort, StopReason | None]:
        """A capture with a handle of its own."""
        hook = None if self._hook is None else self._hook(plan.interface)
        try:
            handle = await self._system.open(plan.interface, snap_length=plan.snap_length, bpf=plan.bpf)
            plan = _as_kept(plan, handle)
            try:
                before_read = None if hook is None else partial(hook.before_read, handle)
                if before_read is not None:
                    # A filter that is changed later costs packets: the very first ones.
                    before_read()
                capture_id, buffer, _ = self._buffer(plan, handle, before_read, log_class, is_recorded=False)
            except BaseException:
                handle.close()
                raise
        except BaseException:
            _close(hook)
            raise
        past, reason = None, None
        if plan.look_back is not None:
            seconds = plan.look_back.seconds
            missing = Missing(reason=MissingReason.NONE, seconds=seconds)
            past = PastPackets(seconds=seconds, missing=(missing,))
            reason = StopReason.PAST if plan.look_back.past_only else None
        return self._port(plan, handle, buffer, hook=hook, past=past, capture_id=capture_id), reason

    async def _look_back(
        self, plan: CapturePlan, recorder: HistoryRecorder, log_class: type[PacketLog] | None
    ) -> tuple[CapturePort, StopReason | None]:
        """A capture that begins with the past, and goes on with what is recorded from here on."""
        # There is a history: so this is loaded.
        from pcapsvc.capture.past import fill

        reader = await self._reader(plan, recorder)
        plan = _as_kept(plan, reader)
        assert plan.look_back is not None
        try:
            capture_id, buffer, packet_log = self._buffer(plan, reader, None, log_class, is_recorded=True)
        except BaseException:
            reader.close()
            raise
        take, report = recorder.look_back(
            reader,
            plan.look_back,
            max_packets=sys.maxsize if plan.limits.max_packets is None else plan.limits.max_packets,
            max_bytes=plan.limits.max_bytes,
        )

        def close() -> None:
            buffer.discard()
            reader.close()

        def work(is_wanted: Callable[[], bool]) -> Taken:
            taken = take(is_wanted=is_wanted)
            fill(buffer, taken, is_wanted)
            return taken

        if packet_log is not None:
            packet_log.hold()
        taken = await self._in_thread(work, close)
        if packet_log is not None:
            packet_log.release()
        reason = None if plan.limits.is_rolling else taken.reason
        if reason is None and plan.look_back.past_only:
            reason = StopReason.PAST
        return self._port(plan, reader, buffer, past=report(taken), capture_id=capture_id), reason

    async def _reader(self, plan: CapturePlan, recorder: HistoryRecorder) -> PastReader:
        """Reads what is recorded from here on."""
        assert plan.look_back is not None
        if plan.look_back.past_only:
            # What arrived before the request is all that there will be.
            await deferLater(self._reactor, self._hand_over_seconds)
        while True:
            link_type = recorder.link_type
            sieve = None if link_type is None else await self._sieve(plan, recorder, link_type)
            try:
                await self._read_all(recorder)
                if recorder.link_type == link_type:
                    return recorder.attach(sieve, plan.snap_length, plan.bpf)
            except BaseException:
                _close(sieve)
                raise
            # Under its name, there is another kind of interface by now.
            _close(sieve)

    async def _read_all(self, recorder: HistoryRecorder) -> None:
        """Have everything recorded that has arrived; other work gets its turn in between."""
        until = self._reactor.seconds() + _RING_SECONDS
        recorder.pull()
        while recorder.is_behind and self._reactor.seconds() < until:
            await deferLater(self._reactor, 0)
            recorder.pull()

    async def _sieve(self, plan: CapturePlan, recorder: HistoryRecorder, link_type: int) -> ISieve | None:
        """What lets the packets pass that a capture is to have; L{None} if it is to have all of them."""
        kept = recorder.bounds.snap_length
        if not plan.bpf.strip() and plan.snap_length >= kept:
            return None
        return await self._system.open_sieve(
            recorder.interface, link_type=link_type, kept=kept, snap_length=plan.snap_length, bpf=plan.bpf
        )

    def _in_thread(
        self, work: Callable[[Callable[[], bool]], Taken], close: Callable[[], object]
    ) -> Deferred[Taken]:
        """
        Do something in a thread with what is closed if that fails.

        @param work: does it, and ends soon if what it is called with returns L{False}: libpcap must not be
            busy in a thread when the process ends, which takes the buffers of all streams away.
        @param close: closes it; on cancel, as soon as the thread is done with it, and no sooner.
        """
        wanted: Deferred[Taken] = Deferred()

        def done(result: Taken | Failure) -> None:
            if wanted.called or isinstance(result, Failure):
                close()
            if not wanted.called:
                wanted.callback(result)

        self._run_in_thread(partial(work, lambda: not wanted.called)).addBoth(done)
        return wanted

    def keep_up(self) -> None:
        """Read the captures that run: see L{ICapturer.keep_up}."""
        now = self._reactor.seconds()
        if 0 <= now - self._kept_up < _KEEP_UP_SECONDS:
            return
        if self._histories is not None:
            self._histories.keep_up()
        for port in self._with_packets():
            port.keep_up()
        self._kept_up = self._reactor.seconds()

    def _with_packets(self) -> list[CapturePort]:
        """
        The captures for which packets have arrived. To ask for all of them takes less time than to read one
        of them in vain.
        """
        running = {port.fileno(): port for port in self._ports if not port.has_ended}
        ready = select.poll()
        for descriptor in running:
            ready.register(descriptor, select.POLLIN)
        return [running[descriptor] for descriptor, _ in ready.poll(0)]

    def _buffer(
        self,
        plan: CapturePlan,
        reader: IPacketReader,
        before_read: Callable[[], None] | None,
        log_class: type[PacketLog] | None,
        *,
        is_recorded: bool,
    ) -> tuple[str, RecordingBuffer, PacketLog | None]:
        """The id of a capture, the buffer for its packets, and what logs each of them."""
        capture_id = secrets.token_hex(6)
        packet_log = None
        if log_class is not None:
            packet_log = log_class(capture_id, reader.link_type, now=self._reactor.seconds, panic=self._panic)
        make: Callable[..., RecordingBuffer] = RecordingBuffer
        if plan.limits.is_rolling:
            make = partial(
                RollingBuffer,
                max_bytes=plan.limits.max_bytes,
                kept_seconds=plan.limits.kept_seconds,
                now=self._reactor.seconds,
                wall_clock=self._wall_clock,
            )
        buffer = make(
            reader,
            f"pcapsvc-{capture_id}",
            open_dumper=lambda file: self._system.open_dumper(
                file,
                link_type=reader.link_type,
                snap_length=plan.snap_length,
                ticks_per_second=reader.ticks_per_second,
            ),
            is_recorded=is_recorded,
            before_read=before_read or (lambda: None),
            snap_length=plan.snap_length,
            observer=packet_log,
            close_descriptor=self._close_descriptor,
        )
        return capture_id, buffer, packet_log

    def _port(
        self,
        plan: CapturePlan,
        reader: IPacketReader,
        buffer: RecordingBuffer,
        *,
        hook: IReadHook | None = None,
        past: PastPackets | None,
        capture_id: str,
    ) -> CapturePort:
        return CapturePort(
            self._reactor,
            reader,
            buffer,
            plan,
            hook=hook,
            past=past,
            capture_id=capture_id,
            wall_clock=self._wall_clock,
            hand_over_seconds=self._hand_over_seconds,
            pausing=self._pausing,
        )


def _as_kept(plan: CapturePlan, reader: IPacketReader) -> CapturePlan:
    """A plan with the snap length that its file has: some handles keep more than they are asked for."""
    return replace(plan, snap_length=kept_length(reader.link_type, plan.snap_length))


def _close(one: IReadHook | ISieve | None) -> None:
    if one is not None:
        one.close()


def _packet_log_class() -> type[PacketLog]:
    """Imported only when it is asked for, as dpkt has 70 modules."""
    from pcapsvc.capture.decode import PacketLog

    return PacketLog
