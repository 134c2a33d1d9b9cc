"""So many lines a second."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from pcapsvc.core.line_limit import LineLimit


class LineLimitTests(unittest.SynchronousTestCase):
    """L{LineLimit}."""

    def test_limit(self) -> None:
        """The first of each second are logged, and the others counted until somebody asks."""
        limit = LineLimit(2)
        self.assertEqual([limit.may_log(0.0) for _ in range(5)], [True, True, False, False, False])
        self.assertEqual([limit.may_log(1.2) for _ in range(3)], [True, True, False])
        self.assertEqual((limit.take_left_out(), limit.take_left_out()), (4, 0))

    @given(st.integers(1, 5), st.lists(st.floats(0, 10)))
    def test_none_is_forgotten(self, per_second: int, times: list[float]) -> None:
        """Each line is logged or counted, and no second has too many."""
        limit = LineLimit(per_second)
        logged = [int(now) for now in sorted(times) if limit.may_log(now)]
        self.assertEqual(len(logged) + limit.take_left_out(), len(times))
        self.assertTrue(all(logged.count(second) <= per_second for second in set(logged)))
