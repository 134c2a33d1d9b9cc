"""
Compiles BPF filters, in a process of its own that can be killed.

L{pcapsvc.packets.filter_worker} runs it as a script, C{python -I -S filter_child.py}, with three arguments:
the path of libpcap, the daemon's process id, and the processor time that a filter may take, in seconds. It
imports only what it needs of the standard library, so that it starts in 16 ms, and shares nothing with the
daemon but pipes.

On its standard input it reads requests, on its standard output it writes answers. A request is a
L{REQUEST} header and the filter; an answer is an L{ANSWER} header and its payload. After the start, the
child answers L{READY}. To each request it answers:

 - L{ROUGH} with the program as it is before libpcap's optimizer has seen it, or with no payload if the
   kernel would not accept a program of that length. Another answer follows, unless the optimizer never
   ends.
 - L{PROGRAM} with the optimized program, L{LONG} with the number of its instructions if those are too
   many for the kernel, L{MEMORY} if there was not enough memory for it, or L{ERROR} with libpcap's
   message.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import struct
import sys

#: Link type, snap length in bytes, netmask as inet_aton(3) has it, and the length of the filter in bytes.
REQUEST = struct.Struct("=iiII")
#: The kind of the answer, and the length of its payload in bytes.
ANSWER = struct.Struct("=cI")

READY, ROUGH, PROGRAM, LONG, MEMORY, ERROR = b"s", b"r", b"p", b"l", b"m", b"e"

#: As many instructions as the kernel accepts in one program (BPF_MAXINSNS in linux/bpf_common.h).
MOST_INSTRUCTIONS = 4096
INSTRUCTION_BYTES = 8

# The address space that the child may use. It begins with 25 MB; what compiles within seconds needs little
# more, since libpcap's optimizer is slow long before it is large.
_MEMORY_BYTES = 256 << 20
_PR_SET_PDEATHSIG = 1
# asm-generic/socket.h. Since Linux 3.14 the kernel answers with the highest of its extensions of BPF.
_SO_BPF_EXTENSIONS = 48
# linux/filter.h: the offset from which on a load is an extension, and that of "has a VLAN tag".
_SKF_AD_OFF = -0x1000
_SKF_AD_VLAN_TAG_PRESENT = 48
_LOAD_VLAN_TAG_PRESENT = struct.pack("=HBBi", 0x30, 0, 0, _SKF_AD_OFF + _SKF_AD_VLAN_TAG_PRESENT)
_ETHERNET = 1
_NOT_OPTIMIZED, _OPTIMIZED = 0, 1
# How libpcap's optimizer says that it is out of memory (opt_error() and opt_init() in optimize.c).
_OUT_OF_MEMORY = ("malloc", "calloc", "memory")


class _Program(ctypes.Structure):
    """C{struct bpf_program} of pcap/bpf.h."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class BadFilter(Exception):
    """libpcap can't compile a filter; the message is libpcap's."""


class Compiler:
    """
    Compiles as a live handle of libpcap would.

    @param path: of the shared library that libpcap is in.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        self._open_dead = library.pcap_open_dead
        self._open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
        self._open_dead.restype = ctypes.c_void_p
        self._close = library.pcap_close
        self._close.argtypes = (ctypes.c_void_p,)
        self._compile = library.pcap_compile
        self._compile.argtypes = (
            *(ctypes.c_void_p, ctypes.POINTER(_Program)),
            *(ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32),
        )
        self._freecode = library.pcap_freecode
        self._freecode.argtypes = (ctypes.POINTER(_Program),)
        self._geterr = library.pcap_geterr
        self._geterr.argtypes = (ctypes.c_void_p,)
        self._geterr.restype = ctypes.c_char_p
        self._vlan_flag_offset: int | None = None

    def open(self, link_type: int, snap_length: int, bpf: bytes) -> int:
        """
        A handle to compile this filter for. To be closed with L{close}.

        @raise BadFilter: if the filter could not be compiled as a live handle would.
        """
        handle: int = self._open_dead(link_type, snap_length)
        if b"vlan" in bpf and _kernel_strips_vlan_tags():
            try:
                ctypes.c_int.from_address(handle + self._find_vlan_flag()).value = 1
            except BaseException:
                self.close(handle)
                raise
        return handle

    def close(self, handle: int) -> None:
        """Close what L{open} returned."""
        self._close(handle)

    def compile(self, handle: int, bpf: bytes, optimized: int, netmask: int) -> bytes:
        """
        The instructions of a filter.

        @raise BadFilter: if it can't be compiled.
        """
        program = _Program()
        if self._compile(handle, program, bpf, optimized, netmask) < 0:
            raise BadFilter(self._geterr(handle).decode("utf-8", "replace"))
        try:
            return ctypes.string_at(program.instructions, program.length * INSTRUCTION_BYTES)
        finally:
            self._freecode(program)

    def _find_vlan_flag(self) -> int:
        """
        The offset, within libpcap's handle, of the flag by which it compiles C{vlan} for live packets.

        The kernel takes the VLAN tag out of a packet before a filter sees it. libpcap's live handles
        on Linux have a flag for that (C{BPF_SPECIAL_VLAN_HANDLING} in C{bpf_codegen_flags} of
        pcap-int.h), which no function of its API sets on a handle that isn't live; and a live handle
        would cost an open socket, and 25 ms, for each filter. So the flag is looked for: it is the
        field that, once it is 1, makes C{vlan} compile to a load of the kernel's "has a VLAN tag".

        @raise BadFilter: if there is no such field.
        """
        if self._vlan_flag_offset is None:
            usable = ctypes.CDLL(None).malloc_usable_size
            usable.argtypes, usable.restype = (ctypes.c_void_p,), ctypes.c_size_t
            handle = self._open_dead(_ETHERNET, 512)
            try:
                for offset in range(0, usable(handle), ctypes.sizeof(ctypes.c_int)):
                    field = ctypes.c_int.from_address(handle + offset)
                    if field.value == 0 and self._loads_vlan_tag(handle, field):
                        self._vlan_flag_offset = offset
                        break
                else:
                    raise BadFilter('the installed libpcap can\'t compile "vlan" apart from a capture')
            finally:
                self._close(handle)
        return self._vlan_flag_offset

    def _loads_vlan_tag(self, handle: int, field: ctypes.c_int) -> bool:
        field.value = 1
        try:
            return self.compile(handle, b"vlan", _OPTIMIZED, 0).startswith(_LOAD_VLAN_TAG_PRESENT)
        except BadFilter:
            return False
        finally:
            field.value = 0


def _kernel_strips_vlan_tags() -> bool:
    """Whether filters can load the VLAN tag that the kernel has taken out, as libpcap asks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        try:
            return any_socket.getsockopt(socket.SOL_SOCKET, _SO_BPF_EXTENSIONS) >= _SKF_AD_VLAN_TAG_PRESENT
        except OSError:
            return False


def _limit(parent: int) -> None:
    """Bound what the child may use, and have it die with the daemon."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = _at_most(_hard_limit(resource.RLIMIT_AS), _MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _limit_cpu(seconds: int) -> None:
    """Have the kernel end this process if it computes for longer from now on (setrlimit(2), RLIMIT_CPU)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime) + 1
    hard = _hard_limit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (_at_most(hard, used + seconds), hard))


def _hard_limit(which: int) -> int:
    """The limit that the daemon was started with. Only root may raise it."""
    return resource.getrlimit(which)[1]


def _at_most(hard: int, wanted: int) -> int:
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _answer(kind: bytes, payload: bytes = b"") -> None:
    data = ANSWER.pack(kind, len(payload)) + payload
    while data:
        data = data[os.write(1, data) :]


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            sys.exit(0)
        data += more
    return data


def _serve(compiler: Compiler) -> None:
    """Answer one request."""
    link_type, snap_length, netmask, length = REQUEST.unpack(_read(REQUEST.size))
    bpf = _read(length)
    try:
        handle = compiler.open(link_type, snap_length, bpf)
    except BadFilter as error:
        _answer(ERROR, str(error).encode())
        return
    try:
        rough = compiler.compile(handle, bpf, _NOT_OPTIMIZED, netmask)
        _answer(ROUGH, rough if len(rough) <= MOST_INSTRUCTIONS * INSTRUCTION_BYTES else b"")
        program = compiler.compile(handle, bpf, _OPTIMIZED, netmask)
    except BadFilter as error:
        words = str(error)
        if any(word in words for word in _OUT_OF_MEMORY):
            _answer(MEMORY)
        else:
            _answer(ERROR, words.encode())
    except MemoryError:
        _answer(MEMORY)
    else:
        instructions = len(program) // INSTRUCTION_BYTES
        if instructions > MOST_INSTRUCTIONS:
            _answer(LONG, str(instructions).encode())
        else:
            _answer(PROGRAM, program)
    finally:
        compiler.close(handle)


def main() -> None:
    """Answer requests until there are no more."""
    path, parent, cpu_seconds = sys.argv[1:]
    compiler = Compiler(path)
    _limit(int(parent))
    _answer(READY)
    while True:
        _limit_cpu(int(cpu_seconds))
        _serve(compiler)


if __name__ == "__main__":
    main()
