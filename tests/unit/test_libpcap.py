"""libpcap itself, on pcapy's objects."""

from __future__ import annotations

import struct
import sys
from importlib.metadata import version
from itertools import product
from pathlib import Path

import pcapy
from twisted.trial import unittest

from pcapsvc.core.filter import without
from pcapsvc.packets.libpcap import BadFilter, Libpcap, find_libpcap
from peers.frames import udp_frame
from tests.unit.contents import resident_bytes


def vlan(frame: bytes) -> bytes:
    """A frame of a VLAN (IEEE 802.1Q)."""
    return frame[:12] + b"\x81\x00\x00\x05" + frame[12:]


class LibpcapTests(unittest.SynchronousTestCase):
    """What the packet systems' suite doesn't test: on which installations it is available, and for what."""

    def libpcap(self) -> Libpcap:
        """The one of the pcapy that is installed."""
        if version("pcapy-ng") != "2.1.0":
            raise unittest.SkipTest("the pcapy that is installed is not the one that is known")
        found = find_libpcap(pcapy.__file__)
        assert found is not None
        return found

    def test_unknown(self) -> None:
        """A library without libpcap, or a missing one, is not used."""
        self.assertIsNone(find_libpcap("/nonexistent.so"))
        self.assertIsNone(find_libpcap(sys.modules["_ctypes"].__file__ or ""))

    def test_version_beside_it(self) -> None:
        """Which pcapy it is, is read from what pip records beside it."""
        extension = Path(self.mktemp()) / "pcapy.so"
        extension.parent.mkdir()
        extension.symlink_to(pcapy.__file__)
        record = extension.with_name("pcapy_ng-2.1.0.dist-info")
        record.mkdir()
        self.assertIsNotNone(find_libpcap(str(extension)))
        record.rename(extension.with_name("pcapy_ng-2.2.0.dist-info"))
        self.assertIsNone(find_libpcap(str(extension)))

    def test_version_not_beside_it(self) -> None:
        """If nothing is recorded there, as in an editable installation, Python's own records are read."""
        extension = Path(self.mktemp()) / "pcapy.so"
        extension.parent.mkdir()
        extension.symlink_to(pcapy.__file__)
        self.assertEqual(version("pcapy-ng") == "2.1.0", find_libpcap(str(extension)) is not None)

    def test_other_objects(self) -> None:
        """Objects that aren't pcapy's are rejected before anything is read from them."""
        self.assertRaises(ValueError, self.libpcap().dump, object(), object(), 1)
        self.assertRaises(ValueError, self.libpcap().set_filter, object(), b"")

    def test_put_together(self) -> None:
        """Two compiled filters that are put together let pass what the second does, and the first doesn't."""
        libpcap, offline = self.libpcap(), Path(self.mktemp())
        frames = [
            frame
            for port in (7, 9, 53)
            for frame in (udp_frame(port, port=port), vlan(udp_frame(port, port=port)))
        ]
        packets = b"".join(struct.pack("=IIII", 0, 0, len(frame), len(frame)) + frame for frame in frames)
        offline.write_bytes(struct.pack("=IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 512, 1) + packets)

        def passing(program: bytes) -> list[bytes]:
            reader, found = pcapy.open_offline(str(offline)), []
            libpcap.set_filter(reader, program)
            reader.dispatch(100, lambda _, data: found.append(data))
            return found

        reader = pcapy.open_offline(str(offline))
        compiled = {
            bpf: libpcap.compile(reader, bpf)
            for bpf in (
                "",
                "udp",
                "udp port 9",
                "port 7 or port 53",
                "vlan",
                "vlan and udp port 9",
                "tcp",
                "1=1",
            )
        }
        for (left_out, one), (wanted, other) in product(compiled.items(), repeat=2):
            passes_one, passes_other = passing(one), passing(other)
            self.assertEqual(
                passing(without(one, other)),
                [frame for frame in passes_other if frame not in passes_one],
                (left_out, wanted),
            )

    def test_filters_are_freed(self) -> None:
        """However often the filter of a handle is set, it takes no more memory."""
        path = Path(self.mktemp())
        path.write_bytes(struct.pack("=IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 512, 1))
        reader, libpcap = pcapy.open_offline(str(path)), self.libpcap()
        bpf = " or ".join(f"port {number}" for number in range(20))
        libpcap.set_filter(reader, libpcap.compile(reader, bpf))
        before = resident_bytes()
        program = libpcap.compile(reader, bpf)
        for _ in range(3000):
            libpcap.set_filter(reader, program)
        self.assertLess(resident_bytes() - before, 1 << 20)  # of what pcapy would have left behind, 2.3 MB
        self.assertRaises(BadFilter, libpcap.compile, reader, "tcp prot 80")
