"""Outboxes: attempts, delays, slots, and the spool when the attempts are used up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from pcapsvc.core.errors import FAULT, DestinationError, SpoolError
from pcapsvc.core.event import CaptureDelivered, DeliveryFailed, DeliveryPostponed, DeliverySpooled
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.disk_wait import LONGEST_HOLD_SECONDS
from pcapsvc.delivery.entry import State
from pcapsvc.delivery.ispool import ISpool
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.delivery.outboxes import Outboxes
from pcapsvc.interfaces.delivery import IDelivery
from pcapsvc.interfaces.lifecycle import IHurriable
from pcapsvc.testing import MemoryDestination, MemorySpool, event_factory
from tests.unit.contents import MemfdContent, make_artifact
from tests.unit.event_schema import checked_reporter

WALL = 1_700_000_000.0


def broken(words: str = "503", *, retryable: bool = True, asked: float | None = None) -> Deferred[Any]:
    """An attempt that fails."""
    return fail(DestinationError(words, retryable=retryable, retry_after_seconds=asked))


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
        """An outbox for each."""
        self.boxes = [
            Outbox(
                self.clock,
                destination,
                slots=2,
                timeout_seconds=300,
                policy=RetryPolicy(attempts=self.attempts, first_delay_seconds=1, max_delay_seconds=10),
                spool_interval_seconds=60,
                reporter=self.reporter,
                events=event_factory(),
                spool=self.spool,
                spool_first=self.spool_first,
                wall_clock=lambda: WALL + self.clock.seconds(),
                chance=lambda: self.chance(),
            )
            for destination in (self.one, self.two)
        ]
        self.outbox = self.boxes[0]
        self.delivery = Outboxes(self.boxes)
        for box in self.boxes:
            box.startService()

    def chance(self) -> float:
        """The random number of each jitter."""
        return 1.0

    def hurry_all(self) -> None:
        """Hurry, as a stop does."""
        for box in self.boxes:
            box.hurry()

    def deliver(self, name: str = "a.pcap") -> Deferred[None]:
        """Deliver a capture."""
        return self.delivery.deliver(make_artifact(self.content, name=name), self.let_go)

    def let_go(self) -> None:
        """The content is on disk."""
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
        self.assertTrue(verifyObject(IHurriable, self.outbox))
        self.assertTrue(verifyObject(ISpool, MemorySpool()))

    def test_at_once(self) -> None:
        """What succeeds immediately is reported, and done."""
        self.successResultOf(self.deliver())
        self.assertEqual([type(data) for data in self.reporter.data], [CaptureDelivered] * 2)

    def test_again(self) -> None:
        """What is retryable is retried, after a delay that doubles; each failure is reported."""
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
        """When the attempts are used up, the delivery has failed."""
        self.answers(broken)
        delivery = self.deliver()
        self.clock.pump([1, 2])
        self.successResultOf(delivery)
        self.assertEqual(len(self.one.artifacts), 3)
        [failed] = self.events(DeliveryFailed)
        self.assertEqual(failed.problem, "503")

    def test_not_retryable(self) -> None:
        """What is not retryable is not retried."""
        self.answers(lambda: broken("403", retryable=False))
        self.successResultOf(self.deliver())
        self.assertEqual([event.problem for event in self.events(DeliveryFailed)], ["403"])
        self.assertEqual(len(self.one.artifacts), 1)

    def test_timed_out(self) -> None:
        """An attempt that times out is retryable."""
        self.answers(Deferred, lambda: succeed(None))
        delivery = self.deliver()
        self.clock.advance(300)
        self.clock.advance(1)
        self.successResultOf(delivery)
        [postponed] = self.events(DeliveryPostponed)
        self.assertEqual(postponed.problem, "timed out after 300 s")

    def test_bug_in_a_destination(self) -> None:
        """A destination that raises, or fails with anything unexpected, is not asked again."""
        self.answers(lambda: fail(ZeroDivisionError()))
        self.successResultOf(self.deliver())
        self.assertEqual(len(self.one.artifacts), 1)
        self.assertEqual([event.problem for event in self.events(DeliveryFailed)], [FAULT])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_asked(self) -> None:
        """If a destination asks us to wait, we do, even for longer than the longest delay."""
        self.answers(lambda: broken("429", asked=30), lambda: succeed(None))
        delivery = self.deliver()
        self.clock.advance(29)
        self.assertNoResult(delivery)
        self.clock.advance(1)
        self.successResultOf(delivery)

    def test_no_slot_while_it_backs_off(self) -> None:
        """While it backs off, a delivery delays no other."""
        self.answers(broken, broken, lambda: succeed(None))
        deliveries = [self.deliver(f"{number}.pcap") for number in range(3)]
        self.assertEqual(list(self.one.files), ["2.pcap"])
        self.clock.advance(1)
        for delivery in deliveries:
            self.successResultOf(delivery)

    def test_slow_destination(self) -> None:
        """A destination that hangs delays no other one, however many captures wait for it."""
        self.answers(Deferred)
        deliveries = [self.deliver(f"{number}.pcap") for number in range(50)]
        self.assertEqual((len(self.one.artifacts), len(self.two.files)), (2, 50))
        for delivery in deliveries:
            delivery.cancel()
            self.successResultOf(delivery)
        self.assertEqual({event.problem for event in self.events(DeliveryFailed)}, {"the daemon stopped"})

    def test_cancel_while_it_backs_off(self) -> None:
        """A delivery that is cancelled while it backs off ends there."""
        self.answers(broken)
        delivery = self.deliver()
        delivery.cancel()
        self.successResultOf(delivery)
        self.assertEqual([event.problem for event in self.events(DeliveryFailed)], ["the daemon stopped"])

    def test_internal_error(self) -> None:
        """An internal error affects one delivery only, and is logged."""
        self.chance = lambda: 1 / 0  # type: ignore[method-assign]
        self.answers(broken)
        self.successResultOf(self.deliver())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(self.events(DeliveryFailed)), 1)
        self.assertEqual(len(self.two.files), 1)

    def test_hurry_without_spool(self) -> None:
        """Without a spool, hurrying changes nothing."""
        self.answers(broken, lambda: succeed(None))
        delivery = self.deliver()
        self.hurry_all()
        self.clock.advance(1)
        self.successResultOf(delivery)
        self.assertEqual(len(self.one.files), 1)

    def test_stop(self) -> None:
        """A stop waits for what goes on; on cancel, that is cancelled."""
        self.successResultOf(self.outbox.stopService())
        hanging: Deferred[Any] = Deferred()
        self.answers(lambda: hanging)
        self.deliver()
        stopping = self.outbox.stopService()
        self.assertNoResult(stopping)
        hanging.callback(None)
        self.successResultOf(stopping)
        self.answers(Deferred)
        self.deliver()
        stopping = self.outbox.stopService()
        stopping.cancel()
        self.successResultOf(stopping)
        self.assertEqual([event.problem for event in self.events(DeliveryFailed)], ["the daemon stopped"])


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

    def test_waiting(self) -> None:
        """What is being delivered can be looked at."""
        self.answers(broken)
        self.deliver()
        self.assertEqual([repr(entry) for entry in self.outbox.waiting], ["<Entry abc for one: BACKING_OFF>"])
        self.assertEqual(repr(self.outbox), "<Outbox for one: 1 captures>")
        self.clock.pump([1, 2])
        self.assertEqual(self.outbox.waiting, [])

    def test_used_up(self) -> None:
        """When the attempts are used up, the capture is spooled for that destination only, and reported."""
        self.answers(broken)
        delivery = self.deliver()
        self.clock.advance(1)
        self.assertEqual(self.spooled().files, {})
        self.clock.advance(2)
        self.successResultOf(delivery)
        self.assertEqual(self.spooled().files, {("a.pcap", "one"): b"packets"})
        [spooled] = self.events(DeliverySpooled)
        self.assertEqual((spooled.problem, self.events(DeliveryFailed)), ("503", []))

    def test_not_retryable(self) -> None:
        """What is not retryable is spooled, too: an operator may fix it."""
        self.answers(lambda: broken("no credentials", retryable=False))
        self.successResultOf(self.deliver())
        self.assertEqual(self.spooled().entries["a.pcap", "one"].problem, "no credentials")

    def test_asked_for_long(self) -> None:
        """If a destination asks us to wait for long, we do, and don't hold memory meanwhile."""
        self.answers(lambda: broken("429", asked=600))
        self.successResultOf(self.deliver())
        self.assertEqual(self.spooled().entries["a.pcap", "one"].due, 600)

    def test_not_spooled(self) -> None:
        """A capture that can't be spooled is lost for that destination, with both reasons."""
        self.spooled().writing = lambda: fail(SpoolError("no space left"))
        self.answers(lambda: broken("403", retryable=False))
        self.successResultOf(self.deliver())
        [failed] = self.events(DeliveryFailed)
        self.assertEqual(failed.problem, "403; and not spooled: no space left")

    def test_internal_error_of_the_spool(self) -> None:
        """So is one that causes an internal error in the spool."""
        self.spooled().writing = lambda: fail(ZeroDivisionError())
        self.answers(lambda: broken("403", retryable=False))
        self.successResultOf(self.deliver())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((len(self.events(DeliveryFailed)), self.events(DeliverySpooled)), (1, []))

    def test_hurry(self) -> None:
        """In a hurry everything is spooled: attempted, backing off, waiting for a slot, or arriving later."""
        self.answers(broken, Deferred)
        deliveries = [self.deliver(f"{number}.pcap") for number in range(5)]
        self.assertEqual(len(self.one.artifacts), 3)
        self.hurry_all()
        deliveries.append(self.deliver("late.pcap"))
        for delivery in deliveries:
            self.successResultOf(delivery)
        self.assertEqual(len(self.one.artifacts), 3)
        self.assertEqual(
            {name for name, destination in self.spooled().files if destination == "one"},
            {"0.pcap", "1.pcap", "2.pcap", "3.pcap", "4.pcap", "late.pcap"},
        )
        self.assertEqual(self.spooled().entries["0.pcap", "one"].problem, "503")
        self.assertIn("the daemon stopped before", self.spooled().entries["4.pcap", "one"].problem)

    def test_cancelled_in_the_spool(self) -> None:
        """If there is no time for the spool either, the capture is lost, which is reported."""
        self.spooled().writing = Deferred
        self.answers(Deferred)
        delivery = self.deliver()
        self.hurry_all()
        self.assertNoResult(delivery)
        delivery.cancel()
        self.successResultOf(delivery)
        [failed] = self.events(DeliveryFailed)
        self.assertTrue(failed.problem.endswith("; the daemon stopped"), failed.problem)

    def test_started_again(self) -> None:
        """After another start, there is time again."""
        self.hurry_all()
        self.successResultOf(self.outbox.stopService())
        self.outbox.startService()
        self.successResultOf(self.deliver())
        self.assertEqual(len(self.one.files), 1)


class SpoolFirstTests(DeliveryCase):
    """With a spool that has each capture before its first attempt."""

    spool_first = True

    def setUp(self) -> None:
        """Build it."""
        self.kept = self.spool = MemorySpool()
        super().setUp()

    def test_memory(self) -> None:
        """Once it is written for every destination, its memory is freed; it is delivered from disk."""
        writing: list[Deferred[None]] = []
        self.kept.writing = lambda: writing.append(Deferred()) or writing[-1]  # type: ignore[func-returns-value]
        self.answers(Deferred)
        delivery = self.deliver()
        writing[1].callback(None)
        self.assertEqual((self.let_gos, self.one.files, list(self.two.files)), (0, {}, ["a.pcap"]))
        writing[0].callback(None)
        self.assertEqual(self.let_gos, 1)
        self.assertEqual(set(self.kept.files), {("a.pcap", "one")})
        self.assertTrue(self.kept.entries["a.pcap", "one"].is_taken)
        self.assertNoResult(delivery)
        delivery.cancel()
        self.successResultOf(delivery)

    def test_delivered(self) -> None:
        """What is delivered is removed from the spool before that is reported."""
        left: list[int] = []
        self.reporter.report = lambda event: left.append(len(self.kept.files))  # type: ignore[method-assign]
        self.successResultOf(self.deliver())
        self.assertEqual((left, self.kept.files), ([0, 0], {}))

    def test_used_up(self) -> None:
        """What could not be delivered is left to the spool, with the last problem, which is reported."""
        self.answers(lambda: broken("403", retryable=False))
        self.successResultOf(self.deliver())
        [(key, entry)] = self.kept.entries.items()
        self.assertEqual((key, entry.problem, entry.state), (("a.pcap", "one"), "403", State.SPOOLED))
        self.assertEqual((entry.attempts, entry.due), (0, 60))
        self.assertEqual((len(self.events(DeliverySpooled)), self.events(DeliveryFailed)), (1, []))

    def test_vanished(self) -> None:
        """What is not in the spool any more when its attempts are used up is reported as lost."""
        self.answers(lambda: self.kept.vanish() or broken("403", retryable=False))  # type: ignore[func-returns-value]
        self.successResultOf(self.deliver())
        [failed] = self.events(DeliveryFailed)
        self.assertEqual(failed.problem, "403; and no longer in the spool")

    def test_broken_off(self) -> None:
        """A delivery that is cancelled, hurried, or has an internal error is left to the spool, too."""
        for number, end in enumerate((self.give_up, self.hurry, self.fault)):
            self.reporter.events.clear()
            end(f"{number}.pcap")
            self.assertIn((f"{number}.pcap", "one"), self.kept.files)
            self.assertEqual((len(self.events(DeliverySpooled)), self.events(DeliveryFailed)), (1, []), end)
        self.assertEqual({entry.state for entry in self.kept.entries.values()}, {State.SPOOLED})

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
        self.hurry_all()
        self.successResultOf(delivery)
        self.outbox.startService()

    def fault(self, name: str) -> None:
        """End it by an internal error after the attempt."""
        self.answers(lambda: broken("503"))
        self.chance = lambda: 1 / 0  # type: ignore[method-assign]
        self.successResultOf(self.deliver(name))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_disk_hangs(self) -> None:
        """
        If the spool's disk hangs, the capture is delivered from memory, and a warning is logged. It doesn't
        matter what becomes of the write afterwards.
        """
        warnings = self.warnings()
        writing: list[Deferred[None]] = []
        self.kept.writing = lambda: writing.append(Deferred()) or writing[-1]  # type: ignore[func-returns-value]
        self.answers(broken, lambda: succeed(None))
        delivery = self.deliver()
        self.clock.advance(LONGEST_HOLD_SECONDS - 1)
        self.assertEqual((self.one.artifacts, self.two.artifacts), ([], []))
        self.clock.advance(1)
        self.assertEqual((len(self.one.artifacts), list(self.two.files)), (1, ["a.pcap"]))
        self.assertEqual(len(warnings), 2)
        self.assertIn("not in the spool: its disk timed out after 30 s", warnings[0])
        for written in writing:
            written.callback(None)
        self.clock.advance(1)
        self.successResultOf(delivery)
        self.assertEqual((list(self.one.files), self.kept.files, self.let_gos), (["a.pcap"], {}, 0))

    def test_disk_hangs_afterwards(self) -> None:
        """If the disk hangs after the capture was delivered, it is still reported as delivered."""
        warnings = self.warnings()
        self.kept.removing = Deferred
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
        """If the spool can't keep it, it is delivered from memory."""
        self.kept.writing = lambda: fail(SpoolError("the disk is full"))
        self.successResultOf(self.deliver())
        self.assertEqual(
            (self.let_gos, list(self.one.files), list(self.two.files)), (0, ["a.pcap"], ["a.pcap"])
        )
