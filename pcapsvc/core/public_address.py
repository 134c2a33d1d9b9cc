"""Which addresses are public, and not only reachable from this host, its network or its cloud."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

Address = IPv4Address | IPv6Address

# IANA's registries of special-purpose addresses, and multicast. C{is_global} of ipaddress differs between
# versions of Python, and knows nothing of what clouds have of their own.
_SPECIAL_4 = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this host (RFC 791)
            "10.0.0.0/8",  # private (RFC 1918), as are 172.16 and 192.168
            "100.64.0.0/10",  # carrier-grade NAT (RFC 6598); metadata of Alibaba Cloud
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's WireServer
            "169.254.0.0/16",  # link-local (RFC 3927); metadata of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments (RFC 6890); metadata of Oracle Cloud
            "192.0.2.0/24",  # documentation (RFC 5737), as are 198.51.100 and 203.0.113
            "192.88.99.0/24",  # 6to4 relays (RFC 7526)
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks (RFC 2544)
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
# Everything else is loopback, link-local, unique local (metadata of Amazon and Google), multicast, an
# IPv4-mapped address, translated (NAT64), or not assigned yet.
_GLOBAL_6 = ip_network("2000::/3")
_SPECIAL_6 = tuple(
    map(
        ip_network,
        (
            "2001::/23",  # protocol assignments (RFC 2928), among them Teredo
            "2001:db8::/32",  # documentation (RFC 3849), as is 3fff::/20 (RFC 9637)
            "2002::/16",  # 6to4 (RFC 3056): an IPv4 address in disguise
            "3fff::/20",
        ),
    )
)


def is_public(address: Address) -> bool:
    """Whether an address is public."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_4)
    return address in _GLOBAL_6 and not any(address in network for network in _SPECIAL_6)
