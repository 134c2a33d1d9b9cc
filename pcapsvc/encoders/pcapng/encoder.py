"""The pcapng format: the packets of a recording, and what is known about them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from io import BufferedIOBase
from mmap import mmap
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.artifact import PCAPNG_MEDIA_TYPE, PCAPNG_SUFFIX
from pcapsvc.core.errors import EncoderError
from pcapsvc.core.pcap_file import FILE_HEADER_BYTES, read_file_header
from pcapsvc.core.pcapng_file import BLOCK_END_BYTES
from pcapsvc.core.recording import Content, Recording
from pcapsvc.encoders.pcapng.describe import Origin, after_packets, before_packets
from pcapsvc.encoders.pcapng.packet_blocks import PacketBlocks, find_packets
from pcapsvc.interfaces.delivery import IEncoder
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.memory_file import MemoryFile
from pcapsvc.threads import close_in_thread

#: How many threads the encoder needs: one that encodes, and one that frees memory.
THREADS = 2

# How much of a recording is read at once, in bytes: more than the largest packet, and so little that the
# processor's cache still has it when it is written.
_READ_BYTES = 512 << 10
# How much memory is reserved at once for what is written, in bytes: that takes half the time that it would
# take to get it page by page.
_RESERVE_BYTES = 2 << 20


class _Encoding:
    """
    The encoding of one recording, in a thread.

    @param reader: of the recording's file, which this closes.
    """

    def __init__(self, recording: Recording, reader: BufferedIOBase, origin: Origin) -> None:
        self._recording = recording
        self._reader = reader
        self._origin = origin
        self._is_cancelled = False

    def cancel(self) -> None:
        """Have it end soon. This is called in another thread."""
        self._is_cancelled = True

    def run(self, close_descriptor: Callable[[int], object]) -> MemoryFile:
        """
        Encode it.

        @param close_descriptor: closes the file that is returned: see L{MemoryFile}.

        @raise OSError: if it can't be read, or if there is no memory.
        @raise ValueError: if it is damaged.
        @raise CancelledError: if that was asked for.
        """
        with closing(self._reader):
            file = MemoryFile("pcapsvc-pcapng")
            try:
                self._write(file)
                file.release()
            except BaseException:
                file.close()
                raise
            file.close_descriptor = close_descriptor
            return file

    def _write(self, file: MemoryFile) -> None:
        recorded = read_file_header(self._reader.read(FILE_HEADER_BYTES))
        section, interface = before_packets(
            self._recording,
            self._origin,
            link_type=recorded.link_type,
            snap_length=recorded.snap_length,
            digits=recorded.digits,
        )
        # The end of each block is written with the beginning of the next one.
        _append(file, section + interface[:-BLOCK_END_BYTES])
        memory = mmap(-1, _READ_BYTES)
        blocks = PacketBlocks(memory, ticks_per_second=10**recorded.digits, length_before=len(interface))
        unread = 0
        with memoryview(memory) as view:
            while count := self._reader.readinto(view[unread:]):
                unread += count
                end = self._write_packets(file, blocks, view[:unread])
                view[: unread - end] = view[end:unread]
                unread -= end
        if unread:
            raise ValueError("the recording ends within a packet")
        _append(file, blocks.end() + after_packets(self._recording, digits=recorded.digits))

    def _write_packets(self, file: MemoryFile, blocks: PacketBlocks, records: memoryview) -> int:
        """
        Write the packets in memory.

        @return: where the last one that is complete ends.
        """
        at, size = 0, file.size
        while (found := find_packets(records, at)).starts:
            if self._is_cancelled:
                raise CancelledError
            size += blocks.prepare(found)
            file.reserve(size, more=_RESERVE_BYTES)
            blocks.write(file.descriptor)
            at = found.end
        return at


def _append(file: MemoryFile, data: bytes) -> None:
    file.reserve(file.size + len(data), more=0)
    os.write(file.descriptor, data)


@implementer(IEncoder)
class PcapngEncoder:
    """
    Makes a pcapng file of a recording, in memory.

    It works in a thread, on one recording at a time. The thread gives Python's lock away after every few
    hundred packets, when they are written.

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
        """See L{IEncoder.encode}."""
        return Deferred.fromCoroutine(self._encode(recording))

    async def _encode(self, recording: Recording) -> Content:
        await self._turn.acquire()
        try:
            reader = cast(BufferedIOBase, recording.content.open())
        except OSError as error:
            self._turn.release()
            raise EncoderError(str(error)) from None
        encoding = _Encoding(recording, reader, self._origin)
        # A thread can't be interrupted: who has cancelled this doesn't wait for its end.
        encoded: Deferred[Content] = Deferred(lambda _: encoding.cancel())

        def ended(result: MemoryFile | Failure) -> None:
            self._turn.release()
            if isinstance(result, Failure):
                # Perhaps the function was not called.
                reader.close()
            if not encoded.called:
                encoded.callback(cast(Any, result))
            elif isinstance(result, MemoryFile):
                result.close()

        self._run_in_thread(encoding.run, self._close_descriptor).addBoth(ended)
        try:
            return await encoded
        except (OSError, ValueError, MemoryError, RuntimeError) as error:
            raise EncoderError(str(error) or type(error).__name__) from error

    def _close_descriptor(self, descriptor: int) -> None:
        close_in_thread(self._run_in_thread, descriptor)
