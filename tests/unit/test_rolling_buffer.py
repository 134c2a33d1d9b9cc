"""The newest packets in memory: exact to the packet, and hardly more memory than that."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.trial import unittest

from pcapsvc.capture.buffer import MOST_BEYOND_BYTES, Observer
from pcapsvc.capture.rolling import RollingBuffer
from pcapsvc.core.recording import Content
from pcapsvc.core.session import Batch
from pcapsvc.memory_file import MemoryFile
from pcapsvc.testing_packets import MemoryPacketSystem
from tests.chance import seeded
from tests.examples import given, settings
from tests.examples import strategies as st

EPOCH = 1_700_000_000.0


@dataclass(frozen=True)
class Sent:
    """A packet, and when it arrived, in seconds since the Unix epoch."""

    seconds: float
    data: bytes


def packets_of(content: Content) -> list[Sent]:
    """The packets of a pcap file."""
    with content.open() as file:
        data = file.read()
    assert len(data) == content.size, (len(data), content.size)
    # draft-ietf-opsawg-pcap, sections 4 and 5.
    (magic,) = struct.unpack_from("=I", data)
    ticks_per_second = {0xA1B2C3D4: 10**6, 0xA1B23C4D: 10**9}[magic]
    found, at = [], 24
    while at < len(data):
        seconds, ticks, kept, _ = struct.unpack_from("=IIII", data, at)
        found.append(Sent(seconds + ticks / ticks_per_second, data[at + 16 : at + 16 + kept]))
        at += 16 + kept
    return found


def newest(sent: Sequence[Sent], *, size: int, since: float = 0.0) -> list[Sent]:
    """The newest of packets, for which a file of this size has room, from this time on."""
    found: list[Sent] = []
    size -= 24
    for each in reversed(sent):
        size -= 16 + len(each.data)
        if size < 0 or each.seconds < since:
            break
        found.append(each)
    return found[::-1]


def allocated() -> int:
    """The bytes of memory that the files in memory hold, of this test."""
    paths = [path for path in Path("/proc/self/fd").iterdir() if "memfd:test" in _target(path)]
    return sum({found.st_ino: found.st_blocks * 512 for found in map(os.stat, paths)}.values())


def _target(path: Path) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # the descriptor of the directory itself
        return ""


class _Watcher:
    """Keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.dones = 0

    def packet(self, data: bytes, length: int) -> None:
        """See one packet."""
        self.seen.append(data)

    def done(self) -> None:
        """There are no more."""
        self.dones += 1


class RollingCase(unittest.SynchronousTestCase):
    """An interface, and two clocks."""

    ticks_per_second = 10**6

    def setUp(self) -> None:
        """Nothing has arrived."""
        self.before = len(os.listdir("/proc/self/fd"))
        self.addCleanup(self.assert_nothing_left)
        self.begin()

    def begin(self) -> None:
        """Begin from scratch."""
        self.system = MemoryPacketSystem("mem0")
        self.system.interfaces["mem0"].ticks_per_second = self.ticks_per_second
        self.now = 1000.0
        self.stepped = self.stall_seconds = 0.0
        self.sent: list[Sent] = []

    def assert_nothing_left(self) -> None:
        """Every descriptor is closed."""
        self.assertEqual(len(os.listdir("/proc/self/fd")), self.before)

    def wall_clock(self) -> float:
        """The time in seconds since the Unix epoch. Before the next look, the process may have to wait."""
        self.now += self.stall_seconds
        self.stall_seconds = 0.0
        return EPOCH + self.now + self.stepped

    def buffer(
        self,
        size: int,
        *,
        seconds: float | None = None,
        snap_length: int = 2000,
        observer: Observer | None = None,
    ) -> tuple[RollingBuffer, Callable[[], None]]:
        """A buffer, and a function that closes its handle."""
        handle = self.successResultOf(self.system.open("mem0", snap_length=snap_length, bpf=""))
        buffer = RollingBuffer(
            handle,
            "test",
            open_dumper=lambda file: self.system.open_dumper(
                file, link_type=1, snap_length=snap_length, ticks_per_second=self.ticks_per_second
            ),
            snap_length=snap_length,
            observer=observer,
            max_bytes=size,
            kept_seconds=seconds,
            now=lambda: self.now,
            wall_clock=self.wall_clock,
        )
        return buffer, handle.close

    def arrive(self, *packets: bytes) -> None:
        """Packets arrive now."""
        self.system.seconds = self.wall_clock()
        self.system.deliver("mem0", *packets)
        self.sent += [Sent(round(self.system.seconds, 6), data) for data in packets]

    def read(self, buffer: RollingBuffer, most: int = 8192) -> None:
        """Read what has arrived."""
        while buffer.read(Batch(packets=most, stop_at_bytes=None)) == most:
            pass

    def assert_same(self, found: Sequence[Sent], wanted: Sequence[Sent]) -> None:
        """Compare packets; by their times only to the microsecond."""
        self.assertEqual([each.data for each in found], [each.data for each in wanted])
        for one, other in zip(found, wanted, strict=True):
            self.assertAlmostEqual(one.seconds, other.seconds, places=4)


class RollingBufferTests(RollingCase):
    """What is kept."""

    def test_exact(self) -> None:
        """The file has the newest packets that fit, to the byte; and it says what it has, at any time."""
        for size, kept in ((24 + 5 * 116, 5), (24 + 5 * 116 - 1, 4), (24 + 5 * 116 + 115, 5), (24 + 116, 1)):
            self.begin()
            buffer, close = self.buffer(size)
            for number in range(20):
                self.now += 1
                self.arrive(bytes([number]) * 100)
                self.read(buffer)
                held, wanted = buffer.held, newest(self.sent, size=size)
                self.assertEqual(len(wanted), min(kept, number + 1))
                assert held.rolling is not None and held.rolling.first is not None
                self.assertEqual((held.packets, held.bytes), (len(wanted), 24 + 116 * len(wanted)))
                self.assertAlmostEqual(held.rolling.first, wanted[0].seconds, places=4)
                self.assertEqual(
                    (held.rolling.captured, held.rolling.released), (number + 1, number + 1 - len(wanted))
                )
            held = buffer.held
            with_all = buffer.finish()
            self.assert_same(packets_of(with_all), newest(self.sent, size=size))
            self.assertEqual((buffer.held, with_all.size), (held, held.bytes))
            with_all.close()
            close()

    def test_nothing_fits(self) -> None:
        """If there is no room for the last packet, there is none for those before it, either."""
        buffer, close = self.buffer(24 + 115)
        self.arrive(bytes(10), bytes(100))
        self.read(buffer)
        content = buffer.finish()
        self.assertEqual((packets_of(content), buffer.held.packets, buffer.held.bytes), ([], 0, 24))
        content.close()
        close()

    def test_nothing_arrived(self) -> None:
        """Without a packet, the file has none."""
        buffer, close = self.buffer(1000, seconds=5)
        held = buffer.held
        content = buffer.finish()
        self.assertEqual((packets_of(content), held.packets, held.bytes), ([], 0, 24))
        assert held.rolling is not None
        self.assertEqual((held.rolling.first, held.rolling.seconds), (None, 5))
        content.close()
        close()

    def test_memory(self) -> None:
        """Whatever has arrived, it needs hardly more memory than the file may have."""
        for size, length in ((1000, 100), (10**6, 100), (10**6, 1500), (4 * 10**6, 700)):
            self.begin()
            buffer, close = self.buffer(size)
            most = 0
            for _ in range(60):
                self.arrive(*[bytes(length)] * 1000)
                self.read(buffer)
                most = max(most, allocated())
                self.assertTrue(buffer.written <= size + MOST_BEYOND_BYTES, (buffer.written, size))
            self.assertTrue(most <= size + MOST_BEYOND_BYTES, (most, size))
            content = buffer.finish()
            left = allocated()
            self.assertTrue(content.size <= size and left <= content.size + 3 * 4096, (left, content.size))
            self.assertTrue(content.size > size - 16 - length, content.size)
            content.close()
            close()

    def test_past(self) -> None:
        """What was copied from a history counts, and is released first."""
        buffer, close = self.buffer(24 + 3 * 26)
        records = b"".join(struct.pack("=IIII", 5 + n, 0, 10, 10) + bytes([n]) * 10 for n in range(3))
        buffer.append(memoryview(records), 3)
        self.assertEqual(buffer.held.packets, 3)
        self.arrive(b"x" * 10)
        self.read(buffer)
        held = buffer.held
        assert held.rolling is not None
        self.assertEqual((held.packets, held.rolling.first, held.rolling.released), (3, 6.0, 1))
        content = buffer.finish()
        self.assertEqual([each.data[:1] for each in packets_of(content)], [b"\1", b"\2", b"x"])
        content.close()
        close()

    def test_observed(self) -> None:
        """Each packet is seen once (C{packetdebug}), also those that are released; the file is the same."""
        watcher = _Watcher()
        buffer, close = self.buffer(24 + 3 * 26, observer=watcher)
        for number in range(10):
            self.arrive(bytes([number]) * 10)
            self.read(buffer)
        content = buffer.finish()
        self.assert_same(packets_of(content), self.sent[7:])
        self.assertEqual((watcher.seen, watcher.dones), ([each.data for each in self.sent], 1))
        content.close()
        close()

    def test_flood_observed(self) -> None:
        """So it is if most packets of a batch are released at once, and their memory is freed."""
        watcher = _Watcher()
        buffer, close = self.buffer(5000, observer=watcher)
        self.arrive(*(number.to_bytes(4, "big") * 250 for number in range(1000)))
        self.read(buffer)
        content = buffer.finish()
        self.assert_same(packets_of(content), self.sent[996:])
        self.assertEqual(watcher.seen, [each.data for each in self.sent])
        content.close()
        close()

    def test_discarded(self) -> None:
        """A capture that has failed holds nothing, and may be asked."""
        buffer, close = self.buffer(1000)
        self.arrive(bytes(10))
        self.read(buffer)
        buffer.discard()
        self.assertEqual((buffer.held.packets, buffer.packets), (0, 1))
        close()

    @seeded
    @settings(deadline=None, max_examples=150)
    @given(
        size=st.integers(1, 400_000),
        seconds=st.none() | st.floats(0.01, 30),
        turns=st.lists(
            st.tuples(
                st.lists(st.tuples(st.integers(0, 2500), st.integers(1, 40)), max_size=6),
                st.floats(0, 5),
                st.booleans(),
                st.sampled_from(["", "look", "copy"]),
            ),
            max_size=30,
        ),
    )
    def test_against_a_list(
        self,
        size: int,
        seconds: float | None,
        turns: list[tuple[list[tuple[int, int]], float, bool, str]],
    ) -> None:
        """Whatever arrives, and whenever it is read and looked at: it has what a list would have."""
        self.begin()
        buffer, close = self.buffer(size, seconds=seconds)
        number = read = 0

        def wanted() -> list[Sent]:
            since = 0.0 if seconds is None else self.wall_clock() - seconds
            return newest(self.sent[:read], size=size, since=since)

        for groups, passes, reads, then in turns:
            for length, count in groups:
                for _ in range(count):
                    number += 1
                    self.arrive((number.to_bytes(4, "big") * 600)[: min(2000, length)])
                    # No two at a limit of the age, where the last digit of a time stamp decides.
                    self.now += 0.000_101
            self.now += passes
            if reads:
                self.read(buffer)
                read = len(self.sent)
            if then == "look":
                self.assertEqual(buffer.held.packets, len(wanted()))
            elif then == "copy":
                snapshot = buffer.snapshot()
                copy = snapshot.copy()
                snapshot.close()
                self.assert_same(packets_of(copy), wanted())
                copy.close()
        content = buffer.finish()
        self.assert_same(packets_of(content), wanted())
        self.assertTrue(content.size <= max(24, size))
        content.close()
        close()


class AgeTests(RollingCase):
    """What is kept by age, which is known by time stamps."""

    def test_age(self) -> None:
        """Packets that arrived longer ago are not in the file, though it has room for them."""
        buffer, close = self.buffer(10**6, seconds=10)
        for number in range(100):
            self.arrive(number.to_bytes(4, "big"))
            self.now += 0.25
            self.read(buffer)
        self.assertEqual(buffer.held.packets, 40)
        content = buffer.finish()
        self.assert_same(packets_of(content), self.sent[60:])
        content.close()
        close()

    def test_all_too_old(self) -> None:
        """If nothing has arrived for longer, nothing is left; and what arrives then is kept again."""
        buffer, close = self.buffer(10**6, seconds=10)
        self.arrive(b"old")
        self.read(buffer)
        self.now += 10.5
        self.assertEqual(buffer.held.packets, 0)
        self.arrive(b"new")
        self.read(buffer)
        content = buffer.finish()
        self.assertEqual([each.data for each in packets_of(content)], [b"new"])
        content.close()
        close()

    def test_read_late(self) -> None:
        """What counts is when packets arrived, and not when they were read."""
        buffer, close = self.buffer(10**6, seconds=10)
        for number in range(10_000):
            self.arrive(number.to_bytes(4, "big") * 20)
            self.now += 0.002
        self.read(buffer, most=100)
        content = buffer.finish()
        self.assert_same(packets_of(content), newest(self.sent, size=10**6, since=self.wall_clock() - 10))
        self.assertIn(len(packets_of(content)), (5000, 5001))
        content.close()
        close()

    def test_stall_between_two_clocks(self) -> None:
        """A stall between two looks at the clocks makes no packet older."""
        buffer, close = self.buffer(10**6, seconds=10)
        self.arrive(b"x")
        self.stall_seconds = 5.0
        self.read(buffer)
        self.now += 4.5
        self.assertEqual(buffer.held.packets, 1)
        self.now += 1.0
        self.assertEqual(buffer.held.packets, 0)
        buffer.discard()
        close()

    def test_clock_set(self) -> None:
        """That the clock is set makes no packet older, or younger."""
        for step in (3600.0, -3600.0):
            self.begin()
            buffer, close = self.buffer(10**6, seconds=10)
            for number in range(40):
                if number == 30:
                    self.stepped = step
                self.arrive(bytes([number]))
                self.read(buffer)
                self.now += 0.5
            content = buffer.finish()
            self.assertEqual([each.data[0] for each in packets_of(content)], list(range(20, 40)))
            content.close()
            close()


class NanosecondTests(AgeTests):
    """The same, if time stamps are in nanoseconds."""

    ticks_per_second = 10**9


class SnapshotTests(RollingCase):
    """Copies of what a capture holds, while it goes on."""

    def snapshot(self, size: int, packets: int) -> tuple[RollingBuffer, MemoryFile]:
        """A buffer with packets, that more have followed while it was being copied."""
        buffer, close = self.buffer(size)
        self.addCleanup(close)
        self.addCleanup(buffer.discard)
        self.number = 0
        self.more(buffer, packets)
        return buffer, self.copy_while(buffer, lambda: None)

    def more(self, buffer: RollingBuffer, packets: int) -> None:
        """More packets arrive, and are read."""
        for _ in range(packets):
            self.number += 1
            self.arrive(self.number.to_bytes(4, "big") * 250)
        self.read(buffer)

    def copy_while(self, buffer: RollingBuffer, meanwhile: Callable[[], None]) -> MemoryFile:
        """A copy, while something happens as soon as its first piece is copied."""
        snapshot = buffer.snapshot()
        pread, called = os.pread, []

        def read(*arguments: Any) -> bytes:
            data = pread(*arguments)
            called.append(1)
            if len(called) == 2:
                meanwhile()
            return data

        patched = self.patch(os, "pread", read)
        copy = snapshot.copy()
        patched.restore()
        snapshot.close()
        assert isinstance(copy, MemoryFile)
        self.addCleanup(copy.close)
        return copy

    def numbers(self, content: Content) -> list[int]:
        """The numbers of the packets in a file."""
        return [int.from_bytes(each.data[:4], "big") for each in packets_of(content)]

    def test_copy(self) -> None:
        """It has what the capture holds, and stays when the capture goes on."""
        buffer, copy = self.snapshot(24 + 100 * 1016, 300)
        self.more(buffer, 300)
        self.assertEqual(self.numbers(copy), list(range(201, 301)))

    def test_overtaken(self) -> None:
        """What is released while it is copied is left out; the rest is whole, and goes up to its end."""
        for more in (10, 1000, 2000, 4000, 10_000):
            self.begin()
            buffer, _ = self.snapshot(24 + 3000 * 1016, 3000)
            last = self.number
            copy = self.copy_while(buffer, lambda: self.more(buffer, more))  # noqa: B023 - called right here
            found = self.numbers(copy)
            self.assertEqual(found, list(range(last + 1 - len(found), last + 1)))
            # Packets are released in segments, and one piece was copied before.
            self.assertTrue(max(1000, 3000 - more - 256) <= len(found) <= 3000, (more, len(found)))

    def test_ended(self) -> None:
        """The capture may end while it is copied."""
        buffer, _ = self.snapshot(24 + 3000 * 1016, 5000)

        def end() -> None:
            content = buffer.finish()
            self.addCleanup(content.close)

        self.assertEqual(self.numbers(self.copy_while(buffer, end)), list(range(2001, 5001)))
