"""Rules that several sections share."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from pcapsvc.core.errors import Problem, shown
from pcapsvc.settings.section import Conflict, Section


def at_most(
    section: type[Section], low: str, low_value: int, high: str, high_value: int
) -> Iterator[Problem]:
    """The value of one key is no more than that of another."""
    if low_value > high_value:
        yield Conflict(
            path=section.key_path(low),
            others=(section.key_path(high),),
            value=shown(low_value),
            rule=f"must be at most {section.key_path(high)}, which is {high_value}",
        )


def access_key_pair(section: type[Section], access_id: object, access_key: object) -> Iterator[Problem]:
    """C{accessid} and C{accesskey} are both given, or neither is."""
    if (access_id is None) != (access_key is None):
        yield Conflict(
            path=section.key_path("accessid"),
            others=(section.key_path("accesskey"), section.key_path("accesskeyfile")),
            rule=f"must be given together with {section.key_path('accesskey')} (or accesskeyfile),"
            " or not at all",
        )


def certificate_name(section: type[Section], host: str, *others: str) -> Iterator[Problem]:
    """
    C{host} is a name or address that a server's certificate can be issued for.

    @param others: the keys that decide that the certificate is verified.
    """
    # An IPv6 address may be in brackets, as in a URL.
    problem = _certificate_name_problem(host.strip("[]"))
    if problem is not None:
        yield Conflict(
            path=section.key_path("host"),
            others=tuple(map(section.key_path, others)),
            value=shown(host),
            rule="must be a valid host name or an address, because the server's certificate is verified"
            f" ({problem})",
        )


def _certificate_name_problem(host: str) -> str | None:
    """Why a host is no valid name (RFC 9525, section 2; RFC 5891, section 4); L{None} if it is one."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return None
    # Imported here, because its tables are large, and a configuration without TLS doesn't need them.
    import idna

    try:
        idna.encode(host)
    except idna.IDNAError as error:
        return str(error)
    return None
