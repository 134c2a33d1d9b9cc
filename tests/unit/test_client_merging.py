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
