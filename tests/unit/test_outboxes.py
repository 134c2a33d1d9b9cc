"""All destinations as one: which of them a capture is for."""

from __future__ import annotations

from pcapsvc.core.event import DeliveryFailed
from tests.unit.logged import logged
from tests.unit.test_outbox import DeliveryCase


class OutboxesTests(DeliveryCase):
    """L{pcapsvc.delivery.outboxes.Outboxes}."""

    def test_not_for_all(self) -> None:
        """A destination that a capture is not for has nothing to do with it, and nothing is reported."""
        self.two.is_for = lambda options: False
        self.successResultOf(self.deliver())
        self.assertEqual([data.destination for data in self.reporter.data], ["one"])
        self.assertEqual(self.two.artifacts, [])

    def test_for_none(self) -> None:
        """A capture that is for no destination is logged, since nobody gets it."""
        self.one.is_for = self.two.is_for = lambda options: False
        lines = logged(self, "pcapsvc.delivery")
        self.successResultOf(self.deliver())
        self.assertEqual(self.reporter.data, [])
        [line] = lines()
        self.assertIn("abc: for no destination", line)

    def test_no_longer_for_one(self) -> None:
        """If it was for a destination, and isn't any more, that is a problem that needs an operator."""
        answers = iter([True])
        self.one.is_for = lambda options: next(answers, False)
        self.successResultOf(self.deliver())
        [failed] = self.events(DeliveryFailed)
        self.assertEqual(failed.problem, "its request doesn't name this destination any more")
