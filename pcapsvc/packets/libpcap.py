"""The libpcap that comes with pcapy, called directly on pcapy's objects where pcapy itself is too slow."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zope.interface import implementer

from pcapsvc.core.pcap_file import MICROSECOND_TICKS, NANOSECOND_TICKS
from pcapsvc.interfaces.capture import IPacketDumper
from pcapsvc.packets.stdio import close_stream, open_stream, use_buffer

# The versions whose objects' layout is known: each object starts with the pointer to libpcap's structure
# (pcapobj.cc, pcapdumper.cc). The sizes are in bytes, without Python's own object header.
_KNOWN_VERSIONS = frozenset({"2.1.0"})
# What an installer records beside the package: pcapy_ng-2.1.0.dist-info.
_RECORD = re.compile(r"pcapy[-_.]ng-([^-]+)(?:-.+)?\.(?:dist|egg)-info")
_READER_BYTES = 88
_DUMPER_BYTES = 8

_HEAD_BYTES = object.__basicsize__
_OPTIMIZED = 1
_INSTRUCTION_BYTES = 8


# pcap/pcap.h: what time stamps are to have.
_PRECISION_MICRO, _PRECISION_NANO = 0, 1
_PRECISIONS = {MICROSECOND_TICKS: _PRECISION_MICRO, NANOSECOND_TICKS: _PRECISION_NANO}


_libc = ctypes.CDLL(None, use_errno=True)
_fwrite = _libc.fwrite
_fwrite.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
_fwrite.restype = ctypes.c_size_t
_fflush = _libc.fflush
_fflush.argtypes = (ctypes.c_void_p,)
# It doesn't wait, and is called after each batch: it keeps Python's lock.
_ferror = ctypes.PyDLL(None).ferror
_ferror.argtypes = (ctypes.c_void_p,)
#: The size of a dumper's stdio buffer, in bytes, if libpcap is called directly. stdio's own 4096 are a
#: write(2) for every 28 packets of 128 bytes. From here on, a larger one saves hardly anything, and each
#: capture has one.
STREAM_BUFFER_BYTES = 64 << 10


class LibpcapError(Exception):
    """libpcap reported an error; the message is libpcap's."""


class BadFilter(LibpcapError):
    """A filter can't be compiled."""


class _Program(ctypes.Structure):
    """A compiled filter, C{struct bpf_program} of pcap/bpf.h."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _PacketHeader(ctypes.Structure):
    """C{struct pcap_pkthdr} of pcap/pcap.h. A C{struct timeval} may have nanoseconds there."""

    _fields_ = (
        *(("seconds", ctypes.c_long), ("ticks", ctypes.c_long)),
        *(("kept", ctypes.c_uint32), ("length", ctypes.c_uint32)),
    )


@implementer(IPacketDumper)
class StreamDumper:
    """
    Writes a pcap file by libpcap's own dumper, through a stdio stream with a buffer of our own.

    @ivar pointer: to libpcap's dumper; 0 if it is closed.
    @ivar dump: writes one packet: see L{IPacketDumper.dump}.
    """

    reports_failures = True

    def __init__(
        self,
        libpcap: Libpcap,
        pointer: int,
        *,
        dump: Callable[[Any, bytes], None],
        close: Callable[[], object],
    ) -> None:
        self.pointer = pointer
        self.dump = dump
        self._close = close
        self._libpcap = libpcap
        self._stream = libpcap.stream(pointer)
        # Memory of its own, which is the kernel's again once it is closed. stdio writes there until then.
        self._memory = mmap.mmap(-1, STREAM_BUFFER_BYTES)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        # One thread at a time uses it: most have Python's lock.
        use_buffer(self._stream, address, STREAM_BUFFER_BYTES)

    def size(self) -> int:
        """The size of the file: see L{IPacketDumper.size}."""
        if not self.pointer:
            raise ValueError("it is closed")
        if _ferror(self._stream):
            raise OSError("not all packets could be written")
        return self._libpcap.position(self.pointer)

    def write(self, records: memoryview, packets: int) -> None:
        """Write packets as they are in a file: see L{IPacketDumper.write}."""
        if not self.pointer:
            raise ValueError("it is closed")
        address = ctypes.addressof(ctypes.c_char.from_buffer(records)) if records else None
        if _fwrite(address, 1, len(records), self._stream) != len(records):
            raise OSError("not all packets could be written")

    def flush(self) -> None:
        """Write what is buffered: see L{IPacketDumper.flush}."""
        if not self.pointer:
            raise ValueError("it is closed")
        self._libpcap.flush(self.pointer)

    def close(self) -> None:
        """Write what is buffered, and close the file. A second call does nothing."""
        pointer, self.pointer = self.pointer, 0
        if pointer:
            self._close()

    def __del__(self) -> None:
        # The stream must not outlive its buffer.
        self.close()


class Libpcap:
    """
    libpcap's functions, as described in pcap(3PCAP).

    pcapy doesn't expose the pointers that they need: they are read from its objects. Functions that take long
    release Python's lock, which pcapy doesn't do. Functions that don't wait keep it: they take less time than
    a busy thread would need to give it back.

    @param extension: the path of pcapy's extension module.

    @raise OSError: if it can't be loaded.
    @raise AttributeError: if it has no libpcap.
    """

    def __init__(self, extension: str) -> None:
        library, unlocked = ctypes.PyDLL(extension), ctypes.CDLL(extension)
        self._dispatch = library.pcap_dispatch
        self._dispatch.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._dump = ctypes.cast(library.pcap_dump, ctypes.c_void_p)
        self._activate = unlocked.pcap_activate
        self._activate.argtypes = (ctypes.c_void_p,)
        self._compile = unlocked.pcap_compile
        self._compile.argtypes = (
            *(ctypes.c_void_p, ctypes.POINTER(_Program)),
            *(ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32),
        )
        self._setfilter = library.pcap_setfilter
        self._setfilter.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Program))
        self._write = library.pcap_dump
        self._write.argtypes = (ctypes.c_void_p, ctypes.POINTER(_PacketHeader), ctypes.c_char_p)
        self._write.restype = None
        self._dump_fopen = library.pcap_dump_fopen
        self._dump_fopen.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        self._dump_fopen.restype = ctypes.c_void_p
        self._dump_flush = library.pcap_dump_flush
        self._dump_flush.argtypes = (ctypes.c_void_p,)
        self._dump_file = library.pcap_dump_file
        self._dump_file.argtypes = (ctypes.c_void_p,)
        self._dump_file.restype = ctypes.c_void_p
        self._dump_ftell = library.pcap_dump_ftell
        self._dump_ftell.argtypes = (ctypes.c_void_p,)
        self._dump_ftell.restype = ctypes.c_long
        self._dump_close = library.pcap_dump_close
        self._dump_close.argtypes = (ctypes.c_void_p,)
        self._set_precision = library.pcap_set_tstamp_precision
        self._set_precision.argtypes = (ctypes.c_void_p, ctypes.c_int)
        self._precision = library.pcap_get_tstamp_precision
        self._precision.argtypes = (ctypes.c_void_p,)
        self._open_dead = library.pcap_open_dead_with_tstamp_precision
        self._open_dead.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_uint)
        self._open_dead.restype = ctypes.c_void_p
        self._close = library.pcap_close
        self._close.argtypes = (ctypes.c_void_p,)
        self._freecode = library.pcap_freecode
        self._freecode.argtypes = (ctypes.POINTER(_Program),)
        self._geterr = library.pcap_geterr
        self._geterr.argtypes = (ctypes.c_void_p,)
        self._geterr.restype = ctypes.c_char_p

    def ask_for_nanoseconds(self, reader: Any) -> None:
        """
        Have time stamps in nanoseconds, if they can be had: see L{ticks_per_second}.

        @param reader: a reader of pcapy's that is not active yet.
        """
        self._set_precision(_pointer(reader, _READER_BYTES), _PRECISION_NANO)

    def ticks_per_second(self, reader: Any) -> int:
        """The unit of the time stamps of a reader of pcapy's."""
        precision = self._precision(_pointer(reader, _READER_BYTES))
        return NANOSECOND_TICKS if precision == _PRECISION_NANO else MICROSECOND_TICKS

    def activate(self, reader: Any) -> int:
        """
        Start to capture, as C{reader.activate()} does.

        @return: 0; negative if it failed, positive if there is a warning (pcap/pcap.h).
        """
        status: int = self._activate(_pointer(reader, _READER_BYTES))
        return status

    def words(self, reader: Any) -> str:
        """
        libpcap's message about its last error.

        @param reader: an open reader of pcapy's, even if it could not be activated.
        """
        return self._words(_pointer(reader, _READER_BYTES))

    def dump(self, reader: Any, dumper: Any, count: int) -> int:
        """
        Write packets that have arrived, without waiting, as C{reader.dispatch(count, dumper.dump)} does. It
        takes half the time, since no Python object is created for each packet.

        @param reader: an open reader of pcapy's, not blocking.
        @param dumper: an open dumper, of pcapy's or with a C{pointer} to libpcap's.
        @param count: the largest number of packets to write; 1 or more.

        @return: the number of packets.

        @raise LibpcapError: if nothing can be read any more.
        """
        handle = _pointer(reader, _READER_BYTES)
        packets: int = self._dispatch(handle, count, self._dump, _dumper_pointer(dumper))
        if packets < 0:
            raise self._error(handle)
        return packets

    def open_dumper(
        self, descriptor: int, *, link_type: int, snap_length: int, ticks_per_second: int = MICROSECOND_TICKS
    ) -> StreamDumper:
        """
        Begin a pcap file in an open file. C{reader.dump_open} needs a path.

        @param descriptor: which is not closed.
        @param ticks_per_second: as in L{IPacketSystem.open_dumper<pcapsvc.interfaces.capture.IPacketSystem>}.

        @raise OSError: if there is no memory or no descriptor for it.
        """
        stream = open_stream(os.dup(descriptor), b"wb")
        dead = self._open_dead(link_type, snap_length, _PRECISIONS[ticks_per_second])
        dumper = self._dump_fopen(dead, stream) if dead else None
        if dead:
            self._close(dead)
        if not dumper:
            # If it could not write the file's header, libpcap has closed the stream.
            if not dead:
                close_stream(stream)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        def dump(header: Any, data: bytes) -> None:
            self._dump_one(dumper, header, data)

        return StreamDumper(self, dumper, dump=dump, close=lambda: self._dump_close(dumper))

    def dump_one(self, dumper: Any, header: Any, data: bytes) -> None:
        """
        Write one packet.

        @param dumper: as in L{dump}.
        @param header: as pcapy gives it to a callback.
        """
        self._dump_one(_dumper_pointer(dumper), header, data)

    def _dump_one(self, dumper: int, header: Any, data: bytes) -> None:
        self._write(dumper, _PacketHeader(*header.getts(), len(data), header.getlen()), data)

    def buffered(self, dumper: Any) -> StreamDumper:
        """
        Give a dumper a larger buffer, before anything is written.

        @param dumper: a new dumper of pcapy's, which is used by what this returns alone from here on.
        """
        pointer = _pointer(dumper, _DUMPER_BYTES)
        return StreamDumper(self, pointer, dump=dumper.dump, close=dumper.close)

    def stream(self, dumper: int) -> int:
        """The stdio stream of a dumper, C{FILE *} of stdio.h."""
        stream: int = self._dump_file(dumper)
        return stream

    def position(self, dumper: int) -> int:
        """How much was written to a dumper, in bytes, including what its stream buffers."""
        position: int = self._dump_ftell(dumper)
        return position

    def flush(self, dumper: int) -> None:
        """Write what a dumper's stream buffers."""
        self._dump_flush(dumper)

    def compile(self, reader: Any, bpf: str) -> bytes:
        """
        Compile a filter for a handle.

        @param reader: an open reader of pcapy's.
        @param bpf: a filter of pcap-filter(7).

        @return: its instructions, each a C{struct bpf_insn} of pcap/bpf.h.

        @raise BadFilter: if it can't be compiled.
        """
        (mask,) = struct.unpack("=I", socket.inet_aton(reader.getmask()))
        program = self._compiled(_pointer(reader, _READER_BYTES), bpf, _OPTIMIZED, mask)
        try:
            return ctypes.string_at(program.instructions, program.length * _INSTRUCTION_BYTES)
        finally:
            self._freecode(program)

    def set_filter(self, reader: Any, program: bytes) -> None:
        """
        Set a compiled filter. C{reader.setfilter(bpf)} would compile it each time, and leak the program.

        @param reader: an open reader of pcapy's.
        @param program: the instructions, compiled for this handle.

        @raise LibpcapError: if it can't be set, or if the interface went down.
        """
        handle = _pointer(reader, _READER_BYTES)
        instructions = ctypes.create_string_buffer(program, len(program))
        filled = _Program(len(program) // _INSTRUCTION_BYTES, ctypes.addressof(instructions))
        if self._setfilter(handle, filled) < 0:
            raise self._error(handle)

    def _compiled(self, handle: int, bpf: str, optimized: int, mask: int) -> _Program:
        program = _Program()
        if self._compile(handle, program, bpf.encode(), optimized, mask) < 0:
            raise BadFilter(self._words(handle))
        return program

    def _error(self, handle: int) -> LibpcapError:
        return LibpcapError(self._words(handle))

    def _words(self, handle: int) -> str:
        words: bytes = self._geterr(handle)
        return words.decode("utf-8", "replace")


def find_libpcap(extension: str) -> Libpcap | None:
    """
    libpcap, if the layout of the installed pcapy's objects is known; otherwise L{None}.

    @param extension: the path of pcapy's extension module.
    """
    try:
        return Libpcap(extension) if _version(extension) in _KNOWN_VERSIONS else None
    except (OSError, AttributeError):
        return None


def _version(extension: str) -> str | None:
    """
    The version of pcapy-ng that an extension module belongs to; L{None} if it is not known.

    An installed package has a directory beside it, with its version in the name ("Recording installed
    projects" of the Python packaging specifications). C{importlib.metadata} takes 0.8 MB to say the same:
    it is asked only if there is no such directory, as in an editable installation.
    """
    found = {
        match[1]
        for path in Path(extension).parent.glob("pcapy*-info")
        if (match := _RECORD.fullmatch(path.name))
    }
    if len(found) == 1:
        return found.pop()
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pcapy-ng")
    except PackageNotFoundError:
        return None


def flush_all_streams() -> None:
    """
    Write what this process's stdio streams buffer (fflush(3)), among them those of dumpers of an unknown
    version of pcapy.
    """
    _fflush(None)


class _Origin(ctypes.Structure):
    """C{Dl_info} of dlfcn.h."""

    _fields_ = (
        *(("file_name", ctypes.c_char_p), ("file_address", ctypes.c_void_p)),
        *(("symbol_name", ctypes.c_char_p), ("symbol_address", ctypes.c_void_p)),
    )


def library_path(extension: str) -> str:
    """
    The path of the shared library that libpcap's functions are in, as the dynamic linker found them for
    pcapy (dladdr(3)): the wheel's own, or the system's.

    @param extension: the path of pcapy's extension module.

    @raise OSError: if it has no libpcap.
    """
    origin = _Origin()
    try:
        function = ctypes.cast(ctypes.CDLL(extension).pcap_compile, ctypes.c_void_p)
    except AttributeError as error:
        raise OSError(str(error)) from None
    if not ctypes.CDLL(None).dladdr(function, ctypes.byref(origin)):
        raise OSError(f"{extension}: libpcap is in no file")
    path: bytes = origin.file_name
    return str(Path(os.fsdecode(path)).resolve())


def _dumper_pointer(dumper: Any) -> int:
    pointer: int | None = getattr(dumper, "pointer", None)
    if pointer is None:
        return _pointer(dumper, _DUMPER_BYTES)
    if not pointer:
        raise ValueError("it is closed")
    return pointer


def _pointer(holder: Any, size: int) -> int:
    """
    The pointer at the start of one of pcapy's objects.

    @raise ValueError: if the object is closed, or has another type.
    """
    if type(holder).__basicsize__ != _HEAD_BYTES + size:
        raise ValueError(f"not an object of pcapy: {holder!r}")
    pointer = ctypes.c_void_p.from_address(id(holder) + _HEAD_BYTES).value
    if pointer is None:
        raise ValueError("it is closed")
    return pointer
