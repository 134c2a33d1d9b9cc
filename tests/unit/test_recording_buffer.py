"""A pcap file in memory: exact to the packet, and nothing of it left behind."""

from __future__ import annotations

import os
import resource
import struct
from pathlib import Path

from twisted.trial import unittest

from pcapsvc.capture.buffer import MOST_BEYOND_BYTES, Observer, RecordingBuffer
from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.core.session import Batch, CaptureLimits, CaptureSession, LatePackets, StopReason
from pcapsvc.interfaces.capture import IPacketHandle
from pcapsvc.memory_file import MemoryFile
from pcapsvc.testing_packets import MemoryDumper, MemoryPacketSystem
from tests.examples import given, settings
from tests.examples import strategies as st


def packets_of(content: MemoryFile) -> list[tuple[int, bytes]]:
    """The length on the wire and the data of each packet of a pcap file."""
    with content.open() as file:
        data = file.read()
    found, at = [], 24
    while at < len(data):
        _, _, kept, length = struct.unpack_from("=IIII", data, at)
        found.append((length, data[at + 16 : at + 16 + kept]))
        at += 16 + kept
    return found


def descriptors() -> int:
    """How many descriptors are open."""
    return len(os.listdir("/proc/self/fd"))


class _Forgetful(MemoryDumper):
    """A dumper that can't write what it buffers, in silence: memory is full."""

    def close(self) -> None:
        """Lose the last packet."""
        self._file.truncate(24 + 17)
        super().close()


class _Failing(MemoryDumper):
    """A dumper that could not write a packet, and says so."""

    def size(self) -> int:
        """Fail."""
        raise OSError(28, "No space left on device")


class _Silent(MemoryDumper):
    """A dumper that doesn't report what it couldn't write."""

    reports_failures = False


def allocated() -> int:
    """The bytes of memory that the buffer of this test holds."""
    path = next(path for path in Path("/proc/self/fd").iterdir() if _is_memory(path))
    return os.stat(path).st_blocks * 512


def _is_memory(path: Path) -> bool:
    try:
        return os.readlink(path).startswith("/memfd:test ")
    except OSError:
        return False


class _Watcher:
    """An observer that keeps what it sees, and fails if the test says so."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.seen: list[bytes] = []
        self.lengths: list[int] = []
        self.dones = 0
        self._fail_at = fail_at

    def packet(self, data: bytes, length: int) -> None:
        """See one packet."""
        self.seen.append(data)
        self.lengths.append(length)
        if len(self.seen) == self._fail_at:
            raise ZeroDivisionError

    def done(self) -> None:
        """No more."""
        self.dones += 1


class RecordingBufferTests(unittest.SynchronousTestCase):
    """Batches of a handle in memory."""

    def setUp(self) -> None:
        """An interface."""
        self.before = descriptors()
        self.system = MemoryPacketSystem("mem0")
        self.addCleanup(self.assert_nothing_left)

    def assert_nothing_left(self) -> None:
        """Every descriptor is closed."""
        self.assertEqual(descriptors(), self.before)

    def handle(self, snap_length: int = 100) -> IPacketHandle:
        """An open handle, closed in the end."""
        handle = self.successResultOf(self.system.open("mem0", snap_length=snap_length, bpf=""))
        self.addCleanup(handle.close)
        return handle

    def buffer(
        self, handle: IPacketHandle, *, snap_length: int = 100, observer: Observer | None = None
    ) -> RecordingBuffer:
        """A buffer for a handle, which calls C{self.before_read} before each read."""
        return RecordingBuffer(
            handle,
            "test",
            open_dumper=lambda path: self.system.open_dumper(path, link_type=1, snap_length=snap_length),
            before_read=lambda: self.before_read(),
            snap_length=snap_length,
            observer=observer,
        )

    def before_read(self) -> object:
        """Nothing, unless the test says otherwise."""

    def finish(self, buffer: RecordingBuffer) -> MemoryFile:
        """The content, closed in the end."""
        content = buffer.finish()
        self.addCleanup(content.close)
        return content

    def test_uncounted(self) -> None:
        """A batch without counting takes what has arrived, and no more than it may."""
        buffer = self.buffer(self.handle())
        self.system.deliver("mem0", b"a", b"bb", b"c" * 200)
        self.assertEqual(buffer.read(Batch(packets=2, stop_at_bytes=None)), 2)
        self.assertEqual(buffer.read(Batch(packets=2, stop_at_bytes=None)), 1)
        self.assertEqual(buffer.read(Batch(packets=2, stop_at_bytes=None)), 0)
        self.assertEqual(buffer.packets, 3)
        content = self.finish(buffer)
        self.assertEqual(packets_of(content), [(1, b"a"), (2, b"bb"), (200, b"c" * 100)])
        self.assertEqual(buffer.written, content.size)

    def test_read_before_the_end(self) -> None:
        """The file can be read up to the last packet while it is written, counted or not."""
        buffer = self.buffer(self.handle())
        self.assertEqual(buffer.flush(), 24)
        self.system.deliver("mem0", *[b"x" * 10] * 5)
        parts = []
        for batch in (
            Batch(packets=2, stop_at_bytes=None),
            Batch(packets=1, stop_at_bytes=1000),
            Batch(packets=2, stop_at_bytes=1000),
        ):
            parts.append(buffer.flush())
            buffer.read(batch)
        whole = buffer.flush()
        self.assertEqual([*parts, whole], [24, 24 + 2 * 26, 24 + 3 * 26, 24 + 5 * 26])
        pieces, at = [], 0
        while piece := buffer.read_at(at, 30):
            pieces.append(piece)
            at += len(piece)
        content = self.finish(buffer)
        self.assertEqual(b"".join(pieces), content.open().read())
        self.assertEqual(buffer.flush(), content.size)

    def test_counted(self) -> None:
        """A counted batch ends with the packet that reaches the size limit; the next ones are left unread."""
        buffer = self.buffer(self.handle())
        self.system.deliver("mem0", *[b"x" * 10] * 5)
        stop = 24 + 2 * 26
        self.assertEqual(buffer.read(Batch(packets=5, stop_at_bytes=stop)), 2)
        self.assertEqual(buffer.size, stop)
        self.assertEqual(buffer.read(Batch(packets=5, stop_at_bytes=stop + 27)), 2)
        self.assertEqual(self.finish(buffer).size, stop + 52)

    def test_late(self) -> None:
        """A packet that arrived after a time limit ends the batch, and isn't in the file."""
        buffer = self.buffer(self.handle())
        for after in (1.5, 1.9, 2.1, 2.2):
            self.system.seconds = 1_700_000_000 + after
            self.system.deliver("mem0", b"x" * 10)
        late = LatePackets(offset=1_700_000_000, earliest=0, now=3, ends=2, last_packet=0, idle_seconds=10)
        self.assertEqual(buffer.read(Batch(packets=5, stop_at_bytes=None, late=late)), 2)
        self.assertIs(late.reason, StopReason.DURATION)
        self.assertEqual(len(packets_of(self.finish(buffer))), 2)

    def test_cut(self) -> None:
        """From the first packet on that doesn't belong to it, the file has nothing, whatever arrives yet."""
        watcher = _Watcher()
        buffer = self.buffer(self.handle(), observer=watcher)
        for self.system.seconds, data in ((1.5, b"a"), (1.9, b"b"), (2.1, b"c"), (1.8, b"d")):
            self.system.deliver("mem0", data)
        buffer.read(Batch(packets=4, stop_at_bytes=None))
        buffer.cut(0, 24, lambda stamp: stamp < 2)
        self.assertEqual((buffer.packets, buffer.size, buffer.flush()), (2, 24 + 34, 24 + 34))
        self.system.deliver("mem0", b"e")
        self.assertEqual(buffer.read(Batch(packets=4, stop_at_bytes=None)), 0)
        buffer.show()
        self.assertEqual(packets_of(self.finish(buffer)), [(1, b"a"), (1, b"b")])
        self.assertEqual(watcher.seen, [b"a", b"b"])

    def test_counted_after_uncounted(self) -> None:
        """What is counted comes behind what was not, and the size is exact in either case."""
        buffer = self.buffer(self.handle())
        packets = [bytes([number]) * (number + 1) for number in range(60)]
        self.system.deliver("mem0", *packets)
        buffer.read(Batch(packets=50, stop_at_bytes=None))
        self.assertEqual(buffer.size, 24 + sum(16 + len(data) for data in packets[:50]))
        buffer.read(Batch(packets=50, stop_at_bytes=10**6))
        whole = 24 + sum(16 + len(data) for data in packets)
        self.assertEqual(buffer.size, whole)
        content = self.finish(buffer)
        self.assertEqual(content.size, whole)
        self.assertEqual([data for _, data in packets_of(content)], packets)

    def test_nothing_counted(self) -> None:
        """A counted batch that got no packet adds nothing."""
        buffer = self.buffer(self.handle())
        self.system.deliver("mem0", b"a")
        buffer.read(Batch(packets=5, stop_at_bytes=None))
        buffer.read(Batch(packets=5, stop_at_bytes=1000))
        self.assertEqual(buffer.size, 24 + 17)
        self.assertEqual(packets_of(self.finish(buffer)), [(1, b"a")])

    def test_no_packet(self) -> None:
        """A file without a packet is its header."""
        self.assertEqual(self.finish(self.buffer(self.handle())).size, 24)

    def test_lost_interface(self) -> None:
        """What had been read when the interface went away is in the file."""
        buffer = self.buffer(self.handle())
        self.system.deliver("mem0", b"a")
        self.system.lose("mem0")
        self.assertEqual(buffer.read(Batch(packets=5, stop_at_bytes=None)), 1)
        self.assertRaises(CaptureUnavailable, buffer.read, Batch(packets=5, stop_at_bytes=None))
        self.assertRaises(CaptureUnavailable, buffer.read, Batch(packets=5, stop_at_bytes=1000))
        self.assertEqual(packets_of(self.finish(buffer)), [(1, b"a")])

    def use(self, dumper: type[MemoryDumper]) -> None:
        """Have all files written by a dumper of this kind."""

        def open_dumper(path: str, *, link_type: int, snap_length: int) -> MemoryDumper:
            return dumper(open(path, "wb"), link_type, snap_length)

        self.system.open_dumper = open_dumper  # type: ignore[method-assign]

    def test_lost_packets(self) -> None:
        """A file that is not of the size it should be is refused, and not left open."""
        self.use(_Forgetful)
        for stop in (None, 1000):
            buffer = self.buffer(self.handle())
            self.system.deliver("mem0", b"a", b"b")
            buffer.read(Batch(packets=5, stop_at_bytes=stop))
            error = self.assertRaises(OSError, buffer.finish)
            self.assertEqual(str(error), "58 bytes were captured, but 41 were written")

    def test_failure_to_write(self) -> None:
        """That a packet could not be written fails the batch."""
        self.use(_Failing)
        buffer = self.buffer(self.handle())
        self.system.deliver("mem0", b"a")
        self.assertRaises(OSError, buffer.read, Batch(packets=5, stop_at_bytes=None))
        buffer.discard()

    def test_no_first_part(self) -> None:
        """If no file can be created at all, nothing is left open."""
        handle = self.handle()

        def no_memory(path: str, **_: int) -> MemoryDumper:
            raise OSError(12, "no memory")

        self.system.open_dumper = no_memory  # type: ignore[method-assign]
        self.assertRaises(OSError, self.buffer, handle)

    def test_before_each_read(self) -> None:
        """What is to happen before packets are read happens before each call, be the batch large or small."""
        self.use(_Silent)
        handle, calls = self.handle(262144), 0

        def before_read() -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise CaptureUnavailable("mem0", "the network is down")

        buffer = RecordingBuffer(
            handle,
            "test",
            open_dumper=lambda path: self.system.open_dumper(path, link_type=1, snap_length=262144),
            before_read=before_read,
            snap_length=262144,
        )
        self.system.deliver("mem0", *[b"x"] * 100)
        self.assertRaises(CaptureUnavailable, buffer.read, Batch(packets=100, stop_at_bytes=None))
        self.assertEqual(buffer.packets, 1 + 1)
        buffer.discard()

    def test_discard(self) -> None:
        """What is thrown away is gone, whole; a second time does nothing."""
        buffer = self.buffer(self.handle())
        self.system.deliver("mem0", b"a", b"b")
        buffer.read(Batch(packets=1, stop_at_bytes=None))
        buffer.read(Batch(packets=1, stop_at_bytes=1000))
        buffer.discard()
        self.assertEqual(descriptors(), self.before + 1)
        buffer.discard()

    def test_observer(self) -> None:
        """An observer sees each packet once, in counted batches and others, and the end once."""
        watcher = _Watcher()
        buffer = self.buffer(self.handle(2), observer=watcher)
        self.system.deliver("mem0", b"abc", b"de", b"f")
        self.assertEqual(buffer.read(Batch(packets=2, stop_at_bytes=None)), 2)
        buffer.show()
        self.assertEqual(watcher.seen, [b"ab", b"de"])
        self.assertEqual(buffer.read(Batch(packets=2, stop_at_bytes=1000)), 1)
        buffer.show()
        self.assertEqual(packets_of(self.finish(buffer)), [(3, b"ab"), (2, b"de"), (1, b"f")])
        self.assertEqual((watcher.seen, watcher.dones), ([b"ab", b"de", b"f"], 1))
        self.assertEqual(watcher.lengths, [3, 2, 1])
        buffer.discard()
        self.assertEqual(watcher.dones, 1)

    def test_observer_fails(self) -> None:
        """What an observer raises is raised, and the observer is notified of the end."""
        watcher = _Watcher(fail_at=2)
        buffer = self.buffer(self.handle(), observer=watcher)
        self.system.deliver("mem0", b"a", b"b", b"c")
        buffer.read(Batch(packets=3, stop_at_bytes=None))
        self.assertRaises(ZeroDivisionError, buffer.show)
        buffer.discard()
        self.assertEqual((watcher.seen, watcher.dones), ([b"a", b"b"], 1))

    def test_readers_of_their_own(self) -> None:
        """Two readers do not share a place, and what is open outlives the content."""
        buffer = self.buffer(self.handle())
        content = buffer.finish()
        with content.open() as one, content.open() as other:
            self.assertEqual(one.read(4), other.read(4))
            content.close()
            content.close()
            self.assertEqual(len(other.read()), 20)

    def test_reader(self) -> None:
        """A reader needs no path, can be positioned, and leaves the place of the writer alone."""
        buffer = self.buffer(self.handle())
        self.system.deliver("mem0", b"x" * 60)
        buffer.read(Batch(packets=4096, stop_at_bytes=None))
        content = self.finish(buffer)
        content.path = "/nowhere"
        with content.open() as file:
            self.assertEqual((file.seek(-60, os.SEEK_END), file.read()), (40, b"x" * 60))
            self.assertEqual((file.seek(0), len(file.read(1000)), file.tell()), (0, 100, 100))
            self.assertRaises(ValueError, file.seek, -1)
            self.assertEqual((file.seek(98), file.seek(1, os.SEEK_CUR), file.read()), (98, 99, b"x"))

    def test_memory_is_there_before(self) -> None:
        """The memory for a batch is allocated before it is read; what is left over is freed at the end."""
        buffer = self.buffer(self.handle())
        buffer.read(Batch(packets=4096, stop_at_bytes=None))
        self.assertGreaterEqual(allocated(), 1000 * 116)
        self.assertLess(allocated(), 300_000)
        self.system.deliver("mem0", *[b"x" * 100] * 8000)
        before = []
        self.before_read = lambda: before.append((buffer.size, allocated()))
        buffer.read(Batch(packets=8000, stop_at_bytes=None))
        sizes = [size for size, _ in before]
        for (_, there), after in zip(before, [*sizes[1:], buffer.size], strict=True):
            self.assertGreaterEqual(there, after)
        self.assertGreater(len(before), 2)
        self.system.deliver("mem0", b"x" * 60)
        buffer.read(Batch(packets=4096, stop_at_bytes=None))
        content = self.finish(buffer)
        self.assertEqual(content.size, 24 + 8000 * 116 + 76)
        self.assertLess(os.stat(content.path).st_blocks * 512, content.size + 4096)

    def test_memory_is_bounded(self) -> None:
        """With the longest snap length a batch is as large as with any other, and takes no more memory."""
        buffer = self.buffer(self.handle(262144), snap_length=262144)
        self.system.deliver("mem0", *[b"x" * 60] * 100)
        self.assertEqual(buffer.read(Batch(packets=90, stop_at_bytes=None)), 90)
        self.assertLess(allocated(), 4 << 20)
        self.assertEqual(buffer.read(Batch(packets=4096, stop_at_bytes=10**6)), 10)
        self.assertLess(allocated(), 4 << 20)
        self.assertEqual(len(packets_of(self.finish(buffer))), 100)

    def test_memory_up_to_the_limit(self) -> None:
        """No more memory is allocated beyond the limit of bytes than the admission of captures knows of."""
        for snap_length in (100, 65535, 262144):
            buffer = self.buffer(self.handle(snap_length), snap_length=snap_length)
            buffer.read(Batch(packets=4096, stop_at_bytes=10_000))
            self.assertLessEqual(allocated(), 10_000 + MOST_BEYOND_BYTES + 4096)
            buffer.discard()

    def counts(self, buffer: RecordingBuffer, packets: int) -> list[int]:
        """How many packets are read at once, in a batch of so many."""
        counts: list[int] = []
        self.before_read = lambda: counts.append(buffer.packets)
        buffer.read(Batch(packets=packets, stop_at_bytes=None))
        return [after - each for each, after in zip(counts, [*counts[1:], buffer.packets], strict=True)]

    def test_likely_sizes(self) -> None:
        """With a long snap length, as many packets are read at once as the last ones let expect to fit."""
        buffer = self.buffer(self.handle(262144), snap_length=262144)
        self.system.deliver("mem0", *[b"x" * 84] * 5000)
        self.assertEqual(self.counts(buffer, 5000), [1, 2621, 2378])
        self.system.deliver("mem0", *[b"x" * 60_000] * 20)
        self.assertEqual(self.counts(buffer, 10), [10])
        self.assertEqual(self.counts(buffer, 20), [10])
        self.system.deliver("mem0", *[b"x" * 60_000] * 40)
        self.assertEqual(self.counts(buffer, 40), [13, 13, 13, 1])
        self.finish(buffer)

    def test_sizes_that_are_certain(self) -> None:
        """If a failure to write would go unnoticed, only as many are read as certainly fit."""
        self.use(_Silent)
        buffer = self.buffer(self.handle(262144), snap_length=262144)
        self.system.deliver("mem0", *[b"x" * 84] * 20)
        self.assertEqual(self.counts(buffer, 20), [1, 1, 5, 5, 5, 3])
        self.finish(buffer)

    def test_lost_within_a_batch(self) -> None:
        """If the interface disappears within a batch, what was read of it is counted."""
        buffer = self.buffer(self.handle(262144), snap_length=262144)
        self.system.deliver("mem0", *[b"x" * 60])
        self.system.lose("mem0")
        self.assertRaises(CaptureUnavailable, buffer.read, Batch(packets=4096, stop_at_bytes=None))
        self.assertEqual(buffer.packets, 1)
        self.assertEqual(len(packets_of(self.finish(buffer))), 1)

    def test_no_memory(self) -> None:
        """If memory for a batch can't be allocated, nothing is read."""
        buffer = self.buffer(self.handle())
        self.addCleanup(buffer.discard)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            self.system.deliver("mem0", b"x" * 60)
            self.assertRaises(OSError, buffer.read, Batch(packets=4096, stop_at_bytes=None))
        finally:
            # The log of the tests has the same limit.
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        self.assertEqual(buffer.packets, 0)

    @settings(max_examples=200)
    @given(st.data())
    def test_limits(self, data: st.DataObject) -> None:
        """Whatever arrives, and in which portions, the file has just the packets that the limits allow."""
        snap = data.draw(st.integers(1, 2000), "snap")
        most = data.draw(st.integers(1, 300), "packets")
        size = data.draw(st.integers(1, 100_000), "bytes")
        lengths = data.draw(st.lists(st.integers(1, 2500), max_size=250), "lengths")
        observed = data.draw(st.booleans(), "observed")

        expected, reason, whole = 0, None, 24
        for length in lengths:
            expected += 1
            whole += 16 + min(length, snap)
            if whole >= size:
                reason = StopReason.BYTES
            elif expected == most:
                reason = StopReason.PACKETS
            if reason is not None:
                break

        limits = CaptureLimits(max_packets=most, max_bytes=size, idle_seconds=1, duration_seconds=1)
        followed = CaptureSession(limits, snap_length=snap, now=0, wall=0)
        handle = self.handle(snap)
        buffer = self.buffer(handle, snap_length=snap, observer=_Watcher() if observed else None)
        waiting = [bytes([number % 256]) * length for number, length in enumerate(lengths)]
        packets, stopped = list(waiting), None
        try:
            while stopped is None and packets:
                portion = data.draw(st.integers(1, 100), "portion")
                self.system.deliver("mem0", *packets[:portion])
                packets = packets[portion:]
                count = -1
                while stopped is None and count:
                    batch = followed.next_batch(0, 0)
                    count = buffer.read(batch)
                    self.assertLessEqual(count, batch.packets)
                    real = 24 + sum(16 + min(length, snap) for length in lengths[: buffer.packets])
                    self.assertEqual(buffer.size, real)
                    stopped = followed.recorded(count, buffer.size, 0)
            content = buffer.finish()
            self.assertIs(stopped, reason)
            self.assertEqual((buffer.packets, content.size), (expected, whole))
            kept = [(len(packet), packet[:snap]) for packet in waiting[:expected]]
            self.assertEqual(packets_of(content), kept)
            content.close()
        finally:
            # Hypothesis gives an example up in the middle, too.
            handle.close()
            buffer.discard()
