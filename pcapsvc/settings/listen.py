"""Reads and checks a server endpoint string of Twisted without opening it."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Callable, Iterator, Mapping

import msgspec

from pcapsvc.core.errors import shown
from pcapsvc.settings.files import (
    absolute_path,
    check_certificates,
    check_dh_parameters,
    check_key,
    is_key_of,
)

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
# What pyOpenSSL has for servers on TCP (pyOpenSSL, OpenSSL.SSL.Context).
_TLS_METHODS = (
    "TLS_METHOD",
    "TLS_SERVER_METHOD",
    "SSLv23_METHOD",
    "TLSv1_METHOD",
    "TLSv1_1_METHOD",
    "TLSv1_2_METHOD",
)
_COLON_HINT = "; a colon within a value must be escaped with a backslash"
_PATHS = ("address", "privateKey", "certKey", "extraCertChain", "dhParameters")


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """
    A server endpoint.

    @ivar local: whether only this host can reach it: it is on a loopback address, or a unix
        socket.
    """

    kind: str
    parameters: dict[str, str]
    local: bool


def read_listener(text: str) -> Listener:
    """
    Parse a server endpoint string: C{tcp:8480:interface=127.0.0.1}.

    @raise ValueError: if it isn't one; the message is the rule that it breaks.
    """
    kind, *given = _parts(text)
    if len(kind) != 1 or kind[0] not in _PARAMETERS:
        raise ValueError(f"must be an endpoint that starts with one of {', '.join(_PARAMETERS)} and a colon")
    names = _PARAMETERS[kind[0]]
    parameters: dict[str, str] = {}
    position = 0
    for part in given:
        unnamed = len(part) == 1
        if unnamed:
            if position == len(names):
                raise ValueError(f"has too many parameters for {kind[0]!r}{_COLON_HINT}")
            name, value = names[position], part[0]
            position += 1
        else:
            name, value = part[0], part[1]
        if name not in names:
            raise ValueError(f"has the unknown parameter {name!r}; {kind[0]!r} has {', '.join(names)}")
        if name in parameters:
            raise ValueError(f"gives {name!r} twice{_COLON_HINT if unnamed else ''}")
        parameters[name] = value
    _check(kind[0], parameters)
    return Listener(kind=kind[0], parameters=parameters, local=_is_local(kind[0], parameters))


def checked_listener(text: str) -> str:
    """
    Check a server endpoint string as far as that is possible without listening.

    @return: the string with absolute paths.

    @raise ValueError: as L{read_listener} and L{check_listener}.
    """
    # Once imported, Twisted's endpoints have removed systemd's variables from the environment.
    # Then only they know the sockets, and check the endpoint when it is made.
    is_there = "twisted.internet.endpoints" not in sys.modules
    check_listener(read_listener(text), os.environ if is_there else None)
    return absolute_listener(text, absolute_path)


def check_listener(listener: Listener, environment: Mapping[str, str] | None) -> None:
    """
    Check that what an endpoint needs is there: the certificate and its key, or the socket
    from systemd. Relative paths start at the current directory.

    @param environment: says which sockets systemd passed (sd_listen_fds(3)); L{None} if that
        is unknown, and not to be checked.

    @raise ValueError: if something is missing; the message is the rule that this breaks.
    """
    problems: list[str] = []
    if listener.kind == "ssl":
        problems += _tls_problems(listener.parameters)
    elif listener.kind == "systemd" and environment is not None:
        problems += _inherited_problems(listener.parameters, environment)
    if problems:
        raise ValueError("; ".join(problems))


def absolute_listener(text: str, absolute: Callable[[str], str]) -> str:
    """
    Make the paths in a server endpoint string absolute.

    @param absolute: makes a path absolute.

    @raise ValueError: as L{read_listener}.
    """
    listener = read_listener(text)
    given = {
        name: absolute(value) if name in _PATHS else value for name, value in listener.parameters.items()
    }
    if given == listener.parameters:
        return text
    return ":".join([listener.kind, *(f"{name}={_quoted(value)}" for name, value in given.items())])


def _quoted(value: str) -> str:
    """Escaped, so that L{_parts} reads it as one value."""
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
    if parameters.get("sslmethod", _TLS_METHODS[0]) not in _TLS_METHODS:
        raise ValueError(f"must give 'sslmethod' as one of {', '.join(_TLS_METHODS)}")
    for name, (base, low, high, rule) in _NUMBERS.items():
        value = parameters.get(name)
        if value is not None and not _is_number(value, base, low, high):
            raise ValueError(f"must give {name!r} as {rule}")


def _tls_problems(parameters: dict[str, str]) -> Iterator[str]:
    # The defaults are Twisted's.
    key = parameters.get("privateKey", "server.pem")
    certificate = parameters.get("certKey", key)
    problems = [
        *_file_problems("privateKey", key, check_key),
        *_file_problems("certKey", certificate, check_certificates),
    ]
    yield from problems
    if not problems and not is_key_of(certificate, key):
        yield "its 'privateKey' must contain the private key of the certificate in 'certKey'"
    for name, check in (("extraCertChain", check_certificates), ("dhParameters", check_dh_parameters)):
        if name in parameters:
            yield from _file_problems(name, parameters[name], check)


def _file_problems(name: str, path: str, check: Callable[[str], None]) -> Iterator[str]:
    try:
        check(path)
    except ValueError as error:
        yield f"its {name!r}, {shown(path)}, {error}"


def _inherited_problems(parameters: dict[str, str], environment: Mapping[str, str]) -> Iterator[str]:
    # Imported here, because few configurations need it.
    from twisted.python.systemd import ListenFDs

    # A copy, because Twisted removes what it reads, and has to read it again itself.
    sockets = ListenFDs.fromEnvironment(dict(environment))
    count, names = len(sockets.inheritedDescriptors()), sockets.inheritedNamedDescriptors()
    if count == 0:
        yield "must be a socket passed by systemd, but systemd passed none"
    elif "name" in parameters and parameters["name"] not in names:
        yield f"must give 'name' as one of the sockets passed by systemd: {', '.join(map(repr, names))}"
    elif "index" in parameters and int(parameters["index"]) >= count:
        yield f"must give 'index' as less than the number of sockets passed by systemd, which is {count}"


def _is_number(text: str, base: int, low: int, high: int) -> bool:
    digits = "01234567" if base == 8 else "0123456789"
    return 0 < len(text) <= 10 and all(digit in digits for digit in text) and low <= int(text, base) <= high


def _is_local(kind: str, parameters: dict[str, str]) -> bool:
    if kind == "unix":
        return True
    if kind == "systemd":
        # The address that systemd bound the socket to is unknown here.
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
    Split at each colon, and each part at its first equals sign. A backslash escapes the next
    character.
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
