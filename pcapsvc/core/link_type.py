"""Link-layer types: libpcap's number for one, the number in a file, and which of them are cooked."""

from __future__ import annotations

#: libpcap's numbers of Ethernet, and of cooked handles, such as those on all interfaces. In packets of the
#: latter the direction is part of that header, and elsewhere it isn't: filters find it accordingly.
ETHERNET, LINUX_SLL = 1, 113

# On Linux; libpcap, dlt_to_linktype() in pcap-common.c. All others are the same.
_IN_FILES = {
    11: 100,  # ATM, RFC 1483
    12: 101,  # raw IP: tun devices, for example
    15: 102,  # SLIP of BSD/OS
    16: 103,  # PPP of BSD/OS
    19: 106,  # classical IP over ATM
}

# Of cooked handles, which have a header of libpcap's own in place of the link layer's: LINUX_SLL, LINUX_IRDA,
# LINUX_LAPD and NETLINK (activate_new() in pcap-linux.c).
_COOKED = frozenset({LINUX_SLL, 144, 177, 253})
#: The size of that header, in bytes.
COOKED_HEADER_BYTES = 16
#: The smallest snap length of a cooked handle, in bytes.
LEAST_COOKED_BYTES = 21


def file_link_type(link_type: int) -> int:
    """
    The number in a file (LINKTYPE_, draft-ietf-opsawg-pcaplinktype).

    @param link_type: libpcap's number (DLT_).
    """
    return _IN_FILES.get(link_type, link_type)


def is_cooked(link_type: int) -> bool:
    """
    Whether packets have a header that libpcap adds to them, and that the kernel's filter doesn't see.

    @param link_type: libpcap's number.
    """
    return link_type in _COOKED


def kept_length(link_type: int, snap_length: int) -> int:
    """
    The snap length that a live handle really has, in bytes: a cooked handle keeps at least the header that
    libpcap adds (C{activate_new()} in pcap-linux.c).

    @param link_type: libpcap's number.
    @param snap_length: the snap length that was asked for, in bytes.
    """
    return max(snap_length, LEAST_COOKED_BYTES) if is_cooked(link_type) else snap_length
