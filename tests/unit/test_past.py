"""What a capture reads of a history: the past, and then what follows."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from io import BytesIO
from typing import Any

from zope.interface import implementer

from pcapsvc.capture.buffer import RecordingBuffer
from pcapsvc.capture.packet_memory import Piece, Position
from pcapsvc.capture.past import NotWanted, PastReader, Taken, fill, take_newest
from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.core.filter import everything
from pcapsvc.core.session import Batch, StopReason
from pcapsvc.interfaces.capture import ISieve
from pcapsvc.testing_packets import MemoryDumper, MemorySieve
from tests.examples import given, settings
from tests.examples import strategies as st
from tests.unit.test_packet_memory import PAGE, SNAP, MemoryCase, numbers_in

EVERYTHING = 10**9


class PastCase(MemoryCase):
    """A memory, and what reads it."""

    def setUp(self) -> None:
        """Nothing was read, and nothing is left open."""
        super().setUp()
        self.pulled = self.dropped = 0
        self.detached: list[PastReader] = []
        self.to_pull = 0
        self.behind = False

    def odd(self, snap_length: int = SNAP) -> MemorySieve:
        """Lets packets pass whose number is odd."""
        self.system.filters["odd"] = lambda data: bool(data[3] % 2)
        return MemorySieve(self.system.compile("odd"), snap_length)

    def pull(self) -> None:
        """Packets are recorded, if there are any."""
        self.pulled += 1
        self.record(self.to_pull, at=1)
        self.to_pull = 0

    def reader(self, sieve: ISieve | None = None, position: Position | None = None) -> PastReader:
        """A reader from here on, or from a place on."""
        reader = PastReader(
            "mem0",
            self.memory,
            position or self.memory.end,
            link_type=1,
            program=everything(SNAP),
            sieve=sieve,
            pull=self.pull,
            is_behind=lambda: self.behind,
            dropped=lambda: self.dropped,
            detach=self.detached.append,
        )
        self.addCleanup(reader.close)
        return reader

    def read_each(self, reader: PastReader, count: int = 1000) -> list[int]:
        """The numbers of the packets that are read one by one."""
        found: list[int] = []
        read = reader.read(count, lambda _, data: found.append(int.from_bytes(data[:4], "big")))
        self.assertEqual(read, len(found))
        return found

    def buffer(self, reader: PastReader, observer: Any = None) -> RecordingBuffer:
        """A file for what is read."""
        buffer = RecordingBuffer(
            reader,
            "test",
            open_dumper=lambda path: self.system.open_dumper(path, link_type=1, snap_length=SNAP),
            snap_length=SNAP,
            observer=observer,
        )
        self.addCleanup(buffer.discard)
        return buffer

    def in_file(self, buffer: RecordingBuffer) -> list[int]:
        """The numbers of the packets in a file."""
        return numbers_in(buffer.read_at(24, buffer.flush()))

    def is_readable(self, reader: PastReader) -> bool:
        """Whether the reactor would read it."""
        return bool(select.select([reader], [], [], 0)[0])


class PastReaderTests(PastCase):
    """What follows the past."""

    def test_follows(self) -> None:
        """Only what is recorded from some place on is read, each packet once, in order."""
        self.record(5, at=0)
        reader = self.reader()
        self.assertEqual(self.read_each(reader), [])
        self.record(5, at=1)
        self.assertEqual(self.read_each(reader, 3), [5, 6, 7])
        self.record(1, at=2)
        self.assertEqual(self.read_each(reader, 3), [8, 9, 10])
        self.assertEqual(self.read_each(reader), [])

    def test_pull(self) -> None:
        """Before it says that there is no more, the recorder has read what has arrived."""
        reader = self.reader()
        self.to_pull = 2
        self.assertEqual(self.read_each(reader), [0, 1])
        self.assertEqual(self.read_each(reader), [])

    def test_behind(self) -> None:
        """There may be more until the recorder has read everything, or the interface is gone."""
        reader = self.reader()
        self.assertFalse(reader.is_behind)
        self.behind = True
        self.assertTrue(reader.is_behind)
        reader.lose("the interface is gone")
        self.assertFalse(reader.is_behind)

    def test_endless(self) -> None:
        """What arrives while it is read waits for the next time: a read ends, however much that is."""
        record = self.record
        self.patch(self, "pull", lambda: record(3, at=1))
        reader = self.reader()
        self.assertEqual(self.read_each(reader), [0, 1, 2])
        self.assertEqual(self.read_each(reader, 2), [3, 4])
        self.assertEqual(self.read_each(reader), [5, 6, 7, 8])

    def test_into_a_dumper(self) -> None:
        """Packets are written into a file, up to the number asked for, wherever slots end."""
        reader = self.reader()
        buffer = self.buffer(reader)
        self.record(100, at=0)
        for count, total in ((1, 1), (39, 40), (59, 99), (1, 100), (1, 100)):
            buffer.read(Batch(packets=count, stop_at_bytes=None))
            self.assertEqual((buffer.packets, self.in_file(buffer)), (total, list(range(total))))
        self.assertEqual(buffer.size, 24 + 100 * 116)

    def test_sieve(self) -> None:
        """Only what passes the sieve is read, and cut to the snap length, however much doesn't pass."""
        reader = self.reader(self.odd(50))
        self.record(70, at=0)
        self.assertEqual(self.read_each(reader, 7), [1, 3, 5, 7, 9, 11, 13])
        buffer = self.buffer(reader)
        buffer.read(Batch(packets=8, stop_at_bytes=None))
        self.assertEqual(buffer.size, 24 + 8 * 66)
        buffer.read(Batch(packets=1000, stop_at_bytes=None))
        self.assertEqual(self.in_file(buffer), list(range(15, 70, 2)))
        self.record(1, at=1)
        self.assertEqual(self.read_each(reader), [])

    def test_headers(self) -> None:
        """One by one, packets have their time stamps, and their length on the wire."""
        reader = self.reader()
        self.record(1, at=2.5, size=300)
        found: list[tuple[tuple[int, int], int, int]] = []
        reader.read(9, lambda header, data: found.append((header.getts(), header.getlen(), len(data))))
        self.assertEqual(found, [((1_700_000_002, 500_000), 300, SNAP)])

    def test_nanoseconds(self) -> None:
        """Their time stamps are in nanoseconds if those of the memory are, and so is that of the past."""
        self.make(ticks_per_second=10**9)
        reader = self.reader()
        self.assertEqual(reader.ticks_per_second, 10**9)
        self.record(1, at=2.5)
        found: list[tuple[int, int]] = []
        reader.read(9, lambda header, _: found.append(header.getts()))
        self.assertEqual(found, [(1_700_000_002, 500_000_000)])
        pieces = self.memory.pieces(self.since(0), self.memory.end)
        taken = take_newest(self.memory, pieces, None, max_packets=EVERYTHING, max_bytes=EVERYTHING)
        self.assertEqual(taken.first, 1_700_000_002.5)

    def test_callback_fails(self) -> None:
        """What the callback raises is raised; the packets behind it wait."""
        reader = self.reader()
        self.record(3, at=0)

        def refuse(header: object, data: bytes) -> None:
            raise ZeroDivisionError

        self.assertRaises(ZeroDivisionError, reader.read, 10, refuse)
        self.assertEqual(self.read_each(reader), [1, 2])

    def test_descriptor(self) -> None:
        """Its descriptor is readable from when packets were recorded until all of them were read."""
        reader = self.reader()
        self.assertFalse(self.is_readable(reader))
        self.record(3, at=0)
        reader.notify()
        reader.notify()
        self.read_each(reader, 2)
        self.assertTrue(self.is_readable(reader))
        self.read_each(reader, 2)
        self.assertFalse(self.is_readable(reader))

    def test_lost(self) -> None:
        """
        When the interface is gone, what was recorded until then is read; then that is reported, and its
        descriptor is readable until it was. What another interface brings doesn't belong to it.
        """
        reader = self.reader()
        self.record(3, at=0)
        reader.lose("it is gone")
        self.record(3, at=1)
        self.assertEqual(self.read_each(reader), [0, 1, 2])
        self.assertTrue(self.is_readable(reader))
        for _ in range(2):
            error = self.assertRaises(CaptureUnavailable, reader.read, 1, lambda *_: None)
            self.assertEqual((error.interface, error.reason), ("mem0", "it is gone"))
        self.assertEqual(self.pulled, 0)

    def test_overtaken(self) -> None:
        """Packets that were overwritten before they were read count as dropped."""
        reader = self.reader()
        self.record(140, at=0)
        self.record(1, at=1)
        self.assertEqual(self.read_each(reader), list(range(35, 141)))
        counts = reader.counts()
        assert counts is not None
        self.assertEqual((counts.received, counts.dropped, counts.interface_dropped), (141, 35, None))

    def test_counts(self) -> None:
        """It counts what the kernel has dropped since, and nothing of the past."""
        self.dropped = 7
        self.record(5, at=0)
        reader = self.reader()
        self.record(4, at=1)
        self.dropped = 9
        self.read_each(reader)
        counts = reader.counts()
        assert counts is not None
        self.assertEqual((counts.received, counts.dropped), (6, 2))

    def test_close(self) -> None:
        """Nothing is left of it, its sieve included. It can't be read any more."""
        before = len(os.listdir("/proc/self/fd"))
        sieve = self.odd()
        reader = self.reader(sieve)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before + 1)
        reader.close()
        reader.close()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        self.assertEqual((self.detached, sieve.closed), ([reader], True))
        self.assertRaises(ValueError, reader.read, 1, lambda *_: None)


@implementer(ISieve)
class _Late:
    """
    Lets all packets pass. When it is asked for the third time, something happens.

    @param error: what is raised then.
    """

    def __init__(self, error: OSError | None, happens: Callable[[], object]) -> None:
        self._error = error
        self._happens = happens
        self._sifted = 0

    def sift(self, records: memoryview) -> tuple[int, memoryview]:
        """See L{ISieve.sift}."""
        self._sifted += 1
        if self._sifted == 3:
            self._happens()
            if self._error is not None:
                raise self._error
        return len(numbers_in(records)), records

    def close(self) -> None:
        """See L{ISieve.close}."""


class TakeTests(PastCase):
    """The past itself."""

    def take(
        self,
        sieve: ISieve | None = None,
        *,
        packets: int = EVERYTHING,
        size: int = EVERYTHING,
        since: float = -1,
    ) -> Taken:
        """Take the past, for a capture that begins here."""
        reader = self.reader(sieve)
        return reader.take(self.since(since), max_packets=packets, max_bytes=size)()

    def numbers(self, taken: Taken) -> list[int]:
        """The numbers of the packets that were taken, which are as many and as large as it says."""
        found: list[int] = []
        for packets, records in taken.parts:
            numbers = numbers_in(records)
            self.assertEqual(len(numbers), packets)
            found += numbers
        self.assertEqual(taken.packets, len(found))
        self.assertEqual(taken.size, 24 + sum(len(records) for _, records in taken.parts))
        return found

    def test_everything(self) -> None:
        """Without a limit, all packets are taken since some time, and none that come later."""
        for second in range(50):
            self.record(2, at=second)
        reader = self.reader()
        take = reader.take(self.since(9.5), max_packets=EVERYTHING, max_bytes=EVERYTHING)
        self.record(2, at=50)
        taken = take()
        self.assertEqual(self.numbers(taken), list(range(20, 100)))
        self.assertEqual((taken.first, taken.reason, taken.is_overtaken), (1_700_000_010.0, None, False))
        self.assertEqual(self.read_each(reader), [100, 101])

    def test_nothing(self) -> None:
        """Without packets nothing is taken."""
        for sieve in (None, self.odd()):
            taken = self.take(sieve)
            self.assertEqual((self.numbers(taken), taken.first, taken.reason), ([], None, None))
        self.record(1, at=0)
        taken = self.take(self.odd())
        self.assertEqual((self.numbers(taken), taken.first, taken.reason), ([], None, None))

    def test_limits(self) -> None:
        """Of the newest packets as many are taken as there is room for, and exactly so."""
        for second in range(10):
            self.record(7, at=second)
        for most in range(1, 75):
            for limits in ({"packets": most}, {"size": 24 + most * 116}, {"size": 24 + most * 116 + 115}):
                taken = self.take(**limits)
                self.assertEqual(self.numbers(taken), list(range(70))[-most:])
                limit = StopReason.PACKETS if "packets" in limits else StopReason.BYTES
                self.assertIs(taken.reason, limit if most < 70 else None)

    def test_no_room(self) -> None:
        """A limit that not even one packet keeps leaves out all of them."""
        self.record(3, at=0)
        for size in (0, 24, 100):
            taken = self.take(size=size)
            self.assertEqual((self.numbers(taken), taken.first, taken.reason), ([], None, StopReason.BYTES))

    def test_limits_of_what_passes(self) -> None:
        """Only what passes the filter counts, cut to the snap length."""
        for second in range(10):
            self.record(7, at=second)
        odd = list(range(1, 70, 2))
        for most in range(1, 40):
            taken = self.take(self.odd(20), packets=most)
            self.assertEqual(self.numbers(taken), odd[-most:])
            self.assertIs(taken.reason, StopReason.PACKETS if most < 35 else None)
            taken = self.take(self.odd(20), size=24 + most * 36)
            self.assertEqual(self.numbers(taken), odd[-most:])

    def test_overtaken(self) -> None:
        """What was overwritten in the meantime is missing at the beginning, and that is known."""
        for second in range(4):
            self.record(35, at=second)
        reader = self.reader()
        take = reader.take(self.since(0), max_packets=EVERYTHING, max_bytes=EVERYTHING)
        self.record(40, at=4)
        taken = take()
        self.assertEqual(self.numbers(taken), list(range(70, 140)))
        self.assertTrue(taken.is_overtaken)
        self.assertEqual(self.read_each(reader), list(range(140, 180)))

    def test_overwritten_meanwhile(self) -> None:
        """A piece whose memory is used again just before it is copied is left out, as are those before it."""
        for second in range(4):
            self.record(35, at=second)
        pieces = self.memory.pieces(self.since(0), self.memory.end)
        copy = self.memory.copy

        def copy_late(piece: Piece) -> memoryview | None:
            if piece.start.number == 35:
                self.record(80, at=5)
            return copy(piece)

        self.patch(self.memory, "copy", copy_late)
        taken = take_newest(self.memory, pieces, None, max_packets=EVERYTHING, max_bytes=EVERYTHING)
        self.assertEqual(self.numbers(taken), list(range(70, 140)))
        self.assertTrue(taken.is_overtaken)

    def test_overwritten_while_sifted(self) -> None:
        """What is overwritten while it is sifted is left out, whether or not it still looks like packets."""
        for error in (None, OSError("that isn't a packet")):
            self.make(slots=4, slot_bytes=PAGE)
            for second in range(4):
                self.record(35, at=second)
            taken = self.take(_Late(error, lambda: self.record(80, at=5)))
            self.assertEqual((self.numbers(taken), taken.is_overtaken), (list(range(70, 140)), True))
        # If it was not overwritten, that is another error.
        self.assertRaises(OSError, self.take, _Late(OSError("it can't be read"), lambda: None))

    def test_not_wanted(self) -> None:
        """Once nobody waits for the packets, no more of them are copied, or written."""
        for second in range(4):
            self.record(35, at=second)
        reader = self.reader()
        take = reader.take(self.since(0), max_packets=EVERYTHING, max_bytes=EVERYTHING)
        asked: list[bool] = []

        def is_wanted() -> bool:
            asked.append(True)
            return len(asked) < 3

        self.assertRaises(NotWanted, take, is_wanted=is_wanted)
        self.assertEqual(len(asked), 3)
        buffer = self.buffer(reader)
        self.assertRaises(NotWanted, fill, buffer, take(), lambda: False)
        self.assertEqual(buffer.packets, 0)

    def test_fill(self) -> None:
        """What was taken is in the file, and in its counts, and not in memory twice."""
        self.record(70, at=0)
        reader = self.reader()
        seen: list[int] = []

        class Observer:
            def packet(self, data: bytes, length: int) -> None:
                seen.append(int.from_bytes(data[:4], "big"))

            def done(self) -> None:
                pass

        buffer = self.buffer(reader, Observer())
        taken = reader.take(self.since(0), max_packets=50, max_bytes=EVERYTHING)()
        fill(buffer, taken)
        self.assertEqual((buffer.packets, buffer.size, taken.parts), (50, 24 + 50 * 116, []))
        self.record(5, at=1)
        buffer.read(Batch(packets=100, stop_at_bytes=None))
        buffer.show()
        self.assertEqual(self.in_file(buffer), list(range(20, 75)))
        self.assertEqual(seen, list(range(20, 75)))

    def test_fill_fails(self) -> None:
        """That there is no memory for it is reported."""
        self.record(70, at=0)
        reader = self.reader()

        class Full(MemoryDumper):
            def __init__(self, file: str | int) -> None:
                super().__init__(BytesIO(), 1, SNAP)

            def write(self, records: memoryview, packets: int) -> None:
                raise OSError(28, "No space left on device")

        buffer = RecordingBuffer(reader, "test", open_dumper=Full, snap_length=SNAP)
        self.addCleanup(buffer.discard)
        taken = reader.take(self.since(0), max_packets=50, max_bytes=EVERYTHING)()
        self.assertRaises(OSError, fill, buffer, taken)

    @settings(max_examples=80, deadline=None)
    @given(st.data())
    def test_like_a_list(self, data: st.DataObject) -> None:
        """Whatever was recorded, what is taken is the end of what matches, and no more fits."""
        self.make(slots=data.draw(st.integers(4, 6), "slots"), slot_bytes=PAGE)
        sizes: list[int] = []
        for second in range(data.draw(st.integers(0, 12), "reads")):
            for size in data.draw(st.lists(st.integers(4, 150), max_size=20), "sizes"):
                self.record(1, at=second, size=size)
                sizes.append(size)
        kept = len(sizes) - self.memory.packets
        snap = data.draw(st.sampled_from([10, SNAP]), "snap")
        is_odd = data.draw(st.booleans(), "odd") or snap < SNAP
        most = data.draw(st.integers(1, 200), "packets")
        room = data.draw(st.integers(0, 20_000), "bytes")
        taken = self.take(self.odd(snap) if is_odd else None, packets=most, size=room)
        wanted: list[int] = []
        size, reason = 24, None
        for number in reversed(range(kept, len(sizes))):
            if is_odd and not number % 2:
                continue
            size += 16 + min(snap, sizes[number])
            if len(wanted) == most or size > room:
                reason = StopReason.PACKETS if len(wanted) == most else StopReason.BYTES
                break
            wanted.insert(0, number)
        self.assertEqual(self.numbers(taken), wanted)
        self.assertEqual(taken.reason is None, reason is None)
        if reason is not None and len(wanted) != most:
            self.assertIs(taken.reason, StopReason.BYTES)
