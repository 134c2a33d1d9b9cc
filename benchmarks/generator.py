"""
Send many frames: the load generator of the benchmarks, in a process of its own.

usage: python generator.py INTERFACE --packets N [--size BYTES]
                           [--rate PER_SECOND [--turn SECONDS]] [--seconds LIMIT] [--bypass]

It sends batches with sendmmsg(2) on a packet socket (packet(7)), from memory
that is laid out once; each frame is numbered, in the first 8 bytes of its UDP
datagram. It needs CAP_NET_RAW, and to be in the interface's network namespace:
C{ip netns exec NAMESPACE python generator.py ...}.

It prints one line of JSON: C{sent} frames, C{seconds}, C{rate} in frames a
second, C{refused}, how often the kernel had no room and a batch was tried
again, and C{asked}, the rate that was asked for (or C{null}).
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import socket
import struct
import sys
import time

_ETHERNET = bytes.fromhex("020000000002 020000000001 0800")
_SOURCE = bytes([192, 0, 2, 1])  # RFC 5737: documentation only
_DESTINATION = bytes([198, 51, 100, 1])
_NUMBER_AT = 14 + 20 + 8
_SMALLEST = _NUMBER_AT + 8

# The maximum number of frames in one call: UIO_MAXIOV of sendmmsg(2).
_LARGEST_BATCH = 1024
# The pause between batches, if there is a rate. So short that the bursts don't overflow rings and queues
# (net.core.netdev_max_backlog is 1,000).
_TURN_SECONDS = 0.0002
_RETRY_SECONDS = 0.00005

# linux/if_packet.h
_SOL_PACKET = 263
_PACKET_QDISC_BYPASS = 20
# linux/socket.h
_MSG_DONTWAIT = 0x40


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint))


def _checksum(header: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _template(size: int) -> bytes:
    """A frame of UDP, with the number 0."""
    start = struct.pack("!BBHHHBBH", 0x45, 0, size - 14, 0, 0, 64, 17, 0)
    checksum = _checksum(start + _SOURCE + _DESTINATION)
    header = start[:10] + checksum.to_bytes(2, "big") + _SOURCE + _DESTINATION
    return _ETHERNET + header + struct.pack("!HHHH", 40000, 9, size - 34, 0) + bytes(size - _NUMBER_AT)


class Batches:
    """
    Frames in one piece of memory, and the headers that point at them.

    Numbering is one strided slice assignment for each of a number's lower
    bytes, so a batch costs a few calls whatever its size.
    """

    def __init__(self, interface: str, size: int, bypass: bool) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((interface, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 20)
        if bypass:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        self._size = size
        self._memory = bytearray(_template(size) * _LARGEST_BATCH)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._iovecs = (_Iovec * _LARGEST_BATCH)()
        self._headers = (_Mmsghdr * _LARGEST_BATCH)()
        for at in range(_LARGEST_BATCH):
            self._iovecs[at].base = start + at * size
            self._iovecs[at].length = size
            self._headers[at].header.iov = ctypes.pointer(self._iovecs[at])
            self._headers[at].header.iovlen = 1
        self._sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
        # Numbers of 1,024 frames from a multiple of 256 on: their lowest bytes,
        # and, for each of the four runs of 256, the next higher bytes.
        self._lowest = bytes(range(256)) * (_LARGEST_BATCH // 256)
        self._memory[_NUMBER_AT + 7 :: size] = self._lowest
        self._first = -1

    def send(self, first: int, count: int) -> int:
        """
        Send frames once.

        @param first: the number of the first.
        @param count: how many, 1,024 at most.
        @return: how many the kernel took; 0 where it had no room.
        """
        base = first & ~0xFF
        at = first - base
        count = min(count, _LARGEST_BATCH - at)
        self._number(base)
        sent: int = self._sendmmsg(
            self._socket.fileno(), ctypes.byref(self._headers[at]), count, _MSG_DONTWAIT
        )
        if sent < 0:
            code = ctypes.get_errno()
            if code in (errno.EAGAIN, errno.ENOBUFS, errno.EINTR):
                return 0
            raise OSError(code, "sendmmsg")
        return sent

    def _number(self, base: int) -> None:
        """Number the frames in memory from a multiple of 256 on."""
        if base == self._first:
            return
        self._first = base
        for run in range(_LARGEST_BATCH // 256):
            higher = ((base >> 8) + run).to_bytes(7, "big")
            start = run * 256 * self._size
            end = start + 256 * self._size
            for place in range(3, 7):  # 40 bits in all: three higher bytes stay 0
                self._memory[start + _NUMBER_AT + place : end : self._size] = higher[place : place + 1] * 256


def generate(
    batches: Batches, packets: int, rate: float | None, seconds: float, turn: float
) -> dict[str, float | None]:
    """
    Send until all frames are sent or the time is up.

    @param rate: frames a second; L{None} is as fast as possible.
    @param turn: the pause between batches if there is a rate, in seconds.
    @return: what the program prints.
    """
    sent = refused = 0
    clock = time.perf_counter
    started = clock()
    while sent < packets:
        elapsed = clock() - started
        if elapsed > seconds:
            break
        due = packets if rate is None else min(packets, int(elapsed * rate) + 1)
        if due <= sent:
            time.sleep(turn)
            continue
        taken = batches.send(sent, min(due - sent, _LARGEST_BATCH))
        if taken == 0:
            refused += 1
            time.sleep(_RETRY_SECONDS)
        sent += taken
    took = clock() - started
    return {
        "sent": sent,
        "seconds": round(took, 6),
        "rate": round(sent / took, 1) if took else 0.0,
        "refused": refused,
        "asked": rate,
    }


def main(words: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Send numbered frames on an interface.")
    parser.add_argument("interface")
    parser.add_argument("--packets", type=int, required=True, help="the number of frames")
    parser.add_argument("--size", type=int, default=128, help="the size of a frame in bytes (128)")
    parser.add_argument("--rate", type=float, help="frames a second (as fast as possible)")
    parser.add_argument("--turn", type=float, default=_TURN_SECONDS, help="seconds between batches (0.0002)")
    parser.add_argument("--seconds", type=float, default=60.0, help="stop after that long (60)")
    parser.add_argument("--bypass", action="store_true", help="bypass the queueing discipline")
    options = parser.parse_args(words)
    if not 1 <= options.packets <= 1 << 32:
        parser.error("--packets is from 1 to 2**32")
    if not _SMALLEST <= options.size <= 65535:
        parser.error(f"--size is from {_SMALLEST} to 65535")
    if options.rate is not None and options.rate <= 0:
        parser.error("--rate is above 0")
    if options.turn < 0:
        parser.error("--turn is 0 or more")
    batches = Batches(options.interface, options.size, options.bypass)
    print(json.dumps(generate(batches, options.packets, options.rate, options.seconds, options.turn)))


if __name__ == "__main__":
    main(sys.argv[1:])
