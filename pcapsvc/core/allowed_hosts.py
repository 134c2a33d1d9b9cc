"""
Patterns of the hosts that requests may name: C{store.example.org}, C{*.amazonaws.com}, C{192.0.2.7:8443}.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from pcapsvc.core.public_address import Address, is_public

#: The ports of the schemes.
USUAL_PORTS = {"https": 443, "http": 80}

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}")
# What resolvers take for an address in some notation: its last part is a number (the URL Standard, "ends in a
# number").
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_PATTERN_RULE = (
    "must be HOST, *.DOMAIN, an address or *, each with an optional port: HOST:PORT, [ADDRESS]:PORT, or * for"
    " any port"
)


class BadHost(ValueError):
    """Not a host, or not a pattern. The message is the rule that it breaks."""


class HostPattern(msgspec.Struct, frozen=True, kw_only=True):
    """
    A pattern of hosts.

    @ivar text: as it was written.
    @ivar name: the name; if it begins with C{.}, every name that ends with it; if it is empty, every host.
    @ivar address: the address, instead of a name.
    @ivar port: the port; 0 is any, and L{None} is the usual one of the scheme.
    """

    text: str
    name: str = ""
    address: Address | None = None
    port: int | None = None

    def matches(self, host: str | Address, port: int, scheme: str) -> bool:
        """
        Whether the pattern matches a server.

        @param host: as L{parse_host} returns it.
        """
        if self.port != 0 and port != (USUAL_PORTS[scheme] if self.port is None else self.port):
            return False
        if self.address is not None:
            return self.address == host
        if not self.name:
            return True
        if not isinstance(host, str):
            return False
        return host.endswith(self.name) if self.name.startswith(".") else host == self.name

    def __str__(self) -> str:
        return self.text


def parse_host(text: str) -> str | Address:
    """
    A host as URLs have it: its name in lower case, or its address.

    @raise BadHost: if it is neither. An address in an unusual notation is not, nor is a name with a dot at
        its end.
    """
    if text.startswith("[") and text.endswith("]"):
        try:
            if "%" not in text:
                return IPv6Address(text[1:-1])
        except ValueError:
            pass
        raise BadHost("must be an IPv6 address without a zone, if it is in brackets")
    name = text.lower()
    if _NUMBER.fullmatch(name):
        try:
            return IPv4Address(name)
        except ValueError:
            raise BadHost("must be an address of four decimal numbers, or a name") from None
    if not _NAME.fullmatch(name):
        raise BadHost("must be a host name in ASCII, without a dot at its end, or an address")
    return name


def parse_pattern(text: str) -> HostPattern:
    """
    A pattern, as the configuration has it.

    @raise BadHost: if it isn't one.
    """
    try:
        # An IPv6 address needs no brackets if there is no port.
        return HostPattern(text=text, address=ip_address(text)) if "%" not in text else _bad()
    except ValueError:
        pass
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, ""
    elif port != "*" and not (_PORT.fullmatch(port) and int(port) < 65536):
        _bad()
    number = None if not colon else 0 if port == "*" else int(port)
    if host == "*":
        return HostPattern(text=text, port=number)
    try:
        parsed = parse_host(host.removeprefix("*."))
    except BadHost:
        _bad()
    if isinstance(parsed, str):
        return HostPattern(text=text, name=f".{parsed}" if host.startswith("*.") else parsed, port=number)
    if host.startswith("*."):
        _bad()
    return HostPattern(text=text, address=parsed, port=number)


def _bad() -> HostPattern:
    raise BadHost(_PATTERN_RULE)


def is_allowed_address(patterns: Sequence[HostPattern], address: Address, *, port: int, scheme: str) -> bool:
    """Whether a host that a pattern matches may have this address: it is public, or a pattern names it."""
    if is_public(address):
        return True
    return any(pattern.address is not None and pattern.matches(address, port, scheme) for pattern in patterns)
