"""
Which HTTP requests are admitted, and what their clients may do.

Any web page can make a browser send requests here, and a node often listens on loopback without a token.
Hence these rules:

  - A request from a web page is refused unless the page is this API's own. Browsers add the page's origin to
    each request that changes something (Fetch Standard, "Origin header"), and most say how it relates to
    the server (Fetch Metadata, "Sec-Fetch-Site"). Command-line clients and scripts do neither. What is
    public anyway may be linked to from anywhere.
  - Without a token, the requested host must be an address, C{localhost}, or that of the URL at which others
    reach this API. A page whose name was made to point here (DNS rebinding) has the same origin in the
    browser's eyes, but its requests still carry that name. No name points to a unix socket, so any host
    is accepted there, unless a proxy passes on what a browser has sent.
  - With tokens, a client must present one of them, whose role allows what it asks for. What is public needs
    none.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from twisted.web.http_headers import Headers

from pcapsvc.core.role import ALL_ROLES, Role
from pcapsvc.net.http_resource import HTTPProblem
from pcapsvc.sources.http.tokens import Token

_STRANGER: frozenset[Role] = frozenset()


class Arrived(Protocol):
    """
    What admission looks at in a request that has arrived.

    @ivar target_host: see L{pcapsvc.net.http_request.Request}; likewise the others.
    """

    target_host: bytes | None
    requestHeaders: Headers

    @property
    def over_unix_socket(self) -> bool:
        """Whether it came over a unix socket."""

    @property
    def is_public(self) -> bool:
        """Whether everyone may have what it asks for."""

    @property
    def needed_role(self) -> Role | None:
        """The role that its client needs; L{None} if any will do."""

    def isSecure(self) -> bool:
        """Whether it came over TLS."""


class Admission:
    """
    Decides whether a request is admitted.

    @param tokens: of which clients must present one; if there is none, everyone may do everything.
    """

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = [(token.secret.reveal().encode(), token.roles) for token in tokens]
        self._own_origins: set[bytes] = set()

    def add_url(self, url: str) -> None:
        """Others reach this API at a URL, such as that of a proxy."""
        parts: Any = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        port = "" if parts.port in (None, {"http": 80, "https": 443}[parts.scheme]) else f":{parts.port}"
        self._own_origins.add(f"{parts.scheme}://{host}{port}".encode("ascii"))

    def check(self, request: Arrived) -> frozenset[Role]:
        """
        Check a request.

        @return: the roles of its client; none if it is a stranger.

        @raise HTTPProblem: if it is not admitted.
        """
        self._check_origin(request)
        if not self._tokens:
            self._check_host(request)
            return ALL_ROLES
        roles = self._roles(request)
        if roles is None:
            if request.is_public:
                return _STRANGER
            raise HTTPProblem(
                401, "This node requires a valid token.", headers={"WWW-Authenticate": "Bearer"}
            )
        needed = request.needed_role
        if needed is not None and needed not in roles and not request.is_public:
            raise HTTPProblem(
                403,
                f"This needs a token with the role {needed.value}.",
                headers={"WWW-Authenticate": 'Bearer error="insufficient_scope"'},
            )
        return roles

    def _check_origin(self, request: Arrived) -> None:
        headers = request.requestHeaders
        origins = headers.getRawHeaders(b"Origin", [])
        own = self._own_origins | {_origin(request)}
        if any(origin.lower() not in own for origin in origins):
            raise HTTPProblem(403, "Requests from other web pages, by their Origin header, are refused.")
        sites = headers.getRawHeaders(b"Sec-Fetch-Site", [])
        if not request.is_public and any(site not in (b"same-origin", b"none") for site in sites):
            raise HTTPProblem(
                403, "Requests from other web pages, by their Sec-Fetch-Site header, are refused."
            )

    def _check_host(self, request: Arrived) -> None:
        host = _host(request)
        if host is None or _is_plain_host(host) or _origin(request) in self._own_origins:
            return
        # A proxy may end TLS.
        if any(origin.partition(b"://")[2] == host.lower() for origin in self._own_origins):
            return
        headers = request.requestHeaders
        by_browser = headers.hasHeader(b"Origin") or headers.hasHeader(b"Sec-Fetch-Site")
        if by_browser or not request.over_unix_socket:
            raise HTTPProblem(403, "Without a token, the host must be an IP address or localhost.")

    def _roles(self, request: Arrived) -> frozenset[Role] | None:
        """The roles of the token that a request presents; L{None} if it presents none that is valid."""
        given = request.requestHeaders.getRawHeaders(b"Authorization", [])
        scheme, _, text = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        presented = text.strip(b" ")
        found = None
        # All comparisons are always made, and the scheme is looked at last.
        for token, roles in self._tokens:
            if hmac.compare_digest(presented, token):
                found = roles
        return found if scheme.lower() == b"bearer" else None


def _host(request: Arrived) -> bytes | None:
    """The host that was asked for; L{None} if there is none, as is allowed in HTTP/1.0."""
    if request.target_host is not None:
        return request.target_host
    hosts = request.requestHeaders.getRawHeaders(b"Host", [])
    return hosts[0] if hosts else None


def _origin(request: Arrived) -> bytes:
    """The origin of pages that are served under the host that was asked for (RFC 6454, section 6.2)."""
    scheme = b"https" if request.isSecure() else b"http"
    return scheme + b"://" + (_host(request) or b"").lower()


def _is_plain_host(host: bytes) -> bool:
    match = re.fullmatch(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<name>[^:]*))(?::[0-9]*)?", host.decode("latin-1"))
    if match is None:
        return False
    if match["name"] is not None and match["name"].lower() in ("localhost", "localhost."):
        return True
    try:
        if match["six"] is not None:
            ipaddress.IPv6Address(match["six"])
        else:
            ipaddress.IPv4Address(match["name"])
    except ValueError:
        return False
    return True
