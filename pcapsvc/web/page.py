"""
The web page at C{/}: one file each of HTML, CSS and JavaScript, from C{static/}.

The page is public. It contains nothing about this node: what it shows, it fetches from the API, with the
token that it has asked for. It runs no script but its own, and nobody can frame it.
"""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.web.resource import Resource as TwistedResource

from pcapsvc.core.byte_range import matches
from pcapsvc.net.http_resource import Answer, Resource

#: By path below C{/}: the name of the file, and its media type.
FILES: Mapping[str, tuple[str, str]] = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}

#: What the page may do (Content Security Policy Level 3, and Trusted Types): load its own files, and talk to
#: this API. Text can't become HTML or a script.
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept by the browser, which asks each time whether it has changed: after an update nobody has to reload.
    "Cache-Control": "no-cache",
}


def add_page(root: TwistedResource) -> None:
    """
    Add the page to a tree. Its files are read now, and kept.

    @param root: the resource at C{/}.
    """
    folder = Path(__file__).with_name("static")
    for path, (name, media_type) in FILES.items():
        root.putChild(path.encode("ascii"), Document((folder / name).read_bytes(), media_type))


class Document(Resource):
    """A file that doesn't change while the process runs."""

    allowedMethods = (b"GET", b"HEAD")
    is_public = True

    def __init__(self, content: bytes, media_type: str) -> None:
        super().__init__()
        self._content = content
        self._media_type = media_type
        self._tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    def render_GET(self, request: Any) -> Answer:
        """See L{Resource}. The answer is 304 if the client has this version already."""
        headers = {**_HEADERS, "ETag": self._tag}
        known = ",".join(request.requestHeaders.getRawHeaders("If-None-Match", []))
        # Compared weakly (RFC 9110, section 13.1.2): a proxy that compresses makes the tag weak.
        if matches(known, self._tag):
            # Content-Length is that of the content, which is not sent (RFC 9110, section 15.4.5).
            headers["Content-Length"] = str(len(self._content))
            return Answer(status=304, media_type=self._media_type, body=b"", headers=headers)
        return Answer(media_type=self._media_type, body=self._content, headers=headers)
