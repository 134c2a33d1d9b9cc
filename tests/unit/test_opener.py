"""What becomes of libpcap's words if it can't open an interface."""

from __future__ import annotations

import errno
import os
from typing import Any, cast

import pcapy
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.core.filter import NOTHING
from pcapsvc.packets.libpcap import Libpcap
from pcapsvc.packets.network_interfaces import Interface
from pcapsvc.packets.opener import Opener


class Refusing:
    """libpcap, which refuses to open anything and says why."""

    def __init__(self, words: str) -> None:
        self._words = words

    def activate(self, _reader: Any) -> int:
        """PCAP_ERROR of pcap/pcap.h."""
        return -1

    def words(self, _reader: Any) -> str:
        """The reason."""
        return self._words


class RefusalTests(SynchronousTestCase):
    """libpcap reports errors of the kernel in words only."""

    def open(self, words: str) -> None:
        """Open the loopback interface."""
        opener = Opener(
            buffer_size_bytes=65536,
            read_timeout_ms=10,
            close_descriptor=os.close,
            libpcap=cast(Libpcap, Refusing(words)),
        )
        opener.open(Interface(name="lo", index=1), 512, NOTHING, promiscuous=False)

    def test_no_room(self) -> None:
        """That there is no room is an error of the system, with its number and libpcap's words."""
        for words, code in (
            ("can't mmap rx ring: Cannot allocate memory", errno.ENOMEM),
            ("can't create rx ring on packet socket: Cannot allocate memory", errno.ENOMEM),
            ("socket: No buffer space available", errno.ENOBUFS),
        ):
            error = self.assertRaises(OSError, self.open, words)
            self.assertEqual((error.errno, error.strerror), (code, words))

    def test_no_room_to_create_a_handle(self) -> None:
        """It is the same error if libpcap opens a socket to find out what the interface can do."""
        words = "socket for SIOCETHTOOL(ETHTOOL_GET_TS_INFO): Too many open files"

        def refuse(name: str) -> None:
            raise pcapy.PcapError(words)

        self.patch(pcapy, "create", refuse)
        error = self.assertRaises(OSError, self.open, "")
        self.assertEqual((error.errno, error.strerror), (errno.EMFILE, words))

    def test_gone(self) -> None:
        """An interface that goes while it is opened is one that doesn't exist, whichever call notices."""
        for words in ("SIOCGIFINDEX: No such device", "setsockopt (PACKET_ADD_MEMBERSHIP): No such device"):
            error = self.assertRaises(CaptureUnavailable, self.open, words)
            self.assertEqual(error.reason, "no such interface")

    def test_others(self) -> None:
        """Anything else is reported in libpcap's words."""
        error = self.assertRaises(CaptureUnavailable, self.open, "bind: Operation not supported")
        self.assertEqual(error.reason, "bind: Operation not supported")
