"""A pcap file in memory, written by libpcap itself, with no bytecode for each packet."""

from __future__ import annotations

import os
from collections.abc import Callable
from mmap import PAGESIZE
from typing import Any, Protocol

import msgspec

from pcapsvc.core.pcap_file import (
    FILE_HEADER_BYTES,
    LARGEST_SNAP_BYTES,
    PACKET_HEADER_BYTES,
    each_packet,
    record_offsets,
    time_stamp,
)
from pcapsvc.core.rolling import RollingPackets
from pcapsvc.core.session import Batch
from pcapsvc.interfaces.capture import IPacketDumper, IPacketReader
from pcapsvc.memory_file import MemoryFile

# How much more memory is reserved than the next packets may need, in bytes: it is seldom done.
_RESERVE_BYTES = 256 << 10
# The memory that is reserved for the packets of one call of libpcap, in bytes: at first, by how many times it
# grows if there are more, and at most. To reserve takes a tenth of what it takes to write, so it adds to the
# time until a capture is armed.
_FIRST_AHEAD_BYTES = 128 << 10
_AHEAD_TIMES = 4
_MOST_AHEAD_BYTES = 3 << 19
# How many times the size of the last packets is reserved for each of the next.
_TIMES_LIKELY = 2
# How many packets one call of libpcap may read if they may turn out to be larger than that.
_MOST_LIKELY_PACKETS = 8192

#: The memory that a file may need besides its limit of bytes: what is reserved beyond, and one packet of the
#: largest snap length.
MOST_BEYOND_BYTES = _RESERVE_BYTES + PAGESIZE + PACKET_HEADER_BYTES + LARGEST_SNAP_BYTES


class Observer(Protocol):
    """Sees each packet of the file, once it is known to stay there."""

    def packet(self, data: bytes, length: int) -> None:
        """
        See one packet. What this raises fails the capture.

        @param data: as it is in the file.
        @param length: its original length, in bytes.
        """

    def done(self) -> None:
        """There are no more packets."""


class _Full(Exception):
    """Raised within a read to end it."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a buffer holds.

    @ivar packets: how many packets.
    @ivar bytes: the size of a file with them.
    @ivar rolling: as in L{Progress}.
    """

    packets: int
    bytes: int
    rolling: RollingPackets | None = None


class RecordingBuffer:
    """
    Writes the packets of a handle into memory, batch by batch.

    As long as batches need no counting, libpcap's dumper is called straight from
    libpcap's loop.

    Memory for packets is reserved before they are read. A dumper that doesn't
    report failed writes must have none: for it, each packet may be of the snap
    length. With one that does, each may be twice as large as the last ones were:
    if more arrives and there is no memory, the capture fails a moment later. If
    all that would be a lot, a batch is read in several calls.

    @param open_dumper: creates a pcap file of the handle's link type and snap length, by its path or
        its descriptor.
    @param is_recorded: whether the handle's packets come from memory, and not from libpcap: a dumper that has
        a path accepts no others one by one.
    @param before_read: called before each read of the handle.
    @param snap_length: how much of each packet is captured, in bytes.
    @param observer: sees each packet; what it raises is raised by L{show} and L{append}.
    @param most_ahead_bytes: how much memory is reserved, at most, for the packets of one call of libpcap.
    @param close_descriptor: as in L{MemoryFile}.

    @ivar packets: how many were read into the file.
    @ivar size: the size of the file with them, in bytes.

    @raise OSError: if there is no memory or no descriptor for it.
    """

    def __init__(
        self,
        handle: IPacketReader,
        name: str,
        *,
        open_dumper: Callable[[str | int], IPacketDumper],
        snap_length: int,
        is_recorded: bool = False,
        before_read: Callable[[], None] = lambda: None,
        observer: Observer | None = None,
        most_ahead_bytes: int = _MOST_AHEAD_BYTES,
        close_descriptor: Callable[[int], object] = os.close,
    ) -> None:
        self._handle = handle
        self._ticks_per_second = handle.ticks_per_second
        self._before_read = before_read
        self._largest_packet = PACKET_HEADER_BYTES + snap_length
        self._likely_packet = self._largest_packet
        self._ahead, self._most_ahead = _FIRST_AHEAD_BYTES, most_ahead_bytes
        self._observer = observer
        self._is_finished = False
        # How many bytes at the end of the file don't belong to it.
        self._left_out = 0
        # Up to where the observer has seen the file.
        self._shown = FILE_HEADER_BYTES
        self._close_descriptor = close_descriptor
        self.packets = 0
        self.size = FILE_HEADER_BYTES
        self._file = MemoryFile(name, close_descriptor)
        try:
            self._dumper: IPacketDumper | None = open_dumper(
                self._file.descriptor if is_recorded else self._file.file
            )
        except BaseException:
            self._file.close()
            raise

    @property
    def written(self) -> int:
        """The bytes that are in memory by now, without those that stdio buffers until L{finish}."""
        return self.held.bytes if self._dumper is None else self._file.held_bytes - self._left_out

    @property
    def held(self) -> Held:
        """What the file has."""
        return Held(packets=self.packets, bytes=self.size)

    def flush(self) -> int:
        """
        Write what stdio buffers. Not to be called within L{read}.

        @return: the file's size, in bytes. It ends with a whole packet.
        """
        if self._dumper is not None:
            self._dumper.flush()
        return self.written

    def read_at(self, offset: int, count: int) -> bytes:
        """
        Read the file, before L{finish}.

        @param count: how many bytes, at most. There may be fewer, but none only at the end.
        """
        return self._file.read_at(offset, count)

    def read(self, batch: Batch) -> int:
        """
        Read what has arrived, within the batch. After a L{cut}, nothing is read any more.

        @return: the number of packets read, which are in the file.

        @raise CaptureUnavailable: if the interface is gone. What was read before, also in this batch, is in
            the file and in L{packets}.
        @raise OSError: if there is no memory for the batch.
        """
        if self._left_out:
            return 0
        before = self.packets
        assert self._dumper is not None
        read = self._reader_of(batch, self._dumper)
        try:
            while (wanted := before + batch.packets - self.packets) > 0:
                count = min(wanted, self._most_at_once(self._dumper))
                self._reserve(count, batch.stop_at_bytes)
                self._before_read()
                if self._read_once(read, count, self._dumper) < count:
                    break
                self._ahead = min(_AHEAD_TIMES * self._ahead, self._most_ahead)
        except _Full:
            pass
        return self.packets - before

    def _most_at_once(self, dumper: IPacketDumper) -> int:
        """How many packets may be read in one call of libpcap."""
        certain = max(1, self._ahead // self._largest_packet)
        if not dumper.reports_failures:
            return certain
        return max(certain, min(self._ahead // self._likely_packet, _MOST_LIKELY_PACKETS))

    def _reserve(self, count: int, stop_at_bytes: int | None) -> None:
        """Reserve memory for the next packets."""
        end = self.size + min(count * self._largest_packet, max(self._ahead, self._largest_packet))
        if stop_at_bytes is not None:
            # The packet with which the file reaches this size is the last.
            end = min(end, stop_at_bytes + self._largest_packet)
        self._file.reserve(end, more=min(self._ahead, _RESERVE_BYTES))

    def _read_once(self, read: Callable[[int], int], count: int, dumper: IPacketDumper) -> int:
        """Call libpcap once, and note what that added."""
        packets, size = self.packets, self.size
        try:
            return read(count)
        finally:
            # Also if it raises: what was read before is in the file.
            self.size = dumper.size()
            self._added(packets, size)
            if self.packets > packets:
                likely = _TIMES_LIKELY * (self.size - size) // (self.packets - packets)
                self._likely_packet = min(likely, self._largest_packet)

    def _reader_of(self, batch: Batch, dumper: IPacketDumper) -> Callable[[int], int]:
        """A function that reads up to a number of packets, counts them, and returns how many there were."""
        if batch.stop_at_bytes is not None or batch.late is not None:
            each = self._each_packet(dumper.dump, batch)
            return lambda count: self._handle.read(count, each)

        def read(count: int) -> int:
            got = self._handle.read(count, dumper)
            self.packets += got
            return got

        return read

    def append(self, records: memoryview, packets: int) -> None:
        """
        Write packets that are in memory, in any thread.

        @param records: as in a pcap file of this link type, without its header.
        @param packets: how many there are.

        @raise OSError: if there is no memory for them.
        """
        assert self._dumper is not None
        self._file.reserve(self.size + len(records), more=0)
        self._dumper.write(records, packets)
        self.size += len(records)
        self.packets += packets
        self._added(self.packets - packets, self.size - len(records))
        self.show()

    def cut(self, packets: int, size: int, belongs: Callable[[float], bool]) -> None:
        """
        Leave out the packets that were read last, from the first one on that doesn't belong to the capture.

        @param packets: how many there were before; they had C{size} bytes in the file.
        @param belongs: says it by the time stamp, in seconds since the Unix epoch.
        """
        self.flush()
        records = memoryview(self._file.read_at(size, self.size - size))
        for at in record_offsets(records):
            if not belongs(time_stamp(records, at, ticks_per_second=self._ticks_per_second)):
                self._left_out = len(records) - at
                self.packets, self.size = packets, size + at
                return
            packets += 1

    def show(self) -> None:
        """
        Show the observer the packets that it hasn't seen. To be called after each L{read} and its L{cut}.
        """
        if self._observer is None or self._shown == self.size:
            return
        self.flush()
        start, self._shown = self._shown, self.size
        for data, length in each_packet(memoryview(self._file.read_at(start, self.size - start))):
            self._observer.packet(data, length)

    def _added(self, packets: int, size: int) -> None:
        """Take note of what was just written to the file. Before, it had so many packets and bytes."""

    def finish(self) -> MemoryFile:
        """
        Close the file. To be called once.

        @return: its content, which the caller closes.

        @raise OSError: if not all packets could be written; nothing is left open.
        """
        try:
            self._end()
            written = self._file.size - self._left_out
            if written != self.size:
                raise OSError(f"{self.size} bytes were captured, but {written} were written")
            if self._left_out:
                self._file.truncate(self.size)
            self._file.release()
        except BaseException:
            self._file.close()
            raise
        self._is_finished = True
        return self._file

    def discard(self) -> None:
        """Discard the file, unless it is finished. A second call does nothing."""
        self._end()
        if not self._is_finished:
            self._file.close()

    def _end(self) -> None:
        if self._dumper is not None:
            self._dumper.close()
            self._dumper = None
        if self._observer is not None:
            self._observer.done()
            self._observer = None

    def _each_packet(self, dump: Callable[[Any, bytes], None], batch: Batch) -> Callable[[Any, bytes], None]:
        late, stop_at_bytes = batch.late, batch.stop_at_bytes
        size, ticks_per_second = self.size, self._ticks_per_second

        def keep(header: Any, data: bytes) -> None:
            nonlocal size
            if late is not None:
                seconds, ticks = header.getts()
                if not late.belongs(seconds + ticks / ticks_per_second):
                    raise _Full
            dump(header, data)
            self.packets += 1
            size += PACKET_HEADER_BYTES + len(data)
            if stop_at_bytes is not None and size >= stop_at_bytes:
                raise _Full

        return keep
