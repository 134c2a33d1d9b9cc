"""A pcap file in memory, written by libpcap itself, with no bytecode for each packet."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from io import BufferedReader
from typing import Any, BinaryIO, Protocol

from pcapsvc.core.session import FILE_HEADER_BYTES, PACKET_HEADER_BYTES, Batch
from pcapsvc.interfaces.capture import IPacketDumper, IPacketHandle
from pcapsvc.positioned_reader import PositionedReader

#: How much more memory is reserved than the next packets may need, in bytes.
RESERVE_BYTES = 1 << 20
# The most memory that the packets of one call of libpcap may need, in bytes.
_MOST_AHEAD_BYTES = 4 << 20
# linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

# The dumper is a stdio stream without a flush: it buffers up to this much until it is closed (setbuf(3)).
_HELD_BACK_BYTES = 4096


class Observer(Protocol):
    """Sees each packet that is written to the file."""

    def packet(self, data: bytes, length: int) -> None:
        """
        See one packet. If this raises, the batch ends.

        @param data: as it is in the file.
        @param length: its original length, in bytes.
        """

    def done(self) -> None:
        """There are no more packets."""


class _Full(Exception):
    """Raised within a read to end it."""


class MemoryFile:
    """
    A file in memory, of this process alone (memfd_create(2)).

    @ivar path: opens it again, with an independent offset, if proc(5) is mounted.
    @ivar file: the path, or else the descriptor, whose offset is at the end.
    """

    def __init__(self, name: str) -> None:
        self._descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        self._reserved = 0
        self.path = f"/proc/self/fd/{self._descriptor}"
        self.file: str | int = self.path if os.path.lexists(self.path) else self._descriptor

    @property
    def size(self) -> int:
        """The number of bytes."""
        # In Python, four times as fast as fstat(2). The descriptor's offset is not used.
        return os.lseek(self._descriptor, 0, os.SEEK_END)

    def open(self) -> BinaryIO:
        """An independent reader, at the first byte. The caller closes it."""
        return BufferedReader(_Reader(os.dup(self._descriptor)))

    def read_at(self, offset: int, count: int) -> bytes:
        """Up to C{count} bytes from C{offset} on. The descriptor's offset is not used."""
        return os.pread(self._descriptor, count, offset)

    def reserve(self, end: int) -> None:
        """
        Reserve memory for the first C{end} bytes, so that writing them can't fail.

        @raise OSError: if there is not enough.
        """
        if end > self._reserved:
            end += RESERVE_BYTES
            self._allocate(_FALLOC_FL_KEEP_SIZE, self._reserved, end)
            self._reserved = end

    def release(self) -> None:
        """Free what is reserved beyond the last byte."""
        if self._reserved > self.size:
            self._allocate(_FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, self.size, self._reserved)
        self._reserved = 0

    def append(self, other: MemoryFile, *, skip: int) -> None:
        """Append the content of C{other} from offset C{skip} on."""
        os.lseek(self._descriptor, 0, os.SEEK_END)
        end = other.size
        while skip < end:
            skip += os.sendfile(self._descriptor, other._descriptor, skip, end - skip)

    def _allocate(self, mode: int, start: int, end: int) -> None:
        # fallocate(2): the standard library has only posix_fallocate(3), which changes the file's size.
        if _fallocate(self._descriptor, mode, start, end - start) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """Free the memory. Readers that are open stay readable. A second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Reader(PositionedReader):
    """
    Reads a file from its first byte, wherever the offset of its descriptor is: that is shared with others.

    @param descriptor: which it closes.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def descriptor(self) -> int:
        return self._descriptor

    def end(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class RecordingBuffer:
    """
    Writes the packets of a handle into memory, batch by batch.

    As long as batches need no counting, libpcap's dumper is called straight from
    libpcap's loop, and the file's size is known except for what stdio buffers. From
    the first counted batch on, the size must be exact, so the file is closed and a
    second one is begun, which is appended to the first at the end.

    The dumper doesn't report failed writes, so none may fail: the memory for packets
    is reserved before they are read, as if each were of the snap length. If that would
    be a lot, a batch is read in several calls.

    @param open_dumper: creates a pcap file of the handle's link type and snap length, by its path or
        its descriptor.
    @param flush_dumper: writes what such a file's stdio buffer holds.
    @param before_read: called before each read of the handle.
    @param snap_length: how much of each packet is captured, in bytes.
    @param observer: sees each packet; what it raises is raised by L{read}.

    @raise OSError: if there is no memory or no descriptor for it.
    """

    def __init__(
        self,
        handle: IPacketHandle,
        name: str,
        *,
        open_dumper: Callable[[str | int], IPacketDumper],
        flush_dumper: Callable[[IPacketDumper], object],
        snap_length: int,
        before_read: Callable[[], None] = lambda: None,
        observer: Observer | None = None,
    ) -> None:
        self._handle = handle
        self._open_dumper = open_dumper
        self._flush_dumper = flush_dumper
        self._before_read = before_read
        self._largest_packet = PACKET_HEADER_BYTES + snap_length
        self._most_at_once = max(1, _MOST_AHEAD_BYTES // self._largest_packet)
        self._name = name
        self._observer = observer
        self._files: list[MemoryFile] = []
        self._finished_bytes = 0
        self._closed_bytes = 0
        self._counted_bytes: int | None = None
        self._dumper: IPacketDumper | None = None
        self.packets = 0
        self._begin_file()

    @property
    def size(self) -> int:
        """The file's size, in bytes: exact after a counted batch; after others, an upper bound."""
        if self._counted_bytes is not None:
            return self._counted_bytes
        return self._files[-1].size + _HELD_BACK_BYTES

    @property
    def written(self) -> int:
        """The bytes that are in memory by now, without those that stdio buffers until L{finish}."""
        return self._finished_bytes or sum(file.size for file in self._files)

    def flush(self) -> int:
        """
        Write what stdio buffers. Not to be called within L{read}.

        @return: the file's size, in bytes. It ends with a whole packet.
        """
        if self._dumper is not None:
            self._flush_dumper(self._dumper)
        return self._finished_bytes or sum(file.size - skip for file, skip in self._parts())

    def read_at(self, offset: int, count: int) -> bytes:
        """
        Read the file, before L{finish}.

        @param count: how many bytes, at most. There may be fewer, but none only at the end.
        """
        for file, skip in self._parts():
            length = file.size - skip
            if offset < length:
                return file.read_at(skip + offset, count)
            offset -= length
        return b""

    def _parts(self) -> Iterator[tuple[MemoryFile, int]]:
        """What the file consists of so far: each with the number of bytes at its start that are left out."""
        for number, file in enumerate(self._files):
            yield file, FILE_HEADER_BYTES if number else 0

    def read(self, batch: Batch) -> int:
        """
        Read what has arrived, within the batch.

        @return: the number of packets read, which are in the file.

        @raise CaptureUnavailable: if the interface is gone. What was read before, also in this batch, is in
            the file and in L{packets}.
        @raise OSError: if there is no memory for the batch.
        """
        before = self.packets
        read = self._reader_of(batch)
        file = self._files[-1]
        try:
            while (wanted := before + batch.packets - self.packets) > 0:
                count = min(wanted, self._most_at_once)
                file.reserve(file.size + _HELD_BACK_BYTES + count * self._largest_packet)
                self._before_read()
                if read(count) < count:
                    break
        except _Full:
            pass
        return self.packets - before

    def _reader_of(self, batch: Batch) -> Callable[[int], int]:
        """A function that reads up to a number of packets, counts them, and returns how many there were."""
        dumper = self._dumper_of(batch)
        if batch.stop_at_bytes is not None or batch.late is not None or self._observer is not None:
            each = self._each_packet(dumper.dump, batch)
            return lambda count: self._handle.read(count, each)

        def read(count: int) -> int:
            got = self._handle.read(count, dumper)
            self.packets += got
            return got

        return read

    def finish(self) -> MemoryFile:
        """
        Close the file. To be called once.

        @return: its content, which the caller closes.

        @raise OSError: if not all packets could be written; nothing is left open.
        """
        whole, *rest = self._end()
        try:
            for other in rest:
                whole.append(other, skip=FILE_HEADER_BYTES)
            if self._counted_bytes is not None and whole.size != self._counted_bytes:
                raise OSError(f"{self._counted_bytes} bytes were captured, but {whole.size} were written")
            whole.release()
            self._finished_bytes = whole.size
        except BaseException:
            whole.close()
            raise
        finally:
            for other in rest:
                other.close()
        return whole

    def discard(self) -> None:
        """Discard the file. A second call does nothing."""
        for file in self._end():
            file.close()

    def _begin_file(self) -> None:
        file = MemoryFile(self._name)
        try:
            self._dumper = self._open_dumper(file.file)
        except BaseException:
            file.close()
            raise
        self._files.append(file)

    def _close_dumper(self) -> None:
        if self._dumper is not None:
            self._dumper.close()
            self._dumper = None

    def _end(self) -> list[MemoryFile]:
        self._close_dumper()
        if self._observer is not None:
            self._observer.done()
            self._observer = None
        files, self._files = self._files, []
        return files

    def _dumper_of(self, batch: Batch) -> IPacketDumper:
        if batch.stop_at_bytes is not None and self._counted_bytes is None:
            if self.packets:
                self._close_dumper()
                self._closed_bytes = self._files[-1].size
                self._begin_file()
            self._counted_bytes = self._closed_bytes or FILE_HEADER_BYTES
        assert self._dumper is not None
        return self._dumper

    def _each_packet(self, dump: Callable[[Any, bytes], None], batch: Batch) -> Callable[[Any, bytes], None]:
        observer, late, stop_at_bytes = self._observer, batch.late, batch.stop_at_bytes

        def keep(header: Any, data: bytes) -> None:
            if late is not None and not late.belongs(*header.getts()):
                raise _Full
            dump(header, data)
            self.packets += 1
            if self._counted_bytes is not None:
                self._counted_bytes += PACKET_HEADER_BYTES + len(data)
            if observer is not None:
                observer.packet(data, header.getlen())
            counted = self._counted_bytes
            if stop_at_bytes is not None and counted is not None and counted >= stop_at_bytes:
                raise _Full

        return keep
