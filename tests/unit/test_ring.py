"""The size of the kernel's ring."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.packets.ring import BLOCK_BYTES, ring_bytes
from tests.examples import given
from tests.examples import strategies as st

_KIB, _MIB = 1 << 10, 1 << 20


class RingTests(unittest.SynchronousTestCase):
    """L{ring_bytes}."""

    def test_small(self) -> None:
        """A small ring has four times the blocks that were asked for, and no more than 16."""
        asked = (64 * _KIB, 256 * _KIB, 257 * _KIB, 512 * _KIB, _MIB, 2 * _MIB, 4 * _MIB)
        self.assertEqual(
            [ring_bytes(size) for size in asked],
            [_MIB, _MIB, 2 * _MIB, 2 * _MIB, 4 * _MIB, 4 * _MIB, 4 * _MIB],
        )

    def test_large(self) -> None:
        """A large one is as large as was asked for, in whole blocks."""
        self.assertEqual(ring_bytes(8 * _MIB), 8 * _MIB)
        self.assertEqual(ring_bytes(8 * _MIB + 1), 8 * _MIB + BLOCK_BYTES)
        self.assertEqual(ring_bytes(1024 * _MIB), 1024 * _MIB)

    @given(st.integers(1, 1 << 30), st.integers(1, 1 << 30))
    def test_order(self, some: int, more: int) -> None:
        """Who asks for more never gets less, and nobody gets less than was asked for."""
        some, more = sorted((some, more))
        self.assertLessEqual(ring_bytes(some), ring_bytes(more))
        self.assertGreaterEqual(ring_bytes(more), more)
