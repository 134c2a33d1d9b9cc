"""
Compresses files in memory, with little more memory.

A file is compressed once to find out how large it becomes, since servers want to know that before the first
byte. What comes out is kept if it is small, and forgotten otherwise: then whoever reads the file compresses
it once more, while reading. The same library makes the same bytes of the same file, and a reader that finds
another number of them fails.

So a file of any size takes up to L{MOST_HELD_BYTES} more memory, and what the libraries need, however little
it can be compressed. Nothing has to be freed for that which others still read.
"""

from __future__ import annotations

import errno
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader, RawIOBase
from typing import Any, BinaryIO, Protocol

from twisted.internet.defer import CancelledError, Deferred

from pcapsvc.core.compression import Compression
from pcapsvc.core.errors import EncoderError
from pcapsvc.core.recording import Content
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


def _compressed(source: BinaryIO, name: str, size: int) -> Iterator[bytes]:
    """The compressed file, piece by piece; some pieces are empty."""
    encoder = _encoder(name, size)
    while chunk := source.read(_CHUNK_BYTES):
        yield encoder.compress(chunk)
    yield encoder.flush()


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

    def compress(self, key: str, content: Content, compression: Compression) -> Deferred[CompressedFile]:
        """
        Compress a file.

        @param key: unique among all files, for those who grant memory.
        @param content: the file. It must stay open as long as the result C{needs_source}.

        @return: fires with the compressed file, which the caller closes. Fails with L{EncoderError}. On
            cancel, the thread ends after the piece in hand.
        """
        return Deferred.fromCoroutine(self._compress(key, content, compression))

    async def _compress(self, key: str, content: Content, compression: Compression) -> CompressedFile:
        name, size = compression.name, content.size
        # Nothing is larger when it is compressed, but for a few bytes.
        most = min(self._most_held_bytes, size + _CHUNK_BYTES)
        held = self._make_held() if self._room.take(key, most) else None
        cancelled = threading.Event()
        try:
            source = content.open()
            try:
                done = await self._run_in_thread(_measure, source, name, size, held, most, cancelled.is_set)
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
            self._room.holds(key, done)
            return CompressedFile(content, name, done, held, lambda: self._room.on_disk(key))
        self._room.on_disk(key)
        return CompressedFile(content, name, done, None, lambda: None)

    def _make_held(self) -> _HeldFile | None:
        """A file in memory; L{None} if there is no descriptor for it."""
        try:
            return _HeldFile(self._close_descriptor)
        except OSError:
            return None


def _measure(
    source: BinaryIO,
    name: str,
    size: int,
    held: _HeldFile | None,
    most: int,
    is_cancelled: Callable[[], bool],
) -> int:
    """
    Compress a file, in a thread.

    @param source: the file. It is closed.
    @param size: of the file, in bytes.
    @param held: takes what comes out. It is closed if that is too much.
    @param most: how much it may take, in bytes.

    @return: how large the file becomes.
    """
    done = 0
    with source:
        for piece in _compressed(source, name, size):
            if is_cancelled():
                raise CancelledError
            done += len(piece)
            if held is not None and not (done <= most and held.add(piece)):
                held.drop()
                held = None
    return done


class CompressedFile:
    """
    A compressed file: a L{Content}.

    @ivar size: in bytes.
    @ivar needs_source: whether it is made of the file that it was compressed from each time that it is read.
    """

    def __init__(
        self,
        source: Content,
        name: str,
        size: int,
        held: _HeldFile | None,
        closed: Callable[[], object],
    ) -> None:
        self._source: Content | None = source
        self._name = name
        self._held = held
        self._closed = closed
        self.size = size
        self.needs_source = held is None

    def open(self) -> BinaryIO:
        """A reader: see L{Content.open}. It may compress the file, so it is to be read in threads."""
        if self._held is not None:
            return self._held.open()
        if self._source is None:
            raise OSError(errno.EBADF, "it is closed")
        source = self._source.open()
        return BufferedReader(_CompressingReader(source, self._name, self._source.size, self.size))

    def close(self) -> None:
        """Free the memory: see L{Content.close}."""
        if self._source is not None:
            self._source = None
            if self._held is not None:
                self._held.close()
            self._closed()


class _HeldFile:
    """What comes out, as long as it is kept. It may be closed while another thread writes to it."""

    def __init__(self, close_descriptor: Callable[[int], object]) -> None:
        self._lock = threading.Lock()
        self._file = MemoryFile("compressed", close_descriptor)

    @property
    def is_closed(self) -> bool:
        return self._file.descriptor < 0

    def add(self, piece: bytes) -> bool:
        """Write at the end. Return whether there was memory for it."""
        with self._lock:
            if self.is_closed:
                return False
            try:
                self._file.write_at(self._file.size, piece)
            except OSError:
                return False
            return True

    def open(self) -> BinaryIO:
        return self._file.open()

    def drop(self) -> None:
        """As L{close}, in any thread."""
        self._file.close_descriptor = os.close
        self.close()

    def close(self) -> None:
        with self._lock:
            self._file.close()


class _CompressingReader(RawIOBase):
    """
    Compresses a file while it is read. To go back is to begin again.

    @param source: the file. It is closed.
    @param source_size: of the file, in bytes.
    @param size: of the compressed file, in bytes.
    """

    def __init__(self, source: BinaryIO, name: str, source_size: int, size: int) -> None:
        self._source = source
        self._name = name
        self._source_size = source_size
        self._size = size
        self._at = 0
        self._begin()

    def _begin(self) -> None:
        self._pieces = _compressed(self._source, self._name, self._source_size)
        self._piece = memoryview(b"")
        # Where the piece begins.
        self._made = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._at < self._made:
            self._source.seek(0)
            self._begin()
        while self._at >= self._made + len(self._piece):
            self._made += len(self._piece)
            piece = next(self._pieces, None)
            if piece is None:
                if self._made != self._size:
                    raise OSError(f"compressed again, it has {self._made} bytes instead of {self._size}")
                self._piece = memoryview(b"")
                return 0
            self._piece = memoryview(piece)
        start = self._at - self._made
        found = self._piece[start : start + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset
        if at < 0:
            raise ValueError(f"negative position: {at}")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()
