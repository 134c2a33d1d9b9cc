"""The pcapng format: the packets of a recording, and what is known about them."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from io import BufferedIOBase
from mmap import mmap
from typing import Any, BinaryIO, cast

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.artifact import PCAPNG_MEDIA_TYPE, PCAPNG_SUFFIX
from pcapsvc.core.errors import EncoderError
from pcapsvc.core.pcap_file import FILE_HEADER_BYTES, read_file_header
from pcapsvc.core.pcapng_file import BLOCK_END_BYTES
from pcapsvc.core.recording import Content, Recording
from pcapsvc.encoders.pcapng.describe import Origin, after_packets, before_packets
from pcapsvc.encoders.pcapng.packet_blocks import PacketBlocks, find_packets, measure_packets
from pcapsvc.generated_file import GeneratedFile
from pcapsvc.interfaces.delivery import IEncoder
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.memory_file import MemoryFile

#: How many threads the encoder needs.
THREADS = 1

# How much of a recording is read at once, in bytes: more than the largest packet, and so little that the
# processor's cache still has it when it is written.
_READ_BYTES = 512 << 10


class _Records:
    """
    Reads the packets of a recording, from behind its header.

    @ivar memory: where they are read into.
    """

    def __init__(self, reader: BinaryIO) -> None:
        self._reader = cast(BufferedIOBase, reader)
        self.memory = mmap(-1, _READ_BYTES)

    def __iter__(self) -> Iterator[tuple[memoryview, list[int]]]:
        """
        What is in memory: whole packets, and perhaps a part of the next one. Whoever takes it says in the
        list where the whole ones end.

        @raise ValueError: if the last packet is not whole.
        """
        unread = 0
        with memoryview(self.memory) as view:
            while count := self._reader.readinto(view[unread:]):
                unread += count
                ends: list[int] = []
                yield view[:unread], ends
                [end] = ends
                view[: unread - end] = view[end:unread]
                unread -= end
        if unread:
            raise ValueError("the recording ends within a packet")


class _Encoding:
    """The encoding of one recording, in threads: any number of times, and each time the same."""

    def __init__(self, recording: Recording, origin: Origin) -> None:
        self._recording = recording
        self._origin = origin
        self._is_cancelled = False

    def cancel(self) -> None:
        """Have L{measure} end soon. This is called in another thread."""
        self._is_cancelled = True

    def measure(self, reader: BinaryIO) -> int:
        """
        How large the file becomes, in bytes.

        @param reader: of the recording's file, which this closes.

        @raise OSError: if it can't be read.
        @raise ValueError: if it is damaged.
        @raise CancelledError: if that was asked for.
        """
        with closing(reader):
            section, interface, statistics, _ = self._other_blocks(reader)
            size = len(section) + len(interface) + len(statistics)
            for records, ends in _Records(reader):
                if self._is_cancelled:
                    raise CancelledError
                end, blocks_bytes = measure_packets(records)
                ends.append(end)
                size += blocks_bytes
            return size

    def make(self, reader: BinaryIO) -> Generator[bytes]:
        """
        Make the file, piece by piece.

        @param reader: of the recording's file.

        @raise OSError: if it can't be read, or if there is no memory for the piece in hand.
        @raise ValueError: if it is damaged.
        """
        section, interface, statistics, digits = self._other_blocks(reader)
        # The end of each block is written with the beginning of the next one.
        yield section + interface[:-BLOCK_END_BYTES]
        source = _Records(reader)
        blocks = PacketBlocks(source.memory, ticks_per_second=10**digits, length_before=len(interface))
        # writev(2) puts blocks together, in a file.
        with closing(MemoryFile("pcapsvc-pcapng")) as scratch:
            for records, ends in source:
                at = size = 0
                os.lseek(scratch.descriptor, 0, os.SEEK_SET)
                while (found := find_packets(records, at)).starts:
                    size += blocks.prepare(found)
                    blocks.write(scratch.descriptor)
                    at = found.end
                ends.append(at)
                yield os.pread(scratch.descriptor, size, 0)
        yield blocks.end() + statistics

    def _other_blocks(self, reader: BinaryIO) -> tuple[bytes, bytes, bytes, int]:
        """
        The section header, the interface description, the statistics; and how many digits time stamps have.
        """
        recorded = read_file_header(reader.read(FILE_HEADER_BYTES))
        section, interface = before_packets(
            self._recording,
            self._origin,
            link_type=recorded.link_type,
            snap_length=recorded.snap_length,
            digits=recorded.digits,
        )
        return section, interface, after_packets(self._recording, digits=recorded.digits), recorded.digits


@implementer(IEncoder)
class PcapngEncoder:
    """
    Makes a pcapng file of a recording, whenever it is read: to keep it would take as much memory again as the
    recording, which is still needed.

    How large it becomes is found out in a thread, for one recording at a time.

    @param run_in_thread: runs functions in up to L{THREADS} threads.
    @param origin: where the files come from.
    """

    name = "pcapng"
    suffix = PCAPNG_SUFFIX
    media_type = PCAPNG_MEDIA_TYPE

    def __init__(self, run_in_thread: RunInThread, *, origin: Origin) -> None:
        self._run_in_thread = run_in_thread
        self._origin = origin
        self._turn = DeferredLock()

    def encode(self, recording: Recording) -> Deferred[Content]:
        """See L{IEncoder.encode}. The content is a L{GeneratedFile}."""
        return Deferred.fromCoroutine(self._encode(recording))

    async def _encode(self, recording: Recording) -> Content:
        await self._turn.acquire()
        try:
            reader = recording.content.open()
        except OSError as error:
            self._turn.release()
            raise EncoderError(str(error)) from None
        encoding = _Encoding(recording, self._origin)
        # A thread can't be interrupted: who has cancelled this doesn't wait for its end.
        measured: Deferred[int] = Deferred(lambda _: encoding.cancel())

        def ended(result: int | Failure) -> None:
            self._turn.release()
            if isinstance(result, Failure):
                # Perhaps the function was not called.
                reader.close()
            if not measured.called:
                measured.callback(cast(Any, result))

        self._run_in_thread(encoding.measure, reader).addBoth(ended)
        try:
            size = await measured
        except (OSError, ValueError, MemoryError, RuntimeError) as error:
            raise EncoderError(str(error) or type(error).__name__) from error
        content = recording.content
        return GeneratedFile(content, encoding.make, size, close=content.close)
