"""Compiled filters, put together; C{tests/rooms/test_libpcap.py} has libpcap run them."""

from __future__ import annotations

import struct

from twisted.trial import unittest

from pcapsvc.core.filter import without

# "ip", as libpcap compiles it for Ethernet: ldh [12]; jeq #0x800 jt 2 jf 3; ret #512; ret #0.
_IP = ((0x28, 0, 0, 12), (0x15, 0, 1, 0x800), (0x06, 0, 0, 512), (0x06, 0, 0, 0))
_ALL = ((0x06, 0, 0, 512),)


def program(*instructions: tuple[int, int, int, int]) -> bytes:
    """Instructions, as they are in memory."""
    return b"".join(struct.pack("=HBBI", *one) for one in instructions)


class WithoutTests(unittest.SynchronousTestCase):
    """L{without}."""

    def test_ends(self) -> None:
        """If a packet passes the first one, it is dropped; if not, the second one begins."""
        expected = program(*_IP[:2], (0x06, 0, 0, 0), (0x05, 0, 0, 0), *_ALL)
        self.assertEqual(without(program(*_IP), program(*_ALL)), expected)

    def test_end_in_the_middle(self) -> None:
        """From an end in its middle, the first goes on behind its last instruction."""
        early = ((0x28, 0, 0, 12), (0x15, 1, 0, 0x800), (0x06, 0, 0, 0), (0x06, 0, 0, 512))
        expected = program(*early[:2], (0x05, 0, 0, 1), (0x06, 0, 0, 0), *_IP)
        self.assertEqual(without(program(*early), program(*_IP)), expected)
