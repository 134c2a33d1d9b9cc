"""The attempts of an outbox: slots, routes, time limits."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial import unittest

from pcapsvc.core.errors import FAULT, DestinationError, Problem
from pcapsvc.core.event import CaptureDelivered, DeliveryFailed
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.testing import MemoryDestination, MemoryReporter, event_factory
from tests.unit.contents import MemfdContent, make_artifact
from tests.unit.test_outbox import broken


class AttemptTests(unittest.SynchronousTestCase):
    """The attempts for one destination: slots, routes, time limits. Each capture has one."""

    def setUp(self) -> None:
        """A destination that answers when the test does."""
        self.clock = Clock()
        self.content = MemfdContent(b"packets")
        self.addCleanup(self.content.close)
        self.destination = MemoryDestination("one", ("usual", "https://slow.example.com"))
        self.answers: list[Deferred[Any]] = []
        self.destination.answer = self.answer
        self.reporter = MemoryReporter()
        self.outbox = self.make(slots=2, timeout_seconds=5)
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def make(self, *, slots: int, timeout_seconds: float | None) -> Outbox:
        """An outbox."""
        return Outbox(
            self.clock,
            self.destination,
            slots=slots,
            timeout_seconds=timeout_seconds,
            policy=RetryPolicy(attempts=1, first_delay_seconds=1, max_delay_seconds=1),
            spool_interval_seconds=60,
            reporter=self.reporter,
            events=event_factory(),
        )

    def answer(self) -> Deferred[Any]:
        """The answer to one attempt, for the test to fire."""
        self.answers.append(Deferred())
        return self.answers[-1]

    def attempt(self, capture_id: str = "abc", **options: str) -> Deferred[Any]:
        """One attempt."""
        artifact = make_artifact(self.content, capture_id=capture_id, destination="one", **options)
        return self.outbox.deliver(artifact, lambda: None)

    def end(self, capture_id: str) -> str:
        """What became of an attempt, which has ended."""
        [data] = [event.data for event in self.reporter.events if event.subject == capture_id]
        return "delivered" if isinstance(data, CaptureDelivered) else str(data.values()["problem"])

    def test_routes(self) -> None:
        """Each route of the destination has slots of its own, whatever else the requests say."""
        elsewhere = [self.attempt(endpoint="https://slow.example.com") for _ in range(3)]
        self.assertEqual(len(self.answers), 2)
        here = [self.attempt(endpoint=f"https://{number}.example.com") for number in range(3)]
        here.append(self.attempt(bucket="other"))
        self.assertEqual(len(self.answers), 4)
        for attempt in (*here, *elsewhere):
            attempt.cancel()
            self.successResultOf(attempt)

    def test_slots(self) -> None:
        """Up to two go on at the same time, in order; however one ends, the next gets its slot."""
        attempts = [self.attempt(str(number)) for number in range(6)]
        self.assertEqual(len(self.answers), 2)
        self.answers[0].callback(None)
        self.assertEqual(self.end("0"), "delivered")
        self.assertEqual(len(self.answers), 3)
        self.answers[1].errback(DestinationError("503", retryable=True))
        self.assertEqual(self.end("1"), "503")
        self.assertEqual(len(self.answers), 4)
        attempts[2].cancel()
        self.assertEqual(self.end("2"), "the daemon stopped")
        self.assertEqual(len(self.answers), 5)
        self.clock.advance(5)
        self.assertEqual((self.end("3"), self.end("4")), ("timed out after 5 s",) * 2)
        self.answers[5].callback(None)
        self.assertEqual(self.end("5"), "delivered")
        for attempt in attempts:
            self.successResultOf(attempt)

    def test_cancelled_while_it_waits(self) -> None:
        """One that is cancelled before it has a slot leaves no trace."""
        attempts = [self.attempt(str(number)) for number in range(4)]
        attempts[2].cancel()
        self.assertEqual(self.end("2"), "the daemon stopped")
        for answer in self.answers[:2]:
            answer.callback(None)
        self.answers[2].callback(None)
        self.assertEqual([self.end(number) for number in "013"], ["delivered"] * 3)
        self.assertEqual(len(self.answers), 3)

    def test_many_give_up(self) -> None:
        """Cancelling one of ten thousand waiting captures is as cheap as cancelling one of a few."""
        costs: dict[int, list[int]] = {10_000: [], 20: []}
        attempts = {}
        for waiting in costs:
            self.outbox = self.make(slots=1, timeout_seconds=None)
            attempts[waiting] = [self.attempt() for _ in range(waiting + 1)]
        for _ in range(20):
            # In turns, so that both are measured on a machine that is equally busy.
            for waiting, measured in costs.items():
                last = attempts[waiting].pop()
                before = time.process_time_ns()
                last.cancel()
                measured.append(time.process_time_ns() - before)
        crowded, alone = map(min, costs.values())
        self.assertLess(crowded, 4 * alone)
        # From the last one: none gets a slot.
        for attempt in (*reversed(attempts[10_000]), *reversed(attempts[20])):
            attempt.cancel()

    def test_many_fail_at_once(self) -> None:
        """However many wait for a slot, and fail as soon as they have it, all are attempted."""
        attempts = [self.attempt() for _ in range(2000)]
        self.destination.answer = lambda: broken("no bucket", retryable=False)
        self.answers[0].callback(None)
        self.answers[1].callback(None)
        for attempt in attempts:
            self.successResultOf(attempt)
        self.assertEqual(sum(isinstance(data, DeliveryFailed) for data in self.reporter.data), 1998)

    def test_time_limit(self) -> None:
        """The time limit of an attempt begins when it has a slot. Afterwards it is cancelled."""
        cancelled: list[object] = []
        self.destination.answer = lambda: Deferred(cancelled.append)
        attempt = self.attempt()
        self.clock.advance(4.9)
        self.assertNoResult(attempt)
        self.clock.advance(0.1)
        self.successResultOf(attempt)
        self.assertEqual((self.end("abc"), len(cancelled)), ("timed out after 5 s", 1))

    def test_no_time_limit(self) -> None:
        """There may be no time limit."""
        self.outbox = self.make(slots=2, timeout_seconds=None)
        self.attempt()
        self.clock.advance(1e6)
        self.answers[0].callback(None)
        self.assertEqual(self.end("abc"), "delivered")

    def test_internal_error(self) -> None:
        """A destination with a bug is an error like any other, and the bug is logged."""

        def raising() -> Deferred[Any]:
            raise ZeroDivisionError

        for number, answer in enumerate((raising, lambda: fail(ZeroDivisionError()))):
            self.destination.answer = answer
            self.attempt(str(number))
            self.assertEqual(self.end(str(number)), FAULT)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_options_refused(self) -> None:
        """A capture whose options the destination does not accept is not delivered, for good."""
        self.destination.problems = lambda options: [Problem(path="bucket", rule=f"no {options['bucket']}")]
        self.attempt(bucket="evil")
        self.assertEqual(self.end("abc"), "the request's bucket: no evil")
        self.assertEqual((self.answers, self.destination.artifacts), ([], []))
