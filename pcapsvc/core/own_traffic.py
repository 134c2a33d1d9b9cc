"""A filter of pcap-filter(7) for the daemon's own packets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

import msgspec

Address = IPv4Address | IPv6Address

#: How long a connection is remembered after its end, in seconds: as long as the kernel does
#: (TCP_TIMEWAIT_LEN in net/tcp.h).
REMEMBERED_SECONDS = 60.0
#: The most connections in a filter. Compiling these takes some 5 ms.
MOST_CONNECTIONS = 64


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """A TCP connection of this process."""

    local: Address
    local_port: int
    remote: Address
    remote_port: int


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """An address of this host on which this process listens: all TCP connections to it are its own."""

    local: Address
    port: int


class OwnSockets(msgspec.Struct, frozen=True, kw_only=True):
    """What a process has open."""

    connections: frozenset[Connection] = frozenset()
    listeners: frozenset[Listener] = frozenset()


class OwnTraffic:
    """
    Knows the connections that this process has, and those that it had a while ago, whose
    packets may still arrive.

    @ivar bpf: a filter that matches their packets; empty if there are none.
    @ivar left_out: how many open connections there was no room for.
    """

    def __init__(self) -> None:
        self.bpf = ""
        self.left_out = 0
        self._last_seen: dict[Connection, float] = {}
        self._in_filter: tuple[frozenset[Connection], frozenset[Listener]] = (frozenset(), frozenset())

    def update(self, sockets: OwnSockets, now: float) -> None:
        """
        Take note of what is open.

        @param now: the time in seconds of any clock.
        """
        accepted = {(listener.local, listener.port) for listener in sockets.listeners}
        for connection in sockets.connections:
            if (connection.local, connection.local_port) not in accepted:
                self._last_seen[connection] = now
        for connection, seen in tuple(self._last_seen.items()):
            if abs(now - seen) > REMEMBERED_SECONDS:
                del self._last_seen[connection]
        # The open ones first, and then those that were closed last.
        newest = sorted(self._last_seen, key=lambda connection: self._last_seen[connection], reverse=True)
        still_open = sum(seen == now for seen in self._last_seen.values())
        self.left_out = max(0, still_open - MOST_CONNECTIONS)
        for forgotten in newest[4 * MOST_CONNECTIONS :]:
            del self._last_seen[forgotten]
        wanted = (frozenset(newest[:MOST_CONNECTIONS]), sockets.listeners)
        if wanted != self._in_filter:
            self._in_filter = wanted
            self.bpf = " or ".join(_terms(*wanted))


def without(own: str, bpf: str) -> str:
    """
    A filter that matches what C{bpf} does, except what C{own} does.

    C{bpf} comes last, because C{vlan} and C{mpls} change the meaning of what follows them. White
    space alone is a filter that matches everything, but not in parentheses.
    """
    if not own:
        return bpf
    return f"not ({own}) and ({bpf})" if bpf.strip() else f"not ({own})"


def _terms(connections: Iterable[Connection], listeners: Iterable[Listener]) -> Iterator[str]:
    for listener in sorted(listeners, key=str):
        here, port = listener.local, listener.port
        yield f"(dst host {here} and tcp dst port {port})"
        yield f"(src host {here} and tcp src port {port})"
    # Both ports are compared at once, and each pair of hosts once: this compiles in a tenth of the time of
    # "host and port" for each, because the time grows with the cube of the length.
    ports: dict[tuple[Address, Address], list[int]] = {}
    for one in sorted(connections, key=str):
        ports.setdefault((one.local, one.remote), []).append(one.local_port << 16 | one.remote_port)
        ports.setdefault((one.remote, one.local), []).append(one.remote_port << 16 | one.local_port)
    for (source, destination), pairs in ports.items():
        # Of IPv6, libpcap has no tcp[…]: the ports are behind the header of 40 bytes (RFC 8200, section 3).
        is_tcp, both_ports = ("tcp", "tcp[0:4]") if source.version == 4 else ("ip6 proto 6", "ip6[40:4]")
        any_of = " or ".join(f"{both_ports} = {pair:#010x}" for pair in dict.fromkeys(pairs))
        yield f"({is_tcp} and src host {source} and dst host {destination} and ({any_of}))"
