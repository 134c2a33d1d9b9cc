"""The four limits of a capture."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.pcap_file import FILE_HEADER_BYTES, PACKET_HEADER_BYTES
from pcapsvc.core.session import (
    CaptureLimits,
    CaptureSession,
    StopReason,
)
from tests.examples import given, settings
from tests.examples import strategies as st

# What stdio may hold back, by which a size that isn't counted may be too large.
_SLACK = 4096

# The wall clock at 1000 seconds.
EPOCH = 1_700_000_000.0


def session(
    *, packets: int = 1000, size: int = 10**6, idle: float = 10, duration: float = 100, snap: int = 100
) -> CaptureSession:
    """A session that began at 1000 seconds."""
    limits = CaptureLimits(max_packets=packets, max_bytes=size, idle_seconds=idle, duration_seconds=duration)
    return CaptureSession(limits, snap_length=snap, now=1000.0, wall=EPOCH)


def stamp(now: float, *, stepped: float = 0) -> float:
    """The time stamp of a packet that arrives at a time, by a clock that was stepped by some seconds."""
    return EPOCH + now - 1000 + stepped


class LateTests(unittest.SynchronousTestCase):
    """Packets that are read long after they have arrived, because the process was stopped."""

    def read(
        self, followed: CaptureSession, now: float, *arrived: float, stepped: float = 0, ring: float = 0
    ) -> tuple[int, StopReason | None]:
        """
        Read what is in the ring.

        @param now: when it is read.
        @param arrived: when the packets in it arrived.
        @param stepped: by how much the wall clock was set since.
        @param ring: by how much it was set when the packets arrived.

        @return: how many packets belong to the capture, and why it is over.
        """
        batch = followed.next_batch(now, EPOCH + now - 1000 + stepped)
        kept = 0
        for each in arrived:
            if batch.late is not None and not batch.late.belongs(stamp(each, stepped=ring)):
                break
            kept += 1
        return kept, followed.recorded(kept, 24 + kept * 50, now)

    def test_in_time(self) -> None:
        """Packets that can't have arrived long ago are not looked at, and count from when they are read."""
        followed = session(idle=10)
        for number in range(1, 100):
            self.assertIsNone(followed.next_batch(1000 + number * 0.09, EPOCH + number * 0.09).late)
            self.assertIsNone(followed.recorded(number % 2, 100, 1000 + number * 0.09))
        self.assertAlmostEqual(followed.next_deadline(), 1000 + 99 * 0.09 + 10)

    def test_duration(self) -> None:
        """What arrived after the end doesn't belong to the capture."""
        followed = session(duration=2)
        self.assertEqual(self.read(followed, 1000.05), (0, None))
        found = self.read(followed, 1003, 1000.5, 1001.9, 1002.1, 1002.9)
        self.assertEqual(found, (2, StopReason.DURATION))

    def test_idle(self) -> None:
        """Nor does what arrived after a gap that was too long; the gap may begin before the stall."""
        followed = session(idle=1)
        self.assertEqual(self.read(followed, 1000.05, 1000.04), (1, None))
        self.assertEqual(self.read(followed, 1003, 1000.9, 1001.8, 1002.9), (2, StopReason.IDLE))
        followed = session(idle=1)
        self.assertEqual(self.read(followed, 1000.05, 1000.04), (1, None))
        self.assertEqual(self.read(followed, 1003, 1001.2, 1002.9), (0, StopReason.IDLE))

    def test_idle_after_late_packets(self) -> None:
        """The idle time begins when the last packet arrived, not when it was read."""
        followed = session(idle=5)
        self.assertEqual(self.read(followed, 1003, 1000.5), (1, None))
        self.assertAlmostEqual(followed.next_deadline(), 1005.5)
        self.assertEqual(self.read(followed, 1005.6, 1005.55), (0, StopReason.IDLE))

    def test_dropped(self) -> None:
        """Packets that the ring had no room for arrived after those in it: the capture wasn't idle."""
        followed = session(idle=3)
        followed.dropped(0, 1000.05)
        self.assertEqual(self.read(followed, 1000.05, 1000.04), (1, None))
        followed.dropped(47, 1008)
        self.assertEqual(self.read(followed, 1008, 1001, 1003, 1007.9), (3, None))
        followed.dropped(47, 1008.01)
        self.assertIsNone(followed.time_passed(1010.9))
        self.assertIs(followed.time_passed(1011.1), StopReason.IDLE)

    def test_first_of_both(self) -> None:
        """Of a gap and the end, whichever came first is the reason."""
        followed = session(idle=1, duration=2)
        self.assertEqual(self.read(followed, 1003, 1000.5, 1002.5), (1, StopReason.IDLE))
        followed = session(idle=1, duration=2)
        self.assertEqual(self.read(followed, 1003, 1000.5, 1001.4, 1002.3), (2, StopReason.DURATION))

    def late(self, followed: CaptureSession, now: float, *arrived: float) -> int:
        """Read as many packets as may be read. Return how many, of which each arrived at such a time."""
        batch = followed.next_batch(now, EPOCH + now - 1000)
        if batch.late is not None:
            for number in range(batch.packets):
                self.assertTrue(batch.late.belongs(stamp(arrived[number * len(arrived) // batch.packets])))
        self.assertIsNone(followed.recorded(batch.packets, 24 + (followed.packets + batch.packets) * 50, now))
        return batch.packets

    def test_backlog_after_a_deadline(self) -> None:
        """Once a limit may have passed, each packet is looked at, until one is in time."""
        followed = session(packets=100_000, size=10**9, duration=100, idle=1)
        self.assertEqual(self.late(followed, 1003, 1000.1, 1000.5), 256)
        self.assertTrue(followed.is_behind())
        self.assertEqual(self.late(followed, 1003.01, 1001.4, 1002.1), 256)
        self.assertEqual(self.late(followed, 1003.02), 8192)
        self.assertEqual(self.late(followed, 1003.04, 1002.99), 32)
        self.assertEqual(self.late(followed, 1003.05), 8192)
        self.assertEqual(self.late(followed, 1003.06), 8192)

    def test_backlog(self) -> None:
        """If no limit can have passed, only a few are looked at: others would be lost meanwhile."""
        followed = session(packets=100_000, size=10**9, duration=100, idle=10)
        read = [self.late(followed, 1003 + number * 0.01, 1001) for number in range(8)]
        self.assertEqual(read, [32, 8192] * 4)

    def test_long_read(self) -> None:
        """What arrives while the last packets are being read, which takes long, is late as well."""
        followed = session(duration=2)
        followed.next_batch(1001.9, EPOCH + 1.9)
        self.assertIsNone(followed.recorded(0, 24, 1002.4))
        self.assertEqual(self.read(followed, 1002.45, 1001.95, 1002.2), (1, StopReason.DURATION))

    def test_is_behind(self) -> None:
        """A session is no longer behind when everything was read."""
        followed = session(packets=100_000, size=10**9, duration=2, idle=10)
        self.late(followed, 1003, 1001)
        self.assertTrue(followed.is_behind())
        followed.next_batch(1003.05, EPOCH + 3.05)
        # What reads it says that this was not all.
        self.assertIsNone(followed.recorded(0, 21_000, 1003.05, is_behind=True))
        self.assertTrue(followed.is_behind())
        followed.next_batch(1003.1, EPOCH + 3.1)
        self.assertIsNone(followed.recorded(0, 21_000, 1003.1))
        self.assertFalse(followed.is_behind())
        self.assertIs(followed.time_passed(1003.1), StopReason.DURATION)

    def test_clock_was_set(self) -> None:
        """If the wall clock was set meanwhile, time stamps end nothing: packets count when they are read."""
        for step in (-3600, -1, 1, 3600):
            followed = session(duration=2, idle=1)
            self.assertEqual(self.read(followed, 1003, 1000.5, 1002.5, stepped=step, ring=step), (2, None))
            self.assertFalse(followed.is_behind())
            self.assertEqual(followed.next_deadline(), 1002)
            # The next time it is known.
            self.assertEqual(self.read(followed, 1003.5, stepped=step), (0, None))
            found = self.read(followed, 1004, 1003.6, stepped=step, ring=step)
            self.assertEqual(found, (0, StopReason.DURATION))

    def test_other_clock(self) -> None:
        """Time stamps that can't be right end nothing either."""
        for ahead in (-86_400, 86_400):
            followed = session(duration=2, idle=1)
            self.assertEqual(self.read(followed, 1003, 1000.5, 1002.5, ring=ahead), (2, None))


class SessionTests(unittest.SynchronousTestCase):
    """Each limit by itself."""

    def test_packets(self) -> None:
        """The last packet that may come ends the capture; a batch never holds more."""
        followed = session(packets=10)
        self.assertEqual(followed.next_batch(1000, EPOCH).packets, 10)
        self.assertIsNone(followed.recorded(9, 5000, 1001))
        self.assertEqual(followed.next_batch(1000, EPOCH).packets, 1)
        self.assertIs(followed.recorded(1, 5100, 1001), StopReason.PACKETS)
        self.assertEqual(followed.packets, 10)

    def test_far_from_the_bytes(self) -> None:
        """Far from the limit of bytes, a batch can't reach it, and nothing is counted."""
        followed = session(packets=10**6, size=24 + 100 * 116 + 1)
        batch = followed.next_batch(1000, EPOCH)
        self.assertEqual((batch.packets, batch.stop_at_bytes), (100, None))
        self.assertEqual(session(packets=10**6, size=24 + 100 * 116).next_batch(1000, EPOCH).packets, 99)

    def test_near_the_bytes(self) -> None:
        """Near it, and from there on, each packet is counted."""
        followed = session(size=24 + 100 * 116)
        self.assertIsNone(followed.recorded(98, 24 + 98 * 116, 1001))
        self.assertEqual(followed.next_batch(1000, EPOCH).stop_at_bytes, 24 + 100 * 116)
        self.assertIsNone(followed.recorded(1, 500, 1001))
        self.assertEqual(followed.next_batch(1000, EPOCH).stop_at_bytes, 24 + 100 * 116)
        self.assertIs(followed.recorded(1, 24 + 100 * 116, 1001), StopReason.BYTES)

    def test_uncounted_size_is_no_reason(self) -> None:
        """A size that may be too large ends nothing."""
        followed = session(size=20_000)
        self.assertIsNone(followed.next_batch(1000, EPOCH).stop_at_bytes)
        self.assertIsNone(followed.recorded(10, 20_500, 1001))
        self.assertEqual(followed.next_batch(1000, EPOCH).stop_at_bytes, 20_000)

    def test_begins_with_packets(self) -> None:
        """What is in the file from the start counts towards the limits, and may reach one exactly."""
        for packets, size, reason in (
            (5, 24 + 5 * 116, StopReason.PACKETS),
            (4, 1000, StopReason.BYTES),
            (4, 999, None),
        ):
            followed = session(packets=5, size=1000, idle=10)
            self.assertIs(followed.begins_with(packets, size, 1003), reason)
            self.assertEqual(followed.next_deadline(), 1013)
        self.assertEqual(followed.next_batch(1003, EPOCH).packets, 1)

    def test_less_than_a_header(self) -> None:
        """A limit that the file's own header meets takes one packet: the first that is looked at."""
        for size in (1, 23, 24, 25, 40):
            followed = session(size=size)
            self.assertEqual(followed.next_batch(1000, EPOCH).stop_at_bytes, size)
            self.assertIsNone(followed.recorded(0, 24, 1001))
            self.assertIs(followed.recorded(1, 24 + 16 + 60, 1001), StopReason.BYTES)

    def test_bounded_batches(self) -> None:
        """However much fits, a batch is bounded."""
        self.assertEqual(session(packets=10**9, size=10**12).next_batch(1000, EPOCH).packets, 8192)

    def test_batches_of_large_packets(self) -> None:
        """A batch of large packets has fewer of them, so that it takes no longer, but some in any case."""
        for size, expected in ((144, 8192), (1416, 2962), (60_016, 69), (262_160, 64)):
            followed = session(packets=10**9, size=10**12, snap=262144)
            followed.next_batch(1000, EPOCH)
            self.assertIsNone(followed.recorded(10, 24 + 10 * size, 1000.01))
            self.assertEqual(followed.next_batch(1000.02, EPOCH).packets, expected)
            followed.recorded(0, 24 + 10 * size, 1000.02)
            self.assertEqual(followed.next_batch(1000.03, EPOCH).packets, expected)

    def test_duration(self) -> None:
        """The duration ends a capture, at its end and never before, however busy it is."""
        followed = session(duration=30)
        for second in range(1001, 1030):
            self.assertIsNone(followed.recorded(1, 200, float(second)))
            self.assertIsNone(followed.time_passed(float(second)))
        self.assertEqual(followed.next_deadline(), 1030.0)
        self.assertIsNone(followed.time_passed(1029.999))
        self.assertIs(followed.time_passed(1030.0), StopReason.DURATION)

    def test_idle(self) -> None:
        """The idle time moves with each packet, and only with packets."""
        followed = session(idle=10)
        self.assertEqual(followed.next_deadline(), 1010.0)
        self.assertIsNone(followed.recorded(0, 24, 1005))
        self.assertEqual(followed.next_deadline(), 1010.0)
        self.assertIsNone(followed.recorded(3, 324, 1009))
        self.assertEqual(followed.next_deadline(), 1019.0)
        self.assertIsNone(followed.time_passed(1018.999))
        self.assertIs(followed.time_passed(1019.0), StopReason.IDLE)

    def test_rolling(self) -> None:
        """A rolling capture is ended by its duration only, whatever has arrived, and nothing is counted."""
        limits = CaptureLimits(
            max_packets=None, max_bytes=1000, idle_seconds=None, duration_seconds=100, is_rolling=True
        )
        followed = CaptureSession(limits, snap_length=100, now=1000.0, wall=EPOCH)
        size = 1000
        self.assertIsNone(followed.begins_with(10, size, 1000.0))
        for now in (1000 + turn / 20 for turn in range(50)):
            batch = followed.next_batch(now, EPOCH + now - 1000)
            self.assertEqual((batch.packets, batch.stop_at_bytes), (8192, None))
            size += 8000 * 116
            self.assertIsNone(followed.recorded(8000, size, now))
        self.assertEqual((followed.packets, followed.next_deadline()), (10 + 50 * 8000, 1100.0))
        self.assertIsNone(followed.time_passed(1099.9))
        self.assertIs(followed.time_passed(1100.0), StopReason.DURATION)

    def test_idle_and_duration(self) -> None:
        """At the same moment the duration is the reason."""
        self.assertIs(session(idle=10, duration=10).time_passed(1010.0), StopReason.DURATION)

    def test_idle_before_duration(self) -> None:
        """However late it is noticed, the limit that was reached first is the reason."""
        self.assertIs(session(idle=10, duration=15).time_passed(1020.0), StopReason.IDLE)
        self.assertIs(session(idle=15, duration=10).time_passed(1020.0), StopReason.DURATION)

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_first_limit(self, data: st.DataObject) -> None:
        """Whatever comes and when, a session stops at the first limit that is met, and at no other."""
        snap = data.draw(st.integers(1, 300), "snap")
        most = data.draw(st.integers(1, 6000), "packets")
        size = data.draw(st.integers(1, 60_000), "bytes")
        idle = data.draw(st.integers(1, 20), "idle")
        duration = data.draw(st.integers(1, 60), "duration")
        followed = session(packets=most, size=size, idle=idle, duration=duration, snap=snap)
        now = last = 1000
        written, packets = FILE_HEADER_BYTES, 0
        for _ in range(40):
            now += data.draw(st.integers(0, 8), "wait")
            due = min(1000 + duration, last + idle)
            self.assertEqual(followed.next_deadline(), due)
            reason = followed.time_passed(now)
            if now >= due:
                self.assertIs(
                    reason, StopReason.IDLE if last + idle < 1000 + duration else StopReason.DURATION
                )
                return
            self.assertIsNone(reason)
            batch = followed.next_batch(now, EPOCH + now - 1000)
            self.assertTrue(1 <= batch.packets <= most - packets)
            got = 0
            for _ in range(min(batch.packets, data.draw(st.integers(0, 400), "arrived"))):
                if batch.late is not None:
                    self.assertTrue(batch.late.belongs(int(EPOCH) + now - 1000))
                written += PACKET_HEADER_BYTES + data.draw(
                    st.sampled_from([snap, 1, (snap + 1) // 2]), "length"
                )
                got += 1
                if batch.stop_at_bytes is not None and written >= batch.stop_at_bytes:
                    break
            packets += got
            last = now if got else last
            slack = 0 if batch.stop_at_bytes is not None else data.draw(st.integers(0, _SLACK), "slack")
            reason = followed.recorded(got, written + slack, now)
            if batch.stop_at_bytes is None:
                self.assertLess(written, size)
            self.assertEqual(followed.packets, packets)
            if got and written >= size:
                self.assertIs(reason, StopReason.BYTES)
                return
            if packets == most:
                self.assertIs(reason, StopReason.PACKETS)
                return
            self.assertIsNone(reason)
