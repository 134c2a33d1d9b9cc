"""The limit on log lines per second."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.line_limit import LineLimit
from tests.examples import given
from tests.examples import strategies as st


class LineLimitTests(unittest.SynchronousTestCase):
    """L{LineLimit}."""

    def test_limit(self) -> None:
        """The first lines of each second are logged; the others are counted until the count is taken."""
        limit = LineLimit(2)
        self.assertEqual([limit.may_log(0.0) for _ in range(5)], [True, True, False, False, False])
        self.assertEqual([limit.may_log(1.2) for _ in range(3)], [True, True, False])
        self.assertEqual((limit.take_suppressed(), limit.take_suppressed()), (4, 0))

    @given(st.integers(1, 5), st.lists(st.floats(0, 10)))
    def test_all_accounted_for(self, per_second: int, times: list[float]) -> None:
        """Each line is either logged or counted, and no second exceeds the limit."""
        limit = LineLimit(per_second)
        logged = [int(now) for now in sorted(times) if limit.may_log(now)]
        self.assertEqual(len(logged) + limit.take_suppressed(), len(times))
        self.assertTrue(all(logged.count(second) <= per_second for second in set(logged)))
