"""How many requests a source may bring."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.rate import RequestRate, TimeBudget
from tests.examples import given
from tests.examples import strategies as st


class RequestRateTests(unittest.SynchronousTestCase):
    """L{RequestRate}."""

    def admitted(self, rate: RequestRate, count: int, now: float, source: str = "http") -> int:
        """How many of C{count} simultaneous requests are admitted."""
        return sum(rate.refusal(source, now) is None for _ in range(count))

    def test_burst_and_refill(self) -> None:
        """A second's worth may come at once, and then as many as the time allows."""
        rate = RequestRate(10)
        self.assertEqual(self.admitted(rate, 100, 5.0), 10)
        self.assertEqual(self.admitted(rate, 100, 5.5), 5)
        self.assertEqual(self.admitted(rate, 100, 1000.0), 10)

    def test_costly(self) -> None:
        """A request that takes long takes the tokens of four times that time; an ordinary one, its own."""
        rate = RequestRate(10)
        self.assertEqual(self.admitted(rate, 1, 0.0), 1)
        rate.took("http", 0.1)
        self.assertEqual(self.admitted(rate, 8, 0.0), 8)
        rate.took("http", 0.6)
        self.assertEqual(rate.refusal("http", 1.0), "the requests from http take too much time")
        self.assertEqual(rate.refusal("http", 1.95), "more than 10 requests a second come from http")
        self.assertIsNone(rate.refusal("http", 2.0))

    def test_reason(self) -> None:
        """The reason says which source, and how many it may bring."""
        rate = RequestRate(1)
        self.assertIsNone(rate.refusal("redis", 0.0))
        self.assertEqual(rate.refusal("redis", 0.0), "more than 1 requests a second come from redis")

    def test_each_source(self) -> None:
        """A source that exceeds its rate doesn't affect the others."""
        rate = RequestRate(3)
        self.assertEqual(self.admitted(rate, 10, 0.0, "redis"), 3)
        self.assertEqual(self.admitted(rate, 10, 0.0, "http"), 3)

    def test_no_bound(self) -> None:
        """Without one all are admitted, however long they take."""
        rate = RequestRate(None)
        rate.took("http", 100.0)
        self.assertEqual(self.admitted(rate, 1000, 0.0), 1000)

    def test_clock_put_back(self) -> None:
        """A clock that goes back neither admits more nor locks anybody out for longer than a second."""
        rate = RequestRate(10)
        self.assertEqual(self.admitted(rate, 100, 1e9), 10)
        self.assertEqual(self.admitted(rate, 100, 5.0), 0)
        self.assertEqual(self.admitted(rate, 100, 6.0), 10)

    @given(st.integers(1, 50), st.lists(st.floats(0, 2), max_size=200))
    def test_never_over(self, per_second: int, pauses: list[float]) -> None:
        """Whenever they come, no second sees more than a burst and what the time allows."""
        rate = RequestRate(per_second)
        now, admitted = 0.0, []
        for pause in pauses:
            now += pause
            if rate.refusal("http", now) is None:
                admitted.append(now)
        for first in range(len(admitted)):
            within = sum(admitted[first] <= time < admitted[first] + 1 for time in admitted)
            self.assertLessEqual(within, 2 * per_second)


class TimeBudgetTests(unittest.SynchronousTestCase):
    """L{TimeBudget}."""

    def test_share(self) -> None:
        """A source may use a burst at once, and its share of the time from then on."""
        budget = TimeBudget(share=0.1, most_seconds=1.0)
        self.assertTrue(budget.spend("redis", 0.75, 0.0))
        self.assertFalse(budget.spend("redis", 0.75, 4.0))
        self.assertTrue(budget.spend("redis", 0.75, 6.0))
        self.assertFalse(budget.spend("redis", 1.5, 1000.0))

    def test_each_source(self) -> None:
        """What one source uses, another still has; a clock that is put back gives nothing."""
        budget = TimeBudget(share=0.1, most_seconds=1.0)
        self.assertTrue(budget.spend("redis", 1.0, 50.0))
        self.assertFalse(budget.spend("redis", 0.1, 0.0))
        self.assertTrue(budget.spend("http", 1.0, 0.0))
