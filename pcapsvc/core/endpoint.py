"""The address of an S3-compatible service, with or without its scheme."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# A host name (RFC 1123, section 2.1, plus the underscore that container networks use), or an address.
_HOST = re.compile(r"\A(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?\Z|\A[0-9A-Fa-f:.]+\Z")

_RULE = "must be HOST, HOST:PORT, or an http:// or https:// URL without a path"


class EndpointError(ValueError):
    """Not an endpoint. The message is the rule that it breaks."""


def endpoint_url(text: str) -> str:
    """
    The URL of an endpoint: C{s3.amazonaws.com} is C{https://s3.amazonaws.com}.

    @raise EndpointError: if it is anything but a host with an optional scheme and port.
    """
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise EndpointError(_RULE) from None
    bare = parts.path in ("", "/") and not (parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in ("http", "https") or not bare or not _HOST.match(host) or port == 0:
        raise EndpointError(_RULE)
    shown_host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown_host}" + ("" if port is None else f":{port}")
