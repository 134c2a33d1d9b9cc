"""When a request is too old."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.age import CLOCK_SKEW_SECONDS, too_old
from tests.examples import given
from tests.examples import strategies as st

NOW = 1_700_000_000.0


def is_too_old(age_seconds: float, max_age_seconds: float | None) -> bool:
    """Whether a request of this age is refused."""
    return too_old(NOW - age_seconds, NOW, max_age_seconds) is not None


class TooOldTests(unittest.SynchronousTestCase):
    """L{too_old} by the clock of a broker, and that of this node."""

    def test_bound(self) -> None:
        """As old as it may be is not too old; older than that and the skew of the clocks is."""
        self.assertFalse(is_too_old(60, 60))
        self.assertTrue(is_too_old(65.001, 60))

    def test_skew(self) -> None:
        """Clocks that are 5 s apart make no age."""
        self.assertEqual(CLOCK_SKEW_SECONDS, 5)
        self.assertFalse(is_too_old(65, 60))
        self.assertFalse(is_too_old(6, 1))
        self.assertTrue(is_too_old(6.001, 1))

    def test_no_bound(self) -> None:
        """0 is no bound."""
        self.assertFalse(is_too_old(10**9, None))

    def test_words(self) -> None:
        """The problem says how old it is, and how old it may be."""
        problem = too_old(NOW - 3600.4, NOW, 60)
        assert problem is not None
        self.assertEqual(
            "request: was sent 3600 s ago, and must be at most 60 s old on this node", str(problem)
        )

    @given(ahead=st.floats(0, 10**9), bound=st.floats(0, 10**6))
    def test_future(self, ahead: float, bound: float) -> None:
        """What is sent by a clock that is ahead, however far, has no age."""
        self.assertFalse(is_too_old(-ahead, bound))

    @given(age=st.floats(-(10**6), 10**6), more=st.floats(0, 10**6), bound=st.floats(1, 10**6))
    def test_older_is_no_younger(self, age: float, more: float, bound: float) -> None:
        """What is older than something too old is too old."""
        if is_too_old(age, bound):
            self.assertTrue(is_too_old(age + more, bound))
