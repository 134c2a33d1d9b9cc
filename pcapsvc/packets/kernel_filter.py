"""Whether the kernel runs a socket's filter: if it refuses, libpcap silently runs the filter itself."""

from __future__ import annotations

import ctypes
import os
import socket

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


def attach(descriptor: int, instructions: bytes) -> None:
    """
    Replace a socket's filter. No packet gets past both the one before and this one.

    @param descriptor: the socket's.
    @param instructions: each a C{struct sock_filter}.

    @raise OSError: if the kernel can't run it.
    """
    room = ctypes.create_string_buffer(instructions, len(instructions))
    program = _Filter(len(instructions) // 8, ctypes.addressof(room))
    size = ctypes.sizeof(program)
    if _setsockopt(descriptor, socket.SOL_SOCKET, _SO_ATTACH_FILTER, ctypes.byref(program), size) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def runs_in_kernel(descriptor: int) -> bool:
    """
    Whether a filter is attached to a socket (socket(7), SO_ATTACH_FILTER); true if the kernel doesn't say.

    @param descriptor: the socket's.
    """
    instructions = ctypes.c_uint32(0)
    if _getsockopt(descriptor, socket.SOL_SOCKET, _SO_GET_FILTER, None, instructions) != 0:
        return True
    return instructions.value > 0
