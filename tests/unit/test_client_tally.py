"""What pcapctl makes of the events about a request."""

from __future__ import annotations

import itertools

import msgspec
from twisted.trial import unittest

from pcapsvc.client import tally as client_tally
from pcapsvc.client.status import ExitStatus
from pcapsvc.client.tally import GRACE_SECONDS, LATE_SECONDS, SILENT_SECONDS
from pcapsvc.client.words import event_line
from pcapsvc.core.errors import Problem
from pcapsvc.core.rolling import RollingPackets
from tests.unit import client_case as case
from tests.unit.client_case import REQUEST, tally


class StatusTests(unittest.SynchronousTestCase):
    """The exit status."""

    def test_delivered(self) -> None:
        """Everything that was captured is at every destination; or there was nothing to capture."""
        counted = tally(*case.whole("web-1", "a"), *case.whole("web-2", "b"))
        self.assertEqual(counted.status(), ExitStatus.DELIVERED)
        empty = tally(case.accepted("web-1", "a"), case.stopped("web-1", "a", 0), case.done("web-1", "a"))
        self.assertEqual(empty.status(), ExitStatus.DELIVERED)

    def test_some_not(self) -> None:
        """One that isn't delivered everywhere, fails, is refused or is missing, is enough for status 1."""
        well = case.whole("web-1", "a")
        captured = [case.accepted("web-2", "b"), case.stopped("web-2", "b")]
        for events in (
            [
                *captured,
                case.delivered("web-2", "b"),
                case.undelivered("web-2", "b"),
                case.done("web-2", "b"),
            ],
            [*captured, case.spooled("web-2", "b"), case.done("web-2", "b")],
            [*captured, case.done("web-2", "b")],
            [*captured],
            [case.accepted("web-2", "b"), case.failed("web-2", "b")],
            [case.rejected("web-2")],
            [case.busy("web-2")],
        ):
            self.assertEqual(tally(*well, *events).status(), ExitStatus.PARTLY, events)
        self.assertEqual(tally(*well).status(missing=1), ExitStatus.PARTLY)

    def test_refused_by_all(self) -> None:
        """Every node that has answered rejects, or is busy."""
        self.assertEqual(tally(case.rejected("web-1"), case.busy("web-2")).status(), ExitStatus.REJECTED)
        self.assertEqual(tally(case.rejected("web-1")).status(missing=1), ExitStatus.PARTLY)

    def test_no_answer(self) -> None:
        """Nobody has answered, even if others are answered."""
        self.assertEqual(tally().status(missing=2), ExitStatus.NO_ANSWER)
        foreign = case.event("web-1", case.CaptureDone(), "a", requestid="another")
        self.assertEqual(tally(foreign).status(), ExitStatus.NO_ANSWER)

    def test_unreached(self) -> None:
        """A node that the request can't be sent to has a line, and has not answered."""
        counted = tally(*case.whole("web-1", "a"))
        counted.miss("http://web-2:8480", "Connection refused")
        self.assertEqual((counted.nodes, counted.unreached), ({"web-1"}, 1))
        self.assertTrue(counted.is_settled(0.0))
        self.assertEqual(counted.status(missing=1), ExitStatus.PARTLY)
        alone = tally()
        alone.miss("http://web-2:8480", "Connection refused")
        self.assertEqual(alone.status(missing=1), ExitStatus.NO_ANSWER)

    def test_some_interfaces(self) -> None:
        """An interface that can't be captured on is refused, and the others go on."""
        problem = Problem(path="interface", value='"eth9"', rule="no such interface")
        counted = tally(case.accepted("web-1", "a", problems=(problem,)), *case.whole("web-1", "a")[1:])
        self.assertEqual([row.state for row in counted.rows], ["rejected", "done"])
        self.assertEqual(counted.rows[0].words, 'interface = "eth9": no such interface')
        self.assertEqual((counted.status(), counted.nodes), (ExitStatus.PARTLY, {"web-1"}))


class OrderTests(unittest.SynchronousTestCase):
    """Events in any order, and more than once."""

    def test_any_order(self) -> None:
        """The outcome doesn't depend on the order in which events arrive, or on repetitions."""
        events = [*case.whole("web-1", "a"), case.progress("web-1", "a", 50, 1.0)]
        outcomes = set()
        for order in itertools.permutations(events):
            row = tally(*order, *order).rows[0]
            outcomes.add((row.state, row.packets, row.interface, row.is_delivered, row.limits["packets"]))
        self.assertEqual(outcomes, {("done", 100, "eth0", True, 100)})

    def test_strangers(self) -> None:
        """What isn't an event of ours is ignored."""
        counted = tally()
        data = {"requestid": REQUEST}
        for event in (
            {},
            {"data": None},
            {"data": data, "id": "1", "type": "pcapsvc.capture.stopped", "source": "/pcapsvc/nodes/a"},
            {"data": data, "id": "2", "type": "x", "source": "/pcapsvc/nodes/a"},
            {"data": data, "id": "3", "type": "pcapsvc.request.accepted", "source": "/pcapsvc/nodes/a"},
        ):
            self.assertIsNone(counted.add(event, 0.0))
        self.assertEqual(list(counted.rows), [])

    def test_names(self) -> None:
        """The name of a node is decoded."""
        self.assertEqual(tally(case.rejected("a/b c")).nodes, {"a/b c"})

    def test_refused_in_the_answer(self) -> None:
        """A refusal in a node's answer and the event about it are one line."""
        counted = tally()
        counted.refuse("web-1", "no")
        counted.add(case.busy("web-1"), 0.0)
        self.assertEqual([(row.node, row.state) for row in counted.rows], [("web-1", "busy")])
        counted.refuse("web-1", "no")
        self.assertEqual(len(counted.rows), 1)


class ProgressTests(unittest.SynchronousTestCase):
    """What is shown of a capture that is running."""

    def test_rate(self) -> None:
        """The rate is that of the time between the last two reports."""
        counted = tally(
            case.started("web-1", "a"),
            case.progress("web-1", "a", 10, 1.0),
            case.progress("web-1", "a", 40, 2.0),
            case.progress("web-1", "a", 20, 1.5),
        )
        row = counted.rows[0]
        self.assertEqual((row.packets, row.rate, row.dropped), (40, 30.0, 3))

    def test_nearest_limit(self) -> None:
        """It is the one of which most is used; time goes on between reports."""
        row = tally(case.started("web-1", "a"), case.progress("web-1", "a", 40, 2.0)).rows[0]
        self.assertEqual(row.nearest_limit(2.0), ("packets", 0.4))
        self.assertEqual(row.nearest_limit(30.0), ("duration", 0.5))
        self.assertEqual(row.nearest_limit(90.0), ("duration", 1.0))

    def test_rolling(self) -> None:
        """The rate of a rolling capture includes what it has released. Its size is no limit."""
        begun = case.started("web-1", "a", RollingPackets())
        later = [
            case.progress("web-1", "a", packets, seconds, RollingPackets(captured=captured, released=1))
            for packets, seconds, captured in ((10, 1.0, 10), (8, 2.0, 40))
        ]
        row = tally(begun, *later).rows[0]
        self.assertEqual((row.packets, row.rate), (8, 30.0))
        self.assertEqual(row.nearest_limit(15.0), ("duration", 0.25))
        lines = [event_line(each) for each in (begun, later[1])]
        self.assertTrue(lines[0].endswith("capturing udp, the newest 10.0 kB, 1:00"), lines[0])
        self.assertIn(" 8 packets of 40, 24 B, 3 dropped in 2.0 s", lines[1])

    def test_silent(self) -> None:
        """A node that reports no progress any more, or no end, may have been killed."""
        row = tally(case.started("web-1", "a")).rows[0]
        self.assertFalse(row.is_silent(60.0 + GRACE_SECONDS))
        self.assertTrue(row.is_silent(60.1 + GRACE_SECONDS))
        counted = tally(case.started("web-1", "a"), case.progress("web-1", "a", 40, 2.0))
        self.assertFalse(counted.is_settled(SILENT_SECONDS))
        self.assertTrue(counted.is_settled(SILENT_SECONDS + 0.1))
        self.assertEqual(counted.status(), ExitStatus.PARTLY)
        counted.add(case.progress("web-1", "a", 41, 3.0), SILENT_SECONDS + 1)
        self.assertFalse(counted.is_settled(SILENT_SECONDS + 1))

    def test_rare_progress(self) -> None:
        """A node that reports its progress rarely is given the time of three reports."""
        counted = tally(
            case.started("web-1", "a"),
            case.progress("web-1", "a", 40, 30.0),
            case.progress("web-1", "a", 41, 59.0),
        )
        self.assertFalse(counted.rows[0].is_silent(90.0))
        self.assertTrue(counted.rows[0].is_silent(90.1))

    def test_late_outcome(self) -> None:
        """After the end, the outcome of the delivery may still arrive: events of a queue have no order."""
        counted = tally(case.accepted("web-1", "a"), case.stopped("web-1", "a"), case.done("web-1", "a"))
        self.assertFalse(counted.is_settled(LATE_SECONDS))
        self.assertTrue(counted.is_settled(LATE_SECONDS + 0.1))
        counted.add(case.delivered("web-1", "a"), 1.0)
        self.assertTrue(counted.is_settled(1.0))


class BoundsTests(unittest.SynchronousTestCase):
    """A server may report new things for hours."""

    def test_rows(self) -> None:
        """Captures and refusals that are too many are ignored, and then not everything is delivered."""
        self.patch(client_tally, "MOST_ROWS", 3)
        well = [each for name in "abc" for each in case.whole("web-1", name)]
        counted = tally(*well)
        self.assertEqual((counted.ignored, counted.status()), (0, ExitStatus.DELIVERED))
        counted = tally(*well, case.accepted("web-1", "d", "e"), case.busy("web-2"), case.done("web-1", "f"))
        self.assertEqual([row.capture_id for row in counted.rows], ["a", "b", "c"])
        self.assertEqual((counted.ignored, counted.status()), (3, ExitStatus.PARTLY))

    def test_destinations(self) -> None:
        """So are destinations of a capture. Those that are known go on to be counted."""
        self.patch(client_tally, "MOST_DESTINATIONS", 2)
        counted = tally(*(case.undelivered("web-1", "a", name) for name in ("x", "y", "z")))
        counted.add(case.delivered("web-1", "a", "x"), 0.0)
        [row] = counted.rows
        self.assertEqual(
            {name: state for name, (state, _) in row.deliveries.items()}, {"x": "delivered", "y": "failed"}
        )
        self.assertEqual(counted.ignored, 1)

    def test_repeated(self) -> None:
        """An event that arrives twice is recognized, but for an old one."""
        self.patch(client_tally, "MOST_SEEN", 2)
        counted = tally()
        first, *others = (case.busy(f"web-{number}") for number in range(3))
        found = [counted.add(event, 0.0) is not None for event in (first, first, *others, others[-1], first)]
        self.assertEqual(found, [True, False, True, True, False, True])

    def test_texts(self) -> None:
        """Long texts are cut off; what has a long name is nothing that is known."""
        long = "x" * 100_000
        for event, path in (
            (case.failed("web-1", "a"), "problem"),
            (case.busy("web-1"), "reason"),
            (case.undelivered("web-1", "a"), "problem"),
            (case.stopped("web-1", "a"), "file"),
        ):
            event["data"][path] = long
            [row] = tally(event).rows
            self.assertLess(len(msgspec.json.encode(row)), 5000)
        for event in (case.done("web-1", long), case.busy(long), case.undelivered("web-1", "a", long)):
            self.assertLess(len(msgspec.json.encode(tally(event).rows)), 5000)
