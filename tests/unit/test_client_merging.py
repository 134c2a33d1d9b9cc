"""Merging the files of several captures."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

from twisted.trial import unittest

from pcapsvc.client.merging import merge
from pcapsvc.client.status import ClientError

Packet = tuple[int, bytes, int]


def pcap(
    packets: Sequence[Packet], *, order: str = "<", nano: bool = False, link: int = 1, snap: int = 512
) -> bytes:
    """A file with packets: each with its time in nanoseconds, its data, and its original length."""
    magic, scale = (0xA1B23C4D, 1) if nano else (0xA1B2C3D4, 1000)
    written = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, snap, link)
    for time, data, length in packets:
        seconds, rest = divmod(time, 10**9)
        written += struct.pack(f"{order}IIII", seconds, rest // scale, len(data), length) + data
    return written


def pcapng(packets: Sequence[Packet], *, order: str = "<", digits: int = 6, link: int = 1) -> bytes:
    """The same as a pcapng file, with blocks between the others that say nothing about packets."""

    def block(kind: int, body: bytes) -> bytes:
        size = struct.pack(f"{order}I", 12 + len(body))
        return struct.pack(f"{order}I", kind) + size + body + size

    written = block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))
    resolution = struct.pack(f"{order}HHBxxxHH", 9, 1, digits, 0, 0)
    written += block(1, struct.pack(f"{order}HHI", link, 0, 512) + resolution)
    for time, data, length in packets:
        high, low = divmod(time // 10 ** (9 - digits) if digits <= 9 else 0, 2**32)
        padded = data + bytes(-len(data) % 4)
        written += block(6, struct.pack(f"{order}IIIII", 0, high, low, len(data), length) + padded)
    return written + block(5, struct.pack(f"{order}III", 0, 0, 0))


# Where each block of a file with one packet of three bytes ends, after which nothing is missing but blocks.
_ENDS_OF_BLOCKS = {60, 96, 120}


class MergeTests(unittest.SynchronousTestCase):
    """What is in the merged file."""

    def merged(self, *files: bytes) -> bytes:
        """The merged file."""
        output = io.BytesIO()
        merge([(f"file {number}", io.BytesIO(file)) for number, file in enumerate(files)], output)
        return output.getvalue()

    def test_order(self) -> None:
        """Packets are in the order of their time stamps; with the same one, in that of the files."""
        first = [(1_000, b"a", 60), (3_000, b"ccc", 61), (5 * 10**9, b"e", 62)]
        second = [(1_000, b"b", 63), (4_000, b"", 64)]
        expected = [first[0], second[0], first[1], second[1], first[2]]
        self.assertEqual(self.merged(pcap(first), pcap([]), pcap(second)), pcap(expected))

    def test_formats(self) -> None:
        """Byte orders and resolutions may differ: nothing is lost, and the snap length is the longest."""
        first, second = [(1_000, b"a", 60)], [(1_001, b"b", 60)]
        found = self.merged(pcap(first, order=">", snap=96), pcap(second, nano=True, snap=1024))
        self.assertEqual(found, pcap([*first, *second], nano=True, snap=1024))
        self.assertEqual(self.merged(pcap(first, order=">")), pcap(first))

    def test_pcapng(self) -> None:
        """Some may be pcapng files, in microseconds or nanoseconds, in either byte order."""
        first, second = [(1_000, b"a", 60), (7 * 10**9, b"ccc", 61)], [(3_000, b"bb", 60)]
        for order in "<>":
            found = self.merged(pcapng(first, order=order), pcap(second, snap=96))
            self.assertEqual(found, pcap([first[0], second[0], first[1]]))
        fine = [(1_001, b"b", 60)]
        self.assertEqual(
            self.merged(pcap(second), pcapng(fine, digits=9)), pcap([fine[0], second[0]], nano=True)
        )

    def test_broken_pcapng(self) -> None:
        """A pcapng file that is cut off or broken is refused, and one with two interfaces."""
        whole = pcapng([(1_000, b"abc", 60)])
        for at in range(4, len(whole)):
            if at not in _ENDS_OF_BLOCKS:
                error = self.assertRaises(ClientError, self.merged, pcap([]), whole[:at])
                self.assertIn("file 1", str(error))
        two = pcapng([]) + pcapng([])
        self.assertIn("more than one", str(self.assertRaises(ClientError, self.merged, two)))
        for wrong in (pcapng([], digits=10), whole[:64].replace(b"\x20\0\0\0", b"\xff" * 4)):
            self.assertRaises(ClientError, self.merged, wrong)

    def test_late(self) -> None:
        """A packet that is too late for the time stamps of a pcap file is refused, in either format."""
        late = pcapng([(2**32 * 10**9, b"abc", 60)])
        carried = pcap([]) + struct.pack("<IIII", 2**32 - 1, 10**6, 0, 60)
        for broken in (late, carried):
            error = self.assertRaises(ClientError, self.merged, pcap([]), broken)
            self.assertIn("file 1 is broken", str(error))
        latest = [((2**32 - 1) * 10**9 + 999_999_000, b"abc", 60)]
        self.assertEqual(self.merged(pcapng(latest)), pcap(latest))

    def test_link_types(self) -> None:
        """Link types must not differ; the error names two files."""
        error = self.assertRaises(ClientError, self.merged, pcap([]), pcap([], link=113))
        self.assertRegex(str(error), "link type of file 0 is 1, and that of file 1 is 113")

    def test_broken(self) -> None:
        """A file that is cut off, broken or of another kind is refused, by its name."""
        whole = pcap([(1_000, b"abc", 60)])
        long = whole[:32] + struct.pack("<I", 2**31) + whole[36:]
        for broken in (whole[:-1], whole[:30], whole[:23], b"", b"\x0a\x0d\x0d\x0a" + bytes(40), long):
            error = self.assertRaises(ClientError, self.merged, whole, broken)
            self.assertIn("file 1", str(error))
        self.assertRaises(ClientError, self.merged)
