"""How large the kernel's ring is."""

from __future__ import annotations

#: The size of its blocks, in bytes: libpcap's largest snap length (C{MAXIMUM_SNAPLEN}).
BLOCK_BYTES = 256 << 10

# A small ring has this many times the blocks that were asked for, up to a number.
_TIMES = 4
_ENOUGH_BLOCKS = 16


def ring_bytes(buffer_size_bytes: int) -> int:
    """
    The size of the ring with which a burst of packets loses no more than with tcpdump's ring.

    The kernel hands over a block when it is full, or after a time-out: milliseconds for us, a second for
    tcpdump. So if our reader is late, a burst leaves blocks that aren't full, and needs more of them. Four
    times as many are enough if it fills a quarter of a block within the time-out.

    @param buffer_size_bytes: the size that was asked for.

    @return: in bytes, in whole blocks.
    """
    blocks = -(-buffer_size_bytes // BLOCK_BYTES)
    return BLOCK_BYTES * min(_TIMES * blocks, max(blocks, _ENOUGH_BLOCKS))
