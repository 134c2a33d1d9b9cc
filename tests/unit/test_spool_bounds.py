"""The spool's limits: size and age."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from pcapsvc.core.errors import SpoolError
from pcapsvc.delivery.entry import Input, State
from pcapsvc.delivery.inventory import ENTRY_BYTES
from pcapsvc.testing import run_now
from tests.unit.contents import MemfdContent, make_artifact
from tests.unit.spool_case import DAY, WALL, SpoolCase, replace_id


def steps_of(work: Callable[[], object]) -> int:
    """How many lines of the deliveries' code some work runs."""
    steps = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        if "/pcapsvc/delivery/" not in frame.f_code.co_filename:
            return None
        steps += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps


class BoundsTests(SpoolCase):
    """Size and age."""

    def test_size(self) -> None:
        """Beyond the size, the oldest are dropped, and each is reported; what is being delivered stays."""
        for number in range(10):
            self.put(f"{number}.pcap")
        self.assertEqual(self.lost(), [])
        self.clock.advance(60)
        self.take(1)
        self.put("x.pcap")
        self.put("y.pcap")
        self.assertEqual([capture for capture, _ in self.lost()], ["1", "2"])
        self.assertIn("the spool is full", self.lost()[0][1])
        self.assertIn("the last problem was: 503", self.lost()[0][1])
        self.assertLessEqual(self.spool.size, self.max_bytes)
        self.assertEqual(len(self.names()), 10)

    def test_what_a_capture_costs(self) -> None:
        """If there is room, the cost of a capture doesn't depend on how many are in the spool already."""
        self.max_bytes *= 100
        self.restart()
        self.put("first.pcap")
        costs = [steps_of(partial(self.put, f"{number}.pcap")) for number in range(100)]
        # The least of ten, as garbage may be collected within one.
        self.assertEqual(min(costs[:10]), min(costs[-10:]), costs)

    def test_oldest_first(self) -> None:
        """The oldest one is by the monotonic clock. It is dropped first, and attempted first."""
        for number in range(10):
            self.put(f"{number}.pcap")
            self.wall -= 60
        self.put("x.pcap")
        self.assertEqual([capture for capture, _ in self.lost()], ["0"])
        self.clock.advance(60)
        self.assertEqual([entry.capture_id for entry in self.spool.due("one")], [*"123456789x"])

    def test_too_large(self) -> None:
        """What is larger than the spool displaces nothing."""
        self.put()
        self.max_bytes = ENTRY_BYTES
        self.restart()
        self.assertIn("the spool may use up to", self.refused("b.pcap"))
        self.assertEqual(self.spool.entries, 1)

    def test_all_in_use(self) -> None:
        """If everything is being delivered, there is no room for a new capture."""
        for number in range(10):
            self.put(f"{number}.pcap")
        self.clock.advance(60)
        self.take()
        self.assertIn("being delivered now", self.refused("x.pcap"))

    def test_too_much_in_use(self) -> None:
        """If removing all others would not suffice, none is removed."""
        for number in range(10):
            self.put(f"{number}.pcap")
        self.clock.advance(60)
        self.take(5)
        large = MemfdContent(bytes(5 * ENTRY_BYTES))
        self.addCleanup(large.close)
        putting = self.write(make_artifact(large))
        self.assertIn("being delivered now", str(self.failureResultOf(putting, SpoolError).value))
        self.assertEqual((self.lost(), self.spool.entries), ([], 10))

    def test_not_written(self) -> None:
        """What can't be written displaces nothing."""
        for number in range(10):
            self.put(f"{number}.pcap")
        full = self.patch(os, "write", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
        for _ in range(3):
            self.assertIn("No space left", self.refused("x.pcap"))
        self.assertEqual((self.lost(), self.spool.entries), ([], 10))
        full.restore()
        self.put("x.pcap")
        self.assertEqual([capture for capture, _ in self.lost()], ["0"])

    def test_given_up_while_others_go(self) -> None:
        """
        A capture that is given up after it was written is reported as spooled. What had to be removed to
        make room for it is still removed, and reported, before anything else is written.
        """
        for number in range(10):
            self.put(f"{number}.pcap")
        hanging = self.hang("remove")
        putting = self.write(replace_id(make_artifact(self.content, name="x.pcap"), "x"))
        putting.cancel()
        self.successResultOf(putting)
        self.run_in_thread = run_now
        self.assertEqual((self.spool.entries, self.lost()), (11, []))
        late = self.write(replace_id(make_artifact(self.content, name="y.pcap"), "y"))
        self.assertNoResult(late)
        hanging[0].callback(None)
        self.successResultOf(late)
        self.assertEqual((self.spool.entries, len(self.names())), (10, 10))
        self.assertEqual([capture for capture, _ in self.lost()], ["0", "1"])

    def test_age(self) -> None:
        """Beyond the age a capture is lost, which is reported, after a restart as before."""
        self.put("a.pcap")
        self.clock.advance(DAY - 10)
        self.put("b.pcap")
        self.successResultOf(self.spool.tidy())
        self.assertEqual(self.lost(), [])
        self.clock.advance(20)
        self.restart()
        [(capture, why)] = self.lost()
        self.assertEqual(capture, "a")
        self.assertIn("could not be delivered within 86400 s; the last problem was: 503", why)
        self.assertEqual(len(self.names()), 1)

    def test_clock_set(self) -> None:
        """A wall clock that jumps makes nothing older, before a restart or by it."""
        self.wall = 0.0
        self.put("a.pcap")
        self.wall = WALL
        self.put("b.pcap")
        self.successResultOf(self.spool.tidy())
        self.restart()
        self.assertEqual((self.lost(), self.spool.entries), ([], 2))
        self.wall = 0.0
        self.restart()
        self.wall = WALL
        self.successResultOf(self.spool.tidy())
        self.assertEqual((self.lost(), self.spool.entries), ([], 2))
        self.clock.advance(DAY + 1)
        self.successResultOf(self.spool.tidy())
        self.assertEqual([capture for capture, _ in self.lost()], ["a", "b"])

    def test_too_old_to_remove(self) -> None:
        """If one that is too old can't be removed, that is logged, and tried again."""
        self.put()
        self.clock.advance(DAY + 1)

        def failing(old: str, new: str) -> None:
            raise OSError(30, "Read-only file system")

        failures = self.patch(os, "rename", failing)
        for _ in range(2):
            self.successResultOf(self.spool.tidy())
        self.assertEqual((len(self.errors()), self.spool.entries), (1, 1))
        failures.restore()
        self.successResultOf(self.spool.tidy())
        self.assertEqual([capture for capture, _ in self.lost()], ["a"])

    def test_counting(self) -> None:
        """How many wait is known without looking at each: somebody may ask every second."""

        def calls() -> int:
            count = 0

            def called(frame: object, event: str, argument: object) -> None:
                nonlocal count
                count += event == "call"

            sys.setprofile(called)
            try:
                found = self.spool.entries, dict(self.spool.left)
            finally:
                sys.setprofile(None)
            waiting = self.spool.waiting
            left = [entry for entry in waiting if entry.state is State.SPOOLED]
            self.assertEqual((len(waiting), {"one": len(left)}), found)
            return count

        for number in range(20):
            self.put(f"{number}.pcap")
        self.assertLess(calls(), 15)
        self.restart()
        self.assertLess(calls(), 15)
        first, *_ = self.spool.waiting
        first.on(Input.TAKE)
        calls()
        self.successResultOf(self.spool.tidy())
        calls()

    def test_quarantined_ones_first(self) -> None:
        """What is quarantined is kept as long as anything else, and makes room first."""
        self.put("a.pcap")
        self.stop()
        (self.entry() / "manifest.json").unlink()
        os.utime(self.entry(), (WALL, WALL))
        self.start()
        self.successResultOf(self.spool.tidy())
        for number in range(10):
            self.put(f"b{number}.pcap")
        self.assertEqual((os.listdir(self.path / "broken"), self.lost()), ([], []))

    def test_quarantined_ones_age(self) -> None:
        """Beyond the age, it is removed as well."""
        (self.path / ".new-0123456789abcdef").mkdir()
        os.utime(self.path / ".new-0123456789abcdef", (WALL, WALL))
        self.restart()
        self.assertEqual(len(os.listdir(self.path / "broken")), 1)
        self.clock.advance(DAY + 1)
        self.successResultOf(self.spool.tidy())
        self.assertEqual(os.listdir(self.path / "broken"), [])

    def test_quarantined_ones_and_a_clock_that_is_set(self) -> None:
        """Nothing in quarantine gets old, or stays young, because the wall clock is set."""
        for days in (2, -2):
            (self.path / ".new-0123456789abcdef").mkdir()
            os.utime(self.path / ".new-0123456789abcdef", (self.wall_clock(), self.wall_clock()))
            self.restart()
            self.wall += days * DAY
            self.clock.advance(DAY - 1)
            self.successResultOf(self.spool.tidy())
            self.assertEqual(1, len(os.listdir(self.path / "broken")))
            self.clock.advance(2)
            self.successResultOf(self.spool.tidy())
            self.assertEqual([], os.listdir(self.path / "broken"))
