"""What the garbage collector looks at."""

from __future__ import annotations

import gc
import weakref

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.host.garbage import LongLivedObjects
from tests.unit.contents import resident_bytes


class _Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


class LongLivedObjectsTests(SynchronousTestCase):
    """L{LongLivedObjects}, in this process."""

    def start(self) -> None:
        """Start it, and undo it after the test."""
        service = LongLivedObjects()
        service.startService()
        self.addCleanup(service.stopService)
        self.addCleanup(gc.unfreeze)

    def test_long_lived(self) -> None:
        """What exists at the start isn't looked at any more."""
        before = len(gc.get_objects())
        self.start()
        self.assertGreater(gc.get_freeze_count(), before // 2)
        self.assertLess(len(gc.get_objects()), before // 10)

    def test_garbage(self) -> None:
        """Garbage is collected: what is left over at the start, and what comes later."""
        left_over = weakref.ref(_Knot())
        self.start()
        later = weakref.ref(_Knot())
        gc.collect()
        self.assertEqual((left_over(), later()), (None, None))

    def test_memory(self) -> None:
        """Memory that was freed before is the kernel's again."""
        size, count = 60_000, 500
        blocks = [bytes(size) for _ in range(count)]
        # What is after all others keeps malloc(3) from returning them by itself.
        del blocks[:-1]
        before = resident_bytes()
        self.start()
        self.assertLess(resident_bytes(), before - size * count // 2)
