"""Packets from libpcap's loop straight into libpcap's dumper, with no Python object for each."""

from __future__ import annotations

import ctypes
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

# Whose objects are known from within: each begins with its pointer to libpcap's (pcapobj.cc,
# pcapdumper.cc). With these sizes, in bytes, beyond Python's own head of an object.
_KNOWN_VERSIONS = frozenset({"2.1.0"})
_READER_BYTES = 88
_DUMPER_BYTES = 8

_HEAD_BYTES = object.__basicsize__


class LibpcapError(Exception):
    """libpcap could not read; its words say why."""


class NativeDump(Protocol):
    """Does what C{reader.dispatch(count, dumper.dump)} does, in a half of the time."""

    def __call__(self, reader: Any, dumper: Any, count: int) -> int:
        """
        Write packets that have arrived, and wait for none.

        @param reader: of pcapy, open and not blocking.
        @param dumper: of pcapy, open.
        @param count: at most so many packets, 1 or more.

        @return: the number of packets.

        @raise LibpcapError: with libpcap's words.
        """


def find_native_dump(pcapy: str) -> NativeDump | None:
    """
    The one for the pcapy that is installed; L{None} where its objects are not known.

    @param pcapy: the path of its extension module.

    pcapy hands each packet to Python, as two objects and a call. It has no call for this,
    and doesn't show the pointers that would be needed for it: so they are taken from its objects.
    """
    try:
        if version("pcapy-ng") not in _KNOWN_VERSIONS:
            return None
        # It keeps Python's lock: what doesn't wait takes a fraction of the time that it may take
        # to get the lock back from a thread that is busy.
        libpcap = ctypes.PyDLL(pcapy)
        dispatch, dump, geterr = libpcap.pcap_dispatch, libpcap.pcap_dump, libpcap.pcap_geterr
    except (PackageNotFoundError, OSError, AttributeError):
        return None
    dispatch.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    geterr.argtypes = (ctypes.c_void_p,)
    geterr.restype = ctypes.c_char_p
    dump_address = ctypes.cast(dump, ctypes.c_void_p)

    def native_dump(reader: Any, dumper: Any, count: int) -> int:
        handle = _pointer(reader, _READER_BYTES)
        # pcap_dispatch(3PCAP), with pcap_dump(3PCAP) as its callback.
        packets: int = dispatch(handle, count, dump_address, _pointer(dumper, _DUMPER_BYTES))
        if packets < 0:
            raise LibpcapError(geterr(handle).decode("utf-8", "replace"))
        return packets

    return native_dump


def _pointer(holder: Any, size: int) -> int:
    """
    The pointer that one of pcapy's objects begins with.

    @raise ValueError: where the object is closed, or is not what it should be.
    """
    if type(holder).__basicsize__ != _HEAD_BYTES + size:
        raise ValueError(f"not an object of pcapy: {holder!r}")
    pointer = ctypes.c_void_p.from_address(id(holder) + _HEAD_BYTES).value
    if pointer is None:
        raise ValueError("it is closed")
    return pointer
