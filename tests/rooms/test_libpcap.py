"""libpcap itself, on pcapy's objects."""

from __future__ import annotations

import struct
import sys
from importlib.metadata import version
from pathlib import Path

import pcapy
from twisted.trial import unittest

from pcapsvc.capture.libpcap import Libpcap, LibpcapError, find_libpcap
from tests.rooms.contents import resident_bytes


class LibpcapTests(unittest.SynchronousTestCase):
    """What the packet systems' own suite doesn't ask: where it can be had, and for what."""

    def libpcap(self) -> Libpcap:
        """The one of the pcapy that is installed."""
        if version("pcapy-ng") != "2.1.0":
            raise unittest.SkipTest("the pcapy that is installed is not the one that is known")
        found = find_libpcap(pcapy.__file__)
        assert found is not None
        return found

    def test_unknown(self) -> None:
        """Of a library without libpcap, or none at all, there is none."""
        self.assertIsNone(find_libpcap("/nonexistent.so"))
        self.assertIsNone(find_libpcap(sys.modules["_ctypes"].__file__ or ""))

    def test_other_objects(self) -> None:
        """What is not pcapy's is refused, unread."""
        self.assertRaises(ValueError, self.libpcap().dump, object(), object(), 1)
        self.assertRaises(ValueError, self.libpcap().set_filter, object(), "tcp")

    def test_filters_are_freed(self) -> None:
        """However often the filter of a handle is set, it takes no more memory."""
        path = Path(self.mktemp())
        path.write_bytes(struct.pack("=IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 512, 1))
        reader, libpcap = pcapy.open_offline(str(path)), self.libpcap()
        bpf = " or ".join(f"port {number}" for number in range(20))
        libpcap.set_filter(reader, bpf)
        before = resident_bytes()
        for _ in range(3000):
            libpcap.set_filter(reader, bpf)
        self.assertLess(resident_bytes() - before, 1 << 20)  # of what pcapy would have left behind, 2.3 MB
        self.assertRaises(LibpcapError, libpcap.set_filter, reader, "tcp prot 80")
