"""Compressed files: what comes out, how much memory it takes, and what is left when it fails."""

from __future__ import annotations

import gc
import gzip
import io
import os
import random
from collections.abc import Callable
from typing import Any, BinaryIO

import zstandard
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial import unittest

from pcapsvc.core.admission import Admission
from pcapsvc.core.compression import COMPRESSIONS
from pcapsvc.core.errors import EncoderError
from pcapsvc.core.recording import Content
from pcapsvc.delivery.compressor import Compressor
from pcapsvc.generated_file import GeneratedFile
from pcapsvc.testing import run_now
from tests.unit.contents import MemfdContent
from tests.unit.pipeline_case import descriptors

# Half of it can't be compressed.
_CHANCE = random.Random(1)
_DATA = b"".join(_CHANCE.randbytes(700) + bytes(700) for _ in range(1000))
_ROOM = 100 << 20


def decompressed(data: bytes, name: str) -> bytes:
    """A file as it was before."""
    if name == "gzip":
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompress(data)


class Room:
    """Grants memory, or not."""

    def __init__(self, *, grants: bool = True) -> None:
        self.grants = grants
        self.held: dict[str, int] = {}

    def take(self, key: str, size: int) -> bool:
        """Take room, if it is granted."""
        if self.grants:
            self.held[key] = size
        return self.grants

    def holds(self, key: str, size: int) -> None:
        """A file has this size."""
        self.held[key] = size

    def on_disk(self, key: str) -> None:
        """A file is freed."""
        self.held.pop(key, None)


class CompressorCase(unittest.SynchronousTestCase):
    """No descriptor stays open, and no memory is held."""

    run_in_thread: Any = staticmethod(run_now)

    def setUp(self) -> None:
        """Begin."""
        gc.collect()
        self.before = descriptors()
        self.room = Room()
        self.content = MemfdContent(_DATA)
        self.addCleanup(self.assert_nothing_left)

    def assert_nothing_left(self) -> None:
        """All is closed."""
        self.content.close()
        self.assertTrue(self.content.all_closed)
        self.assertEqual(self.room.held, {})
        self.assertEqual(descriptors(), self.before)

    def start(self, name: str, **options: Any) -> Deferred[Content]:
        """Compress it."""
        compressor = Compressor(self.run_in_thread, self.room, **options)
        return compressor.compress("key", self.content, COMPRESSIONS[name])

    def compress(self, name: str, **options: Any) -> Content:
        """Have it compressed."""
        made = self.successResultOf(self.start(name, **options))
        self.addCleanup(made.close)
        return made

    def read(self, made: Content) -> bytes:
        """All of a file."""
        with made.open() as file:
            data = file.read()
        self.assertEqual(len(data), made.size)
        return data

    def each_way(self, check: Callable[[Content, str], None]) -> None:
        """Check each compression, kept in memory and not."""
        for name in COMPRESSIONS:
            for most in (_ROOM, len(_DATA) // 10):
                made = self.successResultOf(self.start(name, most_held_bytes=most))
                self.assertEqual(isinstance(made, GeneratedFile), most != _ROOM)
                check(made, name)
                made.close()


class CompressorTests(CompressorCase):
    """What comes out of a L{Compressor}."""

    def test_same_bytes(self) -> None:
        """Decompressed, it is what it was, whether it was kept or is compressed again."""
        found: dict[str, set[bytes]] = {}

        def check(made: Content, name: str) -> None:
            data = self.read(made)
            self.assertEqual(decompressed(data, name), _DATA)
            self.assertLess(len(data), 0.6 * len(_DATA))
            found.setdefault(name, set()).add(data)

        self.each_way(check)
        self.assertEqual([len(each) for each in found.values()], [1, 1])

    def test_readers(self) -> None:
        """Readers are independent, may go back and forth, and know where they are and where the end is."""

        def check(made: Content, name: str) -> None:
            data = self.read(made)
            chance = random.Random(2)
            with made.open() as one, made.open() as other:
                self.assertEqual(one.seek(0, os.SEEK_END), made.size)
                self.assertEqual(one.read(1), b"")
                for _ in range(12):
                    at, count = chance.randrange(made.size), chance.randrange(100_000)
                    self.assertEqual(one.seek(at), at)
                    self.assertEqual(one.read(count), data[at : at + count])
                    self.assertEqual(one.tell(), min(at + count, made.size))
                self.assertEqual(other.read(), data)

        self.each_way(check)

    def test_held(self) -> None:
        """What is kept counts as memory until it is closed, by its size; what isn't doesn't count."""

        def check(made: Content, name: str) -> None:
            self.assertEqual(self.room.held, {} if isinstance(made, GeneratedFile) else {"key": made.size})

        self.each_way(check)

    def test_no_room(self) -> None:
        """If there is no memory for it, it is compressed again when it is read."""
        self.room.grants = False
        made = self.compress("zstd")
        self.assertIsInstance(made, GeneratedFile)
        self.assertEqual(decompressed(self.read(made), "zstd"), _DATA)

    def test_room_of_admission(self) -> None:
        """Admission grants what captures leave, and refuses captures while it is used."""
        admission = Admission(max_captures=2, max_memory_bytes=len(_DATA))
        self.assertFalse(admission.take("a/gzip", len(_DATA) + 1))
        self.assertTrue(admission.take("a/gzip", len(_DATA)))
        admission.holds("a/gzip", 1000)
        self.assertFalse(admission.take("a/zstd", len(_DATA) - 999))
        self.assertNotEqual(getattr(admission.reserve(1, len(_DATA)), "reason", None), None)
        admission.on_disk("a/gzip")
        self.assertEqual(getattr(admission.reserve(1, len(_DATA)), "reason", None), None)

    def test_no_descriptor(self) -> None:
        """So it is if there is no descriptor for it."""

        def refuse(*arguments: object) -> int:
            raise OSError(24, "Too many open files")

        self.patch(os, "memfd_create", refuse)
        made = self.compress("gzip")
        self.assertIsInstance(made, GeneratedFile)
        self.assertEqual(self.room.held, {})
        self.assertEqual(decompressed(self.read(made), "gzip"), _DATA)

    def test_closed(self) -> None:
        """Once it is closed, it can't be opened. A second call of close does nothing. Readers go on."""
        for most in (_ROOM, 0):
            made = self.compress("gzip", most_held_bytes=most)
            with made.open() as file:
                made.close()
                made.close()
                self.assertRaises(OSError, made.open)
                self.assertEqual(decompressed(file.read(), "gzip"), _DATA)

    def test_other_bytes(self) -> None:
        """If it were compressed to another size than before, reading it would fail."""
        for wrong in (9, 11):
            made = GeneratedFile(self.content, lambda source: (source.read(5) for _ in range(2)), wrong)
            with made.open() as file:
                self.assertRaises(OSError, file.read)

    def test_kept(self) -> None:
        """What is made while it is read is kept as it is, if it is small."""
        made = GeneratedFile(self.content, lambda source: (source.read(5) for _ in range(2)), 10)
        for most in (10, 9):
            compressor = Compressor(self.run_in_thread, self.room, most_held_bytes=most)
            kept = self.successResultOf(compressor.keep("key", made))
            self.assertEqual((isinstance(kept, GeneratedFile), kept.size), (most == 9, 10))
            self.assertEqual(self.read(kept), _DATA[:10])
            kept.close()

    def test_unreadable(self) -> None:
        """If the file can't be read, that is an error of the encoder."""

        class Broken(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                raise OSError("it is gone")

        def opened() -> BinaryIO:
            self.broken = Broken()
            return self.broken

        self.patch(self.content, "open", opened)
        for name in COMPRESSIONS:
            error = self.failureResultOf(self.start(name), EncoderError)
            self.assertIn("it is gone", str(error.value))
            self.assertTrue(self.broken.closed)

    def test_small_pieces(self) -> None:
        """Little is read and written at once: nothing holds Python's lock, or the thread, for long."""
        read: list[int] = []

        class Watched(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                read.append(-1 if size is None else size)
                return super().read(size)

        self.patch(self.content, "open", lambda: Watched(_DATA))
        self.compress("gzip")
        self.assertEqual({size for size in read if not 0 < size <= 256 * 1024}, set())


class Cancelling(io.BytesIO):
    """A file that cancels what reads it at the second piece."""

    def __init__(self, reading: Deferred[Any]) -> None:
        super().__init__(_DATA)
        self._reading = reading
        self.pieces = 0

    def read(self, size: int | None = -1) -> bytes:
        """Read."""
        self.pieces += 1
        if self.pieces == 2:
            self._reading.cancel()
        return super().read(size)


class CancelledTests(CompressorCase):
    """A compression that is cancelled ends soon, and leaves nothing behind."""

    def setUp(self) -> None:
        """Threads do nothing by themselves."""
        super().setUp()
        self.work: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def run_later(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Keep what is to be run."""
        self.work.append((function, arguments))
        return Deferred()

    def cancelled(self, name: str) -> None:
        """Cancel a compression whose thread has not begun."""
        self.patch(self, "run_in_thread", self.run_later)
        started = self.start(name)
        self.assertEqual([*self.room.held], ["key"])
        started.cancel()
        self.failureResultOf(started, CancelledError)
        self.assertEqual(self.room.held, {})

    def test_before(self) -> None:
        """If the thread has not begun, it reads nothing."""
        for name in COMPRESSIONS:
            self.cancelled(name)
        self.assertTrue(self.content.all_closed)
        for function, arguments in self.work:
            self.assertRaises((CancelledError, ValueError), function, *arguments)

    def test_between(self) -> None:
        """If the thread is at work, it stops after the piece in hand, and what it has made is freed."""
        self.patch(self, "run_in_thread", self.run_later)
        for name in COMPRESSIONS:
            started = self.start(name)
            [(function, arguments)] = self.work
            self.work.clear()
            source, data = arguments[0], Cancelling(started)
            self.assertRaises((CancelledError, ValueError), function, data, *arguments[1:])
            self.failureResultOf(started, CancelledError)
            self.assertEqual(data.pieces, 2)
            self.assertTrue(data.closed)
            source.close()
