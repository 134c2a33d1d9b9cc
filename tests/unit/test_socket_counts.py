"""The kernel's counts for packet sockets. What needs a wire is in C{tests/contracts}."""

from __future__ import annotations

import errno
import socket

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.packets.socket_counts import SocketCounts


class SocketCountsTests(SynchronousTestCase):
    """The counts of a socket."""

    def test_not_a_packet_socket(self) -> None:
        """The kernel has none for a socket of another kind, and none are added."""
        counts = SocketCounts()
        with socket.socket() as other:
            error = self.assertRaises(OSError, counts.update, other.fileno())
        self.assertIn(error.errno, (errno.ENOPROTOOPT, errno.EOPNOTSUPP))
        self.assertEqual((counts.received, counts.dropped), (0, 0))
