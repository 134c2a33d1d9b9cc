"""Asking several nodes at once."""

from __future__ import annotations

import sys
import threading

from twisted.trial import unittest

from pcapsvc.client.at_once import at_once
from pcapsvc.client.status import ClientError

_PATIENCE_SECONDS = 180.0


class AtOnceTests(unittest.SynchronousTestCase):
    """A function that is called for each of several places."""

    def test_few_threads(self) -> None:
        """If the system permits few threads, they ask all places; if it permits none, that is the error."""
        start = threading.Thread.start
        for permitted in (1, 2, 0):
            left = [permitted]

            def limited(thread: threading.Thread, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise RuntimeError("can't start new thread")
                start(thread)

            self.patch(threading.Thread, "start", limited)
            if permitted:
                self.assertEqual(at_once(str, range(100)), [str(place) for place in range(100)])
            else:
                self.assertRaises(ClientError, at_once, str, range(100))

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
            self.assertRaises(SystemExit, at_once, sys.exit, places)
