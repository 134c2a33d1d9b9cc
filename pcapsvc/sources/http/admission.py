"""
Which HTTP requests are admitted.

Any web page can make a browser send requests here, and a node often listens on loopback without a token.
Hence two rules:

  - A request with an C{Origin} header comes from a web page, and is refused. Browsers add it to each POST
    (Fetch Standard, "Origin header"); command-line clients and scripts don't.
  - Without a token, the requested host must be an address or C{localhost}. A page whose name was made to
    point here (DNS rebinding) has the same origin in the browser's eyes, but its requests still carry that
    name. No name points to a unix socket, so any host is accepted there.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from typing import Protocol

from twisted.web.http_headers import Headers

from pcapsvc.net.http_resource import HTTPProblem


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


class Admission:
    """
    Decides whether a request is admitted.

    @param token: what clients must present; L{None} admits everyone.
    """

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else token.encode()

    def check(self, request: Arrived) -> None:
        """
        Check a request.

        @raise HTTPProblem: if it is not admitted.
        """
        headers = request.requestHeaders
        if headers.hasHeader(b"Origin"):
            raise HTTPProblem(403, "Requests from web pages, which have an Origin header, are refused.")
        if self._token is None:
            hosts = headers.getRawHeaders(b"Host", [])
            requested = hosts if request.target_host is None else [request.target_host]
            if requested and not request.over_unix_socket and not _is_plain_host(requested[0]):
                raise HTTPProblem(403, "Without a token, the host must be an IP address or localhost.")
            return
        given = headers.getRawHeaders(b"Authorization", [])
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        # The comparison comes first, so that it is always made.
        if not hmac.compare_digest(token.strip(b" "), self._token) or scheme.lower() != b"bearer":
            raise HTTPProblem(401, "This node requires its token.", headers={"WWW-Authenticate": "Bearer"})


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
