"""A sieve, if there is no memory for what passes it."""

from __future__ import annotations

import errno
import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.packets.handle import libpcap_path
from pcapsvc.packets.records import RecordFunctions, RecordWriter, Sieve
from peers.frames import udp_frame
from tests.contracts.records import ETHERNET, packets_of, record


class _Functions(RecordFunctions):
    """libpcap's functions, for which there may be no memory."""

    has_memory = True

    def open_writer(self, *arguments: Any, **options: Any) -> RecordWriter:
        """See L{RecordFunctions.open_writer}."""
        if not self.has_memory:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return super().open_writer(*arguments, **options)


class SieveTests(SynchronousTestCase):
    """A sieve."""

    def test_no_memory(self) -> None:
        """It fails as long as there is none, and goes on when there is."""
        functions = _Functions(libpcap_path())
        sieve = Sieve(functions, link_type=ETHERNET, kept=512, snap_length=50, program=None)
        self.addCleanup(sieve.close)
        few = record(udp_frame(1))
        self.assertEqual(len(packets_of(sieve.sift(memoryview(few))[1])), 1)
        functions.has_memory = False
        for _ in range(2):
            self.assertRaises(OSError, sieve.sift, memoryview(few * 1000))
        self.assertRaises(OSError, sieve.sift, memoryview(few))
        functions.has_memory = True
        self.assertEqual(sieve.sift(memoryview(few * 3))[0], 3)
