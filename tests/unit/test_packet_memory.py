"""The packets that a history keeps: which ones, where, and for how long."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable

from twisted.trial import unittest

from pcapsvc.capture.packet_memory import PacketMemory, Position
from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.interfaces.capture import IRecordWriter
from pcapsvc.testing_packets import MemoryHandle, MemoryPacketSystem, MemoryRecordWriter
from tests.examples import given, settings
from tests.examples import strategies as st

EPOCH = 1_700_000_000.0
SNAP = 100
PAGE = mmap.PAGESIZE


def numbers_in(records: bytes | memoryview) -> list[int]:
    """The numbers of the packets in a part of a pcap file."""
    found, at = [], 0
    while at < len(records):
        (kept,) = struct.unpack_from("=8xI", records, at)
        found.append(int.from_bytes(records[at + 16 : at + 20], "big"))
        at += 16 + kept
    return found


class MemoryCase(unittest.SynchronousTestCase):
    """An interface, and a memory for its packets."""

    def setUp(self) -> None:
        """An interface."""
        self.make()

    def make(
        self,
        *,
        slots: int = 4,
        slot_bytes: int = PAGE,
        seconds: float = 60,
        snap: int = SNAP,
        open_writer: Callable[[mmap.mmap, int, int], IRecordWriter] = MemoryRecordWriter,
        ticks_per_second: int = 10**6,
    ) -> PacketMemory:
        """A memory that is empty."""
        self.system = MemoryPacketSystem("mem0")
        self.system.interfaces["mem0"].ticks_per_second = ticks_per_second
        handle = self.successResultOf(self.system.open("mem0", snap_length=snap, bpf=""))
        assert isinstance(handle, MemoryHandle)
        self.handle = handle
        self.addCleanup(handle.close)
        self.memory = PacketMemory(
            size_bytes=slots * slot_bytes,
            seconds=seconds,
            snap_length=snap,
            open_writer=open_writer,
            ticks_per_second=ticks_per_second,
        )
        self.addCleanup(self.memory.close)
        self.sent = 0
        # How far the clock of the time stamps is ahead.
        self.ahead = EPOCH
        return self.memory

    def send(self, count: int, *, at: float, size: int = SNAP) -> None:
        """Let numbered packets arrive at a time."""
        self.system.seconds = self.ahead + at
        for number in range(self.sent, self.sent + count):
            self.system.deliver("mem0", number.to_bytes(4, "big") + bytes(size - 4))
        self.sent += count

    def record(self, count: int, *, at: float, size: int = SNAP, dropped: int = 0) -> None:
        """Let packets arrive, and read them at once."""
        self.send(count, at=at, size=size)
        self.assertEqual(self.read(count, at=at, dropped=dropped), count)

    def read(self, most: int, *, at: float, dropped: int = 0) -> int:
        """Read packets, and return how many there were."""
        return self.memory.read(self.handle, most, now=at, ahead=self.ahead, dropped=dropped)

    def since(self, at: float) -> Position:
        """The place of the first packet from a time on."""
        return self.memory.find(self.ahead + at, ahead=self.ahead)[0]

    def released(self) -> float | None:
        """The time of the oldest packet that is kept since others were overwritten."""
        released = self.memory.released(self.ahead)
        return None if released is None else released - self.ahead

    def kept(self, start: Position | None = None, end: Position | None = None) -> list[int]:
        """The numbers of the packets between two places: of all, by default."""
        start = start or Position(slot=0, offset=0, number=0)
        found = []
        for piece in self.memory.pieces(start, end or self.memory.end):
            copied = self.memory.copy(piece)
            assert copied is not None
            numbers = numbers_in(copied)
            self.assertEqual(len(numbers), piece.packets)
            found += numbers
        return found


class PacketMemoryTests(MemoryCase):
    """One memory."""

    def test_empty(self) -> None:
        """Without packets there is nothing to find."""
        self.assertEqual((self.memory.packets, self.memory.bytes), (0, 0))
        self.assertEqual(self.memory.find(EPOCH, ahead=EPOCH), (self.memory.end, None))
        self.assertEqual(self.kept(), [])
        self.assertEqual(self.read(10, at=0), 0)
        self.assertFalse(self.memory.expire(100))
        self.assertEqual(self.kept(), [])

    def test_nanoseconds(self) -> None:
        """Packets are found by time stamps in nanoseconds as well."""
        self.make(ticks_per_second=10**9)
        for at in range(1, 9):
            self.record(1, at=at / 8)
        for at in range(1, 9):
            self.assertEqual(self.kept(self.since(at / 8)), list(range(at - 1, 8)))
            self.assertEqual(self.kept(self.since(at / 8 + 0.001)), list(range(at, 8)))

    def test_packets(self) -> None:
        """Packets are kept as they are in a file, cut to the snap length, with their own length."""
        self.record(3, at=1.25, size=300)
        [piece] = self.memory.pieces(self.since(0), self.memory.end)
        copied = self.memory.copy(piece)
        assert copied is not None
        header = struct.pack("=IIII", 1_700_000_001, 250_000, SNAP, 300)
        self.assertEqual(
            bytes(copied),
            b"".join(header + number.to_bytes(4, "big") + bytes(SNAP - 4) for number in range(3)),
        )
        self.assertEqual(
            (self.memory.packets, self.memory.bytes, self.memory.recorded_bytes), (3, 3 * 116, 3 * 116)
        )
        self.assertEqual((self.since(1.25).number, self.since(1.26).number), (0, 3))

    def test_at_most(self) -> None:
        """No more packets are read than were asked for; the others wait."""
        self.send(130, at=0)
        self.assertEqual(self.read(100, at=0), 100)
        self.assertEqual(self.read(100, at=0), 30)
        self.assertEqual(self.kept(), list(range(130)))

    def test_overwritten(self) -> None:
        """If all memory is in use, the oldest packets are overwritten, and how far it reaches is known."""
        each = PAGE // 116
        for slot in range(4):
            self.assertIsNone(self.released())
            self.record(each, at=slot)
        self.assertEqual(self.kept(), list(range(4 * each)))
        self.record(1, at=4)
        self.assertEqual(self.kept(), list(range(each, 4 * each + 1)))
        self.assertEqual(self.released(), 1)
        self.assertEqual(self.memory.packets, 3 * each + 1)

    def test_numbers_go_on(self) -> None:
        """A place is after as many packets as were recorded, however many of them are still kept."""
        self.record(1000, at=0)
        self.assertEqual(self.memory.end.number, 1000)
        self.assertEqual(self.memory.packets, len(self.kept()))
        self.assertEqual(self.kept()[-1], 999)

    def test_old(self) -> None:
        """Packets are kept for as long as the history's seconds, and not much longer."""
        self.record(1, at=0)
        self.record(1, at=30)
        self.memory.expire(60)
        self.assertEqual(self.kept(), [0, 1])
        self.memory.expire(60.001)
        self.assertEqual(self.kept(), [1])
        self.memory.expire(91)
        self.assertEqual(self.kept(), [])
        # What is too old was not overwritten.
        self.assertIsNone(self.released())
        self.record(1, at=92)
        self.assertEqual(self.kept(), [2])

    def test_quiet(self) -> None:
        """A quiet interface is remembered for as long as a busy one, whatever the size of packets may be."""
        for snap, slots in ((SNAP, 64), (SNAP, 4), (PAGE // 4 - 16, 4), (PAGE // 4 - 16, 16)):
            self.make(slots=slots, snap=snap)
            for second in range(200):
                self.record(1, at=second)
                self.memory.expire(second)
                self.assertEqual(self.kept(), list(range(max(0, second - 60), second + 1)))
            self.assertIsNone(self.released())

    def test_steady(self) -> None:
        """What arrives steadily is not kept longer than it is to be, either."""
        self.make(slots=64)
        for tenth in range(900):
            self.record(1, at=tenth / 10)
            self.memory.expire(tenth / 10)
        oldest = self.kept()[0]
        self.assertTrue(290 - 3 <= oldest <= 300, oldest)

    def test_find(self) -> None:
        """The first packet from a time on is found, wherever it is."""
        for at in range(100):
            self.record(2, at=at)
        first = self.kept()[0]
        for half in range(first, 205):
            wanted = -(-half // 2) * 2
            start = self.since(half / 2)
            self.assertEqual(self.kept(start), list(range(wanted, 200)))
            self.assertEqual(start.number, min(wanted, 200))
        self.assertEqual(self.kept(self.since(-100)), list(range(first, 200)))

    def test_pieces(self) -> None:
        """All packets between any two places are there once, and in order."""
        places = [self.memory.end]
        for at in range(60):
            self.record(1, at=at)
            places.append(self.memory.end)
        for start in range(61):
            for end in range(start, 61):
                self.assertEqual(self.kept(places[start], places[end]), list(range(start, end)))
                piece = self.memory.next_piece(places[start], places[end])
                self.assertEqual(piece is None, start == end)
                if piece is not None:
                    self.assertEqual(piece.start.number, start)

    def test_clock_is_set(self) -> None:
        """Packets are as old as they are, however often the clock of their time stamps was set since."""
        for step in (0, -3600, 7200, -86_400, 3600):
            self.ahead += step
            self.record(5, at=self.sent)
        for at in range(-1, 26):
            number = -(-max(at, 0) // 5) * 5
            self.assertEqual(self.kept(self.since(at)), list(range(number, 25)), at)

    def test_clock_is_set_before_a_read(self) -> None:
        """What arrived before the clock was set, and is read after that, counts as what it is."""
        for step in (3600, -3600):
            self.make()
            self.record(5, at=10)
            self.send(5, at=20)
            self.ahead += step
            self.read(5, at=20.1)
            self.record(5, at=30)
            self.assertEqual(
                [self.since(at).number for at in (5, 10, 15, 20, 25, 30, 35)], [0, 0, 5, 5, 10, 10, 15]
            )

    def test_clock_is_set_within_a_segment(self) -> None:
        """Also if a quiet interface has a long history."""
        self.make(seconds=7 * 86_400)
        self.record(1, at=0)
        self.record(1, at=100)
        self.ahead += 3600
        self.record(1, at=200)
        self.assertEqual([self.since(at).number for at in (0, 50, 100, 150, 200, 250)], [0, 1, 1, 2, 2, 3])

    def test_released_before_the_clock_is_set(self) -> None:
        """Also how far back it reaches is known."""
        for step in (3600, -3600):
            each = PAGE // 116
            self.make()
            self.record(each, at=0)
            self.record(4 * each, at=10)
            self.ahead += step
            self.assertEqual(self.released(), 10)

    def test_dropped(self) -> None:
        """It is known how many packets had been dropped before a place, or before the packet before it."""
        self.record(1, at=0, dropped=3)
        self.record(1, at=10, dropped=5)
        for at, expected in ((-1, 3), (0, 3), (10, 3), (10.5, 5)):
            self.assertEqual(self.memory.find(EPOCH + at, ahead=EPOCH)[1], expected)

    def test_overtaken(self) -> None:
        """What was overwritten can't be copied any more, and is in no list of pieces."""
        self.record(10, at=0)
        start, end = self.since(0), self.memory.end
        [piece] = self.memory.pieces(start, end)
        self.record(1000, at=1)
        self.assertIsNone(self.memory.copy(piece))
        self.assertEqual(self.memory.pieces(start, end), [])
        following = self.memory.next_piece(start, self.memory.end)
        assert following is not None
        self.assertEqual(following.start.number, self.kept()[0])

    def test_interface_fails(self) -> None:
        """Packets that were read before an error are kept, and counted."""
        reads = self.handle.read

        def read(count: int, sink: object) -> int:
            reads(count, sink)  # type: ignore[arg-type]
            raise CaptureUnavailable("mem0", "it is gone")

        self.record(2, at=0)
        self.send(3, at=1)
        self.patch(self.handle, "read", read)
        self.assertRaises(CaptureUnavailable, self.read, 100, at=1)
        self.assertEqual((self.kept(), self.memory.end.number, self.memory.packets), ([0, 1, 2, 3, 4], 5, 5))
        self.assertRaises(CaptureUnavailable, self.read, 100, at=1)
        self.assertEqual(self.memory.packets, 5)

    def test_writer_fails(self) -> None:
        """If no slot can be begun, nothing else is lost, however often it is tried; then it goes on."""
        fails = False

        def open_writer(memory: mmap.mmap, start: int, end: int) -> IRecordWriter:
            if fails:
                raise OSError(12, "Cannot allocate memory")
            return MemoryRecordWriter(memory, start, end)

        self.make(open_writer=open_writer)
        each = PAGE // 116
        self.record(4 * each, at=0)
        self.send(1, at=1)
        fails = True
        for _ in range(10):
            self.assertRaises(OSError, self.read, 1, at=1)
        self.assertEqual(self.kept(), list(range(each, 4 * each)))
        fails = False
        self.assertEqual(self.read(10, at=1), 1)
        self.assertEqual(self.kept(), list(range(each, 4 * each + 1)))
        fails = True
        self.assertRaises(OSError, self.make, open_writer=open_writer)

    def test_closed(self) -> None:
        """What was recorded can be copied when nothing is written any more."""
        self.record(3, at=0)
        self.memory.close()
        self.memory.close()
        self.assertEqual(self.kept(), [0, 1, 2])

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_like_a_list(self, data: st.DataObject) -> None:
        """Whatever arrives and when, what is kept is the end of it, and can be found by its time."""
        self.make(
            slots=data.draw(st.integers(4, 8), "slots"),
            seconds=data.draw(st.sampled_from([5, 60]), "seconds"),
            snap=data.draw(st.sampled_from([20, 100, 900]), "snap"),
        )
        # In hundredths of a second: sums of fractions differ by less than time stamps can.
        times: list[int] = []
        places = [self.memory.end]
        now = 0
        for _ in range(data.draw(st.integers(1, 40), "steps")):
            now += data.draw(st.sampled_from([0, 1, 50, 700]), "wait")
            count = data.draw(st.integers(0, 30), "packets")
            self.record(count, at=now / 100, size=data.draw(st.integers(4, 1000), "size"))
            times += [now] * count
            places.append(self.memory.end)
            if data.draw(st.booleans(), "expire"):
                self.memory.expire(now / 100)
        kept = self.kept()
        self.assertEqual(kept, list(range(len(times) - len(kept), len(times))))
        self.assertEqual(self.memory.packets, len(kept))
        since = data.draw(st.sampled_from([0, now, now / 2, now + 100]), "since")
        wanted = [number for number in kept if times[number] >= since]
        self.assertEqual(self.kept(self.since(since / 100)), wanted)
        first, last = sorted(data.draw(st.tuples(*[st.sampled_from(places)] * 2)), key=lambda one: one.number)
        self.assertEqual(
            self.kept(first, last), [number for number in kept if first.number <= number < last.number]
        )


def resident() -> int:
    """How much memory this process occupies, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


class BoundTests(MemoryCase):
    """The memory that is used."""

    def fill(self, packets: int, *, at: float) -> None:
        """Record packets of 64 KiB."""
        for _ in range(packets // 16):
            self.record(16, at=at, size=65_536)

    def test_bound(self) -> None:
        """No more memory is used than there is to be; what is not used any more is returned, step by step."""
        before = resident()
        self.make(slots=64, slot_bytes=1 << 20, snap=65_536)
        self.assertLess(resident() - before, 4 << 20)
        self.fill(3200, at=0)
        self.assertTrue(56 << 20 < resident() - before < 68 << 20, resident() - before)
        self.memory.expire(61)
        steps = 1
        while self.memory.expire(61):
            steps += 1
        # At most 16 MiB are returned at once: this process is not held up by it.
        self.assertEqual(steps, 4)
        self.assertLess(resident() - before, 6 << 20)
        self.fill(160, at=62)
        self.assertEqual(self.kept(), list(range(3200, 3360)))

    def test_large_slots(self) -> None:
        """Slots that are larger than what is returned at once are returned in parts."""
        before = resident()
        self.make(slots=4, slot_bytes=40 << 20, snap=1 << 24)
        self.fill(800, at=0)
        for _ in range(20):
            self.memory.expire(61)
        self.assertLess(resident() - before, 8 << 20)

    def test_nothing_old_stays(self) -> None:
        """When all packets are too old, none of them is in memory any more, even if all of it was in use."""
        mapped: list[mmap.mmap] = []

        def open_writer(memory: mmap.mmap, start: int, end: int) -> IRecordWriter:
            mapped[:] = [memory]
            return MemoryRecordWriter(memory, start, end)

        self.make(open_writer=open_writer)
        for second in range(50):
            self.record(30, at=second, size=100)
        [memory] = mapped
        self.assertGreater(len(bytes(memory).rstrip(bytes(1))), 3 * PAGE)
        for _ in range(4):
            self.memory.expire(111)
        self.assertEqual(bytes(memory), bytes(len(memory)))
        self.record(30, at=112)
        self.assertEqual(self.kept(), list(range(1500, 1530)))

    def test_descriptors(self) -> None:
        """It needs no descriptor."""
        before = os.listdir("/proc/self/fd")
        memory = PacketMemory(
            size_bytes=4 * PAGE, seconds=1, snap_length=SNAP, open_writer=MemoryRecordWriter
        )
        self.assertEqual(os.listdir("/proc/self/fd"), before)
        memory.close()
