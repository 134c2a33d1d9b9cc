"""The TCP sockets that this process has open, as the kernel reports them."""

from __future__ import annotations

import contextlib
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
# What a socket has that was given neither an address nor a port.
_ANYWHERE = {socket.AF_INET: ("0.0.0.0", 0), socket.AF_INET6: ("::", 0)}


class SocketTable:
    """
    The sockets of this process, in all threads and of all libraries.

    They are found through the process's descriptors: the kernel's tables of all connections of the host can
    be long. Python's audit events (PEP 578) report each connection that is about to be opened. The socket
    gets its port there and then, so that the connection is known before it sends anything, and even if it is
    closed before the next look.

    @param connecting: called, in any thread, when a connection is about to be opened: L{look} should be
        called soon.
    """

    def __init__(self, connecting: Callable[[], object]) -> None:
        self._connecting = connecting
        # The family of each, its own address, and the one that it connects to.
        self._begun: deque[tuple[int, tuple[Any, ...], tuple[Any, ...]]] = deque()
        self._known: dict[str, tuple[Connection, ...]] = {}
        self._has_hook = False
        self._watching = False

    def watch(self) -> None:
        """Record connections that are opened. A second call does nothing."""
        self._watching = True
        if not self._has_hook:
            self._has_hook = True
            # It can't be removed again.
            sys.addaudithook(self._on_audit_event)

    def unwatch(self) -> None:
        """Stop recording them, and forget those recorded so far."""
        self._watching = False
        self._begun.clear()

    def look(self) -> OwnSockets:
        """The sockets that are open, or were opened since the last look."""
        connections = set(self._just_begun())
        listeners: set[Listener] = set()
        known, self._known = self._known, {}
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
                if target.startswith("socket:"):
                    # Once connected, a socket keeps its addresses.
                    found = known[target] if target in known else _connections(int(name), listeners)
                    if found is not None:
                        self._known[target] = found
                        connections.update(found)
            except (OSError, ValueError):
                pass  # not connected, or closed by another thread in the meantime
        return OwnSockets(connections=frozenset(connections), listeners=frozenset(listeners))

    def _on_audit_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "socket.connect" or not self._watching:
            return
        one, address = arguments
        if one.family not in _ANYWHERE or one.type != socket.SOCK_STREAM:
            return
        try:
            # The event precedes the system call that assigns a port; a refused connection leaves no trace.
            if one.getsockname()[:2] == (anywhere := _ANYWHERE[one.family]):
                with contextlib.suppress(OSError):
                    one.bind(anywhere)
            self._begun.append((one.family, one.getsockname(), address))
        except OSError:
            return
        self._connecting()

    def _just_begun(self) -> Iterator[Connection]:
        """Connections that are being opened: their peers are known before they answer."""
        while self._begun:
            family, own, address = self._begun.popleft()
            try:
                local, local_port = _end(own)
                remote, remote_port = _end(address)
                if local.is_unspecified:
                    local = _address_towards(family, address)
            except (OSError, ValueError):
                # There is no way there, or no descriptor to find out. Or it was given a host name, which none
                # of our libraries does. Its own descriptor shows it once it is open.
                continue
            # No port was free: its descriptor shows the connection once it has one.
            if local_port != 0:
                yield Connection(local=local, local_port=local_port, remote=remote, remote_port=remote_port)

    @property
    def has_news(self) -> bool:
        """Whether a connection has begun since the last look."""
        return bool(self._begun)


def _connections(descriptor: int, listeners: set[Listener]) -> tuple[Connection, ...] | None:
    """
    The connection of a socket, if any; L{None} if it may still become one.

    @param listeners: the addresses that the socket listens on are added to it.
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


def _address_towards(family: int, address: tuple[Any, ...]) -> Address:
    """The address of this host from which it sends to another."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        # On a datagram socket, this sends nothing.
        probe.connect(address)
        return _end(probe.getsockname())[0]


def _addresses(listener: socket.socket) -> Iterator[Address]:
    """The addresses that a socket listens on if it is bound to all of them."""
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
