"""What a capture got of the recent past."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.history import MissingReason, Reach

NOW = 1_700_000_000.0


class ReachTests(unittest.SynchronousTestCase):
    """How complete a history is."""

    def missing(self, seconds: float, reach: Reach) -> list[tuple[MissingReason, float]]:
        """What is not kept of the last C{seconds}."""
        return [(one.reason, round(one.seconds or 0.0, 3)) for one in reach.missing(NOW - seconds, NOW)]

    def test_complete(self) -> None:
        """Nothing is missing of what is kept."""
        self.assertEqual(self.missing(60, Reach(seconds=60, started=NOW - 99, released=None)), [])

    def test_on_its_way(self) -> None:
        """
        What a request for all of a history loses while it is served is not reported, unless it is more than
        times are exact to.
        """
        reach = Reach(seconds=60, started=NOW - 99, released=None)
        self.assertEqual(self.missing(60.023, reach), [])
        self.assertEqual(self.missing(60.099, reach), [])
        self.assertEqual(self.missing(60.101, reach), [(MissingReason.TOO_SHORT, 0.101)])
        self.assertEqual(self.missing(61, reach), [(MissingReason.TOO_SHORT, 1)])

    def test_others_in_full(self) -> None:
        """What is missing for another reason is reported, however little it is."""
        began = Reach(seconds=60, started=NOW - 60, released=None)
        self.assertEqual(self.missing(60.023, began), [(MissingReason.STARTED, 0.023)])
        overwritten = Reach(seconds=60, started=NOW - 99, released=NOW - 60)
        self.assertEqual(self.missing(60.023, overwritten), [(MissingReason.SIZE, 0.023)])
