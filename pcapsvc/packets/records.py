"""Packets in memory, as libpcap writes them into a pcap file and reads them from one."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from mmap import PAGESIZE, mmap

from zope.interface import implementer

from pcapsvc.core.filter import Program
from pcapsvc.core.pcap_file import FILE_HEADER_BYTES, count_packets, file_header
from pcapsvc.interfaces.capture import IRecordWriter, ISieve
from pcapsvc.packets.libpcap import LibpcapError
from pcapsvc.packets.stdio import close_stream, open_stream, use_buffer

# How many packets one call of libpcap may sift: at the end of what is read it doesn't say how many there
# were, and up to so many are counted in Python.
_STEP_PACKETS = 1024
# How much a sieve reads at a time, in bytes.
_READ_BYTES = 64 << 10
_ERROR_BYTES = 256


class _Program(ctypes.Structure):
    """A compiled filter, C{struct bpf_program} of pcap/bpf.h."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_char_p))


class _StreamFunctions(ctypes.Structure):
    """C{cookie_io_functions_t} of fopencookie(3), with none: what is written beyond the buffer is lost."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("read", "write", "seek", "close"))


class _Libc:
    """Functions of stdio that only records need. None of them waits, so they keep Python's lock."""

    def __init__(self) -> None:
        library = ctypes.PyDLL(None, use_errno=True)
        self.fopencookie = library.fopencookie
        self.fopencookie.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _StreamFunctions)
        self.fopencookie.restype = ctypes.c_void_p
        self.fseek = library.fseek
        self.fseek.argtypes = (ctypes.c_void_p, ctypes.c_long, ctypes.c_int)
        self.pending = library["__fpending"]
        self.pending.argtypes = (ctypes.c_void_p,)
        self.pending.restype = ctypes.c_size_t
        self.purge = library["__fpurge"]
        self.purge.argtypes = (ctypes.c_void_p,)

    def open_nowhere(self) -> int:
        """
        A stream to write to, with no file behind its buffer, and so without a descriptor.

        @raise OSError: if there is no memory for it.
        """
        stream: int | None = self.fopencookie(None, b"w", _StreamFunctions())
        if not stream:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return stream


class RecordFunctions:
    """
    libpcap's functions for files, on memory.

    @param extension: the path of the extension module that libpcap is in.

    @raise OSError: if it can't be loaded, or if stdio is another one than glibc's.
    @raise AttributeError: if it has no libpcap.
    """

    def __init__(self, extension: str) -> None:
        library, unlocked = ctypes.PyDLL(extension), ctypes.CDLL(extension)
        self._libc = _Libc()
        self._open_dead = library.pcap_open_dead
        self._open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
        self._open_dead.restype = ctypes.c_void_p
        self._close = library.pcap_close
        self._close.argtypes = (ctypes.c_void_p,)
        self._dump_fopen = library.pcap_dump_fopen
        self._dump_fopen.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        self._dump_fopen.restype = ctypes.c_void_p
        self._dump_close = library.pcap_dump_close
        self._dump_close.argtypes = (ctypes.c_void_p,)
        self._dump = ctypes.cast(library.pcap_dump, ctypes.c_void_p)
        self._fopen_offline = library.pcap_fopen_offline
        self._fopen_offline.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
        self._fopen_offline.restype = ctypes.c_void_p
        self._setfilter = library.pcap_setfilter
        self._setfilter.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Program))
        # Sifting takes long enough to let others have Python's lock.
        self._dispatch = unlocked.pcap_dispatch
        self._dispatch.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._geterr = library.pcap_geterr
        self._geterr.argtypes = (ctypes.c_void_p,)
        self._geterr.restype = ctypes.c_char_p

    def open_writer(self, memory: mmap, start: int, end: int, *, link_type: int) -> RecordWriter:
        """
        Have libpcap's dumper write into memory: as it writes into a stream's buffer, which this is, nothing
        is copied again.

        @param start: where the first byte goes; C{end} is one beyond the last: a page later, or more.
        @param link_type: as libpcap numbers it.

        @raise OSError: if there is no memory for it.
        """
        libc = self._libc
        stream = libc.open_nowhere()
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + start
        use_buffer(stream, address, end - start)
        dead = self._open_dead(link_type, 0)
        dumper = self._dump_fopen(dead, stream) if dead else None
        if dead:
            self._close(dead)
        if not dumper:
            # If the header didn't fit, libpcap has closed the stream.
            if not dead:
                close_stream(stream)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        # The header of the file is left out.
        libc.purge(stream)

        def close() -> None:
            libc.purge(stream)
            self._dump_close(dumper)

        return RecordWriter(
            memory,
            dumper,
            tell=lambda: libc.pending(stream),
            rewind=lambda: libc.purge(stream),
            close=close,
        )

    def open_reader(self, descriptor: int) -> tuple[int, int]:
        """
        Read a pcap file.

        @param descriptor: of the file, which this owns.

        @return: libpcap's handle, and its stream, which is closed with it.

        @raise OSError: if there is no memory for it, or if it isn't a pcap file.
        """
        stream = open_stream(descriptor, b"rb")
        use_buffer(stream, None, _READ_BYTES)
        words = ctypes.create_string_buffer(_ERROR_BYTES)
        handle: int | None = self._fopen_offline(stream, words)
        if not handle:
            close_stream(stream)
            raise OSError(words.value.decode("utf-8", "replace"))
        return handle, stream

    def set_filter(self, handle: int, instructions: bytes) -> None:
        """
        Set the filter of a reader.

        @raise LibpcapError: if it can't be used.
        """
        program = _Program(len(instructions) // 8, instructions)
        if self._setfilter(handle, program) < 0:
            raise LibpcapError(self._geterr(handle).decode("utf-8", "replace"))

    def rewind(self, stream: int) -> None:
        """Have a reader begin again with the first packet of its file, whose content may be another one."""
        self._libc.purge(stream)
        self._libc.fseek(stream, FILE_HEADER_BYTES, os.SEEK_SET)

    def copy(self, handle: int, dumper: int, count: int) -> int:
        """
        Write the next packets of a reader that pass its filter.

        @return: how many; 0 if the end of the file was reached before there were so many.

        @raise LibpcapError: if the file can't be read.
        """
        copied: int = self._dispatch(handle, count, self._dump, dumper)
        if copied < 0:
            raise LibpcapError(self._geterr(handle).decode("utf-8", "replace"))
        return copied

    def close_reader(self, handle: int) -> None:
        """Close a reader."""
        self._close(handle)


@implementer(IRecordWriter)
class RecordWriter:
    """
    libpcap's dumper, writing into memory.

    @ivar pointer: to the dumper; 0 if it is closed.
    @ivar rewind: begins again with the first byte.
    """

    def __init__(
        self,
        memory: mmap,
        pointer: int,
        *,
        tell: Callable[[], int],
        rewind: Callable[[], object],
        close: Callable[[], object],
    ) -> None:
        self.pointer = pointer
        # Not used, but it has to stay as long as this.
        self._memory = memory
        self._tell = tell
        self.rewind = rewind
        self._close = close

    def size(self) -> int:
        """How many bytes were written: see L{IRecordWriter.size}."""
        if not self.pointer:
            raise ValueError("it is closed")
        return self._tell()

    def close(self) -> None:
        """Write no more: see L{IRecordWriter.close}."""
        pointer, self.pointer = self.pointer, 0
        if pointer:
            self._close()

    def __del__(self) -> None:
        # The stream must not outlive its memory.
        self.close()


@implementer(ISieve)
class Sieve:
    """
    Sifts packets by libpcap's reader of files, which filters them, and cuts those that are longer than the
    file says its packets are. It believes that time stamps are in microseconds, and leaves them as they are.

    @param kept: the snap length of the packets, in bytes.
    @param snap_length: to which they are cut, in bytes.
    @param program: for recorded packets; L{None} lets all of them pass.
    @param looks_beyond: see L{ISieve}.

    @raise OSError: if there is no memory or no descriptor for it.
    @raise LibpcapError: if the filter can't be used.
    """

    def __init__(
        self,
        functions: RecordFunctions,
        *,
        link_type: int,
        kept: int,
        snap_length: int,
        program: Program | None,
        looks_beyond: bool = False,
    ) -> None:
        self.looks_beyond = looks_beyond
        self._stages: list[_Stage] = []
        try:
            # The filter may look at what is cut off.
            if program is not None:
                self._stages.append(_Stage(functions, link_type, kept, program.instructions))
            if snap_length < kept:
                self._stages.append(_Stage(functions, link_type, snap_length, b""))
        except BaseException:
            self.close()
            raise

    def sift(self, records: memoryview) -> tuple[int, memoryview]:
        """Sift packets: see L{ISieve.sift}."""
        packets = None
        for stage in self._stages:
            packets, records = stage.pass_through(records)
        if packets is None:
            packets = count_packets(records)
        return packets, records

    def close(self) -> None:
        """Free its memory: see L{ISieve.close}."""
        stages, self._stages = self._stages, []
        for stage in stages:
            stage.close()


class _Stage:
    """One pass through libpcap."""

    def __init__(
        self, functions: RecordFunctions, link_type: int, snap_length: int, instructions: bytes
    ) -> None:
        self._functions = functions
        self._link_type = link_type
        self._output: mmap | None = None
        self._writer: RecordWriter | None = None
        self._input = os.memfd_create("pcapsvc-sieve", os.MFD_CLOEXEC)
        self._handle = 0
        try:
            os.write(self._input, file_header(link_type, snap_length))
            self._handle, self._stream = functions.open_reader(_reopened(self._input))
            if instructions:
                functions.set_filter(self._handle, instructions)
        except BaseException:
            self.close()
            raise

    def pass_through(self, records: memoryview) -> tuple[int, memoryview]:
        """The number of packets that pass, and the packets."""
        os.ftruncate(self._input, FILE_HEADER_BYTES + len(records))
        os.pwrite(self._input, records, FILE_HEADER_BYTES)
        writer = self._writer_for(len(records))
        self._functions.rewind(self._stream)
        packets = counted = 0
        try:
            while copied := self._functions.copy(self._handle, writer.pointer, _STEP_PACKETS):
                packets += copied
                counted = writer.size()
        except LibpcapError as error:
            raise OSError(f"recorded packets can't be read: {error}") from None
        assert self._output is not None
        passed = memoryview(self._output)[: writer.size()]
        return packets + count_packets(passed[counted:]), passed

    def _writer_for(self, size: int) -> RecordWriter:
        if self._writer is not None and self._output is not None and len(self._output) >= size:
            self._writer.rewind()
            return self._writer
        if self._writer is not None:
            self._writer.close()
            # If there is no memory for the next one, this one must not be used again.
            self._writer = None
        # There is room for the header of the file, which is written first. stdio doesn't use a small buffer.
        self._output = mmap(-1, max(size + FILE_HEADER_BYTES, PAGESIZE))
        self._writer = self._functions.open_writer(
            self._output, 0, len(self._output), link_type=self._link_type
        )
        return self._writer

    def close(self) -> None:
        if self._handle:
            self._functions.close_reader(self._handle)
            self._handle = 0
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._input >= 0:
            os.close(self._input)
            self._input = -1


def _reopened(descriptor: int) -> int:
    """A descriptor of the same file, at its first byte. What is written by the other one leaves it there."""
    own = os.dup(descriptor)
    # They share the offset, which os.write() has moved; nobody but libpcap moves it from here on.
    os.lseek(own, 0, os.SEEK_SET)
    return own
