"""The keys that say which queue of SQS to use, and as whom."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from urllib.parse import urlsplit

from msgspec import Meta, field

from pcapsvc.core.errors import Problem
from pcapsvc.settings.broker import BrokerSection
from pcapsvc.settings.kinds import Endpoint, Line, Region, converted
from pcapsvc.settings.rules import access_key_pair
from pcapsvc.settings.secret import Secret
from pcapsvc.settings.section import Conflict, SecretKeys

if TYPE_CHECKING:
    from pcapsvc.settings.settings import Settings


def _queue_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("must be an http:// or https:// URL with a host, and a port from 1 to 65535 if any")
    return url


class SqsQueueSection(BrokerSection, frozen=True, kw_only=True):
    """
    What a section about a queue has in common with any other: a queue of Amazon SQS, or of a service that
    speaks its protocol.

    @ivar endpoint: the service's URL; L{None} is Amazon's own.
    """

    secrets: ClassVar[tuple[SecretKeys, ...]] = (
        SecretKeys(field="access_key", key="accesskey", file_key="accesskeyfile"),
    )

    target: ClassVar[str] = "url"

    region: Region | None = None
    access_id: Line | None = field(name="accessid", default=None)
    access_key: Secret | None = field(name="accesskey", default=None)
    url: (
        Annotated[
            str,
            Meta(pattern=r"\Ahttps?://[^\s@\x00-\x1f\x7f]+\Z", description="an http:// or https:// URL"),
            converted(_queue_url),
        ]
        | None
    ) = None
    endpoint: Endpoint | None = None

    @classmethod
    def inherited(cls, own: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        What a table takes from another one about SQS: not the queue itself. The region and the endpoint are
        taken if both queues are at the same host. Credentials are taken if they are, or if both hosts are
        Amazon's.
        """
        keys: list[str] = []
        mine, others = _service(own), _service(other)
        is_same = mine == others or (
            "endpoint" not in own and _host(own.get("url")) == _host(other.get("url"))
        )
        if is_same:
            keys += ["region", "endpoint"]
        if own.keys().isdisjoint(_CREDENTIALS) and (is_same or (_is_amazon(mine) and _is_amazon(others))):
            keys += _CREDENTIALS
        return {key: other[key] for key in keys if key in other}

    def targets(self) -> Collection[object]:
        """The queue."""
        return [] if self.url is None else [("sqs", self.url)]

    def uses_twisted_tls(self) -> bool:
        """It uses Python's."""
        return False

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """Credentials are complete, and what is enabled needs a queue."""
        yield from access_key_pair(type(self), self.access_id, self.access_key)
        if self.is_enabled() and self.url is None and self.switch is not None:
            url = self.key_path("url")
            yield Conflict(path=self.key_path(self.switch), others=(url,), rule=f"needs {url}")


_CREDENTIALS = ("accessid", "accesskey", "accesskeyfile")


def _service(table: Mapping[str, Any]) -> str | None:
    """The host of the service, and its port if it has one; L{None} is Amazon's in some region."""
    return _host(table.get("endpoint")) or _host(table.get("url"))


def _host(url: Any) -> str | None:
    """That of a URL; or of an endpoint, which may be without its scheme."""
    if not isinstance(url, str) or not url:
        return None
    try:
        return urlsplit(url if "://" in url else f"https://{url}").netloc.lower() or None
    except ValueError:
        return None


def _is_amazon(host: str | None) -> bool:
    from pcapsvc.net.sqs.client import is_amazon

    return host is None or is_amazon(host)
