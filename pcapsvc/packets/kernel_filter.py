"""Whether the kernel runs a socket's filter: one that it refuses is run by libpcap, which says nothing."""

from __future__ import annotations

import ctypes
import socket

# asm-generic/socket.h; the standard library has no name for it. Nor can it ask for it with a length of 0,
# by which the kernel tells the filter's own (sk_get_filter() in net/core/filter.c).
_SO_GET_FILTER = 26

_getsockopt = ctypes.CDLL(None).getsockopt
_getsockopt.argtypes = (
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
    *(ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)),
)


def runs_in_kernel(descriptor: int) -> bool:
    """
    Whether a filter is attached to a socket (socket(7), SO_ATTACH_FILTER); also where it can't be told.

    @param descriptor: the socket's.
    """
    instructions = ctypes.c_uint32(0)
    if _getsockopt(descriptor, socket.SOL_SOCKET, _SO_GET_FILTER, None, instructions) != 0:
        return True
    return instructions.value > 0
