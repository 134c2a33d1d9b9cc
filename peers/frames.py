"""Well-formed, numbered frames to send."""

from __future__ import annotations

import struct

# Locally administered addresses (IEEE 802, bit 1 of the first octet), and
# documentation networks (RFC 5737).
_ETHERNET = bytes.fromhex("020000000002 020000000001 0800")
_SOURCE = bytes([192, 0, 2, 1])
_DESTINATION = bytes([198, 51, 100, 1])
#: Where the number is, of eight bytes.
NUMBER_AT = 14 + 20 + 8
SMALLEST = NUMBER_AT + 8


def _checksum(header: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_frame(number: int, size: int = 128, port: int = 9) -> bytes:
    """
    An Ethernet frame with a UDP datagram, numbered.

    @param number: its number, the first 8 bytes of the datagram.
    @param size: the size of the frame in bytes, without the frame check sequence.
    @param port: the destination port.
    """
    if size < SMALLEST:
        raise ValueError(f"a numbered frame has at least {SMALLEST} bytes")
    length = size - 14
    start = struct.pack("!BBHHHBBH", 0x45, 0, length, number & 0xFFFF, 0, 64, 17, 0)
    checksum = _checksum(start + _SOURCE + _DESTINATION)
    header = start[:10] + checksum.to_bytes(2, "big") + _SOURCE + _DESTINATION
    # A UDP checksum of 0 says that there is none (RFC 768).
    udp = struct.pack("!HHHH", 40000, port, length - 20, 0)
    return _ETHERNET + header + udp + number.to_bytes(8, "big") + bytes(size - SMALLEST)


def number_of(frame: bytes) -> int:
    """The number of a frame of L{udp_frame}."""
    return int.from_bytes(frame[NUMBER_AT:SMALLEST], "big")
