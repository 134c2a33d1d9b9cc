"""C{[http]}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pcapsvc.core.errors import Problem, shown
from pcapsvc.settings.kinds import Line, converted
from pcapsvc.settings.listen import checked_listener, read_listener
from pcapsvc.settings.section import BuildContext, Conflict, SecretKeys, SourceSection
from pcapsvc.sources.http.tokens import Token, read_tokens

if TYPE_CHECKING:
    from pcapsvc.interfaces.requests import IRequestSink, IRequestSource
    from pcapsvc.settings.settings import Settings


class HttpSettings(SourceSection, frozen=True, kw_only=True):
    """
    Requests over HTTP.

    @ivar listen: a server endpoint string of Twisted; L{None} if HTTP is off.
    @ivar tokens: of which clients must present one, unless there is none.
    """

    name: ClassVar[str] = "http"
    table: ClassVar[str | None] = "http"
    secrets: ClassVar[tuple[SecretKeys, ...]] = (
        SecretKeys(field="tokens", key=None, file_key="tokenfile", read=read_tokens),
    )

    listen: Annotated[Line, converted(checked_listener)] | None = None
    tokens: tuple[Token, ...] = ()

    def is_enabled(self) -> bool:
        """Whether there is somewhere to listen."""
        return self.listen is not None

    def uses_twisted_tls(self) -> bool:
        """If the endpoint uses TLS."""
        return self.listen is not None and read_listener(self.listen).kind == "ssl"

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """Listening where other hosts can connect needs a token."""
        if self.listen is not None and not self.tokens and not read_listener(self.listen).local:
            yield Conflict(
                path="http.listen",
                others=("http.tokenfile",),
                value=shown(self.listen),
                rule="needs http.tokenfile, because it is neither on a loopback address nor a unix socket",
            )

    def build(self, context: BuildContext, sink: IRequestSink) -> IRequestSource:
        """
        The source.

        @raise pcapsvc.core.errors.SettingsError: if Twisted can't make an endpoint of C{listen}.
        """
        from pcapsvc.net.http_server import MAX_CONNECTIONS
        from pcapsvc.sources.http.source import HTTPSource, http_endpoint

        assert self.listen is not None
        return HTTPSource(
            context.reactor,
            http_endpoint(context.reactor, self.listen),
            sink,
            tokens=self.tokens,
            endpoint_name=self.listen,
            max_connections=min(MAX_CONNECTIONS, context.most_connections or MAX_CONNECTIONS),
            wall_clock=context.wall_clock,
        )
