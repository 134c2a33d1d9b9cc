"""Where the HTTP source listens: what a server endpoint string of Twisted says, without opening it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Parameters by kind, in the order in which they may be given without a name
# (Twisted, twisted.internet.endpoints.serverFromString and its parsers).
_PARAMETERS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
    "ssl": (
        "port",
        "privateKey",
        "certKey",
        "sslmethod",
        "interface",
        "backlog",
        "extraCertChain",
        "dhParameters",
    ),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}
_NEEDED = {"tcp": "port", "tcp6": "port", "ssl": "port", "unix": "address", "systemd": "domain"}
_NUMBERS = {
    "port": (10, 0, 65535, "a port from 0 to 65535"),
    "backlog": (10, 0, 2**31 - 1, "a whole number from 0 to 2147483647"),
    "index": (10, 0, 2**31 - 1, "a whole number from 0 to 2147483647"),
    "mode": (8, 0, 0o777, "an octal number from 0 to 777"),
    "lockfile": (10, 0, 1, "0 or 1"),
}


@dataclass(frozen=True, kw_only=True)
class Listener:
    """
    What an endpoint string says.

    @ivar local: whether only this host reaches it: it is on a loopback address,
        or is a unix socket.
    """

    kind: str
    parameters: dict[str, str]
    local: bool


def read_listener(text: str) -> Listener:
    """
    Understand a server endpoint string: C{tcp:8480:interface=127.0.0.1}.

    @raise ValueError: where it is none; the message is the rule that it breaks.
    """
    kind, *given = _parts(text)
    if len(kind) != 1 or kind[0] not in _PARAMETERS:
        raise ValueError(f"must be an endpoint that starts with one of {', '.join(_PARAMETERS)} and a colon")
    names = _PARAMETERS[kind[0]]
    parameters: dict[str, str] = {}
    position = 0
    for part in given:
        if len(part) == 1:
            if position == len(names):
                raise ValueError(f"has more parameters than {kind[0]!r} takes")
            name, value = names[position], part[0]
            position += 1
        else:
            name, value = part[0], part[1]
        if name not in names:
            raise ValueError(f"has the parameter {name!r}, and {kind[0]!r} takes {', '.join(names)}")
        if name in parameters:
            raise ValueError(f"gives {name!r} twice")
        parameters[name] = value
    _check(kind[0], parameters)
    return Listener(kind=kind[0], parameters=parameters, local=_is_local(kind[0], parameters))


def absolute_listener(text: str, absolute: Callable[[str], str]) -> str:
    """
    A server endpoint string, the address of a unix socket in which is made absolute.

    @param absolute: makes a path so.

    @raise ValueError: as L{read_listener}.
    """
    listener = read_listener(text)
    address = listener.parameters.get("address")
    if address is None or address == absolute(address):
        return text
    given = {**listener.parameters, "address": absolute(address)}
    return ":".join([listener.kind, *(f"{name}={_quoted(value)}" for name, value in given.items())])


def _quoted(value: str) -> str:
    """As L{_parts} takes it for one value."""
    return value.replace("\\", "\\\\").replace(":", "\\:").replace("=", "\\=")


def _check(kind: str, parameters: dict[str, str]) -> None:
    needed = _NEEDED[kind]
    if not parameters.get(needed):
        raise ValueError(f"must give {needed!r}")
    if kind == "systemd":
        if parameters["domain"] not in ("INET", "INET6", "UNIX"):
            raise ValueError("must give 'domain' as INET, INET6 or UNIX")
        if ("index" in parameters) == ("name" in parameters):
            raise ValueError("must give exactly one of 'index' and 'name'")
    for name, (base, low, high, rule) in _NUMBERS.items():
        value = parameters.get(name)
        if value is not None and not _is_number(value, base, low, high):
            raise ValueError(f"must give {name!r} as {rule}")


def _is_number(text: str, base: int, low: int, high: int) -> bool:
    digits = "01234567" if base == 8 else "0123456789"
    return 0 < len(text) <= 10 and all(digit in digits for digit in text) and low <= int(text, base) <= high


def _is_local(kind: str, parameters: dict[str, str]) -> bool:
    if kind == "unix":
        return True
    if kind == "systemd":
        # What a socket that systemd opened is bound to isn't known here.
        return parameters["domain"] == "UNIX"
    interface = parameters.get("interface", "")
    if interface == "localhost":
        return True
    try:
        return ipaddress.ip_address(interface).is_loopback
    except ValueError:
        return False


def _parts(text: str) -> Iterator[tuple[str, ...]]:
    """
    Split at each colon, and each part at its first equals sign; a backslash takes
    away the meaning of the character after it.
    """
    part, word = (), ""  # type: tuple[str, ...], str
    characters = iter(text)
    for character in characters:
        if character == "\\":
            following = next(characters, None)
            if following is None:
                raise ValueError("must not end with a backslash")
            word += following
        elif character == ":":
            yield (*part, word)
            part, word = (), ""
        elif character == "=" and not part:
            part, word = (word,), ""
        else:
            word += character
    yield (*part, word)
