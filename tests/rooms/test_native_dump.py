"""libpcap's loop and libpcap's dumper, without Python between them."""

from __future__ import annotations

import sys
from importlib.metadata import version

import pcapy
from twisted.trial import unittest

from pcapsvc.capture.native_dump import find_native_dump


class NativeDumpTests(unittest.SynchronousTestCase):
    """What the packet systems' own suite doesn't ask: where it can be had, and for what."""

    def test_unknown(self) -> None:
        """For a library without libpcap's calls, or none at all, there is none."""
        self.assertIsNone(find_native_dump("/nonexistent.so"))
        self.assertIsNone(find_native_dump(sys.modules["_ctypes"].__file__ or ""))

    def test_other_objects(self) -> None:
        """For the pcapy that is known there is one; what is not pcapy's is refused, unread."""
        if version("pcapy-ng") != "2.1.0":
            raise unittest.SkipTest("the pcapy that is installed is not the one that is known")
        native_dump = find_native_dump(pcapy.__file__)
        assert native_dump is not None
        self.assertRaises(ValueError, native_dump, object(), object(), 1)
