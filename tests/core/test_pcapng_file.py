"""The blocks of a pcapng file."""

from __future__ import annotations

import struct

from twisted.trial import unittest

from pcapsvc.core.pcapng_file import (
    MOST_OPTION_BYTES,
    interface_description,
    interface_statistics,
    section_header,
    text,
)
from pcapsvc.core.recording import PacketCounts
from peers.pcapng import PcapngFile, read_pcapng
from tests.examples import given
from tests.examples import strategies as st

COUNTS = PacketCounts(received=5, dropped=2, interface_dropped=1)


def a_file(
    *,
    words: str = "words",
    description: str | None = None,
    bpf: str = "",
    digits: int = 6,
    counts: PacketCounts | None = COUNTS,
    ended: int | None = 7 << 32 | 8,
    comment: str | None = None,
) -> PcapngFile:
    """A file without a packet, as others read it."""
    header = section_header(hardware=words, operating_system=words, application=words, comment=words)
    interface = interface_description(
        link_type=113,
        snap_length=96,
        name=words,
        description=description,
        bpf=bpf,
        digits=digits,
        comment=words,
    )
    statistics = interface_statistics(
        started=5 << 32 | 6, ended=ended, counts=counts, packets=3, comment=comment
    )
    return read_pcapng(header + interface + statistics)


class BlockTests(unittest.SynchronousTestCase):
    """What others read in them."""

    def test_section(self) -> None:
        """The section header has a comment, the hardware, the system and the program."""
        self.assertEqual(a_file().section, dict.fromkeys((1, 2, 3, 4), b"words"))

    def test_interface(self) -> None:
        """The description has what is known of the interface; what it doesn't have is left out."""
        read = a_file(description="uplink", bpf="udp port 53", digits=9)
        self.assertEqual((read.link_type, read.snap_length, read.digits), (113, 96, 9))
        self.assertEqual(
            read.interface, {1: b"words", 2: b"words", 3: b"uplink", 9: b"\x09", 11: b"\0udp port 53"}
        )
        self.assertEqual(sorted(a_file().interface), [1, 2, 9])

    def test_statistics(self) -> None:
        """
        The statistics have the times, upper half first, and the counters. What the kernel dropped is in C{7},
        and in C{5} as well, which is all that Wireshark shows.
        """
        count = struct.Struct("=Q").pack
        self.assertEqual(
            a_file(comment="words").statistics,
            {
                1: b"words",
                2: struct.pack("=II", 5, 6),
                3: struct.pack("=II", 7, 8),
                4: count(5),
                5: count(3),
                6: count(5),
                7: count(2),
                8: count(3),
            },
        )

    def test_unknown_counts(self) -> None:
        """What is not known is left out."""
        unknown = PacketCounts(received=5, dropped=2, interface_dropped=None)
        self.assertEqual(sorted(a_file(counts=unknown).statistics or ()), [2, 3, 4, 5, 6, 7, 8])
        self.assertEqual(sorted(a_file(counts=None, ended=None).statistics or ()), [2, 8])

    @given(st.text())
    def test_any_text(self, words: str) -> None:
        """Any text is readable, in UTF-8, whatever its length is."""
        expected = words.encode("utf-8", "replace")
        read = a_file(words=words, bpf=words)
        self.assertEqual((read.section[1], read.interface[2]), (expected, expected))
        self.assertEqual(read.interface.get(11), b"\0" + expected if words else None)

    def test_too_long(self) -> None:
        """A text that is too long for an option is cut off, in whole characters."""
        for words in ("a" * 70_000, "ä" * 40_000, "€" * 30_000, "𝄞" * 20_000, "a" + "𝄞" * 20_000):
            read = a_file(words=words, bpf=words)
            for value in (read.section[1], read.interface[11][1:]):
                self.assertTrue(words.startswith(value.decode()))
                self.assertLess(MOST_OPTION_BYTES - len(value), 5)
        self.assertEqual(text("ab", most=1), b"a")
