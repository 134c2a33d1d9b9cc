"""Whether there is room for one more capture."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from pcapsvc.core.admission import Admission


class AdmissionTests(unittest.SynchronousTestCase):
    """What captures hold, from their start until their last delivery."""

    def test_captures(self) -> None:
        """So many run at once, and not one more."""
        admission = Admission(max_captures=2, max_memory_bytes=1000)
        self.assertIsNone(admission.refusal(2, 100))
        self.assertIn("3 more would be over the 2", str(admission.refusal(3, 100)))
        admission.started("a", 100)
        self.assertIsNone(admission.refusal(1, 100))
        self.assertIn("1 captures are running, and 2 more", str(admission.refusal(2, 100)))
        admission.ended("a", 50)
        self.assertIsNone(admission.refusal(2, 100))

    def test_memory(self) -> None:
        """A running capture counts by its limit; one that is done not at all."""
        admission = Admission(max_captures=10, max_memory_bytes=1000)
        admission.started("a", 600)
        self.assertIsNone(admission.refusal(1, 400))
        self.assertIn("may grow to 600 bytes, and 401 more", str(admission.refusal(1, 401)))
        self.assertIsNotNone(admission.refusal(2, 201))
        admission.done("a")
        self.assertIsNone(admission.refusal(1, 1000))
        self.assertIsNotNone(admission.refusal(1, 1001))

    def test_ended(self) -> None:
        """One that ended counts by its size, until it is on the disk."""
        admission = Admission(max_captures=10, max_memory_bytes=1000)
        admission.started("a", 600)
        admission.ended("a", 100)
        self.assertIsNone(admission.refusal(1, 900))
        self.assertIsNotNone(admission.refusal(1, 901))
        admission.on_disk("a")
        self.assertIsNone(admission.refusal(1, 1000))

    def test_waiting(self) -> None:
        """So many may wait for their destinations, in memory or on the disk."""
        admission = Admission(max_captures=10, max_memory_bytes=1000, max_waiting=2)
        for name in "ab":
            self.assertIsNone(admission.refusal(1, 1))
            admission.started(name, 1)
            admission.ended(name, 1)
        admission.on_disk("a")
        self.assertEqual(admission.refusal(1, 1), "2 captures wait for their destinations, and no more may")
        admission.done("a")
        self.assertIsNone(admission.refusal(1, 1))

    def test_in_memory(self) -> None:
        """So many are in memory, running or ended, and not one more; what is on the disk is not."""
        admission = Admission(max_captures=10, max_memory_bytes=10**9, max_in_memory=2)
        admission.started("a", 1)
        admission.ended("a", 1)
        admission.started("b", 1)
        self.assertIn(
            "2 captures are in memory, and 1 more would be over the 2 for which", str(admission.refusal(1, 1))
        )
        admission.on_disk("a")
        self.assertIsNone(admission.refusal(1, 1))
        self.assertIsNotNone(admission.refusal(2, 1))
        admission.done("b")
        self.assertIsNone(admission.refusal(2, 1))

    def test_impossible(self) -> None:
        """What could not even run alone is told by the field that asks for too much."""
        admission = Admission(max_captures=2, max_memory_bytes=1000)
        self.assertIsNone(admission.impossible(2, 500))
        self.assertEqual(getattr(admission.impossible(3, 1), "path", None), "interface")
        self.assertEqual(getattr(admission.impossible(2, 501), "path", None), "bytes")
        admission.started("a", 1000)
        self.assertIsNone(admission.impossible(2, 500))
        few = Admission(max_captures=3, max_memory_bytes=1000, max_in_memory=2)
        self.assertIsNone(few.impossible(2, 1))
        self.assertIn("at most 2 may run", str(few.impossible(3, 1)))

    def test_done_without_end(self) -> None:
        """A capture that failed holds nothing; and is done only once."""
        admission = Admission(max_captures=1, max_memory_bytes=1000)
        admission.started("a", 1000)
        admission.done("a")
        admission.done("a")
        self.assertIsNone(admission.refusal(1, 1000))

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 600)), max_size=30))
    def test_never_over(self, steps: list[tuple[str, int]]) -> None:
        """Captures that are begun only where there is room never hold more than may be held."""
        admission = Admission(max_captures=2, max_memory_bytes=1000)
        running: dict[str, int] = {}
        held: dict[str, int] = {}
        for name, size in steps:
            if name in running:
                held[name] = min(size, running.pop(name))
                admission.ended(name, held[name])
            elif name in held:
                del held[name]
                admission.done(name)
            else:
                room = len(running) < 2 and sum(running.values()) + sum(held.values()) + size <= 1000
                self.assertEqual(admission.refusal(1, size) is None, room)
                if room:
                    running[name] = size
                    admission.started(name, size)
