"""The link-layer types of files."""

from __future__ import annotations

import os
import struct

from twisted.trial import unittest

from pcapsvc.core.link_type import file_link_type
from pcapsvc.packets.handle import LIBPCAP, open_dumper

# Those that libpcap 1.9.1 knows are smaller.
_BEYOND = 300


class LinkTypeTests(unittest.SynchronousTestCase):
    """L{file_link_type}."""

    def in_file(self, link_type: int, *, by_descriptor: bool) -> int | None:
        """What libpcap writes into the header of a file; L{None} if it doesn't know the type."""
        descriptor = os.memfd_create("capture")
        self.addCleanup(os.close, descriptor)
        file = descriptor if by_descriptor else f"/proc/self/fd/{descriptor}"
        try:
            open_dumper(file, link_type=link_type, snap_length=100).close()
        except OSError:
            return None
        return int(struct.unpack("=I", os.pread(descriptor, 24, 0)[20:])[0])

    def test_as_written(self) -> None:
        """It is the number that libpcap writes, for each type that it knows."""
        for by_descriptor in (False, True) if LIBPCAP is not None else (False,):
            known = 0
            for link_type in range(_BEYOND):
                written = self.in_file(link_type, by_descriptor=by_descriptor)
                if written is not None:
                    known += 1
                    self.assertEqual(file_link_type(link_type), written, link_type)
            self.assertGreater(known, 150)
