"""What the kernel counts for a packet socket."""

from __future__ import annotations

import ctypes
import os
import struct

#: The level of the options of packet sockets (packet(7)).
SOL_PACKET = 263
# The option, and what it begins with (struct tpacket_stats of linux/if_packet.h). Reading it resets the
# counts.
_PACKET_STATISTICS = 6
_STATISTICS = struct.Struct("=II")

# It doesn't wait, and is called with each read: it keeps Python's lock.
_getsockopt = ctypes.PyDLL(None, use_errno=True).getsockopt
_getsockopt.argtypes = (
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
    *(ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)),
)


class SocketCounts:
    """
    The counts of a packet socket since it was opened. Nothing else may ask the kernel for them.

    pcap_stats(3PCAP) has the same numbers. In promiscuous mode, libpcap 1.9 also reads the statistics of all
    the interfaces of the host each time, which takes longer than to read some hundred packets.

    @ivar received: how many packets have passed its filter, including those that were dropped.
    @ivar dropped: how many of them there was no room for.
    """

    def __init__(self) -> None:
        self.received = self.dropped = 0

    def update(self, descriptor: int) -> None:
        """
        Ask the kernel.

        @param descriptor: the socket's.

        @raise OSError: if it doesn't know.
        """
        numbers = ctypes.create_string_buffer(_STATISTICS.size)
        size = ctypes.c_uint32(_STATISTICS.size)
        if _getsockopt(descriptor, SOL_PACKET, _PACKET_STATISTICS, numbers, size) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        received, dropped = _STATISTICS.unpack(numbers)
        self.received += received
        self.dropped += dropped
