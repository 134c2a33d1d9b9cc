"""The files of captures in memory, and how long they stay there."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from pcapsvc.capture_files import GRACE_SECONDS, MOST_FILES, CaptureFile, CaptureFiles, FileFreed
from pcapsvc.core.recording import Content
from pcapsvc.interfaces.capture import ICapture
from pcapsvc.interfaces.captures import ICaptureFiles
from pcapsvc.testing import MemoryCapture, MemoryContent, run_now
from tests.core.test_artifact import recording


class CaptureFilesTests(SynchronousTestCase):
    """Up to 100 bytes are kept after the last delivery."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.files = CaptureFiles(self.clock, 100)
        self.files.startService()
        self.contents: dict[str, MemoryContent] = {}
        self.calls: list[str] = []

    def tearDown(self) -> None:
        """A stop frees everything, and leaves no timer."""
        self.files.stopService()
        self.assertEqual((self.files.held_bytes, self.files.held_files), (0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def begin(self, capture_id: str, data: bytes = b"") -> MemoryCapture:
        """A capture that runs."""
        capture = MemoryCapture(capture_id, recording().plan, data)
        self.files.begin(capture)
        return capture

    def end(self, capture_id: str, size: int) -> Content:
        """A capture that has ended, and is being delivered."""
        self.begin(capture_id)
        self.contents[capture_id] = MemoryContent(b"x" * size)
        return self.files.end(capture_id, self.contents[capture_id])

    def deliver(self, capture_id: str, size: int) -> None:
        """A capture that was delivered."""
        self.end(capture_id, size).close()

    def found(self, capture_id: str) -> CaptureFile:
        """The file of a capture, which is there."""
        file = self.files.find(capture_id)
        assert file is not None
        return file

    def freed(self) -> set[str]:
        """The captures whose memory is free."""
        free = {capture_id for capture_id, content in self.contents.items() if content.is_closed}
        for capture_id in self.contents:
            self.assertEqual(self.files.find(capture_id) is None, capture_id in free)
        held = sum(content.size for content in self.contents.values() if not content.is_closed)
        self.assertEqual(self.files.held_bytes, held)
        return free

    def test_interfaces(self) -> None:
        """It is what the pipeline asks for, and so is the capture."""
        self.assertTrue(verifyObject(ICaptureFiles, self.files))
        self.assertTrue(verifyObject(ICapture, self.begin("a")))

    def test_running(self) -> None:
        """The file of a capture grows while it runs, and stays while it is delivered."""
        capture = self.begin("a", b"abc")
        file = self.found("a")
        self.assertEqual(file.name, "sensor1-eth0-1700000000-a.pcap")
        self.assertTrue(file.is_running)
        self.assertEqual((file.whole_bytes(), file.read_at(1, 9)), (3, b"bc"))
        capture.data += b"def"
        self.assertEqual((file.whole_bytes(), file.read_at(4, 1)), (6, b"e"))
        file.watch(lambda: self.calls.append("told"))
        content = self.files.end("a", MemoryContent(b"abcdefg"))
        self.assertEqual(self.calls, ["told"])
        self.assertFalse(file.is_running)
        self.assertEqual((file.whole_bytes(), file.read_at(5, 9), file.read_at(7, 9)), (7, b"fg", b""))
        self.assertEqual((content.size, content.open().read()), (7, b"abcdefg"))
        self.assertEqual(self.files.held_bytes, 0)

    def test_failed(self) -> None:
        """The file of a capture that fails is gone, of which its readers are told."""
        self.begin("a", b"abc")
        file = self.found("a")
        file.watch(lambda: self.calls.append("told"))
        self.files.fail("a")
        self.assertEqual(self.calls, ["told"])
        self.assertIsNone(self.files.find("a"))
        self.assertRaises(FileFreed, file.whole_bytes)
        self.assertRaises(FileFreed, file.read_at, 0, 1)

    def test_oldest_first(self) -> None:
        """After the last delivery, files are kept up to a size; the oldest make room."""
        for capture_id in "abc":
            self.deliver(capture_id, 50)
        self.assertEqual(self.freed(), {"a"})
        self.deliver("d", 51)
        self.assertEqual(self.freed(), {"a", "b", "c"})
        self.deliver("e", 49)
        self.assertEqual(self.freed(), {"a", "b", "c"})

    def test_not_before_the_delivery(self) -> None:
        """What is still to be delivered is not freed, and doesn't count."""
        contents = [self.end(capture_id, 90) for capture_id in "abc"]
        self.assertEqual((self.files.held_bytes, self.files.held_files), (0, 0))
        self.files.reclaim(least_bytes=1000, least_files=10)
        for content in contents:
            content.close()
            content.close()
        self.assertEqual(self.freed(), {"a", "b"})

    def test_too_large(self) -> None:
        """A file that is too large by itself doesn't drive out the others."""
        self.deliver("a", 100)
        self.deliver("b", 101)
        self.assertEqual(self.freed(), {"b"})

    def test_many(self) -> None:
        """The number of files is limited, too, as each has a descriptor."""
        for number in range(MOST_FILES + 2):
            self.deliver(f"n{number}", 0)
        self.assertEqual(self.freed(), {"n0", "n1"})

    def test_readers(self) -> None:
        """A file that is being read stays for a minute beyond the limits; others are not freed for that."""
        content = self.end("a", 150)
        unwatch = self.found("a").watch(lambda: self.calls.append("told"))
        content.close()
        self.deliver("b", 100)
        self.clock.advance(GRACE_SECONDS - 1)
        self.assertEqual(self.freed(), set())
        self.clock.advance(1)
        self.assertEqual(self.freed(), {"a"})
        self.assertEqual(self.calls, ["told"])
        unwatch()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_last_reader(self) -> None:
        """When the last reader is done, the file makes room at once."""
        content = self.end("a", 150)
        readers = [self.found("a").watch(lambda: None) for _ in range(2)]
        content.close()
        readers[0]()
        readers[0]()
        self.assertEqual(self.freed(), set())
        readers[1]()
        self.assertEqual(self.freed(), {"a"})

    def test_grace_is_over(self) -> None:
        """A reader whose file no longer stands in the way has as much time as it wants."""
        self.deliver("a", 60)
        unwatch = self.found("a").watch(lambda: None)
        content = self.end("b", 60)
        other = self.found("b").watch(lambda: None)
        content.close()
        self.clock.advance(GRACE_SECONDS / 2)
        self.files.reclaim(least_bytes=0, least_files=0)
        self.assertEqual(self.freed(), set())
        self.clock.advance(GRACE_SECONDS)
        self.assertEqual(self.freed(), {"a"})
        self.clock.advance(10 * GRACE_SECONDS)
        self.assertEqual(self.freed(), {"a"})
        unwatch()
        other()

    def test_reclaimed(self) -> None:
        """Captures that need memory or descriptors get them, from what nobody reads first."""
        for capture_id in "abc":
            self.deliver(capture_id, 20)
        unwatch = self.found("a").watch(lambda: self.calls.append("told"))
        self.files.reclaim(least_bytes=1)
        self.assertEqual(self.freed(), {"b"})
        self.files.reclaim(least_files=1)
        self.assertEqual(self.freed(), {"b", "c"})
        self.files.reclaim()
        self.assertEqual(self.freed(), {"b", "c"})
        self.files.reclaim(least_bytes=10**9)
        self.assertEqual(self.freed(), {"a", "b", "c"})
        self.assertEqual(self.calls, ["told"])
        unwatch()

    def test_copies(self) -> None:
        """A copy is there for its reader only, and for a minute if it is too large."""
        self.begin("a", b"x" * 150)
        copy, release = self.successResultOf(
            Deferred.fromCoroutine(self.files.copy(self.found("a"), run_now))
        )
        self.assertEqual((copy.whole_bytes(), self.files.held_bytes, self.files.held_files), (150, 150, 1))
        self.assertIsNot(self.found("a"), copy)
        self.clock.advance(GRACE_SECONDS - 1)
        self.assertEqual(self.files.held_bytes, 150)
        self.clock.advance(1)
        self.assertEqual(self.files.held_bytes, 0)
        self.assertRaises(FileFreed, copy.read_at, 0, 1)
        release()
        small, release = self.successResultOf(
            Deferred.fromCoroutine(self.files.copy(self.found("a"), run_now))
        )
        release()
        release()
        self.assertEqual(self.files.held_bytes, 0)
        self.assertRaises(FileFreed, small.read_at, 0, 1)
        self.files.fail("a")

    def test_no_descriptor(self) -> None:
        """A file that can't be opened for reading is like one that is gone."""

        class Unreadable(MemoryContent):
            def open(self) -> Any:
                raise OSError(24, "Too many open files")

        self.begin("a")
        self.files.end("a", Unreadable(b"abc"))
        self.assertRaises(FileFreed, self.found("a").read_at, 0, 1)

    def test_stopped(self) -> None:
        """After a stop nothing is kept."""
        content = self.end("a", 10)
        self.files.stopService()
        content.close()
        self.assertEqual(self.freed(), {"a"})

    def test_faulty_reader(self) -> None:
        """A reader that raises affects neither the others nor the capture."""

        def fail() -> None:
            raise ZeroDivisionError

        self.begin("a")
        file = self.found("a")
        file.watch(fail)
        file.watch(lambda: self.calls.append("told"))
        self.files.fail("a")
        self.assertEqual(self.calls, ["told"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
