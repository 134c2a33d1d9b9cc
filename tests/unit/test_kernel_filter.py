"""The filter that the kernel runs for a socket."""

from __future__ import annotations

import errno
import socket
import struct
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.filter import NOTHING
from pcapsvc.packets import kernel_filter
from pcapsvc.packets.kernel_filter import attach, attached

# struct sock_filter of linux/filter.h: return a number of bytes.
_ALL, _SOME = struct.pack("=HBBI", 0x06, 0, 0, 65535), struct.pack("=HBBI", 0x06, 0, 0, 60)


class KernelFilterTests(SynchronousTestCase):
    """A socket of another kind than those of captures: the kernel makes no difference."""

    def setUp(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.socket.close)
        self.descriptor = self.socket.fileno()
        self.attached: list[bytes] = []

    def limit(self, *refused: bytes) -> None:
        """Have no memory for these besides another filter, and for the last one not even alone."""
        really = kernel_filter._attach

        def limited(descriptor: int, instructions: bytes) -> None:
            self.attached.append(instructions)
            is_besides = attached(descriptor) not in (b"", NOTHING.instructions)
            if instructions in refused and (is_besides or instructions == refused[-1]):
                raise OSError(errno.ENOMEM, "no memory")
            really(descriptor, instructions)

        patcher = patch.object(kernel_filter, "_attach", limited)
        patcher.start()
        self.addCleanup(patcher.stop)

    def test_replaced(self) -> None:
        """What is attached is known, and is replaced in one step."""
        self.assertEqual(attached(self.descriptor), b"")
        self.limit(b"")
        for instructions in (_ALL, _SOME + _ALL):
            attach(self.descriptor, instructions)
            self.assertEqual(attached(self.descriptor), instructions)
        self.assertEqual(self.attached, [_ALL, _SOME + _ALL])

    def test_no_room_for_both(self) -> None:
        """If there is only room for one filter, nothing passes in between."""
        attach(self.descriptor, _ALL)
        self.limit(_SOME, b"")
        attach(self.descriptor, _SOME)
        self.assertEqual(attached(self.descriptor), _SOME)
        self.assertEqual(self.attached, [_SOME, NOTHING.instructions, _SOME])

    def test_no_room(self) -> None:
        """If there is no room for a filter at all, the one before stays."""
        attach(self.descriptor, _ALL)
        self.limit(_SOME)
        error = self.assertRaises(OSError, attach, self.descriptor, _SOME)
        self.assertEqual((error.errno, attached(self.descriptor)), (errno.ENOMEM, _ALL))

    def test_refused(self) -> None:
        """A program that is none is refused, and the one before stays."""
        attach(self.descriptor, _ALL)
        self.assertRaises(OSError, attach, self.descriptor, b"\xff" * 8)
        self.assertEqual(attached(self.descriptor), _ALL)

    def test_unknown(self) -> None:
        """Of what is no socket nothing is known."""
        with open("/dev/null") as file:
            self.assertIsNone(attached(file.fileno()))
