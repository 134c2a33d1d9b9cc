"""
The network interfaces of this host, by rtnetlink(7).

Two dumps of the kernel have all of it, alternative names and IPv6 addresses among it. What sysfs and ioctls
have is less, and takes several calls for each interface.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

from pcapsvc.core.network_interface import NetworkInterface
from pcapsvc.packets.network_interfaces import ANY_INDEX

#: What is captured on under the name C{any}: all interfaces, each packet with a header of LINKTYPE_LINUX_SLL.
ANY = NetworkInterface(name="any", index=ANY_INDEX, is_up=True, link_type="linux_sll")

# linux/if_arp.h, and the words for it in ip-link(8).
_LINK_TYPES = {
    1: "ether",
    24: "ieee1394",
    32: "infiniband",
    280: "can",
    512: "ppp",
    768: "ipip",
    769: "tunnel6",
    772: "loopback",
    776: "sit",
    778: "gre",
    801: "ieee802.11",
    803: "ieee802.11/radiotap",
    804: "ieee802.15.4",
    823: "gre6",
    824: "netlink",
    65534: "none",
}
_IFF_UP = 0x1

# linux/netlink.h: struct nlmsghdr and struct nlattr. linux/rtnetlink.h: struct ifinfomsg. linux/if_addr.h:
# struct ifaddrmsg.
_MESSAGE = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_NUMBER = struct.Struct("=I")
_ERROR = struct.Struct("=i")
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x10, 0x300
# The kind of an attribute, without the flags that say what is in it.
_NLA_TYPE_MASK = 0x3FFF
_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_IFLA_IFNAME, _IFLA_EXT_MASK, _IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 3, 29, 52, 53
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTEXT_FILTER_SKIP_STATS = 1 << 3

_PATIENCE_SECONDS = 5.0
# The kernel sends up to 32 KiB at once.
_LARGEST_ANSWER_BYTES = 65536
# How often a dump begins anew because interfaces came or went meanwhile.
_MOST_TRIES = 5


class _Interrupted(Exception):
    """Something has changed between two parts of a dump."""


def list_interfaces() -> tuple[NetworkInterface, ...]:
    """
    All interfaces of this process' network namespace by their index, L{ANY} first.

    @raise OSError: if the kernel doesn't answer.
    """
    for _ in range(_MOST_TRIES):
        try:
            return (ANY, *_interfaces())
        except _Interrupted:
            pass
    raise OSError(errno.EAGAIN, "the interfaces keep changing")


def _interfaces() -> list[NetworkInterface]:
    mask = _ATTRIBUTE.pack(_ATTRIBUTE.size + _NUMBER.size, _IFLA_EXT_MASK)
    mask += _NUMBER.pack(_RTEXT_FILTER_SKIP_STATS)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(_PATIENCE_SECONDS)
        links = [*_dump(kernel, _RTM_GETLINK, _RTM_NEWLINK, _LINK.pack(0, 0, 0, 0, 0) + mask)]
        addresses: dict[int, list[str]] = {}
        for body in _dump(kernel, _RTM_GETADDR, _RTM_NEWADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
            index, address = _address(body)
            addresses.setdefault(index, []).append(address)
    found = [_interface(body, addresses) for body in links]
    return sorted(found, key=lambda interface: interface.index)


def _interface(body: memoryview, addresses: dict[int, list[str]]) -> NetworkInterface:
    _, link_type, index, flags, _ = _LINK.unpack_from(body)
    name, altnames = "", []
    for kind, value in _attributes(body[_LINK.size :]):
        if kind == _IFLA_IFNAME:
            name = _text(value)
        elif kind == _IFLA_PROP_LIST:
            altnames += [_text(each) for inner, each in _attributes(value) if inner == _IFLA_ALT_IFNAME]
    return NetworkInterface(
        name=name,
        index=index,
        is_up=bool(flags & _IFF_UP),
        link_type=_LINK_TYPES.get(link_type, str(link_type)),
        altnames=tuple(altnames),
        addresses=tuple(addresses.get(index, ())),
    )


def _address(body: memoryview) -> tuple[int, str]:
    """The index of an interface, and one of its addresses."""
    _, prefix_length, _, _, index = _ADDRESS.unpack_from(body)
    found = dict(_attributes(body[_ADDRESS.size :]))
    # On a point-to-point link, IFA_ADDRESS is the other end's. IPv6 has only that one otherwise.
    address = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
    return index, f"{ip_address(bytes(address))}/{prefix_length}"


def _dump(kernel: socket.socket, asked: int, answered: int, body: bytes) -> Iterator[memoryview]:
    """
    Ask for everything of a kind.

    @return: what follows the header of each message.
    """
    size = _MESSAGE.size + len(body)
    kernel.sendto(_MESSAGE.pack(size, asked, _NLM_F_REQUEST | _NLM_F_DUMP, asked, 0) + body, (0, 0))
    while True:
        rest = memoryview(kernel.recv(_LARGEST_ANSWER_BYTES))
        while len(rest) >= _MESSAGE.size:
            size, kind, flags, _, _ = _MESSAGE.unpack_from(rest)
            content, rest = rest[_MESSAGE.size : size], rest[_aligned(size) :]
            if kind == _NLMSG_ERROR:
                (code,) = _ERROR.unpack_from(content)
                raise OSError(-code, os.strerror(-code))
            if flags & _NLM_F_DUMP_INTR:
                raise _Interrupted
            if kind == _NLMSG_DONE:
                return
            if kind == answered:
                yield content


def _attributes(body: memoryview) -> Iterator[tuple[int, memoryview]]:
    while len(body) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(body)
        yield kind & _NLA_TYPE_MASK, body[_ATTRIBUTE.size : size]
        body = body[max(_aligned(size), _ATTRIBUTE.size) :]


def _text(value: memoryview) -> str:
    return bytes(value).rstrip(b"\0").decode("utf-8", "replace")


def _aligned(size: int) -> int:
    """Messages and attributes begin at multiples of four bytes."""
    return -(-size // 4) * 4
