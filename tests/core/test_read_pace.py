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

    def pauses(
        self, paced: ReadPace, rate: float, reads: int = 8, *, size: int = 144, captures: int = 1
    ) -> list[float]:
        """
        The pauses after reads at a constant rate.

        @param rate: packets a second.
        @param size: of each in the file, in bytes.
        @param captures: how many are read with pauses.
        """
        found: list[float] = []
        now = 1000.0
        for _ in range(reads):
            wait = found[-1] if found else 0.01
            now += wait
            count = round(rate * wait)
            pause = paced.pause_after(count, count * size, now, captures=captures)
            found.append(0.0 if pause is None else pause)
        return found

    def test_slow(self) -> None:
        """A capture with few packets is never kept waiting."""
        paced = pace()
        for number in range(1, 100):
            self.assertIsNone(paced.pause_after(63, 63 * 144, 1000 + number / 1000))

    def test_share_of_the_ring(self) -> None:
        """A pause lasts until a fifth of the ring is full: with 216 bytes of it for 144 of the file."""
        for blocks in (24, 16, 8):
            expected = blocks * _BLOCK / 64.8e6 / 5
            self.assertAlmostEqual(self.pauses(pace(blocks), 300_000)[-1], expected, places=4)

    def test_first_pauses(self) -> None:
        """The first packets of a burst are followed by short pauses, since the next may come much faster."""
        found = self.pauses(pace(), 100_000)
        self.assertEqual([round(pause, 6) for pause in found[:5]], [0.002, 0.004, 0.008, 0.016, 0.025])

    def test_after_few(self) -> None:
        """So are the first after a read of few packets."""
        paced = pace()
        self.pauses(paced, 100_000)
        self.assertIsNone(paced.pause_after(1, 144, 1001.0))
        self.assertEqual(paced.pause_after(1000, 144_000, 1001.01), 0.002)

    def test_longest(self) -> None:
        """However large the ring is, packets don't wait for long."""
        self.assertEqual(max(self.pauses(pace(4096), 300_000)), 0.025)

    def test_many_captures(self) -> None:
        """Of many, each is read less often, as far as the ring and the exactness of limits allow."""
        for captures, expected in ((0, 0.025), (12, 0.025), (20, 0.04), (100, 0.064)):
            found = self.pauses(pace(4096), 100_000, captures=captures)
            self.assertAlmostEqual(max(found), expected)
        self.assertAlmostEqual(max(self.pauses(pace(8), 100_000, captures=100)), 0.016)

    def test_time_limits_hold(self) -> None:
        """Idle time is noticed within 0.1 s, whatever the kernel holds back."""
        for held_back, expected in ((0.009, 0.025), (0.018, 0.025), (0.048, 0.004)):
            found = self.pauses(pace(4096, hand_over_seconds=held_back), 300_000)
            self.assertAlmostEqual(max(found), expected)
            self.assertLessEqual(2 * held_back + max(found), 0.1)

    def test_blocks_that_are_not_full(self) -> None:
        """If blocks are handed over after a millisecond, the ring doesn't last for long at any rate."""
        self.assertAlmostEqual(self.pauses(pace(block_seconds=0.001), 70_000)[-1], 0.0064)

    def test_too_fast(self) -> None:
        """There is no pause if the ring is small, and fills at once."""
        self.assertEqual(self.pauses(pace(4), 1_000_000, 1), [0.0])

    def test_bursts(self) -> None:
        """A pause is as short as the last burst requires, for a while."""
        paced = pace()
        self.pauses(paced, 1_000_000)
        in_burst = 32 * _BLOCK / 216e6 / 5
        began = now = 1000.0 + 0.05
        for seconds, least, most in ((0.05, 1, 1.3), (0.25, 1.8, 2.4), (3.0, 3, 4)):
            found = 0.0
            while now < began + seconds:
                now += found or 0.01
                found = paced.pause_after(64, 64 * 144, now) or 0.0
            self.assertTrue(least <= found / in_burst <= most, (seconds, found / in_burst))

    def test_late(self) -> None:
        """That a pause lasted longer than it was to doesn't make the packets faster that came meanwhile."""
        paced = pace(16)
        pause = self.pauses(paced, 300_000)[-1]
        for number in range(1, 9):
            count = round(300_000 * pause * 1.5)
            found = paced.pause_after(count, count * 144, 1001 + number * pause * 1.5)
        self.assertAlmostEqual(found or 0, pause, places=4)

    def test_stall(self) -> None:
        """After a much longer one they may have come much faster: the others may have been dropped."""
        paced = pace(16)
        pause = self.pauses(paced, 300_000)[-1]
        found = paced.pause_after(19_400, 19_400 * 144, 1001.0)
        self.assertAlmostEqual(found or 0, 2 * pause / 5, places=4)

    def test_same_moment(self) -> None:
        """Two reads in the same moment are taken for two within a millisecond."""
        self.assertIsNone(pace(1).pause_after(1000, 144_000, 1000.0))
        self.assertEqual(pace().pause_after(1000, 144_000, 1000.0), 0.002)
