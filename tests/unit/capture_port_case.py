"""A capture on a reactor whose clock is ours, for tests."""

from __future__ import annotations

import os

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial import unittest

from pcapsvc.capture.buffer import Observer, RecordingBuffer
from pcapsvc.capture.port import CapturePort
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.recording import Recording
from pcapsvc.core.request import CaptureRequest
from pcapsvc.core.session import CaptureLimits
from pcapsvc.testing_packets import MemoryPacketSystem

HAND_OVER = 0.018


class FullReactor(MemoryReactorClock):
    """A reactor that has no room for another reader."""

    def addReader(self, reader: object) -> None:
        """There is none."""
        raise OSError(28, "No space left on device")


class CapturePortCase(unittest.SynchronousTestCase):
    """One interface, and captures on it."""

    def setUp(self) -> None:
        """An interface, and a reactor."""
        self.before = len(os.listdir("/proc/self/fd"))
        self.reactor = MemoryReactorClock()
        self.system = MemoryPacketSystem("mem0")
        self.all_pausing: set[CapturePort] = set()
        self.wall_clock = 1_700_000_000.0
        self.read_seconds = self.stall_seconds = self.stall_after_seconds = 0.0
        self.addCleanup(self.assert_nothing_left)

    def before_read(self) -> None:
        """Each read takes a while, if it is to."""
        self.reactor.rightNow += self.read_seconds

    def look_at_wall_clock(self) -> float:
        """The time; before the next look or after it, other programs may have the processor for a while."""
        self.reactor.rightNow += self.stall_seconds
        wall = self.wall_clock + self.reactor.seconds()
        self.reactor.rightNow += self.stall_after_seconds
        self.stall_seconds = self.stall_after_seconds = 0.0
        return wall

    def assert_nothing_left(self) -> None:
        """No handle, no descriptor, no reader, no timer, and no pause."""
        self.assertEqual(self.system.open_handles, 0)
        self.assertEqual(self.all_pausing, set())
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(len(os.listdir("/proc/self/fd")), self.before)

    def port(
        self,
        *,
        packets: int = 10,
        size: int = 10**7,
        idle: float = 5,
        duration: float = 60,
        snap: int = 100,
        observer: Observer | None = None,
    ) -> CapturePort:
        """A capture that has not begun."""
        limits = CaptureLimits(
            max_packets=packets, max_bytes=size, idle_seconds=idle, duration_seconds=duration
        )
        plan = CapturePlan(
            node="sensor1",
            interface="mem0",
            alias=None,
            bpf="",
            snap_length=snap,
            limits=limits,
            request=CaptureRequest(node="any", interface=("mem0",)),
            options={},
            via="test",
        )
        handle = self.successResultOf(self.system.open("mem0", snap_length=snap, bpf=""))
        port = CapturePort(
            self.reactor,
            handle,
            RecordingBuffer(
                handle,
                "test",
                open_dumper=lambda path: self.system.open_dumper(path, link_type=1, snap_length=snap),
                snap_length=snap,
                before_read=self.before_read,
                observer=observer,
            ),
            plan,
            capture_id="abc",
            wall_clock=self.look_at_wall_clock,
            hand_over_seconds=HAND_OVER,
            pausing=self.all_pausing,
        )
        port.begin()
        return port

    def arrive(self, *packets: bytes) -> None:
        """Packets arrive, and the reactor sees them."""
        self.system.deliver("mem0", *packets)
        self.turn()

    def turn(self) -> None:
        """A turn of the reactor."""
        for reader in list(self.reactor.getReaders()):
            reader.doRead()

    def recorded(self, recording: Deferred[Recording]) -> Recording:
        """The recording, once the kernel has handed over what it held back; its content is closed."""
        self.reactor.pump([0.01] * 10)
        result = self.successResultOf(recording)
        self.addCleanup(result.content.close)
        return result

    def lose_connection(self) -> None:
        """The reactor finds an error on the socket."""
        [port] = self.reactor.getReaders()
        self.reactor.removeReader(port)
        port.connectionLost(None)
