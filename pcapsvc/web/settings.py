"""The keys of C{[http]} that concern the API and the page. Where it listens is the HTTP source's to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from urllib.parse import urlsplit

from msgspec import field
from twisted.application.service import Service

from pcapsvc.interfaces.requests import http_host
from pcapsvc.settings.kinds import MIB, MOST, Line, converted, whole_number
from pcapsvc.settings.section import BuildContext, ServiceSection

if TYPE_CHECKING:
    from twisted.application.service import IService


def base_url(text: str) -> str:
    """
    The URL that the paths of an API are appended to, without a slash at its end.

    @raise ValueError: if it is not one.
    """
    rule = "must be a URL such as https://host:8443, without credentials, query or fragment"
    try:
        parts = urlsplit(text)
        is_valid = parts.port != 0
    except ValueError:
        raise ValueError(rule) from None
    if (
        not is_valid
        or parts.scheme not in ("http", "https")
        or not parts.hostname
        or "@" in parts.netloc
        or "?" in text
        or "#" in text
        or not text.isascii()
        or any(character.isspace() for character in text)
    ):
        raise ValueError(rule)
    return text.rstrip("/")


class WebSettings(ServiceSection, frozen=True, kw_only=True):
    """
    The API and the page, which are there if the HTTP source listens.

    @ivar url: where others reach the API; L{None} if they can't, or it isn't known.
    @ivar retain_bytes: how much memory captures may occupy after their end, so that they can be fetched.
    """

    name: ClassVar[str] = "web"
    table: ClassVar[str | None] = "http"

    url: Annotated[Line, converted(base_url)] | None = None
    retain_bytes: Annotated[int, whole_number(0, MOST, "a whole number of bytes,")] = field(
        name="retainsize", default=64 * MIB
    )

    def build(self, context: BuildContext, node: Any) -> IService:
        """The API of a L{pcapsvc.app.Node}; without an HTTP source, a service that does nothing."""
        if (host := http_host(node.sources.values())) is None:
            return Service()
        from pcapsvc.web.api import mount

        if self.url is not None:
            host.add_url(self.url)
        node.files.retain(self.retain_bytes)
        return mount(host.root, context, node)
