"""A capture on the reactor. What becomes of it in the whole flow: see C{test_pipeline}."""

from __future__ import annotations

import gc
import os

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial import unittest

from pcapsvc.capture.buffer import RecordingBuffer
from pcapsvc.capture.port import CapturePort
from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.recording import PacketCounts, Progress, Recording
from pcapsvc.core.request import CaptureRequest
from pcapsvc.core.session import CaptureLimits, StopReason
from pcapsvc.testing_packets import MemoryPacketSystem
from peers.frames import udp_frame

HAND_OVER = 0.018


class _FullReactor(MemoryReactorClock):
    def addReader(self, reader: object) -> None:
        raise OSError(28, "No space left on device")


class CapturePortTests(unittest.SynchronousTestCase):
    """From its start to its recording, on a clock of our own."""

    def setUp(self) -> None:
        """An interface, and a reactor."""
        self.before = len(os.listdir("/proc/self/fd"))
        self.reactor = MemoryReactorClock()
        self.system = MemoryPacketSystem("mem0")
        self.wall_clock = 1_700_000_000.0
        self.read_seconds = self.stall_seconds = 0.0
        self.addCleanup(self.assert_nothing_left)

    def before_read(self) -> None:
        """Each read takes a while, if it is to."""
        self.reactor.rightNow += self.read_seconds

    def look_at_wall_clock(self) -> float:
        """The time; before the next look, other programs may have the processor for a while."""
        self.reactor.rightNow += self.stall_seconds
        self.stall_seconds = 0.0
        return self.wall_clock + self.reactor.seconds()

    def assert_nothing_left(self) -> None:
        """No handle, no descriptor, no reader, no timer."""
        self.assertEqual(self.system.open_handles, 0)
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
            ),
            plan,
            capture_id="abc",
            wall_clock=self.look_at_wall_clock,
            hand_over_seconds=HAND_OVER,
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

    def test_recording(self) -> None:
        """A recording has the time from which packets were kept, and the kernel's counts."""
        port = self.port(packets=2)
        self.wall_clock = 1_700_000_007.0
        recording = port.start()
        self.system.seconds = 1_700_000_010.25
        self.arrive(udp_frame(1))
        self.assertEqual(port.progress().packets, 1)
        self.system.seconds = 1_700_000_011.5
        self.arrive(udp_frame(2), udp_frame(3))
        made = self.recorded(recording)
        self.assertEqual((made.capture_id, made.packets, made.link_type), ("abc", 2, 1))
        self.assertEqual(made.started, 1_700_000_000.0)
        assert made.counts is not None
        self.assertEqual(made.counts.received, 3)
        self.assertEqual(made.content.size, 24 + 2 * 116)

    def test_link_type(self) -> None:
        """A capture has the link-layer type of its file, which libpcap has another number for."""
        self.system.interfaces["mem0"].link_type = 12
        port = self.port(packets=1)
        recording = port.start()
        self.arrive(udp_frame(1))
        self.assertEqual((port.link_type, self.recorded(recording).link_type), (101, 101))

    def test_progress(self) -> None:
        """The progress has what was captured, for how long, and what the kernel has counted."""
        port = self.port(packets=2, snap=50)
        self.reactor.advance(1.5)
        self.arrive(udp_frame(1))
        self.assertEqual(
            port.progress(),
            Progress(packets=1, bytes=24 + 16 + 50, seconds=1.5, received=1, dropped=0),
        )
        recording = port.start()
        self.arrive(udp_frame(2))
        self.recorded(recording)
        ended = port.progress()
        self.assertEqual((ended.packets, ended.received, ended.dropped), (2, None, None))

    def test_pause(self) -> None:
        """After many packets the descriptor isn't watched for a moment, and then all that came is read."""
        port = self.port(packets=100_000)
        self.reactor.advance(1)
        self.arrive(*[b"x" * 10] * 63)
        self.assertEqual(self.reactor.getReaders(), [port])
        self.reactor.advance(1)
        self.arrive(*[b"x" * 10] * 64)
        self.assertEqual(self.reactor.getReaders(), [])
        for packets, pause in (
            (227, 0.002),
            (327, 0.004),
            (427, 0.008),
            (527, 0.016),
            (627, 0.02),
            (727, 0.02),
        ):
            self.system.deliver("mem0", *[b"x" * 10] * 100)
            self.reactor.advance(pause - 0.0001)
            self.assertEqual(port.progress().packets, packets - 100)
            self.reactor.advance(0.00011)
            self.assertEqual(port.progress().packets, packets)
            self.assertEqual(self.reactor.getReaders(), [])
        self.system.deliver("mem0", *[b"x" * 10] * 63)
        self.reactor.advance(0.021)
        self.assertEqual(port.progress().packets, 790)
        self.assertEqual(self.reactor.getReaders(), [port])
        port.discard()

    def pausing(self, *, packets: int = 100_000, idle: float = 5, duration: float = 60) -> CapturePort:
        """A capture that has read a hundred packets, and pauses."""
        port = self.port(packets=packets, idle=idle, duration=duration)
        self.reactor.advance(0.9)
        self.arrive(*[b"x" * 10] * 100)
        self.assertEqual(self.reactor.getReaders(), [])
        return port

    def test_keep_up_in_a_pause(self) -> None:
        """In the middle of other work, it is read at once."""
        port = self.pausing()
        for packets in (101, 121):
            self.system.deliver("mem0", *[b"x" * 10] * (packets - port.progress().packets))
            port.keep_up()
            self.assertEqual(port.progress().packets, packets)
        self.reactor.advance(0.003)
        self.assertEqual(self.reactor.getReaders(), [port])
        port.discard()

    def test_end_in_a_pause(self) -> None:
        """An end from outside keeps what has arrived in the pause."""
        for reason in (StopReason.SHUTDOWN, StopReason.CANCELLED):
            port = self.pausing()
            recording = port.start()
            self.system.deliver("mem0", udp_frame(1))
            port.end(reason)
            made = self.recorded(recording)
            self.assertEqual((made.reason, made.packets), (reason, 101))

    def test_deadline_in_a_pause(self) -> None:
        """A time limit that is reached in a pause finds all packets that came before, without waiting."""
        recording = self.pausing(duration=0.9 - HAND_OVER + 0.01).start()
        self.system.deliver("mem0", *[b"x" * 10] * 200)
        self.reactor.advance(0.01)
        made = self.successResultOf(recording)
        self.addCleanup(made.content.close)
        self.assertEqual((made.reason, made.packets), (StopReason.DURATION, 300))

    def test_limit_after_a_pause(self) -> None:
        """The limits hold for what is read after a pause, to the packet."""
        recording = self.pausing(packets=250).start()
        self.system.deliver("mem0", *[b"x" * 10] * 200)
        made = self.recorded(recording)
        self.assertEqual((made.reason, made.packets), (StopReason.PACKETS, 250))

    def test_discard_in_a_pause(self) -> None:
        """A capture that is given up in a pause leaves nothing."""
        self.pausing().discard()

    def test_gone_in_a_pause(self) -> None:
        """An interface that goes away in a pause is noticed after it, and what had arrived is kept."""
        recording = self.pausing().start()
        self.system.deliver("mem0", *[b"x" * 10] * 50)
        self.system.lose("mem0")
        self.reactor.advance(0.021)
        self.turn()
        made = self.recorded(recording)
        self.assertEqual((made.reason, made.packets), (StopReason.DEVICE_LOST, 150))

    def test_down_in_a_pause(self) -> None:
        """An interface that goes down in a pause is watched again after it, and pauses again when up."""
        port = self.pausing()
        self.system.down("mem0")
        self.reactor.advance(0.021)
        self.lose_connection()
        self.system.up("mem0")
        self.reactor.advance(0.021)
        self.assertEqual(self.reactor.getReaders(), [port])
        self.reactor.advance(0.228)
        self.arrive(*[b"x" * 10] * 100)
        self.assertEqual(self.reactor.getReaders(), [])
        # It is looked at in the pause, as its interface was down, and goes on pausing.
        self.reactor.advance(0.0015)
        self.assertEqual(self.reactor.getReaders(), [])
        self.reactor.advance(0.001)
        self.assertEqual(self.reactor.getReaders(), [port])
        port.discard()

    def test_no_room_after_a_pause(self) -> None:
        """If the reactor can't watch it after a pause, it is read by time until the reactor can."""
        port = self.pausing()
        add, self.reactor.addReader = self.reactor.addReader, _FullReactor().addReader
        self.reactor.advance(0.021)
        self.system.deliver("mem0", udp_frame(1))
        self.reactor.advance(0.021)
        self.assertEqual(port.progress().packets, 101)
        self.reactor.addReader = add
        self.reactor.advance(0.021)
        self.assertEqual(self.reactor.getReaders(), [port])
        port.discard()

    def test_backlog(self) -> None:
        """All that has arrived during a long turn of the reactor is read in the next one."""
        port = self.port(packets=100_000)
        self.arrive(*[b"x" * 10] * 20_000)
        self.assertEqual(port.progress().packets, 20_000)
        port.discard()

    def test_long_backlog(self) -> None:
        """
        After a stall, everything is read that arrived before a deadline, and nothing that arrived after it,
        however long it takes.
        """
        port = self.port(packets=100_000, duration=2)
        recording = port.start()
        self.system.seconds = self.wall_clock + 1.5
        self.system.deliver("mem0", *[b"x" * 10] * 20_000)
        self.system.seconds = self.wall_clock + 2.5
        self.system.deliver("mem0", b"late", b"later")
        self.read_seconds = 0.03
        self.reactor.rightNow += 3.0
        self.reactor.pump([0.0] * 20)
        made = self.recorded(recording)
        self.assertEqual((made.reason, made.packets), (StopReason.DURATION, 20_000))
        self.assertEqual(made.content.size, 24 + 20_000 * 26)

    def test_long_backlog_in_nanoseconds(self) -> None:
        """So it is if time stamps are in nanoseconds."""
        self.system.interfaces["mem0"].ticks_per_second = 10**9
        self.test_long_backlog()

    def test_stall_between_two_clocks(self) -> None:
        """By how much one clock is ahead of another is known even if there is a stall between two looks."""
        for first, second in ((0.3, 0.0), (0.0, 0.3)):
            port = self.port(packets=100, duration=2)
            began, recording = self.reactor.seconds(), port.start()
            self.reactor.rightNow = began + 1.0
            self.system.seconds = self.wall_clock + began + 1.0
            self.stall_seconds = first
            self.arrive(b"x" * 10)
            self.system.seconds = self.wall_clock + began + 2.2
            self.system.deliver("mem0", b"late")
            self.reactor.rightNow = began + 2.9
            self.stall_seconds = second
            made = self.recorded(recording)
            self.assertEqual((made.reason, made.packets), (StopReason.DURATION, 1), first)

    def test_before_the_start(self) -> None:
        """What arrived between opening and starting is in the recording."""
        port = self.port(packets=1)
        self.system.deliver("mem0", udp_frame(1))
        recording = port.start()
        self.turn()
        self.assertEqual(self.recorded(recording).packets, 1)

    def test_read_before_the_start(self) -> None:
        """Packets are read before the start: a limit that they meet ends the capture."""
        port = self.port(packets=3)
        self.system.deliver("mem0", udp_frame(1), udp_frame(2))
        self.turn()
        self.assertEqual(port.progress().packets, 2)
        self.system.deliver("mem0", udp_frame(3), udp_frame(4))
        self.turn()
        self.turn()
        made = self.recorded(port.start())
        self.assertEqual((made.reason, made.packets), (StopReason.PACKETS, 3))

    def lose_connection(self) -> None:
        """The reactor finds an error on the socket."""
        [port] = self.reactor.getReaders()
        self.reactor.removeReader(port)
        port.connectionLost(None)

    def test_down(self) -> None:
        """A capture waits while its interface is down, and has what comes when it is up again."""
        recording = self.port(packets=4).start()
        self.arrive(udp_frame(1), udp_frame(2))
        self.system.down("mem0")
        self.lose_connection()
        self.arrive(udp_frame(3))
        self.assertEqual(self.reactor.getReaders(), [])
        self.reactor.advance(1)
        self.system.up("mem0")
        self.arrive(udp_frame(4), udp_frame(5))
        made = self.recorded(recording)
        self.assertEqual((made.reason, made.packets), (StopReason.PACKETS, 4))

    def test_down_until_a_limit(self) -> None:
        """The limits hold while the interface is down."""
        recording = self.port(idle=5).start()
        self.arrive(udp_frame(1))
        self.system.down("mem0")
        self.lose_connection()
        self.reactor.pump([0.1] * 49)
        self.assertNoResult(recording)
        self.reactor.pump([0.1] * 2)
        self.assertEqual(self.recorded(recording).reason, StopReason.IDLE)

    def test_down_and_gone(self) -> None:
        """After an interface went down, nobody reports that it is gone: the capture notices by itself."""
        recording = self.port().start()
        self.arrive(udp_frame(1))
        self.system.down("mem0")
        self.lose_connection()
        self.reactor.advance(0.1)
        self.assertNoResult(recording)
        self.system.lose("mem0")
        self.reactor.advance(0.3)
        made = self.recorded(recording)
        self.assertEqual((made.reason, made.packets), (StopReason.DEVICE_LOST, 1))

    def test_lasting_error(self) -> None:
        """An error of the socket that doesn't go away costs a look now and then, and the reactor no more."""
        port = self.port(duration=1)
        recording, looks = port.start(), 0
        for _ in range(100):
            if self.reactor.getReaders():
                self.lose_connection()
                looks += 1
            self.reactor.advance(0.005)
        self.assertLess(looks, 30)
        port.end(StopReason.CANCELLED)
        self.recorded(recording)

    def test_lost_before_the_start(self) -> None:
        """An interface that goes away before the start leaves what there is."""
        port = self.port()
        self.system.deliver("mem0", udp_frame(1))
        self.system.lose("mem0")
        self.turn()
        self.turn()
        made = self.recorded(port.start())
        self.assertEqual((made.reason, made.packets), (StopReason.DEVICE_LOST, 1))

    def test_discard_after_reading(self) -> None:
        """A capture that was read before it is given up leaves nothing, either."""
        for packets in (1, 2):
            port = self.port(packets=packets)
            self.system.deliver("mem0", udp_frame(1))
            self.turn()
            port.discard()

    def test_fault_before_the_start(self) -> None:
        """What can't be kept before the start fails the capture at its start, or is nobody's matter."""
        for end in (CapturePort.start, CapturePort.discard):
            port = self.port()
            self.system.deliver("mem0", udp_frame(1))
            port._buffer.read = self.fail_to_read  # type: ignore[method-assign]
            self.turn()
            result = end(port)
            if result is not None:
                self.failureResultOf(result, CaptureUnavailable)
            del port, result
            gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def fail_to_read(self, batch: object) -> int:
        """There is no memory."""
        raise OSError(12, "Cannot allocate memory")

    def test_counts(self) -> None:
        """No fewer packets are reported as received than were read and dropped."""
        counts = PacketCounts(received=7, dropped=2, interface_dropped=1)
        self.assertEqual(counts.with_at_least(5), counts)
        self.assertEqual(counts.with_at_least(6).received, 8)

    def test_discard(self) -> None:
        """A capture that is given up before its start leaves nothing."""
        self.port().discard()

    def test_end(self) -> None:
        """An end from outside keeps what has arrived, and comes once."""
        port = self.port()
        recording = port.start()
        self.arrive(udp_frame(1))
        self.system.deliver("mem0", udp_frame(2))
        port.end(StopReason.SHUTDOWN)
        port.end(StopReason.DEVICE_LOST)
        made = self.recorded(recording)
        port.end(StopReason.CANCELLED)
        self.assertEqual((made.reason, made.packets), (StopReason.SHUTDOWN, 2))

    def test_lost_within_a_batch(self) -> None:
        """What was read of a batch when the interface went away counts for the limits of what is read yet."""
        port = self.port(packets=20, snap=262144)
        recording = port.start()
        self.system.deliver("mem0", udp_frame(0))
        [handle] = self.system.interfaces["mem0"].handles
        self.system.lose("mem0")
        for reader in list(self.reactor.getReaders()):
            reader.doRead()
        # What arrived, and is handed over only now.
        handle.lost = False
        for number in range(1, 30):
            handle.arrive(udp_frame(number), self.system.seconds)
        made = self.recorded(recording)
        self.assertEqual((made.reason, made.packets), (StopReason.DEVICE_LOST, 20))

    def test_cancel(self) -> None:
        """A cancelled capture ends with what there is."""
        recording = self.port().start()
        self.arrive(udp_frame(1))
        recording.cancel()
        made = self.recorded(recording)
        self.assertEqual((made.reason, made.packets), (StopReason.CANCELLED, 1))

    def test_limits_hold_for_the_rest(self) -> None:
        """What is read at an end from outside keeps to the limits, too."""
        port = self.port(packets=3)
        recording = port.start()
        self.arrive(udp_frame(1))
        self.system.deliver("mem0", *[udp_frame(number) for number in range(2, 9)])
        port.end(StopReason.SHUTDOWN)
        self.assertEqual(self.recorded(recording).packets, 3)

    def test_no_end_before_the_deadline(self) -> None:
        """No limit of time is judged before its time, and each within a tenth of a second."""
        for limits, reason in (
            ({"idle": 5, "duration": 60}, StopReason.IDLE),
            ({"idle": 60, "duration": 5}, StopReason.DURATION),
        ):
            recording = self.port(**limits).start()
            self.reactor.advance(4.999)
            self.assertNoResult(recording)
            self.reactor.advance(0.1)
            made = self.successResultOf(recording)
            made.content.close()
            self.assertEqual((made.reason, made.packets), (reason, 0))

    def test_no_room_on_the_reactor(self) -> None:
        """If the reactor can't watch it, the capture is unavailable, and leaves nothing."""
        self.reactor = _FullReactor()
        error = self.failureResultOf(self.port().start(), CaptureUnavailable).value
        self.assertIn("No space left on device", str(error))

    def test_spurious_wake_up(self) -> None:
        """A descriptor that is readable without a packet changes nothing."""
        port = self.port(size=1)
        recording = port.start()
        self.turn()
        self.assertNoResult(recording)
        port.end(StopReason.CANCELLED)
        self.assertEqual(self.recorded(recording).packets, 0)
