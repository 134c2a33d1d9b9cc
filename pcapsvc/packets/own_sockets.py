"""The TCP sockets that this process has open, by the kernel's own word."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from pcapsvc.core.own_traffic import Address, Connection, Listener, OwnSockets

# netdevice(7): SIOCGIFCONF fills an array of struct ifreq with the IPv4 addresses of all interfaces.
_SIOCGIFCONF = 0x8912
_IFREQ_BYTES = 40
_MOST_ADDRESSES = 128
_IPV6_ADDRESSES = "/proc/self/net/if_inet6"


class SocketTable:
    """
    Knows the sockets of this process, in all its threads, whichever library made them.

    Those that are open are asked for by descriptor: the kernel's tables of all the
    host's connections can be long. A connection that begins is heard of by Python's own
    audit events (PEP 578): from there on, a duplicate of its descriptor keeps its
    addresses to be asked for, though it be closed again before anybody looks.

    @param connecting: called, in any thread, when a connection is about to begin: L{look}
        should soon be.
    """

    def __init__(self, connecting: Callable[[], object]) -> None:
        self._connecting = connecting
        # Of each, a duplicate of its descriptor, the descriptor, and whom it connects to.
        self._begun: deque[tuple[int, int, tuple[Any, ...]]] = deque()
        self._known: dict[str, tuple[Connection, ...]] = {}
        self._hears = False
        self._watching = False

    def watch(self) -> None:
        """Hear of connections that begin. A second call does nothing."""
        self._watching = True
        if not self._hears:
            self._hears = True
            # For ever: nothing takes one away again.
            sys.addaudithook(self._heard)

    def unwatch(self) -> None:
        """Hear of them no more, and let go of those heard of."""
        self._watching = False
        while self._begun:
            os.close(self._begun.popleft()[0])

    def look(self) -> OwnSockets:
        """What is open, or was opened since the last look."""
        connections = set(self._just_begun())
        listeners: set[Listener] = set()
        known, self._known = self._known, {}
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
                if target.startswith("socket:"):
                    # Connected once, a socket keeps its addresses.
                    found = known[target] if target in known else _connections(int(name), listeners)
                    if found is not None:
                        self._known[target] = found
                        connections.update(found)
            except (OSError, ValueError):
                pass  # not connected, or closed by another thread meanwhile
        return OwnSockets(connections=frozenset(connections), listeners=frozenset(listeners))

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "socket.connect" or not self._watching:
            return
        one, address = arguments
        if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
            return
        try:
            self._begun.append((os.dup(one.fileno()), one.fileno(), address))
        except OSError:
            return
        self._connecting()

    def _just_begun(self) -> Iterator[Connection]:
        """Those whose connection has been asked for: their peers are known before they answer."""
        for _ in range(len(self._begun)):
            descriptor, original, address = self._begun.popleft()
            # Asked for first: what is closed by then gets no port any more.
            is_open = _is_same(descriptor, original)
            one = socket.socket(fileno=descriptor)
            try:
                local, local_port = _end(one.getsockname())
                remote, remote_port = _end(address)
                if local.is_unspecified and local_port != 0:
                    # It was refused, and asked for its connection again: that takes the address away.
                    local = _address_towards(one.family, address)
            except (OSError, ValueError):
                one.close()  # a host's name, which nobody of ours gives; the look at descriptors finds it
                continue
            if local_port == 0 and is_open:
                # The event comes before the system call that gives it a port.
                self._begun.append((one.detach(), original, address))
                continue
            one.close()
            # Without a port it sent nothing: there was no way there.
            if local_port != 0:
                yield Connection(local=local, local_port=local_port, remote=remote, remote_port=remote_port)

    @property
    def unfinished(self) -> bool:
        """Whether a connection was heard of, and its addresses were not known at the last look."""
        return bool(self._begun)


def _connections(descriptor: int, listeners: set[Listener]) -> tuple[Connection, ...] | None:
    """
    The connection of a socket, if any; L{None} where it may yet become one.

    @param listeners: gets what the socket listens on.
    """
    one = socket.socket(fileno=descriptor)
    try:
        if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
            return ()
        local, local_port = _end(one.getsockname())
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            here = _addresses(one) if local.is_unspecified else (local,)
            listeners.update(Listener(local=each, port=local_port) for each in here)
            return None
        remote, remote_port = _end(one.getpeername())
    finally:
        one.detach()
    return (Connection(local=local, local_port=local_port, remote=remote, remote_port=remote_port),)


def _end(name: tuple[Any, ...]) -> tuple[Address, int]:
    address = ip_address(name[0].partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address, name[1]


def _is_same(descriptor: int, other: int) -> bool:
    """Whether a descriptor is of the same socket as another, which may be closed."""
    try:
        return os.path.sameopenfile(descriptor, other)
    except OSError:
        return False


def _address_towards(family: int, address: tuple[Any, ...]) -> Address:
    """The address of this host that is used to send to another."""
    with socket.socket(family, socket.SOCK_DGRAM) as unheard:
        # Of a datagram socket, this sends nothing.
        unheard.connect(address)
        return _end(unheard.getsockname())[0]


def _addresses(listener: socket.socket) -> Iterator[Address]:
    """The addresses of this host that a socket listens on, where it was bound to none."""
    if listener.family == socket.AF_INET:
        yield from _ipv4_addresses()
        return
    if not listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        yield from _ipv4_addresses()
    if os.path.exists(_IPV6_ADDRESSES):
        with open(_IPV6_ADDRESSES) as table:
            for line in table:
                yield IPv6Address(bytes.fromhex(line.split()[0]))


def _ipv4_addresses() -> Iterator[Address]:
    room = ctypes.create_string_buffer(_IFREQ_BYTES * _MOST_ADDRESSES)
    asked = struct.pack("iP", len(room), ctypes.addressof(room))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        (filled,) = struct.unpack_from("i", fcntl.ioctl(any_socket, _SIOCGIFCONF, asked))
    for start in range(0, filled, _IFREQ_BYTES):
        # struct ifreq: 16 bytes of name, then a struct sockaddr_in: family, port, address.
        yield IPv4Address(room.raw[start + 20 : start + 24])
