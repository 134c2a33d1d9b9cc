"""When a capture is read next."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.read_pace import ReadPace, Ring

_BLOCK = 256 << 10


def ring(blocks: int = 32, *, block_seconds: float = 0.01) -> Ring:
    """A ring; the default one, by default."""
    return Ring(blocks=blocks, block_bytes=_BLOCK, block_seconds=block_seconds)


def pace(
    blocks: int = 32, *, block_seconds: float = 0.01, hand_over_seconds: float | None = None
) -> ReadPace:
    """The pace of a capture that began at 1000 seconds."""
    held_back = block_seconds + 0.008 if hand_over_seconds is None else hand_over_seconds
    return ReadPace(ring(blocks, block_seconds=block_seconds), hand_over_seconds=held_back, now=1000.0)


class RingTests(unittest.SynchronousTestCase):
    """For how long a ring lasts."""

    def test_lasts(self) -> None:
        """By its size, or by its blocks, which are used up though they aren't full."""
        self.assertAlmostEqual(ring().lasts(100_000_000), 32 * _BLOCK / 1e8)
        self.assertAlmostEqual(ring().lasts(1), 0.32)
        self.assertAlmostEqual(ring().lasts(0), 0.32)


class ReadPaceTests(unittest.SynchronousTestCase):
    """L{ReadPace}."""

    def test_slow(self) -> None:
        """A capture with few packets is never kept waiting."""
        paced = pace()
        for number in range(1, 100):
            self.assertIsNone(paced.pause_after(63, 63 * 144, 1000 + number / 1000))

    def test_share_of_the_ring(self) -> None:
        """A pause lasts until an eighth of the ring is full: with 216 bytes of it for 144 of the file."""
        for blocks, expected in ((32, 32 * _BLOCK / 64.8e6 / 8), (8, 8 * _BLOCK / 64.8e6 / 8)):
            paced = pace(blocks)
            found = paced.pause_after(3000, 3000 * 144, 1000.01)
            self.assertAlmostEqual(found, expected)
            # As many arrive in the pause, and by the end of it.
            count = round(300_000 * expected)
            found = paced.pause_after(count, count * 144, 1000.01 + expected)
            self.assertAlmostEqual(found, expected, places=5)

    def test_longest(self) -> None:
        """However large the ring is, packets don't wait for long."""
        self.assertEqual(pace(4096).pause_after(1000, 144_000, 1000.01), 0.02)

    def test_time_limits_hold(self) -> None:
        """Idle time is noticed within 0.1 s, whatever the kernel holds back."""
        for held_back in (0.009, 0.018, 0.048):
            found = pace(4096, hand_over_seconds=held_back).pause_after(1000, 144_000, 1000.01)
            assert found is not None
            self.assertLessEqual(2 * held_back + found, 0.1)

    def test_blocks_that_are_not_full(self) -> None:
        """If blocks are handed over after a millisecond, the ring doesn't last for long at any rate."""
        self.assertAlmostEqual(pace(block_seconds=0.001).pause_after(64, 64 * 144, 1000.001), 0.004)

    def test_too_fast(self) -> None:
        """There is no pause if the ring is small, and fills at once."""
        self.assertIsNone(pace(4).pause_after(10_000, 1_440_000, 1000.01))

    def test_first_of_a_burst(self) -> None:
        """After a silence, packets have arrived within the time in which they are handed over."""
        self.assertAlmostEqual(pace().pause_after(3000, 3000 * 144, 1500), 32 * _BLOCK / 64.8e6 / 8)

    def test_same_moment(self) -> None:
        """Two reads in the same moment say nothing about the rate."""
        self.assertIsNone(pace().pause_after(100, 14_400, 1000.0))
