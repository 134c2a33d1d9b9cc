"""How long the spool's disk may take."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.errors import SpoolError
from pcapsvc.delivery.disk_wait import LONGEST_HOLD_SECONDS, DiskWait


class DiskWaitTests(SynchronousTestCase):
    """Work of a disk that hangs."""

    def setUp(self) -> None:
        """A stop leaves five seconds."""
        self.clock = Clock()
        self.wait = DiskWait(self.clock, stop_seconds=5)
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def begin(self) -> tuple[Deferred[Any], list[object]]:
        """Work that hangs, and what is called if it is cancelled."""
        cancelled: list[object] = []
        return self.wait.limit(Deferred(cancelled.append)), cancelled

    def assert_ends_after(self, seconds: float, work: Deferred[Any], cancelled: list[object]) -> None:
        """Work is given up after so many seconds from now, and no sooner."""
        self.clock.advance(seconds - 0.5)
        self.assertNoResult(work)
        self.assertEqual(cancelled, [])
        self.clock.advance(0.5)
        self.failureResultOf(work, SpoolError)
        self.assertEqual(len(cancelled), 1)

    def test_limit(self) -> None:
        """Work that takes too long is cancelled, and the error says how long it took."""
        work, _ = self.begin()
        self.clock.advance(LONGEST_HOLD_SECONDS)
        error = self.failureResultOf(work, SpoolError).value
        self.assertEqual(str(error), "its disk timed out after 30 s")

    def test_in_time(self) -> None:
        """Results and errors of work that ends in time are its own."""
        self.assertEqual(self.successResultOf(self.wait.limit(succeed(7))), 7)
        self.failureResultOf(self.wait.limit(fail(ZeroDivisionError())), ZeroDivisionError)

    def test_shorten(self) -> None:
        """Once a stop has begun, what is waited for is given up sooner."""
        work, cancelled = self.begin()
        self.clock.advance(3)
        self.wait.shorten()
        self.clock.advance(5)
        error = self.failureResultOf(work, SpoolError).value
        self.assertEqual((str(error), len(cancelled)), ("its disk timed out after 8 s", 1))

    def test_hurry(self) -> None:
        """A hurried stop leaves half of that, and takes no more if it is hurried again."""
        work, cancelled = self.begin()
        self.wait.hurry()
        self.wait.shorten()
        self.clock.advance(1)
        self.wait.hurry()
        self.assert_ends_after(1.5, work, cancelled)
        self.assert_ends_after(2.5, *self.begin())

    def test_is_hanging(self) -> None:
        """It hangs until some work ends in time, even in vain."""
        for work in (succeed(7), fail(SpoolError("full"))):
            hanging, _ = self.begin()
            self.assertFalse(self.wait.is_hanging)
            self.clock.advance(LONGEST_HOLD_SECONDS)
            self.failureResultOf(hanging, SpoolError)
            self.assertTrue(self.wait.is_hanging)
            self.wait.limit(work).addErrback(lambda _: None)
            self.assertFalse(self.wait.is_hanging)

    def test_shorten_what_ends_soon(self) -> None:
        """A stop lets nothing take longer."""
        work, cancelled = self.begin()
        self.clock.advance(LONGEST_HOLD_SECONDS - 2)
        self.wait.shorten()
        self.assert_ends_after(2, work, cancelled)

    def test_begun_during_a_stop(self) -> None:
        """What begins during a stop is limited likewise, and after another start as usual."""
        self.wait.shorten()
        self.assert_ends_after(5, *self.begin())
        self.wait.restore()
        self.assert_ends_after(LONGEST_HOLD_SECONDS, *self.begin())

    def test_long_stop(self) -> None:
        """If a stop has much time, the disk has no more than usual."""
        self.wait = DiskWait(self.clock, stop_seconds=3600)
        self.wait.shorten()
        self.assert_ends_after(LONGEST_HOLD_SECONDS, *self.begin())
