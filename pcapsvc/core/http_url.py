"""URLs of http and https, taken apart byte for byte: what is sent is what was given."""

from __future__ import annotations

import re
from dataclasses import dataclass, field  # noqa: TID251 - secrets are left out of its repr

from pcapsvc.core.allowed_hosts import USUAL_PORTS, BadHost, parse_host
from pcapsvc.core.public_address import Address

#: The longest URL, in characters. The manifests of the spool have no longer texts.
LONGEST_URL = 4096

# RFC 3986, appendix B.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/{}-]|%[0-9A-Fa-f]{2})*")
_QUERY = re.compile(r"[A-Za-z0-9._~!$&()*+,;=:@/?%|^\[\]-]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


class BadUrl(ValueError):
    """Not such a URL. The message is the rule that it breaks, and shows nothing of the URL."""


@dataclass(frozen=True, kw_only=True)
class HttpUrl:
    """
    The parts of a URL.

    @ivar scheme: C{https} or C{http}.
    @ivar host: a name in lower case, or an address.
    @ivar path: as it was given. It may have braces.
    @ivar query: it may be a secret; L{None} if there is none.
    """

    scheme: str
    host: str | Address
    port: int
    path: str
    query: str | None = field(repr=False)

    @property
    def authority(self) -> str:
        """The host, and the port if it is not the usual one."""
        host = f"[{self.host}]" if ":" in str(self.host) else str(self.host)
        return host if self.port == USUAL_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def base(self) -> str:
        """The URL without its path."""
        return f"{self.scheme}://{self.authority}"

    def target(self, path: str) -> str:
        """What is requested of the server: a path, and the query. It may be a secret."""
        return path if self.query is None else f"{path}?{self.query}"


def parse_http_url(text: str) -> HttpUrl:
    """
    Take a URL apart.

    @raise BadUrl: if it is not one of http or https.
    """
    found = _URL.fullmatch(text)
    if found is None or len(text) > LONGEST_URL or not _PRINTABLE.fullmatch(text):
        raise BadUrl(f"must be a URL in ASCII of up to {LONGEST_URL} characters: https://HOST/PATH")
    scheme, server, path, query, fragment = found[1].lower(), *found.group(2, 3, 4, 5)
    if scheme not in USUAL_PORTS:
        raise BadUrl("must begin with https:// (or http://)")
    if fragment is not None:
        raise BadUrl("must have no fragment (#)")
    host, port = _server(server, scheme)
    if not _PATH.fullmatch(path):
        raise BadUrl("has a character in its path that must be percent-encoded")
    if path.startswith("//"):
        raise BadUrl("must have a path that begins with one slash")
    if query is not None and not _QUERY.fullmatch(query):
        raise BadUrl("has a character in its query that must be percent-encoded")
    return HttpUrl(scheme=scheme, host=host, port=port, path=path, query=query)


def _server(server: str, scheme: str) -> tuple[str | Address, int]:
    if "@" in server:
        raise BadUrl("must have no user name or password before its host")
    host, port = server, ""
    if not server.endswith("]"):
        name, colon, digits = server.rpartition(":")
        if colon:
            host, port = name, digits
            if not (_PORT.fullmatch(port) and int(port) < 65536):
                raise BadUrl("must have a port from 1 to 65535, if any")
    try:
        return parse_host(host), int(port) if port else USUAL_PORTS[scheme]
    except BadHost as error:
        raise BadUrl(f"has a host that is not valid: it {error}") from None
