"""The four limits of a capture."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from pcapsvc.core.session import (
    FILE_HEADER_BYTES,
    PACKET_HEADER_BYTES,
    CaptureLimits,
    CaptureSession,
    StopReason,
)

# What stdio may hold back, by which a size that isn't counted may be too large.
_SLACK = 4096


def session(
    *, packets: int = 1000, size: int = 10**6, idle: float = 10, duration: float = 100, snap: int = 100
) -> CaptureSession:
    """A session that began at 1000 seconds."""
    limits = CaptureLimits(max_packets=packets, max_bytes=size, idle_seconds=idle, duration_seconds=duration)
    return CaptureSession(limits, snap_length=snap, now=1000.0)


class SessionTests(unittest.SynchronousTestCase):
    """Each limit by itself."""

    def test_packets(self) -> None:
        """The last packet that may come ends the capture; a batch never holds more."""
        followed = session(packets=10)
        self.assertEqual(followed.next_batch().packets, 10)
        self.assertIsNone(followed.recorded(9, 5000, 1001))
        self.assertEqual(followed.next_batch().packets, 1)
        self.assertIs(followed.recorded(1, 5100, 1001), StopReason.PACKETS)
        self.assertEqual(followed.packets, 10)

    def test_far_from_the_bytes(self) -> None:
        """Far from the limit of bytes, a batch can't reach it, and nothing is counted."""
        followed = session(packets=10**6, size=24 + 100 * 116 + 1)
        batch = followed.next_batch()
        self.assertEqual((batch.packets, batch.stop_at_bytes), (100, None))
        self.assertEqual(session(packets=10**6, size=24 + 100 * 116).next_batch().packets, 99)

    def test_near_the_bytes(self) -> None:
        """Near it, and from there on, each packet is counted."""
        followed = session(size=24 + 100 * 116)
        self.assertIsNone(followed.recorded(98, 24 + 98 * 116, 1001))
        self.assertEqual(followed.next_batch().stop_at_bytes, 24 + 100 * 116)
        self.assertIsNone(followed.recorded(1, 500, 1001))
        self.assertEqual(followed.next_batch().stop_at_bytes, 24 + 100 * 116)
        self.assertIs(followed.recorded(1, 24 + 100 * 116, 1001), StopReason.BYTES)

    def test_uncounted_size_is_no_reason(self) -> None:
        """A size that may be too large ends nothing."""
        followed = session(size=20_000)
        self.assertIsNone(followed.next_batch().stop_at_bytes)
        self.assertIsNone(followed.recorded(10, 20_500, 1001))
        self.assertEqual(followed.next_batch().stop_at_bytes, 20_000)

    def test_less_than_a_header(self) -> None:
        """A limit that the file's own header meets takes one packet: the first that is looked at."""
        for size in (1, 23, 24, 25, 40):
            followed = session(size=size)
            self.assertEqual(followed.next_batch().stop_at_bytes, size)
            self.assertIsNone(followed.recorded(0, 24, 1001))
            self.assertIs(followed.recorded(1, 24 + 16 + 60, 1001), StopReason.BYTES)

    def test_bounded_batches(self) -> None:
        """However much fits, a batch is bounded."""
        self.assertEqual(session(packets=10**9, size=10**12).next_batch().packets, 4096)

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

    def test_idle_and_duration(self) -> None:
        """At the same moment the duration is the reason."""
        self.assertIs(session(idle=10, duration=10).time_passed(1010.0), StopReason.DURATION)

    @settings(max_examples=400, deadline=None)
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
                self.assertIs(reason, StopReason.DURATION if now >= 1000 + duration else StopReason.IDLE)
                return
            self.assertIsNone(reason)
            batch = followed.next_batch()
            self.assertTrue(1 <= batch.packets <= most - packets)
            got = 0
            for _ in range(min(batch.packets, data.draw(st.integers(0, 400), "arrived"))):
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
