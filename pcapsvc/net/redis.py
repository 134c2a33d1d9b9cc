"""Connections to Redis, and what goes wrong with them."""

from __future__ import annotations

from typing import Any

from twisted.internet import error
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint

from pcapsvc.core.errors import Problem, SettingsError, shown
from pcapsvc.net.named_endpoint import NamedEndpoint
from pcapsvc.net.pem import UnusableCertificates

#: How long a server has to accept a connection. TCP itself retries at growing intervals: once the network is
#: back, a new attempt succeeds sooner, and what is published until then is lost.
CONNECT_SECONDS = 5.0

#: How long a server has to answer.
ANSWER_SECONDS = 5.0


class Unusable(Exception):
    """A connection can't be used any more. The message says why, without secrets."""


class Silent(Unusable):
    """The server is connected, but does not answer."""


class ProtocolError(Unusable):
    """The server sends something other than Redis would."""


def redis_endpoint(
    reactor: Any, host: str, port: int, *, tls: bool, ca_file: str | None, table: str = "redis"
) -> IStreamClientEndpoint:
    """
    How to connect to a server. With TLS, its certificate is verified, and must be valid for C{host}.

    @param table: where the settings are from, for the problems with them.

    @raise SettingsError: if C{ca_file} can't be used, or no certificate can be valid for C{host}.
    """
    plain: IStreamClientEndpoint = NamedEndpoint(reactor, host, port, timeout_seconds=CONNECT_SECONDS)
    if not tls:
        return plain
    # Without TLS, OpenSSL is not imported.
    from pcapsvc.net.tls import verified_tls

    try:
        creator = verified_tls(host, ca_file)
    except UnusableCertificates as problem:
        raise SettingsError(
            [Problem(path=f"{table}.cafile", value=shown(ca_file), rule=problem.rule)]
        ) from problem
    except ValueError as problem:
        rule = f"must be a name that a certificate can have ({problem})"
        raise SettingsError([Problem(path=f"{table}.host", value=shown(host), rule=rule)]) from problem
    wrapped: IStreamClientEndpoint = wrapClientTLS(creator, plain)
    return wrapped


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, command: str, answer: str) -> None:
        super().__init__(answer)
        self.command = command
        self.code = answer.split(" ", 1)[0]


_REFUSALS = {
    "WRONGPASS": "wrong user name or password",
    "NOAUTH": "the server requires a password, and none is configured",
    "NOPERM": "the user has no permission for this channel",
}
# The wording of this error to AUTH varies (Redis, acl.c, authCommand; before 6.0, server.c).
_ERR_TO_AUTH = "the server has no password, or does not support user names or AUTH"

_LOST = (OSError, error.ConnectError, error.ConnectionClosed, Unusable)


def described(problem: Exception) -> tuple[str, str]:
    """The kind of a problem, which is logged again only when it changes, and the problem in words."""
    if isinstance(problem, Refused):
        words = _REFUSALS.get(problem.code)
        if words is None and problem.command != "AUTH":
            words = str(problem)
        elif words is None and problem.code == "ERR":
            words = _ERR_TO_AUTH
        # The server's own words to AUTH might repeat the password.
        return problem.code, f"{problem.command} was refused ({words or problem.code})"
    if isinstance(problem, _LOST):
        return "connection", str(problem).strip().rstrip(".")
    if (words := _tls_words(problem)) is not None:
        return "tls", f"TLS failed: {words}"
    # Its own words may contain a secret.
    return "unexpected", f"unexpected error ({type(problem).__name__})"


def _tls_words(problem: Exception) -> str | None:
    try:
        from pcapsvc.net.tls import tls_problem
    except ImportError:
        # Without TLS, OpenSSL is not there.
        return None
    return tls_problem(problem)
