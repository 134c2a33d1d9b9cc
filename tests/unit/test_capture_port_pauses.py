"""How a capture is read: with pauses, after a stall, and in the middle of other work."""

from __future__ import annotations

from pcapsvc.capture.port import CapturePort
from pcapsvc.core.session import StopReason
from peers.frames import udp_frame
from tests.unit.capture_port_case import HAND_OVER, CapturePortCase, FullReactor


class PausesTests(CapturePortCase):
    """When packets are read."""

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
        add, self.reactor.addReader = self.reactor.addReader, FullReactor().addReader
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
