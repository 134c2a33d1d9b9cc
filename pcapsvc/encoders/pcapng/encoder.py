"""The pcapng format: the packets of a recording, and what is known about them."""

from __future__ import annotations

from array import array
from collections.abc import Generator
from contextlib import closing
from io import BufferedReader
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
from pcapsvc.generated_file import GeneratedFile
from pcapsvc.interfaces.delivery import IEncoder
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.positioned_reader import PositionedReader

#: How many threads the encoder needs.
THREADS = 1

#: How many packets' sizes are remembered, at four bytes each: those of a whole capture in nearly all cases.
#: There may be a few thousand more, as so many are found at once.
MOST_REMEMBERED = 1 << 20


class _Encoding:
    """
    The encoding of one recording, in threads: any number of times, and each time the same.

    To find the sizes of packets is to read them all, so they are remembered for those who read the file, up
    to a number. Sizes of later packets are found again.
    """

    def __init__(self, recording: Recording, origin: Origin) -> None:
        self._recording = recording
        self._origin = origin
        self._is_cancelled = False
        self._remembered = array("I")
        # Where the packets end whose sizes are remembered.
        self._remembered_end = FILE_HEADER_BYTES

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
            # Imported here and below, in the thread: most nodes make no such files.
            from pcapsvc.encoders.pcapng.packet_blocks import added_bytes, packet_sizes

            source = _unbuffered(reader)
            section, interface, statistics, _ = self._other_blocks(source)
            size, end = len(section) + len(interface) + len(statistics), FILE_HEADER_BYTES
            for sizes, end in packet_sizes(source, FILE_HEADER_BYTES):
                if self._is_cancelled:
                    raise CancelledError
                size += added_bytes(sizes)
                if len(self._remembered) < MOST_REMEMBERED:
                    self._remembered += sizes
                    self._remembered_end = end
            return size + end - FILE_HEADER_BYTES

    def make(self, reader: BinaryIO) -> Generator[bytes | memoryview]:
        """
        Make the file, piece by piece.

        @param reader: of the recording's file.

        @raise OSError: if it can't be read, or if there is no memory for the piece in hand.
        @raise ValueError: if it is damaged.
        """
        from pcapsvc.encoders.pcapng.packet_blocks import PacketBlocks, packet_sizes

        source = _unbuffered(reader)
        section, interface, statistics, digits = self._other_blocks(source)
        # The end of each block is written with the beginning of the next one.
        yield section + interface[:-BLOCK_END_BYTES]
        blocks = PacketBlocks(
            source, FILE_HEADER_BYTES, ticks_per_second=10**digits, length_before=len(interface)
        )
        with closing(blocks):
            yield from blocks.make(self._remembered)
            if blocks.at != self._remembered_end:
                raise OSError("the recording has become shorter")
            for sizes, _ in packet_sizes(source, self._remembered_end):
                yield from blocks.make(sizes)
            yield blocks.end() + statistics

    def _other_blocks(self, source: PositionedReader) -> tuple[bytes, bytes, bytes, int]:
        """
        The section header, the interface description, the statistics; and how many digits time stamps have.
        """
        source.seek(0)
        recorded = read_file_header(source.read(FILE_HEADER_BYTES) or b"")
        section, interface = before_packets(
            self._recording,
            self._origin,
            link_type=recorded.link_type,
            snap_length=recorded.snap_length,
            digits=recorded.digits,
        )
        return section, interface, after_packets(self._recording, digits=recorded.digits), recorded.digits


def _unbuffered(reader: BinaryIO) -> PositionedReader:
    """What the reader of a recording reads: a recording is in memory."""
    raw = cast(BufferedReader, reader).raw
    assert isinstance(raw, PositionedReader)
    return raw


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
