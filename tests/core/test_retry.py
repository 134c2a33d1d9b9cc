"""When something is tried again."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.retry import LONGEST_ASKED_SECONDS, RetryPolicy, asked_delay, honoured_seconds
from tests.examples import given
from tests.examples import strategies as st

POLICY = RetryPolicy(attempts=5, first_delay_seconds=1, max_delay_seconds=6)
NOW = "Sun, 22 Nov 2026 03:00:00 GMT"


class RetryPolicyTests(unittest.SynchronousTestCase):
    """Exponential back-off, with jitter."""

    def test_doubles(self) -> None:
        """Each failure doubles the wait, up to the longest; then the attempts are used up."""
        waits = [POLICY.delay_after(failures, chance=1) for failures in range(1, 7)]
        self.assertEqual(waits, [1, 2, 4, 6, None, None])

    def test_chance(self) -> None:
        """Chance takes away up to half."""
        waits = [POLICY.delay_after(2, chance=chance) for chance in (0, 0.5, 1)]
        self.assertEqual(waits, [1, 1.5, 2])

    def test_one_attempt(self) -> None:
        """One attempt has no second."""
        policy = RetryPolicy(attempts=1, first_delay_seconds=1, max_delay_seconds=6)
        self.assertIsNone(policy.delay_after(1, chance=1))

    def test_asked(self) -> None:
        """What the remote asks for is the least, and bounded; it makes no more attempts."""
        self.assertEqual(POLICY.delay_after(1, chance=1, asked_seconds=30), 30)
        self.assertEqual(POLICY.delay_after(3, chance=1, asked_seconds=0.5), 4)
        self.assertEqual(POLICY.delay_after(1, chance=1, asked_seconds=1e9), LONGEST_ASKED_SECONDS)
        self.assertIsNone(POLICY.delay_after(5, chance=1, asked_seconds=30))
        self.assertEqual(honoured_seconds(None), 0)

    def test_no_end(self) -> None:
        """What is tried for ever waits by the same rule, however often it failed."""
        self.assertEqual([POLICY.wait_after(failures, chance=1) for failures in (1, 3, 4, 50)], [1, 4, 6, 6])

    @given(failures=st.integers(1, 10**6), chance=st.floats(0, 1))
    def test_bounds(self, failures: int, chance: float) -> None:
        """However often it failed, a wait is between half the first and the longest."""
        policy = RetryPolicy(attempts=None, first_delay_seconds=1, max_delay_seconds=60)
        wait = policy.delay_after(failures, chance=chance)
        assert wait is not None
        self.assertTrue(0.5 <= wait <= 60)


class AskedDelayTests(unittest.SynchronousTestCase):
    """C{Retry-After}."""

    def test_seconds(self) -> None:
        """Seconds are seconds."""
        self.assertEqual(asked_delay("120", None), 120)
        self.assertEqual(asked_delay(" 0 ", NOW), 0)

    def test_date(self) -> None:
        """A date is relative to the server's own clock."""
        self.assertEqual(asked_delay("Sun, 22 Nov 2026 03:00:30 GMT", NOW), 30)
        self.assertEqual(asked_delay("Sun, 22 Nov 2026 02:00:00 GMT", NOW), 0)
        self.assertIsNone(asked_delay("Sun, 22 Nov 2026 03:00:30 GMT", None))

    def test_nonsense(self) -> None:
        """What can't be understood is passed over."""
        for words in (None, "", "soon", "-5", "1.5", "²", "9" * 400 + "x", "Sun, 99 Nov 2026 03:00:30 GMT"):
            self.assertIsNone(asked_delay(words, NOW), words)

    @given(st.text(), st.text())
    def test_anything(self, retry_after: str, date: str) -> None:
        """Whatever a server says, it is seconds or nothing."""
        asked = asked_delay(retry_after, date)
        self.assertTrue(asked is None or asked >= 0)
