"""The pcapng encoder."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from pcapsvc.core.errors import EncoderError
from pcapsvc.core.pcap_file import MICROSECONDS, NANOSECONDS
from pcapsvc.core.recording import Content, PacketCounts, Recording
from pcapsvc.core.session import StopReason
from pcapsvc.encoders.pcapng.describe import Origin
from pcapsvc.encoders.pcapng.encoder import PcapngEncoder
from pcapsvc.encoders.pcapng.packet_blocks import GROUP, PIECE_BYTES
from pcapsvc.interfaces.delivery import IEncoder
from pcapsvc.memory_file import MemoryFile
from pcapsvc.threads import NotRunning
from peers.pcapng import PcapngFile, read_pcapng
from peers.tcpdump import Packet
from tests.core.test_artifact import recording
from tests.examples import given
from tests.examples import strategies as st

ORIGIN = Origin(hardware="pdp11", operating_system="Linux 6.1", application="pcapsvc 1.0")


def pcap(
    packets: Sequence[Packet], *, magic: int = MICROSECONDS, link_type: int = 1, snap_length: int = 500
) -> bytes:
    """A pcap file."""
    records = (
        struct.pack("=IIII", one.seconds, one.fraction, len(one.data), one.length) + one.data
        for one in packets
    )
    return struct.pack("=IHHiIII", magic, 2, 4, 0, 0, snap_length, link_type) + b"".join(records)


def packet(number: int, size: int, *, length: int | None = None) -> Packet:
    """A packet with a time stamp of its own."""
    return Packet(
        1_700_000_000 + number // 7,
        number * 142_857 % 1_000_000,
        size if length is None else length,
        bytes((number + at) % 256 for at in range(min(size, 300))) + bytes(max(0, size - 300)),
    )


class EncoderCase(unittest.SynchronousTestCase):
    """An encoder whose threads are called at once, or when the test says so."""

    def setUp(self) -> None:
        """Nothing waits for a thread."""
        self.run_in_thread: Callable[..., Deferred[Any]] = maybeDeferred
        self.encoder = PcapngEncoder(lambda *call: self.run_in_thread(*call), origin=ORIGIN)
        self.descriptors = self.open_descriptors()

    def open_descriptors(self) -> list[str]:
        """The files in memory that are open."""
        files = []
        for name in os.listdir("/proc/self/fd"):
            try:
                files.append(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                continue
        return sorted(file for file in files if "pcapsvc" in file)

    def recording(self, data: bytes, *, start: int = 0, **fields: Any) -> Recording:
        """
        A recording with this file.

        @param start: where the file begins, as if so much had been released.
        """
        content = MemoryFile("recording")
        self.addCleanup(content.close)
        content.write_at(start, data)
        content.begin_at(start)
        return replace(recording(interface="eth0"), content=content, **fields)

    def read(self, content: Content) -> PcapngFile:
        """What others read in a file, which is closed."""
        with content.open() as reader:
            raw = reader.read()
        self.assertEqual(len(raw), content.size)
        content.close()
        return read_pcapng(raw)

    def encode(self, packets: Sequence[Packet], **fields: Any) -> PcapngFile:
        """What others read after a recording with these packets was encoded."""
        recorded = self.recording(pcap(packets), packets=len(packets), **fields)
        return self.read(self.successResultOf(self.encoder.encode(recorded)))


class PacketTests(EncoderCase):
    """The packets of a file."""

    def test_interface(self) -> None:
        """It is an encoder."""
        self.assertTrue(verifyObject(IEncoder, self.encoder))
        self.assertEqual((self.encoder.name, self.encoder.suffix), ("pcapng", ".pcapng"))

    def test_same(self) -> None:
        """They are those of the recording, with their time stamps and lengths, in the same order."""
        packets = [packet(0, 60), packet(1, 1400), packet(2, 61, length=9000), packet(3, 1)]
        read = self.encode(packets)
        self.assertEqual(read.packets, packets)
        self.assertEqual(read.kinds, [0x0A0D0D0A, 1, 6, 6, 6, 6, 5])
        self.assertEqual(self.open_descriptors(), self.descriptors)

    @given(st.lists(st.integers(0, 1600), max_size=40), st.integers(0, 3 * GROUP))
    def test_any_lengths(self, sizes: list[int], more: int) -> None:
        """Whatever their lengths are, and however many there are."""
        packets = [packet(at, size) for at, size in enumerate((*sizes, *(at % 9 for at in range(more))))]
        self.assertEqual(self.encode(packets).packets, packets)

    def test_whole_groups(self) -> None:
        """If there are exactly as many as are written at once, or one more or less."""
        for count in (GROUP - 1, GROUP, GROUP + 1, 2 * GROUP):
            packets = [packet(at, 61 + at % 3) for at in range(count)]
            self.assertEqual(self.encode(packets).packets, packets)

    def test_same_lengths(self) -> None:
        """If all have the same length: none, or with each amount of padding."""
        for size in (0, 1, 2, 3, 4, 1400, 1514):
            packets = [packet(at, size) for at in range(GROUP + 3)]
            self.assertEqual(self.encode(packets).packets, packets)

    def test_different_lengths(self) -> None:
        """If none is as long as another one, so that each amount of padding meets the end of a group."""
        for first in range(4):
            packets = [packet(at, first + at) for at in range(2 * GROUP + 1)]
            self.assertEqual(self.encode(packets).packets, packets)

    def test_largest(self) -> None:
        """If they are of the largest snap length, so that few of them are read at once."""
        packets = [packet(at, 262_144 - at) for at in range(13)]
        self.assertEqual(self.encode(packets).packets, packets)

    def test_whole_pieces(self) -> None:
        """If their blocks fill exactly what is made at once, or one has no room in it any more."""
        last = PIECE_BYTES // 4 - 32
        for size in (last - 4, last - 3, last, last + 1, last + 4):
            packets = [packet(0, last), packet(1, last), packet(2, last), packet(3, size), packet(4, 5)]
            self.assertEqual(self.encode(packets).packets, packets)
        # More and more that are small, before one that isn't.
        for count in range(GROUP - 2, GROUP + 2):
            packets = [*(packet(at, 2047) for at in range(count)), packet(0, 262_144), packet(1, 3)]
            self.assertEqual(self.encode(packets).packets, packets)

    def test_time_stamps(self) -> None:
        """The first and the last time stamp that a pcap file can have."""
        packets = [Packet(0, 0, 1, b"a"), Packet(2**32 - 1, 999_999, 1, b"b"), Packet(1, 2, 1, b"c")]
        self.assertEqual(self.encode(packets).packets, packets)

    def test_nanoseconds(self) -> None:
        """Those of a file with nanoseconds are kept, and the resolution says so."""
        packets = [Packet(2**32 - 1, 999_999_999, 4, b"abcd"), Packet(1, 123_456_789, 4, b"efgh")]
        recorded = self.recording(pcap(packets, magic=NANOSECONDS))
        read = self.read(self.successResultOf(self.encoder.encode(recorded)))
        self.assertEqual((read.digits, read.packets), (9, packets))

    def test_beginning_released(self) -> None:
        """Those of a recording before which much was released: more than four GiB."""
        packets = [packet(at, 61 + at) for at in range(GROUP + 1)]
        for start in (1, 5000, (4 << 30) + 5):
            content = self.successResultOf(self.encoder.encode(self.recording(pcap(packets), start=start)))
            self.assertEqual(self.read(content).packets, packets)

    def test_remembered(self) -> None:
        """However many of them have a size that is remembered."""
        packets = [packet(at, at % 1500) for at in range(2000)]
        expected = self.encode(packets).packets
        self.assertEqual(expected, packets)
        for most in (0, 1, 400, 1999, 2000):
            with patch("pcapsvc.encoders.pcapng.encoder.MOST_REMEMBERED", most):
                self.assertEqual(self.encode(packets).packets, packets)

    def test_none(self) -> None:
        """A recording without a packet becomes a file without one."""
        self.assertEqual(self.encode([]).kinds, [0x0A0D0D0A, 1, 5])


class ReaderTests(EncoderCase):
    """A file is made whenever it is read."""

    def test_readers(self) -> None:
        """Readers are independent, and may go back and forth; what a reader needs is closed with it."""
        packets = [packet(at, 61 + at % 300) for at in range(3 * GROUP)]
        recorded = self.recording(pcap(packets))
        content = self.successResultOf(self.encoder.encode(recorded))
        self.assertEqual(self.open_descriptors(), self.descriptors)
        with content.open() as one, content.open() as other:
            whole = one.read()
            self.assertEqual(len(whole), content.size)
            for at in (1000, len(whole) - 5, 0, 70_001):
                one.seek(at)
                self.assertEqual(one.read(600), whole[at : at + 600])
            self.assertEqual(other.read(), whole)
            self.assertNotEqual(self.open_descriptors(), self.descriptors)
        self.assertEqual(self.open_descriptors(), self.descriptors)

    def test_closed(self) -> None:
        """The recording is needed until the file is closed, and closed with it."""
        closed: list[bool] = []
        recorded = self.recording(pcap([packet(0, 60)]))
        self.patch(recorded.content, "close", lambda: closed.append(True))
        content = self.successResultOf(self.encoder.encode(recorded))
        self.assertEqual(closed, [])
        for _ in range(2):
            content.close()
            self.assertEqual(closed, [True])
        self.assertRaises(OSError, content.open)


class DescriptionTests(EncoderCase):
    """What a file says about its capture."""

    def test_section(self) -> None:
        """The machine, the kernel and the version."""
        section = self.encode([]).section
        self.assertEqual(
            {code: value for code, value in section.items() if code != 1},
            {2: b"pdp11", 3: b"Linux 6.1", 4: b"pcapsvc 1.0"},
        )

    def test_interface(self) -> None:
        """The interface, the alias, the filter, and link type and snap length as the recording has them."""
        recorded = recording(interface="eth0", alias="uplink", bpf="udp port 53", snap=96)
        data = self.recording(pcap([], link_type=113, snap_length=97)).content
        content = self.successResultOf(self.encoder.encode(replace(recorded, content=data)))
        read = self.read(content)
        self.assertEqual((read.link_type, read.snap_length), (113, 97))
        self.assertEqual(
            {code: value for code, value in read.interface.items() if code != 1},
            {2: b"eth0", 3: b"uplink", 9: b"\x06", 11: b"\0udp port 53"},
        )

    def test_comment(self) -> None:
        """
        The labels of the request, why the capture ended, and what was dropped. The section has all of it, as
        Wireshark shows no other comment; and the node, the capture, the interface, which Wireshark calls by
        its alias, and the filter, which it shows up to a C{<}.
        """
        recorded = recording(
            bpf="tcp and len < 99",
            requestid="r-1",
            alertid=655443,
            customer="Größe",
            tags="a,b",
            reason=StopReason.DURATION,
            counts=PacketCounts(received=9, dropped=2, interface_dropped=1),
        )
        recorded = replace(recorded, content=self.recording(pcap([])).content)
        read = self.read(self.successResultOf(self.encoder.encode(recorded)))
        said = [
            "requestid: r-1",
            "alertid: 655443",
            "customer: Größe",
            "tags: a,b",
            "reason: duration",
            "packets: 9 received, 2 dropped by the kernel, 1 dropped by the interface",
        ]
        self.assertEqual(read.interface[1].decode().splitlines(), said)
        self.assertEqual(
            read.section[1].decode().splitlines(),
            ["node: sensor1", "interface: eth0", "capture: 0123456789ab", *said, "filter: tcp and len < 99"],
        )
        bare = self.encode([])
        self.assertEqual(bare.interface[1], b"reason: idle")
        self.assertEqual(
            bare.section[1], b"node: sensor1\ninterface: eth0\ncapture: 0123456789ab\nreason: idle"
        )

    def test_statistics(self) -> None:
        """When it began and ended, and the counters, as far as they are known."""
        times = {"started": 1_700_000_000.25, "ended": 1_700_000_002.5}
        counts = PacketCounts(received=9, dropped=2, interface_dropped=None)
        read = self.encode([packet(0, 60)], counts=counts, **times).statistics
        assert read is not None
        ticks = [(high << 32) + low for high, low in (struct.unpack("=II", read[code]) for code in (2, 3))]
        self.assertEqual(ticks, [1_700_000_000_250_000, 1_700_000_002_500_000])
        self.assertEqual(
            {code: struct.unpack("=Q", read[code])[0] for code in (4, 5, 6, 7, 8)},
            {4: 9, 5: 2, 6: 9, 7: 2, 8: 1},
        )
        self.assertEqual(sorted(self.encode([], counts=None).statistics or ()), [2, 8])


class FailureTests(EncoderCase):
    """When no file is made, nothing stays open."""

    def tearDown(self) -> None:
        """Nothing is open."""
        self.assertEqual(self.open_descriptors(), self.descriptors)

    def problem(self, data: bytes) -> str:
        """Why a recording with this file can't be encoded."""
        failure = self.failureResultOf(self.encoder.encode(self.recording(data)), EncoderError)
        return str(failure.value)

    def unreadable(self, meanwhile: AbstractContextManager[object]) -> str:
        """Why a file that was encoded can't be read, if something is so when it is read."""
        content = self.successResultOf(self.encoder.encode(self.recording(pcap([packet(0, 60)]))))
        with meanwhile, content.open() as reader:
            error = self.assertRaises(OSError, reader.read)
        content.close()
        return str(error)

    def test_damaged(self) -> None:
        """A recording that isn't a pcap file, or that ends too soon, can't be encoded."""
        whole = pcap([packet(0, 60)])
        for data in (b"", whole[:20], b"x" * 100, whole[:-1], whole[:35]):
            self.assertTrue(self.problem(data))
        self.assertIn("within a packet", self.problem(whole[:-1]))
        # A packet that is said to be larger than any.
        self.assertIn("within a packet", self.problem(whole[:32] + b"\xff" * 4 + bytes(2 << 20)))

    def test_no_memory(self) -> None:
        """If there is no memory for the piece in hand, that is what a reader says."""

        def refuse(*call: object) -> int:
            raise OSError(28, "No space left on device")

        refused = self.unreadable(patch.object(os, "memfd_create", refuse))
        self.assertIn("No space left on device", refused)

    def test_shorter(self) -> None:
        """If the recording has become shorter since it was encoded, a reader fails."""
        for left in (0, 20, 24, 30, 40, 99):
            recorded = self.recording(pcap([packet(0, 60)]))
            content = self.successResultOf(self.encoder.encode(recorded))
            assert isinstance(recorded.content, MemoryFile)
            recorded.content.truncate(left)
            with content.open() as reader:
                error = self.assertRaises((OSError, ValueError), reader.read)
            self.assertTrue(str(error))

    def test_unreadable(self) -> None:
        """If the kernel refuses to read it, that is what a reader says."""

        def refuse(*call: object) -> int:
            ctypes.set_errno(errno.EIO)
            return -1

        refused = self.unreadable(patch("pcapsvc.positioned_reader._preadv", refuse))
        self.assertIn("Input/output error", refused)

    def test_no_reader(self) -> None:
        """If the recording can't be opened, others still can."""
        recorded = self.recording(b"")
        with patch.object(MemoryFile, "open", side_effect=OSError("Too many open files")):
            self.failureResultOf(self.encoder.encode(recorded), EncoderError)
        self.assertEqual(self.encode([]).packets, [])

    def test_no_threads(self) -> None:
        """If no thread runs any more, it fails."""
        self.run_in_thread = lambda *call: fail(NotRunning("the threads are not running"))
        self.assertIn("not running", self.problem(pcap([])))


class CancelTests(EncoderCase):
    """Cancelling."""

    def setUp(self) -> None:
        """Threads wait for the test."""
        super().setUp()
        self.calls: list[tuple[Deferred[Any], tuple[Any, ...]]] = []
        self.run_in_thread = self.later

    def later(self, *call: Any) -> Deferred[Any]:
        """Call it when the test says so."""
        result: Deferred[Any] = Deferred()
        self.calls.append((result, call))
        return result

    def call_next(self) -> None:
        """A thread calls the next function, and the reactor hears of it."""
        result, call = self.calls.pop(0)
        maybeDeferred(*call).chainDeferred(result)

    def test_one_after_another(self) -> None:
        """Only one recording is encoded at a time."""
        first, second = (self.encoder.encode(self.recording(pcap([]))) for _ in range(2))
        self.assertEqual(len(self.calls), 1)
        self.call_next()
        self.read(self.successResultOf(first))
        self.assertNoResult(second)
        self.call_next()
        self.read(self.successResultOf(second))

    def test_waiting(self) -> None:
        """One that waits is not encoded at all."""
        first, second = (self.encoder.encode(self.recording(pcap([]))) for _ in range(2))
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.call_next()
        self.read(self.successResultOf(first))
        self.assertEqual(self.calls, [])

    def test_before_it_begins(self) -> None:
        """One whose thread has not begun fails at once. The thread ends soon, and the next one is encoded."""
        data = pcap([packet(at, 60) for at in range(3)])
        first, second = (self.encoder.encode(self.recording(data)) for _ in range(2))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        with patch("pcapsvc.encoders.pcapng.packet_blocks.added_bytes", side_effect=AssertionError):
            self.call_next()
        self.assertEqual(self.open_descriptors(), self.descriptors)
        self.call_next()
        self.read(self.successResultOf(second))

    def test_after_it_has_ended(self) -> None:
        """If the thread had already ended, nothing stays open."""
        recorded = self.recording(pcap([]))
        encoded = self.encoder.encode(recorded)
        [(result, call)] = self.calls
        size = call[0](*call[1:])
        encoded.cancel()
        self.failureResultOf(encoded, CancelledError)
        result.callback(size)
        self.assertEqual(self.open_descriptors(), self.descriptors)
