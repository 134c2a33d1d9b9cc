"""
Compresses files in memory, with little more memory.

A file is compressed once to find out how large it becomes, since servers want to know that before the first
byte. What comes out is kept if it is small, and forgotten otherwise: then whoever reads the file compresses
it once more, while reading (L{GeneratedFile}). The same library makes the same bytes of the same file.

So a file of any size takes up to L{MOST_HELD_BYTES} more memory, and what the libraries need, however little
it can be compressed. Nothing has to be freed for that which others still read.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Generator
from typing import BinaryIO, Protocol

from twisted.internet.defer import CancelledError, Deferred

from pcapsvc.core.compression import Compression
from pcapsvc.core.errors import EncoderError
from pcapsvc.core.recording import Content
from pcapsvc.generated_file import GeneratedFile, Make
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.memory_file import MemoryFile

#: How much of a compressed file is kept in memory. Of a capture of 100 MB there may be two, and they are to
#: take less than 32 MB with what the libraries need (zlib 0.3 MB, zstd 3.7 MB, for each that compresses).
MOST_HELD_BYTES = 12 * 1024 * 1024

# How much is read and compressed at once: a few milliseconds, for which Python's lock is released.
_CHUNK_BYTES = 256 * 1024

# On HTML and plain text, 6 takes three times as long as 4, for files that are 6 % smaller.
_GZIP_LEVEL = 4
# A deflate stream in a gzip member (zlib's manual, deflateInit2). It has no name and no time, so that it is
# the same each time.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
# The library's own default.
_ZSTD_LEVEL = 3


class Room(Protocol):
    """Who grants memory: see L{pcapsvc.core.admission.Admission}."""

    def take(self, key: str, size: int) -> bool: ...

    def holds(self, key: str, size: int) -> None: ...

    def on_disk(self, key: str) -> None: ...


class _Encoder(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _encoder(name: str, size: int) -> _Encoder:
    """
    What compresses a file.

    @param size: of the file, in bytes.
    """
    if name == "gzip":
        return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    # Imported here: it takes 2.3 MB.
    import zstandard

    # The size is in the header, for those who decompress it; the checksum is at the end.
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True, write_content_size=True)
    return compressor.compressobj(size=size)


def _compressing(name: str, size: int) -> Make:
    """
    What makes the compressed file of another one.

    @param size: of the other one, in bytes.
    """

    def make(source: BinaryIO) -> Generator[bytes]:
        encoder = _encoder(name, size)
        for chunk in _copied(source):
            yield encoder.compress(chunk)
        yield encoder.flush()

    return make


def _copied(source: BinaryIO) -> Generator[bytes]:
    """A file as it is."""
    while chunk := source.read(_CHUNK_BYTES):
        yield chunk


class Compressor:
    """
    Compresses the files of captures.

    @param run_in_thread: compresses. How many files are compressed at the same time is up to it.
    @param room: is asked for the memory of what is kept.
    @param close_descriptor: as in L{MemoryFile}.
    @param most_held_bytes: how much of each compressed file is kept in memory.
    """

    def __init__(
        self,
        run_in_thread: RunInThread,
        room: Room,
        *,
        close_descriptor: Callable[[int], object] = os.close,
        most_held_bytes: int = MOST_HELD_BYTES,
    ) -> None:
        self._run_in_thread = run_in_thread
        self._close_descriptor = close_descriptor
        self._room = room
        self._most_held_bytes = most_held_bytes

    def compress(self, key: str, content: Content, compression: Compression) -> Deferred[Content]:
        """
        Compress a file.

        @param key: unique among all files, for those who grant memory.
        @param content: the file. It must stay open as long as the result, if that is a L{GeneratedFile}.

        @return: fires with the compressed file, which the caller closes. Fails with L{EncoderError}. On
            cancel, the thread ends after the piece in hand.
        """
        return Deferred.fromCoroutine(self._keep(key, content, _compressing(compression.name, content.size)))

    def may_keep(self, size: int) -> bool:
        """Whether files of this size, in bytes, are kept if there is room for them."""
        return size <= self._most_held_bytes

    def keep(self, key: str, content: Content) -> Deferred[Content]:
        """The same without compressing: what is made while it is read is kept, if it is small."""
        return Deferred.fromCoroutine(self._keep(key, content, _copied))

    async def _keep(self, key: str, content: Content, make: Make) -> Content:
        # Nothing is larger when it is compressed, but for a few bytes.
        most = min(self._most_held_bytes, content.size + _CHUNK_BYTES)
        held = self._make_held() if self._room.take(key, most) else None
        cancelled = threading.Event()
        try:
            source = content.open()
            try:
                size = await self._run_in_thread(_measure, source, make, held, most, cancelled.is_set)
            except BaseException:
                # A thread that has begun notices, and closes what it reads as well.
                cancelled.set()
                if held is not None:
                    held.close()
                raise
        except CancelledError:
            self._room.on_disk(key)
            source.close()
            raise
        except Exception as error:
            self._room.on_disk(key)
            raise EncoderError(str(error) or type(error).__name__) from error
        if held is not None and not held.is_closed:
            self._room.holds(key, size)
            held.closed = lambda: self._room.on_disk(key)
            return held
        self._room.on_disk(key)
        return GeneratedFile(content, make, size)

    def _make_held(self) -> _HeldFile | None:
        """A file in memory; L{None} if there is no descriptor for it."""
        try:
            return _HeldFile(self._close_descriptor)
        except OSError:
            return None


def _measure(
    source: BinaryIO, make: Make, held: _HeldFile | None, most: int, is_cancelled: Callable[[], bool]
) -> int:
    """
    Make a file of another one, in a thread.

    @param source: the other one. It is closed.
    @param held: takes what comes out. It is closed if that is too much.
    @param most: how much it may take, in bytes.

    @return: how large the file becomes.
    """
    size = 0
    with source:
        for piece in make(source):
            if is_cancelled():
                raise CancelledError
            size += len(piece)
            if held is not None and not (size <= most and held.add(piece)):
                held.drop()
                held = None
    return size


class _HeldFile:
    """
    A file that is kept in memory: a L{Content}. It may be closed while a thread still writes to it.

    @ivar size: in bytes.
    @ivar closed: called when it is closed, once.
    """

    def __init__(self, close_descriptor: Callable[[int], object]) -> None:
        self._lock = threading.Lock()
        self._file = MemoryFile("pcapsvc-form", close_descriptor)
        self.size = 0
        self.closed: Callable[[], object] = lambda: None

    @property
    def is_closed(self) -> bool:
        return self._file.descriptor < 0

    def add(self, piece: bytes | memoryview) -> bool:
        """Write at the end. Return whether there was memory for it."""
        with self._lock:
            if self.is_closed:
                return False
            try:
                self._file.write_at(self.size, piece)
            except OSError:
                return False
            self.size += len(piece)
            return True

    def open(self) -> BinaryIO:
        """A reader: see L{Content.open}."""
        return self._file.open()

    def drop(self) -> None:
        """As L{close}, in any thread."""
        self._file.close_descriptor = os.close
        self.close()

    def close(self) -> None:
        """Free the memory: see L{Content.close}."""
        with self._lock:
            is_first = not self.is_closed
            self._file.close()
        if is_first:
            self.closed()
