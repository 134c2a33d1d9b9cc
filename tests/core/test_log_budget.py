"""How much may be logged."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.log_budget import REPORT_SECONDS, Importance, LogBudget

NOISE, CAPTURE, ERROR = Importance.NOISE, Importance.CAPTURE, Importance.ERROR


class LogBudgetTests(unittest.SynchronousTestCase):
    """A budget of 1,000 bytes, and 10 more each second."""

    def setUp(self) -> None:
        """The budget, full."""
        self.budget = LogBudget(bytes_a_second=10, burst_bytes=1000)

    def log(self, importance: Importance, now: float, lines: int = 10_000) -> int:
        """Try to log many lines of 10 bytes. How many were allowed."""
        allowed = 0
        for _ in range(lines):
            if self.budget.allows(importance, importance.name, now):
                self.budget.charge(10)
                allowed += 1
        return allowed

    def test_reserves(self) -> None:
        """Noise leaves half to others, what becomes of captures a quarter, and errors nothing."""
        self.assertEqual(50, self.log(NOISE, 0))
        self.assertEqual(25, self.log(CAPTURE, 0))
        self.assertEqual(25, self.log(ERROR, 0))
        self.assertEqual(0, self.log(ERROR, 0))

    def test_refills(self) -> None:
        """In the long run the rate is kept; after a pause the whole budget is available again, no more."""
        self.log(NOISE, 0)
        self.assertEqual(100, sum(self.log(NOISE, second, 100) for second in range(1, 101)))
        self.assertEqual(50, self.log(NOISE, 1_000_000))

    def test_debt(self) -> None:
        """A line that is larger than what is left is paid for later."""
        self.assertTrue(self.budget.allows(NOISE, "noise", 0))
        self.budget.charge(10_000)
        self.assertFalse(self.budget.allows(ERROR, "errors", 899))
        self.assertTrue(self.budget.allows(ERROR, "errors", 901))

    def test_report(self) -> None:
        """What was refused is reported by kind, once, and not too often."""
        self.assertIsNone(self.budget.report(0, at_once=True))
        self.assertFalse(self.budget.has_report())
        self.log(NOISE, 5, 53)
        self.log(CAPTURE, 6, 28)
        self.assertTrue(self.budget.has_report())
        self.assertIsNone(self.budget.report(5 + REPORT_SECONDS - 1))
        self.assertEqual(
            "5 lines were not logged, to bound the log: 2 of CAPTURE, 3 of NOISE",
            self.budget.report(5 + REPORT_SECONDS),
        )
        self.assertFalse(self.budget.has_report())
        self.log(NOISE, 15, 1)
        self.assertIsNone(self.budget.report(16))
        self.assertEqual(
            "1 line was not logged, to bound the log: 1 of NOISE", self.budget.report(16, at_once=True)
        )
