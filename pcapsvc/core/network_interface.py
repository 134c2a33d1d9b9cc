"""A network interface, as far as whoever wants to capture on it needs to know it."""

from __future__ import annotations

import msgspec


class NetworkInterface(msgspec.Struct, frozen=True, kw_only=True):
    """
    A network interface.

    @ivar index: stays when the interface is renamed; 0 for the pseudo-interface C{any}.
    @ivar link_type: its kind of link in the words of ip-link(8), such as C{ether}; a number of
        linux/if_arp.h if that has no word for it.
    @ivar altnames: its alternative names.
    @ivar addresses: its IPv4 and IPv6 addresses, each with the length of its prefix: C{192.0.2.1/24}.
    """

    name: str
    index: int
    is_up: bool
    link_type: str
    altnames: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
