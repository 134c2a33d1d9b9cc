"""Link-layer types: the number that libpcap has for one is not always the number in a file."""

from __future__ import annotations

# On Linux; libpcap, dlt_to_linktype() in pcap-common.c. All others are the same.
_IN_FILES = {
    11: 100,  # ATM, RFC 1483
    12: 101,  # raw IP: tun devices, for example
    15: 102,  # SLIP of BSD/OS
    16: 103,  # PPP of BSD/OS
    19: 106,  # classical IP over ATM
}


def file_link_type(link_type: int) -> int:
    """
    The number in a file (LINKTYPE_, draft-ietf-opsawg-pcaplinktype).

    @param link_type: libpcap's number (DLT_).
    """
    return _IN_FILES.get(link_type, link_type)
