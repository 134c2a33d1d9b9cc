"""Parts that stop one after the other."""

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
    def __init__(self, told: list[str], name: str, stop: Callable[[], Any] = lambda: None) -> None:
        self._told, self._label, self._stop = told, name, stop

    def privilegedStartService(self) -> None:
        self._told.append(f"privileged {self._label}")

    def startService(self) -> None:
        super().startService()
        self._told.append(f"start {self._label}")

    def stopService(self) -> Any:
        super().stopService()
        self._told.append(f"stop {self._label}")
        return self._stop()


@implementer(IHurriable)
class _Hurried(_Part):
    def hurry(self) -> None:
        self._told.append(f"hurry {self._label}")


class OrderedServicesTests(unittest.SynchronousTestCase):
    """The order, and the time that it may take."""

    def setUp(self) -> None:
        """A clock, and a diary."""
        self.clock = Clock()
        self.told: list[str] = []
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def services(self, *stops: Callable[[], Any]) -> OrderedServices:
        """Parts a, b, c, … that stop like this."""
        parts = [_Part(self.told, chr(97 + number), stop) for number, stop in enumerate(stops)]
        return OrderedServices(self.clock, parts, stop_timeout_seconds=10)

    def test_start(self) -> None:
        """What stops last starts first."""
        services = self.services(lambda: None, lambda: None)
        services.privilegedStartService()
        services.startService()
        self.assertEqual(self.told, ["privileged b", "privileged a", "start b", "start a"])
        self.assertTrue(services.running)

    def test_stop(self) -> None:
        """Each stops only after the one before it has stopped."""
        first: Deferred[None] = Deferred()
        services = self.services(lambda: first, lambda: None)
        stopping = services.stopService()
        self.assertFalse(services.running)
        self.assertEqual(self.told, ["stop a"])
        self.assertNoResult(stopping)
        first.callback(None)
        self.assertEqual(self.told, ["stop a", "stop b"])
        self.successResultOf(stopping)

    def test_failures(self) -> None:
        """A part that raises, or fails, keeps no other from stopping, and is logged."""

        def raising() -> None:
            raise ZeroDivisionError

        stopping = self.services(raising, lambda: fail(ZeroDivisionError()), lambda: None).stopService()
        self.successResultOf(stopping)
        self.assertEqual(self.told, ["stop a", "stop b", "stop c"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_time_is_up(self) -> None:
        """All the stopping has one time: what still stops then is cancelled, and so is what is next."""
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
        self.assertEqual(self.told[-1], "stop d")
        self.successResultOf(stopping)

    def test_side_by_side(self) -> None:
        """The parts of a list stop at once; what comes next waits for all of them."""
        first: Deferred[None] = Deferred()
        parts = [
            [_Part(self.told, "a", lambda: first), _Part(self.told, "b")],
            _Part(self.told, "c"),
        ]
        services = OrderedServices(self.clock, parts, stop_timeout_seconds=10)
        services.startService()
        self.assertEqual(self.told, ["start c", "start a", "start b"])
        self.told.clear()
        stopping = services.stopService()
        self.assertEqual(self.told, ["stop a", "stop b"])
        first.callback(None)
        self.assertEqual(self.told, ["stop a", "stop b", "stop c"])
        self.successResultOf(stopping)

    def test_hurried(self) -> None:
        """When a quarter of the time is left, what can be hurried is, once."""
        first: Deferred[None] = Deferred()
        hurried = _Hurried(self.told, "a", lambda: first)
        parts = [(), hurried, _Part(self.told, "b")]
        services = OrderedServices(self.clock, parts, stop_timeout_seconds=10)
        stopping = services.stopService()
        self.clock.advance(7.4)
        self.assertEqual(self.told, ["stop a"])
        self.clock.advance(0.2)
        self.assertEqual(self.told, ["stop a", "hurry a"])
        self.assertNoResult(stopping)
        first.callback(None)
        self.assertEqual(self.told[-1], "stop b")
        self.successResultOf(stopping)

    def test_no_hurry(self) -> None:
        """What stops in time isn't hurried."""
        parts = [_Hurried(self.told, "a"), _Part(self.told, "b")]
        self.successResultOf(OrderedServices(self.clock, parts, stop_timeout_seconds=10).stopService())
        self.assertEqual(self.told, ["stop a", "stop b"])

    def test_hurry_from_outside(self) -> None:
        """Somebody may hurry all: then a quarter of the time is all that there is."""
        first: Deferred[None] = Deferred()
        parts = [(), _Hurried(self.told, "a", lambda: first), _Part(self.told, "b")]
        services = OrderedServices(self.clock, parts, stop_timeout_seconds=10)
        stopping = services.stopService()
        self.clock.advance(1)
        services.hurry()
        self.assertEqual(self.told, ["stop a", "hurry a"])
        self.clock.advance(2.4)
        self.assertNoResult(stopping)
        self.clock.advance(0.2)
        self.assertEqual(self.told, ["stop a", "hurry a", "stop b"])
        self.successResultOf(stopping)

    def test_hurried_before(self) -> None:
        """So they may in the very moment before the stop begins."""
        parts = [(), _Hurried(self.told, "a", Deferred), _Hurried(self.told, "b")]
        services = OrderedServices(self.clock, parts, stop_timeout_seconds=10)
        services.startService()
        self.told.clear()
        services.hurry()
        self.assertEqual(self.told, [])
        stopping = services.stopService()
        self.assertEqual(self.told, ["stop a", "hurry a", "hurry b"])
        self.clock.advance(2.5)
        self.successResultOf(stopping)
        self.assertEqual(self.told[3:], ["stop b"])

    def first(self) -> tuple[OrderedServices, list[str]]:
        """A first part that hangs, and one behind it that does; and what is cancelled, with the time."""
        cancelled: list[str] = []

        def hang(name: str) -> Callable[[], Deferred[None]]:
            return lambda: Deferred(lambda _: cancelled.append(f"{name} {self.clock.seconds():g}"))

        parts = [_Part(self.told, "a", hang("a")), _Hurried(self.told, "b", hang("b"))]
        return OrderedServices(self.clock, parts, stop_timeout_seconds=20), cancelled

    def test_first(self) -> None:
        """The first have a quarter of the time, so that those behind them have the most of it."""
        services, cancelled = self.first()
        stopping = services.stopService()
        self.clock.pump([0.5] * 39)
        self.assertEqual(self.told, ["stop a", "stop b", "hurry b"])
        self.assertNoResult(stopping)
        self.clock.pump([0.5])
        self.assertEqual(cancelled, ["a 5", "b 20"])
        self.successResultOf(stopping)

    def test_first_hurried(self) -> None:
        """
        Where they are hurried, two seconds, in which they settle what they brought. What
        begins to stop after that is hurried, too.
        """
        services, cancelled = self.first()
        stopping = services.stopService()
        self.clock.advance(1)
        services.hurry()
        self.clock.pump([0.5] * 12)
        self.assertEqual(cancelled, ["a 3", "b 6"])
        self.assertEqual(self.told, ["stop a", "hurry b", "stop b", "hurry b"])
        self.successResultOf(stopping)

    def test_first_of_short(self) -> None:
        """Where there is little time, half of it."""
        parts = [_Part(self.told, "a", Deferred), _Part(self.told, "b")]
        stopping = OrderedServices(self.clock, parts, stop_timeout_seconds=2).stopService()
        self.clock.advance(0.9)
        self.assertEqual(self.told, ["stop a"])
        self.clock.advance(0.1)
        self.assertEqual(self.told, ["stop a", "stop b"])
        self.successResultOf(stopping)

    def test_cancelled_part_ends_well(self) -> None:
        """A part that ends at once when it is cancelled has stopped."""
        part: Deferred[None] = Deferred(lambda waiting: waiting.callback(None))
        stopping = self.services(lambda: part, lambda: None).stopService()
        self.clock.advance(10)
        self.assertEqual(self.told, ["stop a", "stop b"])
        self.successResultOf(stopping)
