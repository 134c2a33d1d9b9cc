"""Whether the kernel runs a socket's filter: if it refuses, libpcap silently runs the filter itself."""

from __future__ import annotations

import ctypes
import socket

# asm-generic/socket.h; the standard library has no name for it, and can't pass the length of 0 to which the
# kernel answers with the number of instructions (sk_get_filter() in net/core/filter.c).
_SO_GET_FILTER = 26

_getsockopt = ctypes.CDLL(None).getsockopt
_getsockopt.argtypes = (
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
    *(ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)),
)


def runs_in_kernel(descriptor: int) -> bool:
    """
    Whether a filter is attached to a socket (socket(7), SO_ATTACH_FILTER); true if the kernel doesn't say.

    @param descriptor: the socket's.
    """
    instructions = ctypes.c_uint32(0)
    if _getsockopt(descriptor, socket.SOL_SOCKET, _SO_GET_FILTER, None, instructions) != 0:
        return True
    return instructions.value > 0
