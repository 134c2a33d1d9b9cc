"""From a plan to a capture that is ready to start."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakSet

from zope.interface import implementer

from pcapsvc.capture.buffer import RecordingBuffer
from pcapsvc.capture.port import CapturePort, ICaptureReactor
from pcapsvc.core.errors import NodeBusy
from pcapsvc.core.plan import CapturePlan
from pcapsvc.interfaces.capture import ICapture, ICapturer, IPacketSystem

if TYPE_CHECKING:
    from pcapsvc.capture.decode import PacketLog

# On top of the kernel's own time-out for a block that isn't full: its timer counts in jiffies of 4 ms.
_TIMER_SLACK_SECONDS = 0.008


@implementer(ICapturer)
class Capturer:
    """
    Prepares captures on a packet system.

    @param read_timeout_ms: after how long the kernel hands over a block that isn't full.
    @param packet_debug: whether each packet of every capture is logged.
    @param panic: whether a packet that can't be decoded for the log fails its capture.
    """

    def __init__(
        self,
        reactor: ICaptureReactor,
        system: IPacketSystem,
        *,
        wall_clock: Callable[[], float],
        read_timeout_ms: int,
        packet_debug: bool = False,
        panic: bool = False,
    ) -> None:
        self._reactor = reactor
        self._system = system
        self._wall_clock = wall_clock
        self._hand_over_seconds = read_timeout_ms / 1000 + _TIMER_SLACK_SECONDS
        self._packet_debug = packet_debug
        self._panic = panic
        self._ports: WeakSet[CapturePort] = WeakSet()

    def read_all(self) -> None:
        """
        Read what all captures have by now, also those that have not been started: to be called before
        anything that takes long, since their rings fill meanwhile.
        """
        for port in tuple(self._ports):
            port.read_all()

    def prepare(self, plan: CapturePlan) -> ICapture:
        """Open what a capture needs: see L{ICapturer.prepare}."""
        capture_id = secrets.token_hex(6)
        is_logged = self._packet_debug or plan.request.packetdebug
        if is_logged:
            # Its first import takes a tenth of a second: before anything is captured for it.
            self.read_all()
            _packet_log_class()
        try:
            handle = self._system.open(plan.interface, snap_length=plan.snap_length, bpf=plan.bpf)
        except OSError as error:
            raise NodeBusy(f"there is no room for a capture: {error}") from None
        try:
            observer = None
            if is_logged:
                observer = _packet_log_class()(
                    capture_id, handle.link_type, now=self._reactor.seconds, panic=self._panic
                )
            buffer = RecordingBuffer(
                handle, f"pcapsvc-{capture_id}", snap_length=plan.snap_length, observer=observer
            )
        except OSError as error:
            handle.close()
            raise NodeBusy(f"there is no room for a capture: {error}") from None
        except BaseException:
            handle.close()
            raise
        port = CapturePort(
            self._reactor,
            handle,
            buffer,
            plan,
            capture_id=capture_id,
            wall_clock=self._wall_clock,
            hand_over_seconds=self._hand_over_seconds,
        )
        self._ports.add(port)
        return port


def _packet_log_class() -> type[PacketLog]:
    """Imported where it is asked for alone, as dpkt has 70 modules."""
    from pcapsvc.capture.decode import PacketLog

    return PacketLog
