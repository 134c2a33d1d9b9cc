"""Answers that are worked out once for several who ask."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.net.shared import Shared


class SharedTests(SynchronousTestCase):
    """What somebody finds out is shared."""

    def setUp(self) -> None:
        """What is being found out."""
        self.finding: list[Deferred[str]] = []
        self.clock = Clock()
        self.shared = Shared(self.clock, self.find, keep_seconds=5)

    def find(self) -> Deferred[str]:
        """Begin to find it out."""
        self.finding.append(Deferred())
        return self.finding[-1]

    def test_at_once(self) -> None:
        """It is found out once for all who ask meanwhile."""
        waiting = [self.shared.get() for _ in range(3)]
        [finding] = self.finding
        finding.callback("found")
        self.assertEqual([self.successResultOf(each) for each in waiting], ["found"] * 3)

    def test_kept(self) -> None:
        """It is kept for a while from then on, and no longer."""
        waiting = self.shared.get()
        self.clock.advance(10)
        self.finding[0].callback("found")
        self.assertEqual(self.successResultOf(waiting), "found")
        self.clock.advance(4.9)
        self.assertEqual(self.successResultOf(self.shared.get()), "found")
        self.clock.advance(0.2)
        self.assertNoResult(self.shared.get())
        self.assertEqual(len(self.finding), 2)

    def test_failure(self) -> None:
        """A failure is shared as well, and kept as long."""
        waiting = [self.shared.get() for _ in range(2)]
        self.finding[0].errback(PermissionError())
        for each in (*waiting, self.shared.get()):
            self.failureResultOf(each, PermissionError)
        self.clock.advance(5.1)
        again = self.shared.get()
        self.finding[1].callback("found")
        self.assertEqual(self.successResultOf(again), "found")

    def test_exception(self) -> None:
        """What can't even begin to be found out is a failure as well, and is tried again later."""
        attempts = iter([ValueError(), None])

        def find() -> Deferred[str]:
            if (problem := next(attempts)) is not None:
                raise problem
            return succeed("found")

        shared = Shared(self.clock, find, keep_seconds=5)
        self.failureResultOf(shared.get(), ValueError)
        self.clock.advance(5.1)
        self.assertEqual(self.successResultOf(shared.get()), "found")

    def test_cancel(self) -> None:
        """Who doesn't wait any more affects nobody else."""
        given_up, waiting = self.shared.get(), self.shared.get()
        given_up.addErrback(lambda _: None).cancel()
        self.finding[0].callback("found")
        self.assertEqual(self.successResultOf(waiting), "found")
