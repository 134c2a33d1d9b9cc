"""From a plan to a capture that has begun."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from zope.interface import implementer

from pcapsvc.capture.buffer import RecordingBuffer
from pcapsvc.capture.port import CapturePort, ICaptureReactor
from pcapsvc.core.errors import NodeBusy
from pcapsvc.core.plan import CapturePlan
from pcapsvc.interfaces.capture import ICapture, ICapturer, IPacketHandle, IPacketSystem, IReadHook
from pcapsvc.interfaces.threads import RunInThread

if TYPE_CHECKING:
    from pcapsvc.capture.decode import PacketLog

# How long captures may go without being read while the reactor has other work, in seconds. The default ring
# holds what arrives in 0.3 s at 100,000 packets of 128 bytes a second.
_KEEP_UP_SECONDS = 0.01

# In addition to the kernel's own time-out for a block that isn't full: its timer counts in jiffies of 4 ms.
_TIMER_SLACK_SECONDS = 0.008

# Errors that mean that something is used up (errno(3)).
_NO_ROOM = frozenset({errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EAGAIN})


@implementer(ICapturer)
class Capturer:
    """
    Prepares captures on a packet system.

    @param run_in_thread: for what takes long.
    @param hook: makes what happens before each read of a capture's handle, by the interface's name; called
        before the handle is opened. L{None} is nothing.
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
        hook: Callable[[str], IReadHook] | None = None,
        wall_clock: Callable[[], float],
        read_timeout_ms: int,
        packet_debug: bool = False,
        panic: bool = False,
    ) -> None:
        self._reactor = reactor
        self._system = system
        self._run_in_thread = run_in_thread
        self._hook = hook
        self._wall_clock = wall_clock
        self._hand_over_seconds = read_timeout_ms / 1000 + _TIMER_SLACK_SECONDS
        self._packet_debug = packet_debug
        self._panic = panic
        self._ports: list[CapturePort] = []
        self._kept_up = 0.0

    def prepare(self, plan: CapturePlan) -> Deferred[ICapture]:
        """Open what a capture needs: see L{ICapturer.prepare}."""
        return Deferred.fromCoroutine(self._prepare(plan))

    async def _prepare(self, plan: CapturePlan) -> ICapture:
        packet_log: type[PacketLog] | None = None
        if self._packet_debug or plan.request.packetdebug:
            # The first import takes a tenth of a second.
            packet_log = await self._run_in_thread(_packet_log_class)
        hook = None if self._hook is None else self._hook(plan.interface)
        try:
            handle = await self._system.open(plan.interface, snap_length=plan.snap_length, bpf=plan.bpf)
            try:
                port = self._port(plan, handle, hook, packet_log)
            except BaseException:
                handle.close()
                raise
        except OSError as error:
            _close(hook)
            what = (
                "there is no room for a capture" if error.errno in _NO_ROOM else "no capture can be started"
            )
            raise NodeBusy(f"{what}: {error}") from None
        except BaseException:
            _close(hook)
            raise
        self._ports = [*(each for each in self._ports if not each.has_ended), port]
        port.begin()
        return port

    def keep_up(self) -> None:
        """Read the captures that run: see L{ICapturer.keep_up}."""
        now = self._reactor.seconds()
        if not self._ports or 0 <= now - self._kept_up < _KEEP_UP_SECONDS:
            return
        for port in self._ports:
            port.keep_up()
        self._kept_up = self._reactor.seconds()

    def _port(
        self,
        plan: CapturePlan,
        handle: IPacketHandle,
        hook: IReadHook | None,
        packet_log: type[PacketLog] | None,
    ) -> CapturePort:
        capture_id = secrets.token_hex(6)
        observer = None
        if packet_log is not None:
            observer = packet_log(capture_id, handle.link_type, now=self._reactor.seconds, panic=self._panic)
        buffer = RecordingBuffer(
            handle,
            f"pcapsvc-{capture_id}",
            open_dumper=lambda file: self._system.open_dumper(
                file, link_type=handle.link_type, snap_length=plan.snap_length
            ),
            before_read=(lambda: None) if hook is None else (lambda: hook.before_read(handle)),
            snap_length=plan.snap_length,
            observer=observer,
        )
        return CapturePort(
            self._reactor,
            handle,
            buffer,
            plan,
            hook=hook,
            capture_id=capture_id,
            wall_clock=self._wall_clock,
            hand_over_seconds=self._hand_over_seconds,
        )


def _close(hook: IReadHook | None) -> None:
    if hook is not None:
        hook.close()


def _packet_log_class() -> type[PacketLog]:
    """Imported only when it is asked for, as dpkt has 70 modules."""
    from pcapsvc.capture.decode import PacketLog

    return PacketLog
