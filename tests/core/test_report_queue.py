"""Events that wait to be published."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.event import CaptureDone, CaptureProgress
from pcapsvc.core.labels import Labels
from pcapsvc.core.report_queue import Dropped, Report, ReportQueue
from pcapsvc.testing import event_factory
from tests.examples import given
from tests.examples import strategies as st


def report(name: str) -> Report:
    """An event of 10 bytes; of progress, if its name begins with a C{p}."""
    return Report(name, "abc", name.startswith("p"), name.encode().ljust(10))


def names(reports: list[Report]) -> list[str]:
    """The names of events."""
    return [one.event_id for one in reports]


class ReportQueueTests(unittest.SynchronousTestCase):
    """A queue of four events, or 50 bytes."""

    def setUp(self) -> None:
        """An empty one."""
        self.queue = ReportQueue(limit=4, max_bytes=50)

    def put(self, *these: str, now: float = 1.0) -> None:
        """Put events into it."""
        for name in these:
            self.queue.put(report(name), now)

    def rest(self) -> list[str]:
        """Take everything that can be taken."""
        return names(self.queue.take(100, 10_000))

    def test_report(self) -> None:
        """A report is an event in JSON, with what has to be known of it."""
        events, labels = event_factory(), Labels(via="http", interface="lo")
        done = events.event(CaptureDone(), labels, "abc")
        self.assertEqual(Report.of(done), Report(done.id, "abc", False, done.json))
        data = CaptureProgress(packets=1, bytes=2, seconds=3.0)
        self.assertTrue(Report.of(events.event(data, labels, "abc")).is_progress)

    def test_order(self) -> None:
        """Events are taken in the order in which they were put, of whatever kind."""
        self.put("a", "p1", "b", "p2")
        self.assertEqual((len(self.queue), self.queue.untaken), (4, 4))
        self.assertEqual(names(self.queue.take(3, 10_000)), ["a", "p1", "b"])
        self.assertEqual((len(self.queue), self.queue.untaken), (4, 1))
        self.assertEqual(self.rest(), ["p2"])

    def test_bytes_at_once(self) -> None:
        """No more bytes are taken than wanted, except that one event is always taken."""
        self.put("a", "b", "c")
        self.assertEqual(names(self.queue.take(9, 20)), ["a", "b"])
        self.assertEqual(names(self.queue.take(9, 1)), ["c"])
        self.assertEqual(self.queue.take(9, 1), [])

    def test_progress_first(self) -> None:
        """If it is full, the oldest progress is dropped, and then the oldest of all."""
        self.put("a", "p1", "b", "p2", "c")
        self.assertEqual(self.queue.dropped, 1)
        self.put("d")
        self.put("e")
        self.assertEqual((self.rest(), self.queue.dropped), (["b", "c", "d", "e"], 3))

    def test_new_progress(self) -> None:
        """If there is no other progress, new progress is dropped rather than anything else."""
        self.put("a", "b", "c", "d", "p1")
        self.assertEqual((self.rest(), self.queue.dropped), (["a", "b", "c", "d"], 1))

    def test_too_many_bytes(self) -> None:
        """The number of bytes is bounded as well."""
        self.put("a", "b")
        self.queue.put(Report("long", None, False, b"x" * 35), 2.0)
        self.assertEqual((self.rest(), self.queue.dropped), (["b", "long"], 1))

    def test_taken_is_never_dropped(self) -> None:
        """What was taken may have arrived, so it is never dropped, and counts until it is settled."""
        self.put("a", "b", "c", "d")
        taken = self.queue.take(3, 10_000)
        self.put("e")
        self.assertEqual((len(self.queue), self.queue.dropped), (4, 1))
        self.queue.settle(taken)
        self.put("f", "g", "h")
        self.assertEqual((self.rest(), self.queue.dropped), (["e", "f", "g", "h"], 1))

    def test_all_taken(self) -> None:
        """While everything is taken, new events are dropped."""
        self.put("a", "b", "c", "d")
        self.rest()
        self.put("e")
        self.assertEqual((self.rest(), len(self.queue), self.queue.dropped), ([], 4, 1))

    def test_settled_twice(self) -> None:
        """Settling again, or what was never taken, changes nothing."""
        self.put("a", "b")
        taken = self.queue.take(1, 10_000)
        self.queue.settle([*taken, *taken, report("b")])
        self.assertEqual((len(self.queue), self.rest()), (1, ["b"]))

    def test_refused(self) -> None:
        """What will never be accepted is dropped."""
        self.put("a", "b")
        self.queue.refuse([*self.queue.take(1, 10_000), report("b")], 3.0)
        self.assertEqual((len(self.queue), self.queue.dropped), (1, 1))
        self.assertEqual(self.queue.take_dropped(), Dropped(count=1, since=3.0))

    def test_held(self) -> None:
        """An event can be added as if it had been taken."""
        self.queue.hold(report("x"))
        self.put("a", "b", "c", "d")
        self.assertEqual((len(self.queue), self.queue.dropped), (4, 1))
        self.queue.settle([report("x")])
        self.assertEqual(self.rest(), ["b", "c", "d"])

    def test_reported(self) -> None:
        """What was dropped is known since the last time that it was asked for, with the time of the first."""
        self.assertFalse(self.queue.has_unreported)
        self.put("a", "b", "c", "d", "e", now=5.0)
        self.put("f", now=6.0)
        self.assertTrue(self.queue.has_unreported)
        self.assertEqual(self.queue.take_dropped(), Dropped(count=2, since=5.0))
        self.assertFalse(self.queue.has_unreported)
        self.put("g", now=7.0)
        self.assertEqual((self.queue.take_dropped(), self.queue.dropped), (Dropped(count=1, since=7.0), 3))

    def test_drop_all(self) -> None:
        """In the end, everything that is left is dropped, be it taken or not."""
        self.put("a", "b", "p")
        self.queue.take(1, 10_000)
        self.assertEqual((self.queue.drop_all(9.0), len(self.queue), self.queue.dropped), (3, 0, 3))
        self.put("a", "b", "c", "d")
        self.assertEqual(self.queue.dropped, 3)

    @given(st.lists(st.sampled_from(["put", "progress", "take", "settle", "forget"]), max_size=60))
    def test_as_a_list(self, steps: list[str]) -> None:
        """It does what a list would do that is searched each time; none is lost without being counted."""
        queue, waiting, taken, count, arrived = ReportQueue(limit=4, max_bytes=10_000), [], [], 0, 0
        for number, step in enumerate(steps):
            if step in ("put", "progress"):
                count += 1
                waiting.append(name := f"{step[0].replace('p', 'p' if step == 'progress' else 'x')}{number}")
                queue.put(report(name), 0.0)
                if len(waiting) + len(taken) > 4:
                    waiting.remove(next((one for one in waiting if one[0] == "p"), waiting[0]))
            elif step == "take":
                found = names(queue.take(2, 10_000))
                self.assertEqual(found, waiting[:2])
                taken += found
                del waiting[:2]
            else:
                queue.settle([report(one) for one in taken[:1]])
                arrived += len(taken[:1])
                del taken[:1]
            self.assertEqual(len(queue), len(waiting) + len(taken))
            self.assertEqual(count, arrived + len(queue) + queue.dropped)
