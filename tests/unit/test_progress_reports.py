"""The progress of captures, and who gets it."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial import unittest
from zope.interface import implementer

from pcapsvc.captures import Captures
from pcapsvc.core.event import CaptureDone, CaptureProgress, Event
from pcapsvc.core.labels import Labels
from pcapsvc.core.recording import Progress
from pcapsvc.interfaces.reports import IProgressReporter
from pcapsvc.reports.fan_out import FanOutReporter
from pcapsvc.reports.progress import ProgressReports
from pcapsvc.testing import MemoryReporter, event_factory
from tests.unit.event_schema import check
from tests.unit.test_captures import RunningCapture


@implementer(IProgressReporter)
class Curious(MemoryReporter):
    """A reporter that wants progress, for now."""

    wants = True

    def wants_progress(self) -> bool:
        """Whether it does."""
        return self.wants


class Turns(Clock):
    """A clock that can make one turn at a time."""

    def turn(self) -> None:
        """Make the calls that are due now, and not those that they schedule."""
        for call in [each for each in self.calls if each.getTime() <= self.seconds()]:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class Slow(RunningCapture):
    """A capture whose progress takes a while."""

    def __init__(self, capture_id: str, clock: Clock) -> None:
        super().__init__(capture_id)
        self.clock = clock

    def progress(self) -> Progress:
        """What there is so far, after 0.4 ms."""
        self.clock.rightNow += 0.0004
        return super().progress()


class ProgressReportsTests(unittest.SynchronousTestCase):
    """Reports of progress, every 2 s."""

    def setUp(self) -> None:
        """A service that has started, and one reporter of each kind."""
        self.clock = Turns()
        self.captures = Captures([])
        self.curious, self.other = Curious(), MemoryReporter()
        self.fan_out = FanOutReporter([self.curious, self.other])
        self.events = event_factory()
        self.service = ProgressReports(
            self.clock, self.captures, self.fan_out, self.events, interval_seconds=2.0
        )
        self.service.startService()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        """Stop the service, which leaves no timer."""
        if self.service.running:
            self.service.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def subjects(self) -> list[str | None]:
        """The captures whose progress was reported."""
        return [event.subject for event in self.curious.events if isinstance(event.data, CaptureProgress)]

    def done(self, capture_id: str) -> Event:
        """The event that a capture is done."""
        return self.events.event(CaptureDone(), Labels(via="http", interface="lo"), capture_id)

    def test_interval(self) -> None:
        """Each running capture is reported at each interval, with its labels."""
        self.captures.add(RunningCapture("a"))
        self.captures.add(RunningCapture("b"))
        self.clock.advance(1.9)
        self.assertEqual(self.subjects(), [])
        self.clock.advance(0.1)
        self.assertEqual(self.subjects(), ["a", "b"])
        self.captures.report(self.done("a"))
        self.clock.advance(2)
        self.assertEqual(self.subjects(), ["a", "b", "b"])
        first = self.curious.events[0]
        self.assertEqual(first.data, CaptureProgress.of(RunningCapture().progress()))
        self.assertEqual(first.labels, RunningCapture().plan.labels)
        check(self.curious.events)

    def test_who_wants_it(self) -> None:
        """Only whoever wants progress gets it; while nobody does, there is none."""
        self.captures.add(RunningCapture("a"))
        self.fan_out.add(undecided := Curious())
        undecided.wants = False
        self.clock.advance(2)
        self.assertEqual((len(self.curious.events), undecided.events, self.other.events), (1, [], []))
        self.curious.wants = False
        self.assertFalse(self.fan_out.wants_progress())
        self.clock.advance(2)
        self.assertEqual(len(self.curious.events), 1)
        self.fan_out.report(self.done("a"))
        self.assertEqual([len(each.events) for each in (self.curious, undecided, self.other)], [2, 1, 1])

    def test_faulty_reporter(self) -> None:
        """A reporter that can't say whether it wants progress gets none, and keeps it from no other."""

        class Undecided(Curious):
            def wants_progress(self) -> bool:
                raise ValueError("undecided")

        self.captures.add(RunningCapture("a"))
        self.fan_out = FanOutReporter([undecided := Undecided(), self.curious])
        self.stop()
        self.service = ProgressReports(
            self.clock, self.captures, self.fan_out, self.events, interval_seconds=2.0
        )
        self.service.startService()
        self.clock.advance(2)
        self.clock.advance(2)
        self.assertEqual((self.subjects(), undecided.events), (["a", "a"], []))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 4)

    def test_many(self) -> None:
        """However many captures there are, a turn of the reactor remains short; the interval is kept."""
        for number in range(10):
            self.captures.add(Slow(f"{number}", self.clock))
        self.clock.rightNow += 2
        self.clock.turn()
        self.assertEqual(self.subjects(), ["0", "1", "2"])
        self.captures.report(self.done("3"))
        self.clock.turn()
        self.assertEqual(self.subjects(), ["0", "1", "2", "4", "5", "6"])
        self.clock.turn()
        self.assertEqual(len(self.subjects()), 9)
        self.clock.turn()
        [due] = self.clock.getDelayedCalls()
        self.assertAlmostEqual(due.getTime(), 4.0)

    def test_stopped_within(self) -> None:
        """A stop ends a round that is not over."""
        for number in range(10):
            self.captures.add(Slow(f"{number}", self.clock))
        self.clock.rightNow += 2
        self.clock.turn()
        self.stop()
        self.assertEqual(len(self.subjects()), 3)

    def test_faulty(self) -> None:
        """A capture whose progress can't be read is logged, and affects no other."""

        class Faulty(RunningCapture):
            def progress(self) -> Progress:
                raise OSError("gone")

        self.captures.add(Faulty("a"))
        self.captures.add(RunningCapture("b"))
        self.clock.advance(2)
        self.assertEqual(self.subjects(), ["b"])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.clock.advance(2)
        self.assertEqual(self.subjects(), ["b", "b"])
        self.flushLoggedErrors(OSError)
