"""Where servers listen: server endpoint strings of Twisted."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
import re
from typing import Any

from twisted.internet import endpoints
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IStreamServerEndpoint

from pcapsvc.net.unix_socket import UnixListener

#: How many connections may wait in the kernel, if a string doesn't say. Twisted's default is 50, beyond which
#: clients wait for seconds before they try again.
BACKLOG = 512

# How many parameters without a name come before the backlog (twisted.internet.endpoints.serverFromString).
_BEFORE_BACKLOG = {"tcp": 2, "tcp6": 1, "ssl": 5, "unix": 2}


def listening_endpoint(reactor: Any, description: str, *, socket_mode: str) -> IStreamServerEndpoint:
    """
    The endpoint that a server endpoint string describes. Nothing is opened. A unix socket on which
    nobody listens is replaced: see L{UnixListener}.

    @param socket_mode: the octal mode of a unix socket, if the string has none; Twisted's default is 666.

    @raise Exception: if Twisted can't use the string.
    """
    kind, *parameters = re.split(r"(?<!\\):", description)
    positional = [part for part in parameters if not re.search(r"(?<!\\)=", part)]
    if kind == "unix":
        reactor = UnixListener(reactor)
        if not any(part.startswith("mode=") for part in parameters) and len(positional) < 2:
            description += f":mode={socket_mode}"
    has_backlog = any(part.startswith("backlog=") for part in parameters)
    if not has_backlog and len(positional) <= _BEFORE_BACKLOG.get(kind, -1):
        description += f":backlog={BACKLOG}"
    endpoint: IStreamServerEndpoint = endpoints.serverFromString(reactor, description)
    return endpoint


def shown_address(address: IAddress) -> str:
    """An address that is listened on, for the log."""
    match address:
        case IPv6Address():
            return f"[{address.host}]:{address.port}"
        case IPv4Address():
            return f"{address.host}:{address.port}"
        case UNIXAddress():
            return os.fsdecode(address.name or b"")
        case _:
            return str(address)
