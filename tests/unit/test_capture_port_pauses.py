"""How a capture is read: with pauses, after a stall, and in the middle of other work."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from pcapsvc.capture.port import CapturePort
from pcapsvc.core.recording import Recording
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
            (627, 0.025),
            (727, 0.025),
        ):
            self.system.deliver("mem0", *[b"x" * 10] * 100)
            self.reactor.advance(pause - 0.0001)
            self.assertEqual(port.progress().packets, packets - 100)
            self.reactor.advance(0.00011)
            self.assertEqual(port.progress().packets, packets)
            self.assertEqual(self.reactor.getReaders(), [])
        self.system.deliver("mem0", *[b"x" * 10] * 63)
        self.reactor.advance(0.026)
        self.assertEqual(port.progress().packets, 790)
        self.assertEqual(self.reactor.getReaders(), [port])
        port.discard()

    def test_many(self) -> None:
        """Of many captures, each is read less often, until most of them have ended."""
        ports = [self.port(packets=100_000) for _ in range(20)]
        self.reactor.advance(1)
        self.arrive(*[b"x" * 10] * 100)
        self.assertEqual(self.all_pausing, set(ports))

        def pause() -> float:
            """That of the first one, after a while."""
            pauses, waited, known = [0.0], 0.0, ports[0].progress().packets
            while sum(pauses) < 0.5:
                self.system.deliver("mem0", *[b"x" * 10] * 50)
                self.reactor.advance(0.001)
                waited += 0.001
                if (packets := ports[0].progress().packets) != known:
                    known = packets
                    pauses.append(waited)
                    waited = 0.0
            return pauses[-1]

        self.assertLess(abs(pause() - 0.04), 0.0015)
        for port in ports[1:]:
            port.discard()
        self.assertEqual(self.all_pausing, {ports[0]})
        self.assertLess(abs(pause() - 0.025), 0.0015)
        ports[0].discard()

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


class _Watcher:
    """An observer that keeps the packets that it sees."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def packet(self, data: bytes, length: int) -> None:
        """See one packet."""
        self.seen.append(data.decode())

    def done(self) -> None:
        """No more."""


class StallTests(CapturePortCase):
    """The process has no processor for a while, in the middle of a read, and packets arrive meanwhile."""

    def setUp(self) -> None:
        super().setUp()
        self.meanwhile: list[float] = []
        self.stepped = self.stall_after_read = 0.0
        self.is_removed = False

    def before_read(self) -> None:
        """
        Packets arrive in the middle of a read, at some times; in the end, the clock is set, or the interface
        removed.
        """
        meanwhile, self.meanwhile = self.meanwhile, []
        for seconds in meanwhile:
            self.deliver(seconds)
        self.wall_clock += self.stepped
        self.stall_seconds = self.stall_after_read
        if self.is_removed:
            self.is_removed = False
            self.system.lose("mem0")

    def deliver(self, seconds: float) -> None:
        """A packet arrives, which has its time as its data."""
        self.reactor.rightNow = seconds
        self.system.seconds = self.wall_clock + seconds
        self.system.deliver("mem0", f"{seconds:.2f}".encode())

    def captured(self, port: CapturePort, *arrivals: float) -> tuple[StopReason, list[str]]:
        """
        Read a packet, and end some time later.

        @param arrivals: when it arrives, and when those do that follow in the middle of the read.

        @return: why it ended, and the packets.
        """
        recording = port.start()
        self.deliver(arrivals[0])
        self.meanwhile = list(arrivals[1:])
        self.turn()
        return self.ended(recording)

    def ended(self, recording: Deferred[Recording]) -> tuple[StopReason, list[str]]:
        """Why a capture ended some time later, and its packets."""
        self.reactor.pump([0.01] * 100)
        made = self.recorded(recording)
        with made.content.open() as file:
            content = file.read()
        self.assertEqual(len(content), made.content.size)
        self.assertEqual(len(content), 24 + 20 * made.packets)
        return made.reason, [content[at + 16 : at + 20].decode() for at in range(24, len(content), 20)]

    def test_duration(self) -> None:
        """What arrives after the end is not in the file."""
        found = self.captured(self.port(duration=2), 1.9, 1.95, 1.99, 2.3, 2.4)
        self.assertEqual(found, (StopReason.DURATION, ["1.90", "1.95", "1.99"]))

    def test_many(self) -> None:
        """However much of it there is."""
        late = [2.01 + number / 1000 for number in range(500)]
        found = self.captured(self.port(duration=2, packets=10_000), 1.9, *late)
        self.assertEqual(found, (StopReason.DURATION, ["1.90"]))

    def test_idle(self) -> None:
        """Nor is what arrives after the idle time."""
        found = self.captured(self.port(idle=1), 0.9, 0.95, 2.2, 2.3)
        self.assertEqual(found, (StopReason.IDLE, ["0.90", "0.95"]))

    def test_on_time(self) -> None:
        """If no packet is late, all are there, and the capture goes on."""
        found = self.captured(self.port(idle=1), 0.9, 1.5, 2.2)
        self.assertEqual(found, (StopReason.IDLE, ["0.90", "1.50", "2.20"]))

    def test_clock_is_set(self) -> None:
        """If the clock is set meanwhile, time stamps say nothing."""
        for step in (-3600.0, 3600.0):
            self.stepped = step
            began = self.reactor.seconds()
            found = self.captured(self.port(duration=2), *(began + each for each in (1.9, 2.3, 2.4)))
            self.assertEqual((found[0], len(found[1])), (StopReason.DURATION, 3))
            self.stepped = 0.0

    def test_other_limits(self) -> None:
        """A limit that is reached before counts as the reason only if it is reached by what is left."""
        found = self.captured(self.port(duration=2, packets=3), 1.9, 2.3, 2.4)
        self.assertEqual(found, (StopReason.DURATION, ["1.90"]))
        began = self.reactor.seconds()
        times = [began + each for each in (1.9, 1.95, 1.98, 2.3)]
        self.assertEqual(
            self.captured(self.port(duration=2, packets=3), *times),
            (StopReason.PACKETS, [f"{each:.2f}" for each in times[:3]]),
        )

    def test_interface_is_removed(self) -> None:
        """If the interface goes away in the same read, the capture ends with the limit, and has its file."""
        recording = self.port(duration=2, snap=65535).start()
        self.reactor.rightNow = 1.9
        self.meanwhile, self.is_removed = [2.3], True
        self.turn()
        self.assertEqual(self.ended(recording), (StopReason.DURATION, []))

    def test_between_two_clocks(self) -> None:
        """What is late is left out even if there is another stall while the clocks are looked at."""
        self.stall_after_read = 0.06
        found = self.captured(self.port(duration=2), 1.9, 2.3)
        self.assertEqual(found, (StopReason.DURATION, ["1.90"]))
        began = self.reactor.seconds()
        found = self.captured(self.port(idle=1), *(began + each for each in (0.9, 2.2)))
        self.assertEqual(found, (StopReason.IDLE, [f"{began + 0.9:.2f}"]))

    def test_between_two_clocks_at_the_start(self) -> None:
        """So it is if there was one when the capture began."""
        self.stall_after_seconds = 0.3
        found = self.captured(self.port(duration=2), 1.9, 2.5)
        self.assertEqual(found, (StopReason.DURATION, ["1.90"]))

    def test_observer(self) -> None:
        """An observer sees no packet that is left out."""
        watcher = _Watcher()
        found = self.captured(self.port(duration=2, observer=watcher), 1.9, 1.95, 2.3)
        self.assertEqual(found, (StopReason.DURATION, ["1.90", "1.95"]))
        self.assertEqual(watcher.seen, found[1])

    def test_read_before_the_start(self) -> None:
        """Nor does a reader of the file, while the recording is yet to be fetched."""
        port = self.port(duration=2)
        self.deliver(1.9)
        self.meanwhile = [2.3]
        self.turn()
        self.assertEqual(port.whole_bytes(), 24 + 20)
        self.assertEqual(self.ended(port.start()), (StopReason.DURATION, ["1.90"]))
