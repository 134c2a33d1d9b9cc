"""Services that stop in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial import unittest
from zope.interface import implementer

from pcapsvc.interfaces.lifecycle import IHurriable
from pcapsvc.lifecycle import OrderedServices


class _Part(Service):
    def __init__(self, calls: list[str], name: str, stop: Callable[[], Any] = lambda: None) -> None:
        self._calls, self._label, self._stop = calls, name, stop

    def privilegedStartService(self) -> None:
        self._calls.append(f"privileged {self._label}")

    def startService(self) -> None:
        super().startService()
        self._calls.append(f"start {self._label}")

    def stopService(self) -> Any:
        super().stopService()
        self._calls.append(f"stop {self._label}")
        return self._stop()


@implementer(IHurriable)
class _Hurried(_Part):
    def hurry(self) -> None:
        self._calls.append(f"hurry {self._label}")


class OrderedServicesTests(unittest.SynchronousTestCase):
    """The order, and the time limit."""

    def setUp(self) -> None:
        """A clock, and a record of all calls."""
        self.clock = Clock()
        self.calls: list[str] = []
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def services(self, *stops: Callable[[], Any]) -> OrderedServices:
        """Parts a, b, c, …, each with what its stop returns."""
        parts = [_Part(self.calls, chr(97 + number), stop) for number, stop in enumerate(stops)]
        return OrderedServices(self.clock, parts, stop_timeout_seconds=10)

    def test_start(self) -> None:
        """The part that stops last starts first."""
        services = self.services(lambda: None, lambda: None)
        services.privilegedStartService()
        services.startService()
        self.assertEqual(self.calls, ["privileged b", "privileged a", "start b", "start a"])
        self.assertTrue(services.running)

    def test_stop(self) -> None:
        """Each part stops only after the previous one has stopped."""
        first: Deferred[None] = Deferred()
        services = self.services(lambda: first, lambda: None)
        stopping = services.stopService()
        self.assertFalse(services.running)
        self.assertEqual(self.calls, ["stop a"])
        self.assertNoResult(stopping)
        first.callback(None)
        self.assertEqual(self.calls, ["stop a", "stop b"])
        self.successResultOf(stopping)

    def test_failures(self) -> None:
        """A part that raises or fails is logged, and the others are stopped all the same."""

        def raising() -> None:
            raise ZeroDivisionError

        stopping = self.services(raising, lambda: fail(ZeroDivisionError()), lambda: None).stopService()
        self.successResultOf(stopping)
        self.assertEqual(self.calls, ["stop a", "stop b", "stop c"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_timeout(self) -> None:
        """The time limit is for all parts together: after it, those that are still stopping are cancelled."""
        cancelled: list[str] = []
        first: Deferred[None] = Deferred()
        stopping = self.services(
            lambda: first,
            lambda: Deferred(lambda _: cancelled.append("b")),
            lambda: Deferred(lambda _: cancelled.append("c")),
            lambda: None,
        ).stopService()
        self.clock.advance(2)
        first.callback(None)
        self.clock.advance(7.9)
        self.assertEqual(cancelled, [])
        self.clock.advance(0.1)
        self.assertEqual(cancelled, ["b", "c"])
        self.assertEqual(self.calls[-1], "stop d")
        self.successResultOf(stopping)

    def test_stalled(self) -> None:
        """If the process is stopped until the time is up, the parts still have a quarter of it."""
        saved: Deferred[None] = Deferred()
        part = _Hurried(self.calls, "a", lambda: saved)
        last: Deferred[None] = Deferred()
        services = OrderedServices(
            self.clock,
            [_Part(self.calls, "first"), part, _Part(self.calls, "b", lambda: last)],
            stop_timeout_seconds=10,
        )
        stopped = services.stopService()
        self.clock.advance(60)
        self.assertEqual(self.calls, ["stop first", "stop a", "hurry a"])
        self.clock.advance(2.4)
        saved.callback(None)
        self.assertEqual(self.calls[3:], ["stop b", "hurry a"])
        self.assertNoResult(stopped)
        self.clock.advance(0.2)
        self.successResultOf(stopped)

    def test_concurrent(self) -> None:
        """The parts of a list stop concurrently; the next part waits for all of them."""
        first: Deferred[None] = Deferred()
        parts = [
            [_Part(self.calls, "a", lambda: first), _Part(self.calls, "b")],
            _Part(self.calls, "c"),
        ]
        services = OrderedServices(self.clock, parts, stop_timeout_seconds=10)
        services.startService()
        self.assertEqual(self.calls, ["start c", "start a", "start b"])
        self.calls.clear()
        stopping = services.stopService()
        self.assertEqual(self.calls, ["stop a", "stop b"])
        first.callback(None)
        self.assertEqual(self.calls, ["stop a", "stop b", "stop c"])
        self.successResultOf(stopping)

    def test_hurried(self) -> None:
        """When a quarter of the time is left, parts that can be hurried are, once."""
        first: Deferred[None] = Deferred()
        hurried = _Hurried(self.calls, "a", lambda: first)
        parts = [(), hurried, _Part(self.calls, "b")]
        services = OrderedServices(self.clock, parts, stop_timeout_seconds=10)
        stopping = services.stopService()
        self.clock.advance(7.4)
        self.assertEqual(self.calls, ["stop a"])
        self.clock.advance(0.2)
        self.assertEqual(self.calls, ["stop a", "hurry a"])
        self.assertNoResult(stopping)
        first.callback(None)
        self.assertEqual(self.calls[-1], "stop b")
        self.successResultOf(stopping)

    def test_no_hurry(self) -> None:
        """Parts that stop in time are not hurried."""
        parts = [_Hurried(self.calls, "a"), _Part(self.calls, "b")]
        self.successResultOf(OrderedServices(self.clock, parts, stop_timeout_seconds=10).stopService())
        self.assertEqual(self.calls, ["stop a", "stop b"])

    def test_hurry_from_outside(self) -> None:
        """A hurried stop has only a quarter of the time."""
        first: Deferred[None] = Deferred()
        parts = [(), _Hurried(self.calls, "a", lambda: first), _Part(self.calls, "b")]
        services = OrderedServices(self.clock, parts, stop_timeout_seconds=10)
        stopping = services.stopService()
        self.clock.advance(1)
        services.hurry()
        self.assertEqual(self.calls, ["stop a", "hurry a"])
        self.clock.advance(2.4)
        self.assertNoResult(stopping)
        self.clock.advance(0.2)
        self.assertEqual(self.calls, ["stop a", "hurry a", "stop b"])
        self.successResultOf(stopping)

    def test_hurried_before(self) -> None:
        """A stop that was hurried before it begins is hurried from its beginning."""
        parts = [(), _Hurried(self.calls, "a", Deferred), _Hurried(self.calls, "b")]
        services = OrderedServices(self.clock, parts, stop_timeout_seconds=10)
        services.startService()
        self.calls.clear()
        services.hurry()
        self.assertEqual(self.calls, [])
        stopping = services.stopService()
        self.assertEqual(self.calls, ["stop a", "hurry a", "hurry b"])
        self.clock.advance(2.5)
        self.successResultOf(stopping)
        self.assertEqual(self.calls[3:], ["stop b"])

    def hanging(self) -> tuple[OrderedServices, list[str]]:
        """Two parts that hang; and a record of what is cancelled, and when."""
        cancelled: list[str] = []

        def hang(name: str) -> Callable[[], Deferred[None]]:
            return lambda: Deferred(lambda _: cancelled.append(f"{name} {self.clock.seconds():g}"))

        parts = [_Part(self.calls, "a", hang("a")), _Hurried(self.calls, "b", hang("b"))]
        return OrderedServices(self.clock, parts, stop_timeout_seconds=20), cancelled

    def test_first(self) -> None:
        """The first part has a quarter of the time, so that most of it is left for the others."""
        services, cancelled = self.hanging()
        stopping = services.stopService()
        self.clock.pump([0.5] * 39)
        self.assertEqual(self.calls, ["stop a", "stop b", "hurry b"])
        self.assertNoResult(stopping)
        self.clock.pump([0.5])
        self.assertEqual(cancelled, ["a 5", "b 20"])
        self.successResultOf(stopping)

    def test_first_hurried(self) -> None:
        """
        When hurried, the first part has two seconds, in which sources settle with their brokers. A
        part that begins to stop after that is hurried, too.
        """
        services, cancelled = self.hanging()
        stopping = services.stopService()
        self.clock.advance(1)
        services.hurry()
        self.clock.pump([0.5] * 12)
        self.assertEqual(cancelled, ["a 3", "b 6"])
        self.assertEqual(self.calls, ["stop a", "hurry b", "stop b", "hurry b"])
        self.successResultOf(stopping)

    def test_first_of_short(self) -> None:
        """If the whole time is short, the first part has half of it."""
        parts = [_Part(self.calls, "a", Deferred), _Part(self.calls, "b")]
        stopping = OrderedServices(self.clock, parts, stop_timeout_seconds=2).stopService()
        self.clock.advance(0.9)
        self.assertEqual(self.calls, ["stop a"])
        self.clock.advance(0.1)
        self.assertEqual(self.calls, ["stop a", "stop b"])
        self.successResultOf(stopping)

    def test_cancelled_part_ends_well(self) -> None:
        """A part that finishes as soon as it is cancelled has stopped."""
        part: Deferred[None] = Deferred(lambda waiting: waiting.callback(None))
        stopping = self.services(lambda: part, lambda: None).stopService()
        self.clock.advance(2.5)
        self.assertEqual(self.calls, ["stop a", "stop b"])
        self.successResultOf(stopping)
