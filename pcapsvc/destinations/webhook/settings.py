"""C{[webhook]}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pcapsvc.core.compression import UNCOMPRESSED, CompressionChoice
from pcapsvc.core.errors import Problem
from pcapsvc.core.http_url import BadUrl, HttpUrl, parse_http_url
from pcapsvc.destinations.webhook.headers import Header, read_headers
from pcapsvc.settings.kinds import Compress, Flag, Verify, one_of
from pcapsvc.settings.secret import Secret, revealed
from pcapsvc.settings.section import BuildContext, Conflict, DestinationSection, SecretKeys

if TYPE_CHECKING:
    from pcapsvc.interfaces.delivery import IDestination
    from pcapsvc.settings.settings import Settings

_CAPTURE, _EVENT = "capture", "event"


def _url(secret: Secret) -> HttpUrl:
    url = parse_http_url(secret.reveal())
    if {"{", "}"} & {*url.path}:
        raise BadUrl("has a character in its path that must be percent-encoded")
    return url


class WebhookSettings(DestinationSection, frozen=True, kw_only=True):
    """
    An HTTP endpoint.

    @ivar url: a secret: whoever knows it may post.
    @ivar send: whether it gets captures, or only events about them.
    @ivar secret: what bodies are signed with; L{None} if they aren't.
    @ivar headers: what is sent with each request, beside the webhook's own.
    @ivar verify: whether the server's certificate is verified, or the path of the certificates to verify it
        with.
    @ivar compress: how captures are compressed.
    """

    name: ClassVar[str] = "webhook"
    table: ClassVar[str | None] = "webhook"
    secrets: ClassVar[tuple[SecretKeys, ...]] = (
        SecretKeys(field="url", key="url", file_key="urlfile"),
        SecretKeys(field="secret", key="secret", file_key="secretfile"),
        SecretKeys(field="headers", key=None, file_key="headersfile", read=read_headers),
    )

    upload: Flag = False
    url: Secret | None = None
    send: Annotated[str, one_of(_CAPTURE, _EVENT)] = _CAPTURE
    secret: Secret | None = None
    headers: tuple[Header, ...] = ()
    verify: Verify = True
    compress: Compress = UNCOMPRESSED

    def is_enabled(self) -> bool:
        """Whether something is posted."""
        return self.upload

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """Posting needs a URL, and it must be one."""
        if self.url is not None:
            try:
                _url(self.url)
            except BadUrl as error:
                yield Conflict(path="webhook.url", rule=str(error))
        elif self.upload:
            yield Conflict(
                path="webhook.upload",
                others=("webhook.url", "webhook.urlfile"),
                rule="needs webhook.url or webhook.urlfile",
            )

    def compression(self) -> CompressionChoice:
        """As C{compress} says. For an event, no file is needed in any form."""
        if self.send == _EVENT:
            return CompressionChoice(is_indifferent=True)
        return CompressionChoice(usual=self.compress)

    def build(self, context: BuildContext) -> IDestination:
        """The destination."""
        from pcapsvc.destinations.webhook.destination import Webhook

        assert self.url is not None
        return Webhook(
            context.reactor,
            run_in_thread=context.destination_threads(),
            url=_url(self.url),
            sends_captures=self.send == _CAPTURE,
            events=context.events,
            node=context.settings.general.node_name,
            secret=revealed(self.secret),
            headers={header.name: header.text for header in self.headers},
            verify=self.verify,
        )
