"""A capture on the reactor. What becomes of it in the whole flow: see C{test_pipeline}."""

from __future__ import annotations

import gc

from pcapsvc.capture.port import CapturePort
from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.core.recording import PacketCounts, Progress
from pcapsvc.core.session import StopReason
from peers.frames import udp_frame
from tests.unit.capture_port_case import CapturePortCase, FullReactor


class CapturePortTests(CapturePortCase):
    """From its start to its recording, on a clock of our own."""

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
        self.before_read = self.fail_to_read  # type: ignore[method-assign]
        for end in (CapturePort.start, CapturePort.discard):
            port = self.port()
            self.system.deliver("mem0", udp_frame(1))
            self.turn()
            result = end(port)
            if result is not None:
                self.failureResultOf(result, CaptureUnavailable)
            del port, result
            gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def fail_to_read(self) -> None:
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

    def test_no_end_while_packets_are_dropped(self) -> None:
        """A process that was stopped for longer than the idle time, with a ring that is full, wasn't idle."""
        recording = self.port(packets=100, idle=5).start()
        [handle] = self.system.interfaces["mem0"].handles
        self.arrive(b"a" * 60)
        self.reactor.rightNow += 8
        handle.dropped += 3
        self.reactor.advance(0)
        self.assertNoResult(recording)
        self.reactor.advance(4.9)
        self.assertNoResult(recording)
        self.reactor.advance(0.2)
        self.assertIs(self.recorded(recording).reason, StopReason.IDLE)

    def test_no_end_if_packets_were_dropped_during_a_read(self) -> None:
        """So it is if the process was stopped in the middle of a read."""
        stalls = [0.0, 8.0]

        def stall() -> None:
            seconds = stalls.pop() if stalls else 0.0
            self.reactor.rightNow += seconds
            for handle in self.system.interfaces["mem0"].handles:
                handle.dropped += int(seconds)

        self.before_read = stall  # type: ignore[method-assign]
        port = self.port(packets=100, idle=5)
        recording = port.start()
        # It arrives within the stall, after others that found no room.
        self.system.seconds = self.wall_clock + 7
        self.arrive(b"a" * 60)
        self.reactor.advance(0)
        self.assertNoResult(recording)
        port.end(StopReason.CANCELLED)
        self.assertEqual(self.recorded(recording).packets, 1)

    def test_no_room_on_the_reactor(self) -> None:
        """If the reactor can't watch it, the capture is unavailable, and leaves nothing."""
        self.reactor = FullReactor()
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
