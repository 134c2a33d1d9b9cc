"""Whether there is room for more captures."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.admission import Admission, Impossible, NoRoom, Reservation
from tests.examples import given
from tests.examples import strategies as st


class AdmissionTests(unittest.SynchronousTestCase):
    """What captures hold, from their reservation until their last delivery."""

    def refusal(self, admission: Admission, captures: int, most_bytes: int) -> str | None:
        """Why there is no room; if there is, it is given back."""
        reserved = admission.reserve(captures, most_bytes)
        if isinstance(reserved, Reservation):
            reserved.release()
            return None
        return reserved.reason if isinstance(reserved, NoRoom) else f"impossible: {reserved.problem.rule}"

    def start(self, admission: Admission, capture_id: str, most_bytes: int) -> None:
        """Start a capture."""
        reserved = admission.reserve(1, most_bytes)
        assert isinstance(reserved, Reservation)
        reserved.started(capture_id)
        reserved.release()

    def test_captures(self) -> None:
        """So many run at once, and not one more."""
        admission = Admission(max_captures=2, max_memory_bytes=1000)
        self.assertIsNone(self.refusal(admission, 2, 100))
        self.start(admission, "a", 100)
        self.assertIsNone(self.refusal(admission, 1, 100))
        self.assertEqual(
            self.refusal(admission, 2, 100),
            "too many captures: 1 running, 2 more requested, and the limit is 2",
        )
        admission.ended("a", 50)
        self.assertIsNone(self.refusal(admission, 2, 100))

    def test_reserved(self) -> None:
        """What is reserved counts as if it ran, until it is released, or started and done."""
        admission = Admission(max_captures=3, max_memory_bytes=1000, max_in_memory=3)
        reserved = admission.reserve(2, 300)
        assert isinstance(reserved, Reservation)
        self.assertIn("2 running, 2 more requested", str(self.refusal(admission, 2, 1)))
        self.assertIn("may grow to 600 bytes, and 401 more", str(self.refusal(admission, 1, 401)))
        reserved.started("a")
        self.assertIn("may grow to 600 bytes, and 401 more", str(self.refusal(admission, 1, 401)))
        reserved.release()
        reserved.release()
        self.assertIsNone(self.refusal(admission, 2, 350))
        self.assertIsNotNone(self.refusal(admission, 2, 351))
        admission.done("a")
        self.assertIsNone(self.refusal(admission, 3, 333))

    def test_memory(self) -> None:
        """A running capture counts by its limit; one that is done not at all."""
        admission = Admission(max_captures=10, max_memory_bytes=1000)
        self.start(admission, "a", 600)
        self.assertIsNone(self.refusal(admission, 1, 400))
        self.assertIn("may grow to 600 bytes, and 401 more", str(self.refusal(admission, 1, 401)))
        self.assertIsNotNone(self.refusal(admission, 2, 201))
        admission.done("a")
        self.assertIsNone(self.refusal(admission, 1, 1000))
        self.assertIsNotNone(self.refusal(admission, 1, 1001))

    def test_spare(self) -> None:
        """What is spare refuses nothing: as much of it is freed as is needed, and only if it is of use."""

        class Spare:
            held_bytes = 300
            held_files = 2

            def __init__(self) -> None:
                self.asked: list[tuple[int, int]] = []

            def reclaim(
                self, *, least_bytes: int = 0, least_files: int = 0, even_watched: bool = True
            ) -> None:
                if least_bytes or least_files:
                    self.asked.append((least_bytes, least_files))
                    self.held_bytes = max(0, self.held_bytes - least_bytes)
                    self.held_files = max(0, self.held_files - least_files)

        spare, free = Spare(), [10**9]
        admission = Admission(
            max_captures=10,
            max_memory_bytes=1000,
            max_in_memory=4,
            spare=spare,
            free_bytes=lambda _: free[0] - spare.held_bytes,
        )
        for captures, most_bytes, asked in (
            (1, 700, []),
            (1, 1001, []),
            (1, 750, [(50, 0)]),
            (3, 100, [(0, 1)]),
            (5, 100, []),
        ):
            spare.asked.clear()
            self.assertEqual(
                self.refusal(admission, captures, most_bytes) is None, most_bytes != 1001 and captures != 5
            )
            self.assertEqual(spare.asked, asked)
        free[0] = 500
        spare.asked.clear()
        self.assertIsNone(self.refusal(admission, 1, 400))
        self.assertEqual(spare.asked, [(150, 0)])
        self.assertIsNotNone(self.refusal(admission, 1, 501))

    def test_room_for_spare(self) -> None:
        """What is spare itself gets the room that captures leave; what is being read makes none for it."""

        class Spare:
            held_bytes = 300
            held_files = 2
            watched_bytes = 100

            def reclaim(
                self, *, least_bytes: int = 0, least_files: int = 0, even_watched: bool = True
            ) -> None:
                least = 0 if even_watched else self.watched_bytes
                self.held_bytes = max(least, self.held_bytes - least_bytes)
                self.held_files = max(1, self.held_files - least_files)

        spare, free = Spare(), [10**9]
        admission = Admission(
            max_captures=10,
            max_memory_bytes=1000,
            max_in_memory=4,
            spare=spare,
            free_bytes=lambda _: free[0],
            held_bytes=lambda: 200,
        )
        reservation = admission.reserve(1, 500)
        assert isinstance(reservation, Reservation)
        reservation.started("one")
        self.assertIsNone(admission.refuse_spare(200))
        self.assertEqual(spare.held_bytes, 300)
        self.assertIsNone(admission.refuse_spare(400))
        self.assertEqual(spare.held_bytes, 100)
        self.assertIn("401", str(admission.refuse_spare(401)))
        # The capture that runs may yet grow by 300.
        free[0] = 699
        self.assertIsNotNone(admission.refuse_spare(400))
        free[0] = 700
        self.assertIsNone(admission.refuse_spare(400))
        spare.held_files = 3
        self.assertIsNone(admission.refuse_spare(1))
        self.assertEqual(spare.held_files, 2)

    def test_ended(self) -> None:
        """One that ended counts by its size, until it is on the disk."""
        admission = Admission(max_captures=10, max_memory_bytes=1000)
        self.start(admission, "a", 600)
        admission.ended("a", 100)
        self.assertIsNone(self.refusal(admission, 1, 900))
        self.assertIsNotNone(self.refusal(admission, 1, 901))
        admission.on_disk("a")
        self.assertIsNone(self.refusal(admission, 1, 1000))

    def test_waiting(self) -> None:
        """So many may wait for their destinations, in memory or on the disk."""
        admission = Admission(max_captures=10, max_memory_bytes=1000, max_waiting=2)
        for name in "ab":
            self.assertIsNone(self.refusal(admission, 1, 1))
            self.start(admission, name, 1)
            admission.ended(name, 1)
        admission.on_disk("a")
        self.assertEqual(self.refusal(admission, 1, 1), "2 captures are waiting for their destinations")
        admission.done("a")
        self.assertIsNone(self.refusal(admission, 1, 1))

    def test_in_memory(self) -> None:
        """So many are in memory, running or ended, and not one more; what is on the disk is not."""
        admission = Admission(max_captures=10, max_memory_bytes=10**9, max_in_memory=2)
        self.start(admission, "a", 1)
        admission.ended("a", 1)
        self.start(admission, "b", 1)
        self.assertIn(
            "too many captures in memory: 2, 1 more requested, and there are file descriptors for 2",
            str(self.refusal(admission, 1, 1)),
        )
        admission.on_disk("a")
        self.assertIsNone(self.refusal(admission, 1, 1))
        self.assertIsNotNone(self.refusal(admission, 2, 1))
        admission.done("b")
        self.assertIsNone(self.refusal(admission, 2, 1))

    def test_impossible(self) -> None:
        """What could not even run alone is reported by the field that asks for too much."""
        admission = Admission(max_captures=2, max_memory_bytes=1000)
        self.assertIsNone(self.refusal(admission, 2, 500))
        for captures, most_bytes, path in ((3, 1, "interface"), (2, 501, "bytes")):
            refusal = admission.reserve(captures, most_bytes)
            assert isinstance(refusal, Impossible)
            self.assertEqual(refusal.problem.path, path)
        self.start(admission, "a", 1000)
        self.assertIsInstance(admission.reserve(2, 500), NoRoom)
        few = Admission(max_captures=3, max_memory_bytes=1000, max_in_memory=2)
        self.assertIsNone(self.refusal(few, 2, 1))
        self.assertIn("only 2 may run", str(self.refusal(few, 3, 1)))

    def test_done_without_end(self) -> None:
        """A capture that failed holds nothing; and is done only once."""
        admission = Admission(max_captures=1, max_memory_bytes=1000)
        self.start(admission, "a", 1000)
        admission.done("a")
        admission.done("a")
        self.assertIsNone(self.refusal(admission, 1, 1000))

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 600)), max_size=30))
    def test_never_over(self, steps: list[tuple[str, int]]) -> None:
        """Captures that are only begun if there is room never hold more memory than permitted."""
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
                self.assertEqual(self.refusal(admission, 1, size) is None, room)
                if room:
                    running[name] = size
                    self.start(admission, name, size)
