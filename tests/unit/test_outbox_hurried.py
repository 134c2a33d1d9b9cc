"""An outbox that is hurried while the spool's disk hangs."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from pcapsvc.core.errors import SpoolError
from pcapsvc.core.event import CaptureDelivered, DeliveryFailed, DeliveryPostponed, DeliverySpooled
from pcapsvc.delivery.disk_wait import LONGEST_HOLD_SECONDS
from pcapsvc.testing import MemorySpool
from tests.unit.test_outbox import DeliveryCase, broken

HURRIED_SECONDS = LONGEST_HOLD_SECONDS / 2


class HurriedTests(DeliveryCase):
    """With a spool that is to have each capture first, and whose disk hangs."""

    spool_first = True

    def setUp(self) -> None:
        """Build it."""
        self.kept = self.spool = MemorySpool()
        super().setUp()
        self.kept.writing = Deferred

    def assert_delivered(self, delivery: Deferred[None]) -> None:
        """The capture is delivered to both destinations, and nothing else is reported of it."""
        self.successResultOf(delivery)
        self.assertEqual((list(self.one.files), list(self.two.files)), (["a.pcap"], ["a.pcap"]))
        self.assertEqual([type(data) for data in self.reporter.data], [CaptureDelivered] * 2)

    def test_written_at_the_time(self) -> None:
        """What is being written when the hurry begins is given up on sooner, and delivered from memory."""
        delivery = self.deliver()
        self.hurry_all()
        self.clock.advance(HURRIED_SECONDS - 1)
        self.assertNoResult(delivery)
        self.clock.advance(1)
        self.assert_delivered(delivery)

    def test_written_later(self) -> None:
        """So is what arrives in the hurry, also if the rest of the stop begins only then."""
        self.hurry_all()
        for box in self.boxes:
            box.close_spool()
        delivery = self.deliver()
        self.clock.advance(HURRIED_SECONDS)
        self.assert_delivered(delivery)

    def test_no_room(self) -> None:
        """So is what the spool refuses at once."""
        self.kept.writing = lambda: fail(SpoolError("the disk is full"))
        self.hurry_all()
        self.assert_delivered(self.deliver())

    def test_attempted(self) -> None:
        """An attempt of what is not on disk goes on, as nothing else would keep it."""
        storing: Deferred[Any] = Deferred()
        self.answers(lambda: storing)
        delivery = self.deliver()
        self.clock.advance(LONGEST_HOLD_SECONDS)
        self.hurry_all()
        self.hurry_all()
        storing.callback(None)
        self.assert_delivered(delivery)

    def test_room_again(self) -> None:
        """
        If the spool only had no room, and its disk is fine, an attempt is interrupted: the captures that were
        attempted at the time have made room.
        """
        self.kept.writing = lambda: fail(SpoolError("full of captures that are being delivered"))
        self.answers(Deferred)
        delivery = self.deliver()
        self.kept.writing = lambda: succeed(None)
        self.hurry_all()
        self.successResultOf(delivery)
        self.assertEqual((len(self.one.artifacts), set(self.kept.files)), (1, {("a.pcap", "one")}))

    def test_once(self) -> None:
        """It is attempted once. If that fails, the spool is tried again."""
        self.answers(broken)
        self.hurry_all()
        delivery = self.deliver()
        self.kept.writing = lambda: succeed(None)
        self.clock.advance(HURRIED_SECONDS)
        self.successResultOf(delivery)
        self.assertEqual((len(self.one.artifacts), set(self.kept.files)), (1, {("a.pcap", "one")}))
        self.assertEqual(self.kept.entries["a.pcap", "one"].problem, "503")
        self.assertEqual((len(self.events(DeliverySpooled)), self.events(DeliveryPostponed)), (1, []))

    def test_cancelled(self) -> None:
        """When the time is up, it is lost, and nothing more is begun."""
        self.answers(Deferred)
        self.hurry_all()
        delivery = self.deliver()
        self.clock.advance(HURRIED_SECONDS)
        delivery.cancel()
        self.successResultOf(delivery)
        self.assertEqual([event.problem for event in self.events(DeliveryFailed)], ["the daemon stopped"])

    def test_removed(self) -> None:
        """What is being removed after its delivery is reported as delivered that much sooner."""
        self.kept.writing = lambda: succeed(None)
        self.kept.removing = Deferred
        delivery = self.deliver()
        self.hurry_all()
        self.clock.advance(HURRIED_SECONDS)
        self.assert_delivered(delivery)
