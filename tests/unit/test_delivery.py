"""Deliveries: attempts, pauses, places, and the spool when they are used up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from pcapsvc.core.errors import DestinationError, SpoolError
from pcapsvc.core.event import CaptureDelivered, DeliveryFailed, DeliveryPostponed, DeliverySpooled
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.delivery import LONGEST_HOLD_SECONDS, Delivery
from pcapsvc.delivery.lane import Lane
from pcapsvc.interfaces.delivery import IDelivery, ISpool
from pcapsvc.interfaces.lifecycle import IHurriable
from pcapsvc.testing import MemoryDestination, MemorySpool, event_factory
from tests.unit.contents import MemfdContent, make_artifact
from tests.unit.event_schema import checked_reporter

WALL = 1_700_000_000.0


def broken(words: str = "503", *, retryable: bool = True, asked: float | None = None) -> Deferred[Any]:
    """An attempt that fails."""
    return fail(DestinationError(words, retryable=retryable, retry_after_seconds=asked))


class LaneTests(unittest.SynchronousTestCase):
    """The way to one destination."""

    def setUp(self) -> None:
        """A destination that answers when the test does."""
        self.clock = Clock()
        self.content = MemfdContent(b"packets")
        self.addCleanup(self.content.close)
        self.destination = MemoryDestination("one", ("usual", "https://slow.example.com"))
        self.answers: list[Deferred[Any]] = []
        self.destination.answer = self.answer
        self.lane = Lane(self.clock, self.destination, at_once=2, timeout_seconds=5)
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def answer(self) -> Deferred[Any]:
        """The answer to one attempt, for the test to fire."""
        self.answers.append(Deferred())
        return self.answers[-1]

    def attempt(self, **options: str) -> Deferred[Any]:
        """One attempt."""
        return self.lane.attempt(make_artifact(self.content, destination="one", **options))

    def test_ways(self) -> None:
        """So many go on at once on each way of the destination, as it says, whatever the requests name."""
        elsewhere = [self.attempt(endpoint="https://slow.example.com") for _ in range(3)]
        self.assertEqual(len(self.answers), 2)
        here = [self.attempt(endpoint=f"https://{number}.example.com") for number in range(3)]
        here.append(self.attempt(bucket="other"))
        self.assertEqual(len(self.answers), 4)
        for attempt in (*here, *elsewhere):
            attempt.cancel()
            self.failureResultOf(attempt, CancelledError)

    def test_places(self) -> None:
        """So many go on at once, in their order; whatever one's end, the next has its place."""
        attempts = [self.attempt() for _ in range(6)]
        self.assertEqual(len(self.answers), 2)
        self.answers[0].callback(None)
        self.successResultOf(attempts[0])
        self.assertEqual(len(self.answers), 3)
        self.answers[1].errback(DestinationError("503", retryable=True))
        self.failureResultOf(attempts[1], DestinationError)
        self.assertEqual(len(self.answers), 4)
        attempts[2].cancel()
        self.failureResultOf(attempts[2], CancelledError)
        self.assertEqual(len(self.answers), 5)
        self.clock.advance(5)
        self.failureResultOf(attempts[3], DestinationError)
        self.failureResultOf(attempts[4], DestinationError)
        self.answers[5].callback(None)
        self.successResultOf(attempts[5])

    def test_cancelled_while_it_waits(self) -> None:
        """One that is given up before it had a place leaves no trace."""
        attempts = [self.attempt() for _ in range(4)]
        attempts[2].cancel()
        self.failureResultOf(attempts[2], CancelledError)
        for answer in self.answers[:2]:
            answer.callback(None)
        self.answers[2].callback(None)
        self.successResultOf(attempts[3])
        self.assertEqual(len(self.answers), 3)
        self.successResultOf(attempts[0])
        self.successResultOf(attempts[1])

    def test_many_give_up(self) -> None:
        """To give up costs one of thirty thousand that wait as much as one of a few."""
        [crowded, alone] = (self.cost_of_giving_up(waiting) for waiting in (30_000, 20))
        self.assertLess(crowded, 10 * alone)

    def cost_of_giving_up(self, waiting: int) -> float:
        """What it costs one of those that wait, in seconds of this process: the least of twenty times."""
        lane = Lane(self.clock, self.destination, at_once=1, timeout_seconds=None)
        attempts = [lane.attempt(make_artifact(self.content)) for _ in range(waiting + 1)]
        costs = []
        for attempt in reversed(attempts[-20:]):
            before = time.process_time_ns()
            attempt.cancel()
            costs.append(time.process_time_ns() - before)
        for attempt in attempts:
            attempt.addErrback(lambda failure: failure.trap(CancelledError))
            attempt.cancel()
        return min(costs) / 1e9

    def test_many_fail_at_once(self) -> None:
        """However many wait for a place, and fail at once when they have it, each has its turn."""
        attempts = [self.attempt() for _ in range(2000)]
        self.destination.answer = lambda: broken("no bucket", retryable=False)
        self.answers[0].callback(None)
        self.successResultOf(attempts.pop(0))
        self.answers[1].callback(None)
        self.successResultOf(attempts.pop(0))
        for attempt in attempts:
            self.failureResultOf(attempt, DestinationError)

    def test_time(self) -> None:
        """An attempt has its time, from when it has a place; after that it is ended, and can be repeated."""
        cancelled: list[object] = []
        self.destination.answer = lambda: Deferred(cancelled.append)
        attempt = self.attempt()
        self.clock.advance(4.9)
        self.assertNoResult(attempt)
        self.clock.advance(0.1)
        error = self.failureResultOf(attempt, DestinationError).value
        self.assertEqual(str(error), "no end within 5 s")
        self.assertTrue(error.retryable)
        self.assertEqual(len(cancelled), 1)

    def test_no_limit(self) -> None:
        """There may be no limit of time."""
        self.lane = Lane(self.clock, self.destination, at_once=2, timeout_seconds=None)
        attempt = self.attempt()
        self.clock.advance(1e6)
        self.answers[0].callback(None)
        self.successResultOf(attempt)

    def test_fault(self) -> None:
        """A destination that meets a fault, or raises, is an error as any other; the fault is logged."""

        def raising() -> Deferred[Any]:
            raise ZeroDivisionError

        for answer in (raising, lambda: fail(ZeroDivisionError())):
            self.destination.answer = answer
            error = self.failureResultOf(self.attempt(), DestinationError).value
            self.assertFalse(error.retryable)
            self.assertIn("internal error", str(error))
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class DeliveryCase(unittest.SynchronousTestCase):
    """Two destinations, and a clock."""

    attempts = 3
    spool: MemorySpool | None = None
    spool_first = False

    def setUp(self) -> None:
        """Build it."""
        self.clock = Clock()
        self.content = MemfdContent(b"packets")
        self.addCleanup(self.content.close)
        self.one, self.two = MemoryDestination("one"), MemoryDestination("two")
        self.reporter = checked_reporter(self)
        self.let_gos = 0
        self.build()
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))
        self.addCleanup(lambda: self.assertTrue(self.content.all_closed))

    def build(self) -> None:
        """The delivery."""
        self.delivery = Delivery(
            self.clock,
            [Lane(self.clock, one, at_once=2, timeout_seconds=300) for one in (self.one, self.two)],
            policy=RetryPolicy(attempts=self.attempts, first_delay_seconds=1, max_delay_seconds=10),
            reporter=self.reporter,
            events=event_factory(),
            spool=self.spool,
            spool_first=self.spool_first,
            wall_clock=lambda: WALL + self.clock.seconds(),
            chance=lambda: 1.0,
        )
        self.delivery.startService()

    def deliver(self, name: str = "a.pcap") -> Deferred[None]:
        """Deliver a capture."""
        return self.delivery.deliver(make_artifact(self.content, name=name), self.let_go)

    def let_go(self) -> None:
        """The content is no longer needed."""
        self.let_gos += 1

    def answers(self, *answers: Callable[[], Deferred[Any]]) -> None:
        """What the first destination answers to its attempts, the last one to all that follow."""
        left = list(answers)
        self.one.answer = lambda: (left.pop(0) if len(left) > 1 else left[0])()

    def events(self, kind: type) -> list[Any]:
        """The payloads of the events of one kind that are about the first destination."""
        return [
            data
            for data in self.reporter.data
            if isinstance(data, kind) and getattr(data, "destination", "one") == "one"
        ]


class DeliveryTests(DeliveryCase):
    """Without a spool."""

    def test_interfaces(self) -> None:
        """It is what the pipeline and the lifecycle ask for; and so is the fake of the spool."""
        self.assertTrue(verifyObject(IDelivery, self.delivery))
        self.assertTrue(verifyObject(IHurriable, self.delivery))
        self.assertTrue(verifyObject(ISpool, MemorySpool()))

    def test_at_once(self) -> None:
        """What succeeds at once is told, and done."""
        self.successResultOf(self.deliver())
        self.assertEqual([type(data) for data in self.reporter.data], [CaptureDelivered] * 2)

    def test_again(self) -> None:
        """What may pass is tried again, after a pause that doubles; each failure is told."""
        self.answers(broken, lambda: broken("reset"), lambda: succeed(None))
        delivery = self.deliver()
        self.assertEqual((len(self.one.artifacts), len(self.two.files)), (1, 1))
        self.clock.advance(1)
        self.assertEqual(len(self.one.artifacts), 2)
        self.clock.advance(1.9)
        self.assertEqual(len(self.one.artifacts), 2)
        self.assertNoResult(delivery)
        self.clock.advance(0.1)
        self.successResultOf(delivery)
        self.assertEqual(
            [(one.problem, one.attempts, one.next_try - WALL) for one in self.events(DeliveryPostponed)],
            [("503", 1, 1), ("reset", 2, 3)],
        )
        self.assertEqual(len(self.one.files), 1)
        self.assertEqual(self.events(DeliveryFailed), [])

    def test_the_same_every_time(self) -> None:
        """
        Every attempt has the same artifact: name, id and bytes. After the first one it may be there
        already.
        """
        self.answers(broken, broken, lambda: succeed(None))
        self.deliver()
        self.clock.pump([1, 2])
        first, *more = self.one.artifacts
        self.assertFalse(first.may_be_there)
        self.assertEqual(more, [replace(first, may_be_there=True)] * 2)

    def test_used_up(self) -> None:
        """When the attempts are used up, it has failed."""
        self.answers(broken)
        delivery = self.deliver()
        self.clock.pump([1, 2])
        self.successResultOf(delivery)
        self.assertEqual(len(self.one.artifacts), 3)
        [failed] = self.events(DeliveryFailed)
        self.assertEqual(failed.problem, "503")

    def test_for_good(self) -> None:
        """What can't pass is not tried again."""
        self.answers(lambda: broken("403", retryable=False))
        self.successResultOf(self.deliver())
        self.assertEqual([event.problem for event in self.events(DeliveryFailed)], ["403"])
        self.assertEqual(len(self.one.artifacts), 1)

    def test_asked(self) -> None:
        """A destination that asks to be left alone is, even for longer than the longest pause."""
        self.answers(lambda: broken("429", asked=30), lambda: succeed(None))
        delivery = self.deliver()
        self.clock.advance(29)
        self.assertNoResult(delivery)
        self.clock.advance(1)
        self.successResultOf(delivery)

    def test_no_place_while_it_pauses(self) -> None:
        """In its pauses a delivery holds up no other."""
        self.answers(broken, broken, lambda: succeed(None))
        deliveries = [self.deliver(f"{number}.pcap") for number in range(3)]
        self.assertEqual(list(self.one.files), ["2.pcap"])
        self.clock.advance(1)
        for delivery in deliveries:
            self.successResultOf(delivery)

    def test_slow_destination(self) -> None:
        """A destination that hangs holds up no other one, however many captures wait for it."""
        self.answers(Deferred)
        deliveries = [self.deliver(f"{number}.pcap") for number in range(50)]
        self.assertEqual((len(self.one.artifacts), len(self.two.files)), (2, 50))
        for delivery in deliveries:
            delivery.cancel()
            self.successResultOf(delivery)
        self.assertEqual({event.problem for event in self.events(DeliveryFailed)}, {"given up"})

    def test_cancel_in_a_pause(self) -> None:
        """A delivery that is given up in a pause ends there."""
        self.answers(broken)
        delivery = self.deliver()
        delivery.cancel()
        self.successResultOf(delivery)
        self.assertEqual([event.problem for event in self.events(DeliveryFailed)], ["given up"])

    def test_fault(self) -> None:
        """A fault of ours costs one delivery, and is logged."""
        self.delivery._chance = lambda: 1 / 0
        self.answers(broken)
        self.successResultOf(self.deliver())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(self.events(DeliveryFailed)), 1)
        self.assertEqual(len(self.two.files), 1)

    def test_hurry_without_spool(self) -> None:
        """Without a spool there is nothing to gain by hurrying."""
        self.answers(broken, lambda: succeed(None))
        delivery = self.deliver()
        self.delivery.hurry()
        self.clock.advance(1)
        self.successResultOf(delivery)
        self.assertEqual(len(self.one.files), 1)

    def test_stop(self) -> None:
        """A stop waits for what goes on; on cancel, that is given up."""
        self.successResultOf(self.delivery.stopService())
        hanging: Deferred[Any] = Deferred()
        self.answers(lambda: hanging)
        self.deliver()
        stopping = self.delivery.stopService()
        self.assertNoResult(stopping)
        hanging.callback(None)
        self.successResultOf(stopping)
        self.answers(Deferred)
        self.deliver()
        stopping = self.delivery.stopService()
        stopping.cancel()
        self.successResultOf(stopping)
        self.assertEqual([event.problem for event in self.events(DeliveryFailed)], ["given up"])


class SpoolingTests(DeliveryCase):
    """With a spool."""

    def setUp(self) -> None:
        """Build it."""
        self.spool = MemorySpool()
        super().setUp()

    def spooled(self) -> MemorySpool:
        """The spool."""
        assert self.spool is not None
        return self.spool

    def test_used_up(self) -> None:
        """When the attempts are used up, the capture is spooled for that destination alone, which is told."""
        self.answers(broken)
        delivery = self.deliver()
        self.clock.advance(1)
        self.assertEqual(self.spooled().files, {})
        self.clock.advance(2)
        self.successResultOf(delivery)
        self.assertEqual(self.spooled().files, {("a.pcap", "one"): b"packets"})
        [spooled] = self.events(DeliverySpooled)
        self.assertEqual((spooled.problem, self.events(DeliveryFailed)), ("503", []))

    def test_for_good(self) -> None:
        """What can't pass is spooled, too: an operator may mend it."""
        self.answers(lambda: broken("no credentials", retryable=False))
        self.successResultOf(self.deliver())
        self.assertEqual(self.spooled().problems, {("a.pcap", "one"): "no credentials"})

    def test_asked_for_long(self) -> None:
        """A destination that asks to be left alone for long is, and memory isn't held meanwhile."""
        self.answers(lambda: broken("429", asked=600))
        self.successResultOf(self.deliver())
        self.assertEqual(self.spooled().asked_seconds, {("a.pcap", "one"): 600})

    def test_not_spooled(self) -> None:
        """A capture that can't be spooled is lost to that destination, with both reasons."""
        self.spooled().answer = lambda: fail(SpoolError("no space left"))
        self.answers(lambda: broken("403", retryable=False))
        self.successResultOf(self.deliver())
        [failed] = self.events(DeliveryFailed)
        self.assertEqual(failed.problem, "403; and not kept in the spool: no space left")

    def test_fault_of_the_spool(self) -> None:
        """So is one at which the spool meets a fault."""
        self.spooled().answer = lambda: fail(ZeroDivisionError())
        self.answers(lambda: broken("403", retryable=False))
        self.successResultOf(self.deliver())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((len(self.events(DeliveryFailed)), self.events(DeliverySpooled)), (1, []))

    def test_hurry(self) -> None:
        """In a hurry all is spooled: what is tried, what pauses, what waits for a place, what comes later."""
        self.answers(broken, Deferred)
        deliveries = [self.deliver(f"{number}.pcap") for number in range(5)]
        self.assertEqual(len(self.one.artifacts), 3)
        self.delivery.hurry()
        deliveries.append(self.deliver("late.pcap"))
        for delivery in deliveries:
            self.successResultOf(delivery)
        self.assertEqual(len(self.one.artifacts), 3)
        self.assertEqual(
            {name for name, destination in self.spooled().files if destination == "one"},
            {"0.pcap", "1.pcap", "2.pcap", "3.pcap", "4.pcap", "late.pcap"},
        )
        self.assertEqual(self.spooled().problems["0.pcap", "one"], "503")
        self.assertIn("the daemon stopped before", self.spooled().problems["4.pcap", "one"])

    def test_cancelled_in_the_spool(self) -> None:
        """Where there is no time for the spool either, the capture is lost, and told to be."""
        self.spooled().answer = Deferred
        self.answers(Deferred)
        delivery = self.deliver()
        self.delivery.hurry()
        self.assertNoResult(delivery)
        delivery.cancel()
        self.successResultOf(delivery)
        [failed] = self.events(DeliveryFailed)
        self.assertTrue(failed.problem.endswith("; given up"), failed.problem)

    def test_started_again(self) -> None:
        """After another start, there is time again."""
        self.delivery.hurry()
        self.successResultOf(self.delivery.stopService())
        self.delivery.startService()
        self.successResultOf(self.deliver())
        self.assertEqual(len(self.one.files), 1)


class SpoolFirstTests(DeliveryCase):
    """With a spool that has each capture before it is tried."""

    spool_first = True

    def setUp(self) -> None:
        """Build it."""
        self.kept = self.spool = MemorySpool()
        super().setUp()

    def test_memory(self) -> None:
        """Once it is kept for every destination it is delivered from the disk, and memory is let go of."""
        writing: list[Deferred[None]] = []
        self.kept.answer = lambda: writing.append(Deferred()) or writing[-1]  # type: ignore[func-returns-value]
        self.answers(Deferred)
        delivery = self.deliver()
        writing[1].callback(None)
        self.assertEqual((self.let_gos, self.one.files, list(self.two.files)), (0, {}, ["a.pcap"]))
        writing[0].callback(None)
        self.assertEqual(self.let_gos, 1)
        self.assertEqual(set(self.kept.files), {("a.pcap", "one")})
        self.assertEqual(self.kept.held, {("a.pcap", "one")})
        self.assertNoResult(delivery)
        delivery.cancel()
        self.successResultOf(delivery)

    def test_delivered(self) -> None:
        """What is delivered is out of the spool before that is told."""
        left: list[int] = []
        self.reporter.report = lambda event: left.append(len(self.kept.files))  # type: ignore[method-assign]
        self.successResultOf(self.deliver())
        self.assertEqual((left, self.kept.files), ([0, 0], {}))

    def test_used_up(self) -> None:
        """What could not be delivered is left to the spool, with the last problem, and that is told."""
        self.answers(lambda: broken("403", retryable=False))
        self.successResultOf(self.deliver())
        self.assertEqual((self.kept.held, set(self.kept.files)), (set(), {("a.pcap", "one")}))
        self.assertEqual(self.kept.problems[("a.pcap", "one")], "403")
        self.assertEqual((len(self.events(DeliverySpooled)), self.events(DeliveryFailed)), (1, []))

    def test_gone(self) -> None:
        """What is gone from the spool when its attempts are used up is told to be lost."""
        self.answers(lambda: self.kept.files.clear() or broken("403", retryable=False))  # type: ignore[func-returns-value]
        self.successResultOf(self.deliver())
        [failed] = self.events(DeliveryFailed)
        self.assertEqual(failed.problem, "403; and it is gone from the spool")

    def test_broken_off(self) -> None:
        """A delivery that is given up, hurried, or meets a fault is left to the spool, too."""
        for number, end in enumerate((self.give_up, self.hurry, self.fault)):
            self.reporter.events.clear()
            end(f"{number}.pcap")
            self.assertIn((f"{number}.pcap", "one"), self.kept.files)
            self.assertEqual((len(self.events(DeliverySpooled)), self.events(DeliveryFailed)), (1, []), end)
        self.assertEqual(self.kept.held, set())

    def give_up(self, name: str) -> None:
        """End it by force."""
        self.answers(Deferred)
        delivery = self.deliver(name)
        delivery.cancel()
        self.successResultOf(delivery)

    def hurry(self, name: str) -> None:
        """End it as a stop does."""
        self.answers(Deferred)
        delivery = self.deliver(name)
        self.delivery.hurry()
        self.successResultOf(delivery)
        self.delivery.startService()

    def fault(self, name: str) -> None:
        """End it by a fault behind the attempt."""
        self.answers(lambda: broken("503"))
        self.delivery._policy = None  # type: ignore[assignment]
        self.successResultOf(self.deliver(name))
        self.flushLoggedErrors(AttributeError)

    def test_disk_hangs(self) -> None:
        """
        Where the spool's disk hangs, it is delivered from memory in the end, which is told; the disk may
        bring what it likes then.
        """
        warnings = self.warnings()
        writing: list[Deferred[None]] = []
        self.kept.answer = lambda: writing.append(Deferred()) or writing[-1]  # type: ignore[func-returns-value]
        self.answers(broken, lambda: succeed(None))
        delivery = self.deliver()
        self.clock.advance(LONGEST_HOLD_SECONDS - 1)
        self.assertEqual((self.one.artifacts, self.two.artifacts), ([], []))
        self.clock.advance(1)
        self.assertEqual((len(self.one.artifacts), list(self.two.files)), (1, ["a.pcap"]))
        self.assertEqual(len(warnings), 2)
        self.assertIn("not in the spool: its disk takes longer than 30 s", warnings[0])
        for written in writing:
            written.callback(None)
        self.clock.advance(1)
        self.successResultOf(delivery)
        self.assertEqual((list(self.one.files), self.kept.files, self.let_gos), (["a.pcap"], {}, 0))

    def test_disk_hangs_afterwards(self) -> None:
        """Where it hangs when it is delivered, that is told as a success in the end, too."""
        warnings = self.warnings()
        self.kept.taking_out = Deferred
        delivery = self.deliver()
        self.assertEqual(self.reporter.events, [])
        self.clock.advance(LONGEST_HOLD_SECONDS)
        self.successResultOf(delivery)
        self.assertEqual([type(data) for data in self.reporter.data], [CaptureDelivered] * 2)
        self.assertEqual(len(warnings), 2)
        self.assertIn("may be delivered again after a restart", warnings[0])

    def warnings(self) -> list[str]:
        """What is logged from here on."""
        lines: list[str] = []

        def observe(event: Any) -> None:
            if event.get("log_namespace", "").startswith("pcapsvc."):
                lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines

    def test_no_room(self) -> None:
        """Where the spool can't keep it, it is delivered from memory."""
        self.kept.answer = lambda: fail(SpoolError("the disk is full"))
        self.successResultOf(self.deliver())
        self.assertEqual(
            (self.let_gos, list(self.one.files), list(self.two.files)), (0, ["a.pcap"], ["a.pcap"])
        )
