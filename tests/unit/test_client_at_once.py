"""Asking several nodes at once."""

from __future__ import annotations

import threading

from twisted.trial import unittest

from pcapsvc.client.at_once import at_once

_PATIENCE_SECONDS = 30.0


class AtOnceTests(unittest.SynchronousTestCase):
    """A function that is called for each of several places."""

    def test_order(self) -> None:
        """The answers are in the order of the places, whichever comes first."""
        for places in ([], [3], [*range(100)]):
            self.assertEqual(at_once(str, places), [str(place) for place in places])

    def test_at_once(self) -> None:
        """None waits for another."""
        barrier = threading.Barrier(20)
        answers = at_once(lambda place: barrier.wait(_PATIENCE_SECONDS) >= 0, range(20))
        self.assertEqual(answers, [True] * 20)

    def test_raises(self) -> None:
        """What the function raises is raised."""
        for places in ([0], [1, 0, 2]):
            self.assertRaises(ZeroDivisionError, at_once, lambda place: 1 / place, places)
