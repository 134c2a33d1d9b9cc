"""
Network interfaces by their index.

The name of an interface may change, and another interface may take it. Its index (netdevice(7)) stays, and no
other interface has it at the same time.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

import msgspec

from pcapsvc.kernel_file import read_kernel_file

#: The index that stands for all interfaces (packet(7)).
ANY_INDEX = 0


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """
    An interface that was asked for.

    @ivar name: the name by which it was asked for; it may have another one by now.
    @ivar index: L{ANY_INDEX} for all of them.
    @ivar has_own_name: whether the name was its own one, and not an alternative one.
    """

    name: str
    index: int
    has_own_name: bool = True


# An interface's own name has up to 15 bytes (IFNAMSIZ of linux/if.h). Alternative names may be longer.
_LONGEST_NAME = 15
# sysfs(5): all interfaces, by their names; and what counts the packets that they have missed.
_SYSFS = Path("/sys/class/net")
_MISSED = ("rx_missed_errors", "rx_fifo_errors")
# netdevice(7): struct ifreq, with flags or with an index; requests; and that an interface is up.
_IFREQ = struct.Struct("=16sH22x")
_IFREQ_INDEX = struct.Struct("=16si20x")
_SIOCGIFNAME, _SIOCGIFFLAGS = 0x8910, 0x8913
_IFF_UP = 0x1

# packet(7): struct sockaddr_ll.
_ADDRESS = struct.Struct("=HHiHBB8s")
# It doesn't wait, and keeps Python's lock: if other threads are busy, it takes longer to get that back.
_getsockname = ctypes.PyDLL(None, use_errno=True).getsockname
_getsockname.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32))

# rtnetlink(7): struct nlmsghdr, struct ifinfomsg, struct rtattr; linux/netlink.h, linux/if_link.h.
_MESSAGE = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")
_NLMSG_ERROR = 2
_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_NLM_F_REQUEST = 1
_IFLA_IFNAME, _IFLA_EXT_MASK, _IFLA_ALT_IFNAME = 3, 29, 53
_RTEXT_FILTER_SKIP_STATS = 1 << 3
_PATIENCE_SECONDS = 5.0
_LARGEST_ANSWER_BYTES = 65536


def bound_index(descriptor: int) -> int | None:
    """
    The index of the interface that a packet socket is bound to.

    @param descriptor: the socket's.

    @return: L{ANY_INDEX} if it is bound to all of them; L{None} if the interface is gone, or if it is not a
        packet socket.
    """
    address = ctypes.create_string_buffer(_ADDRESS.size)
    size = ctypes.c_uint32(_ADDRESS.size)
    if _getsockname(descriptor, address, size) != 0:
        return None
    family, _, index, *_ = _ADDRESS.unpack(address.raw)
    # packet_notifier() in net/packet/af_packet.c sets it to -1.
    return index if family == socket.AF_PACKET and index >= 0 else None


def encoded(name: str) -> bytes:
    """
    The name of an interface as the kernel has it. It is in UTF-8 in each locale, as in messages; what isn't
    UTF-8 is in surrogates (PEP 383).
    """
    return name.encode("utf-8", "surrogateescape")


def sysfs_path(name: str, file: str, sysfs: Path = _SYSFS) -> bytes:
    """The path of a file about an interface (sysfs(5))."""
    return b"/".join((os.fsencode(sysfs), encoded(name), file.encode()))


def known_index(name: str, sysfs: Path = _SYSFS) -> int | None:
    """
    The index of the interface with this name, if that can be found out without waiting.

    @param sysfs: the directory of the interfaces (sysfs(5)). Alternative names are not there.

    @return: L{None} if L{find_index} has to be asked.
    """
    if "/" in name or "\0" in name:
        return None
    try:
        index = int(read_kernel_file(sysfs_path(name, "ifindex", sysfs)))
        # It may have been renamed in the meantime, and this file may be that of another network namespace.
        return index if name_of(index) == name else None
    except (OSError, ValueError):
        return None


def find_index(name: str) -> int | None:
    """
    The index of the interface with this name, which may be an alternative one (ip-link(8), C{altname}).

    It may take long: rtnetlink(7) waits for a lock of the kernel. Requests of netdevice(7) don't. But if
    there is no such interface, the kernel runs modprobe(8) for them if this process has CAP_NET_ADMIN, and
    loads the module of that name if it has CAP_SYS_MODULE (dev_load() in net/core/dev_ioctl.c).

    @return: L{None} if there is none.

    @raise OSError: if that can't be found out, as there are no descriptors.
    """
    wanted = encoded(name)
    if b"\0" in wanted:
        return None
    # Before Linux 5.5 there are no alternative names, and so no long ones.
    kind = _IFLA_IFNAME if len(wanted) <= _LONGEST_NAME else _IFLA_ALT_IFNAME
    attributes = _attribute(_IFLA_EXT_MASK, _NUMBER.pack(_RTEXT_FILTER_SKIP_STATS))
    attributes += _attribute(kind, wanted + b"\0")
    size = _MESSAGE.size + _LINK.size + len(attributes)
    request = _MESSAGE.pack(size, _RTM_GETLINK, _NLM_F_REQUEST, 1, 0) + _LINK.pack(0, 0, 0, 0, 0) + attributes
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(_PATIENCE_SECONDS)
        kernel.sendto(request, (0, 0))
        answer = kernel.recv(_LARGEST_ANSWER_BYTES)
    _, message, *_ = _MESSAGE.unpack_from(answer)
    if message == _RTM_NEWLINK:
        index: int = _LINK.unpack_from(answer, _MESSAGE.size)[2]
        return index
    assert message == _NLMSG_ERROR, message
    (code,) = struct.unpack_from("=i", answer, _MESSAGE.size)
    if -code in (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ERANGE):
        return None
    raise OSError(-code, os.strerror(-code))


def name_of(index: int) -> str | None:
    """
    The name that an interface has now; L{None} if it is gone.

    @raise OSError: if that can't be found out, as there are no descriptors.
    """
    answer = _ask(_SIOCGIFNAME, _IFREQ_INDEX.pack(b"", index))
    if answer is None:
        return None
    name: bytes = _IFREQ_INDEX.unpack(answer)[0]
    return name.rstrip(b"\0").decode("utf-8", "surrogateescape")


def is_up(index: int) -> bool:
    """
    Whether an interface is there and not down.

    @raise OSError: if that can't be found out, as there are no descriptors.
    """
    name = name_of(index)
    answer = None if name is None else _ask(_SIOCGIFFLAGS, _IFREQ.pack(encoded(name), 0))
    if answer is None:
        return False
    flags: int = _IFREQ.unpack(answer)[1]
    return bool(flags & _IFF_UP)


def _ask(request: int, about: bytes) -> bytes | None:
    """
    Ask the kernel about an interface (netdevice(7)). The C library's and Python's own functions don't say
    whether there is no such interface, or no descriptor to ask with.

    @return: the answer; L{None} if there is no such interface.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        try:
            return fcntl.ioctl(any_socket, request, about)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO):
                return None
            raise


def missed_packets(index: int, sysfs: Path = _SYSFS) -> int | None:
    """
    How many packets the hardware of an interface has missed since its driver began to count, because it had
    no room for them: C{rx_missed_errors} and C{rx_fifo_errors} (sysfs-class-net-statistics in Linux'
    Documentation/ABI). C{rx_dropped} also counts packets that no protocol wanted, which are captured.

    @param sysfs: the directory of the interfaces (sysfs(5)).

    @return: L{None} if it is unknown.
    """
    try:
        name = name_of(index)
        if name is None:
            return None
        missed = sum(int(read_kernel_file(sysfs_path(name, f"statistics/{each}", sysfs))) for each in _MISSED)
        # It may have been renamed in the meantime, and these files may be those of another network namespace.
        found = int(read_kernel_file(sysfs_path(name, "ifindex", sysfs)))
        return missed if found == index else None
    except (OSError, ValueError):
        return None


def _attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding
