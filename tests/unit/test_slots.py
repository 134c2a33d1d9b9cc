"""The slots of a route, and those that wait for one."""

from __future__ import annotations

import time

from twisted.internet.defer import CancelledError
from twisted.trial import unittest

from pcapsvc.delivery.slots import Slots


class SlotsTests(unittest.SynchronousTestCase):
    """L{Slots}."""

    def test_in_order(self) -> None:
        """Slots are given out in the order of asking, to those that still wait."""
        slots = Slots(1)
        self.successResultOf(slots.acquire())
        first, second, third = (slots.acquire() for _ in range(3))
        second.cancel()
        self.failureResultOf(second, CancelledError)
        slots.release()
        self.successResultOf(first)
        self.assertNoResult(third)
        slots.release()
        self.successResultOf(third)

    def test_many_give_up(self) -> None:
        """To stop waiting costs the same, however many wait."""
        costs: dict[int, list[int]] = {20_000: [], 20: []}
        waiting = {}
        for count in costs:
            slots = Slots(1)
            waiting[count] = [slots.acquire() for _ in range(count + 1)]
        for _ in range(20):
            # In turns, so that both are measured on a machine that is equally busy.
            for count, measured in costs.items():
                last = waiting[count].pop()
                before = time.process_time_ns()
                last.cancel()
                measured.append(time.process_time_ns() - before)
                self.failureResultOf(last, CancelledError)
        crowded, alone = map(min, costs.values())
        self.assertLess(crowded, 10 * alone)
