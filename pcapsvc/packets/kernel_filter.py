"""The filter that the kernel runs for a socket. If it refuses one, libpcap silently runs that itself."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

from pcapsvc.core.filter import NOTHING
from pcapsvc.core.link_type import COOKED_HEADER_BYTES

# asm-generic/socket.h; the standard library has no name for it, and can't pass the length of 0 to which the
# kernel answers with the number of instructions (sk_get_filter() in net/core/filter.c).
_SO_GET_FILTER = 26

_getsockopt = ctypes.CDLL(None).getsockopt
_getsockopt.argtypes = (
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
    *(ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)),
)

# struct sock_fprog of linux/filter.h.
_SO_ATTACH_FILTER = 26


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


_setsockopt = ctypes.CDLL(None, use_errno=True).setsockopt
_setsockopt.argtypes = (
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
    *(ctypes.POINTER(_Filter), ctypes.c_uint32),
)


# struct sock_filter of linux/filter.h, and the parts of its code (linux/bpf_common.h): the class (BPF_LD,
# BPF_LDX) and the mode (BPF_ABS, BPF_IND, BPF_MSH).
_INSTRUCTION = struct.Struct("=HBBI")
_CLASS, _LOADS = 0x07, frozenset({0x00, 0x01})
_MODE, _OF_PACKET = 0xE0, frozenset({0x20, 0x40, 0xA0})
# The offsets, in the header that a cooked handle puts before a packet, of what the kernel knows by other
# means: the direction and the protocol.
_KNOWN_OFFSETS = frozenset({0, 14})


def runs_on_cooked(instructions: bytes) -> bool:
    """
    Whether the kernel can run a filter on a cooked handle, whose header it doesn't see: C{fix_program()} in
    libpcap's pcap-linux.c.

    @param instructions: each a C{struct sock_filter}.
    """
    return not any(
        code & _CLASS in _LOADS
        and code & _MODE in _OF_PACKET
        and number < COOKED_HEADER_BYTES
        and number not in _KNOWN_OFFSETS
        for code, _, _, number in _INSTRUCTION.iter_unpack(instructions)
    )


def attach(descriptor: int, instructions: bytes) -> None:
    """
    Replace a socket's filter. No packet gets past both the one before and this one, and none that passes both
    is lost.

    @param descriptor: the socket's.
    @param instructions: each a C{struct sock_filter}.

    @raise OSError: if the kernel can't run it. The one before stays.
    """
    try:
        _attach(descriptor, instructions)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        # The socket may not have both at the same time (socket(7), optmem_max). So some packets are lost.
        before = attached(descriptor)
        _attach(descriptor, NOTHING.instructions)
        try:
            _attach(descriptor, instructions)
        except OSError:
            if before:
                _attach(descriptor, before)
            raise


def _attach(descriptor: int, instructions: bytes) -> None:
    room = ctypes.create_string_buffer(instructions, len(instructions))
    program = _Filter(len(instructions) // _INSTRUCTION.size, ctypes.addressof(room))
    size = ctypes.sizeof(program)
    if _setsockopt(descriptor, socket.SOL_SOCKET, _SO_ATTACH_FILTER, ctypes.byref(program), size) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def attached(descriptor: int) -> bytes | None:
    """
    The instructions of the filter that is attached to a socket (socket(7), SO_GET_FILTER), each a C{struct
    sock_filter}; none if there is no filter; L{None} if the kernel doesn't say.

    @param descriptor: the socket's.
    """
    count = ctypes.c_uint32(0)
    if _getsockopt(descriptor, socket.SOL_SOCKET, _SO_GET_FILTER, None, count) != 0:
        return None
    if not count.value:
        return b""
    room = ctypes.create_string_buffer(count.value * _INSTRUCTION.size)
    if _getsockopt(descriptor, socket.SOL_SOCKET, _SO_GET_FILTER, room, count) != 0:
        return None
    return room.raw
