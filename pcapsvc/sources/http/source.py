"""Requests over HTTP: C{POST /captures}."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application import service
from twisted.internet import defer
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.request import MAX_BODY_BYTES
from pcapsvc.core.source_state import SourceState
from pcapsvc.interfaces.requests import IHTTPHost, IRequestSink, IRequestSource
from pcapsvc.net.connectivity import Connectivity
from pcapsvc.net.http_server import MAX_CONNECTIONS, HTTPServer
from pcapsvc.net.listen import Listener, listening_endpoint, unusable
from pcapsvc.sources.http.admission import Admission
from pcapsvc.sources.http.routes import routes
from pcapsvc.sources.http.tokens import Token

#: The mode of a unix socket, if its endpoint has none: for the owner and the group.
SOCKET_MODE = "660"

_PATH = "http.listen"


def http_endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """
    The endpoint that a server endpoint string of Twisted describes. Nothing is opened. A unix socket whose
    mode isn't given gets L{SOCKET_MODE}.

    @raise SettingsError: if Twisted can't use the string.
    """
    try:
        return listening_endpoint(reactor, description, socket_mode=SOCKET_MODE)
    except Exception as problem:
        raise unusable(_PATH, description, problem) from problem


@implementer(IRequestSource, IHTTPHost)
class HTTPSource(service.Service):
    """
    Submits what is posted to C{/captures}.

    @ivar name: the name of the source in requests that it submits.
    @ivar root: the tree of resources, to which others may be added.
    """

    name = "http"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamServerEndpoint,
        sink: IRequestSink,
        *,
        tokens: Sequence[Token] = (),
        endpoint_name: str = "the HTTP endpoint",
        max_connections: int = MAX_CONNECTIONS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """
        @param reactor: provides time.
        @param tokens: of which clients must present one; if there is none, everyone is admitted.
        @param endpoint_name: what to call the endpoint in the log.
        @param wall_clock: returns the time in seconds since the Unix epoch.
        """
        self._endpoint = endpoint
        self._connectivity = Connectivity(wall_clock)
        self._listener = Listener("HTTP", endpoint_name, _PATH)
        self.root = routes(sink, self.name)
        self._admission = Admission(tokens)
        self._server = HTTPServer(
            reactor,
            self.root,
            check=self._admission.check,
            max_body_bytes=MAX_BODY_BYTES,
            max_connections=max_connections,
        )

    @property
    def listening(self) -> defer.Deferred[IAddress | None] | None:
        """See L{Listener}."""
        return self._listener.listening

    def add_url(self, url: str) -> None:
        """Others reach this server at a URL, such as that of a proxy. Pages from there are its own."""
        self._admission.add_url(url)

    def startService(self) -> None:
        """
        Start to listen.

        @raise SettingsError: if the endpoint fails at once, so that the process ends.
        """
        self._server.open()
        self._connectivity.started()
        self._listener.open(lambda: self._endpoint.listen(self._server), self._opened)
        assert self._listener.listening is not None
        self._listener.listening.addCallback(self._tried)
        super().startService()

    def _opened(self, port: IListeningPort) -> None:
        self._server.gate.guard(port)
        self._connectivity.connected()

    def _tried(self, address: IAddress | None) -> IAddress | None:
        if self._listener.problem is not None:
            self._connectivity.failed(self._listener.problem)
        return address

    def stopService(self) -> defer.Deferred[None]:
        """
        Stop listening, and close every connection, after the answers that are being worked out. Those are
        waited for up to L{ANSWER_SECONDS<pcapsvc.net.http_server.ANSWER_SECONDS>}.

        @return: fires when all connections are closed.
        """
        super().stopService()
        self._connectivity.stopped()
        return defer.Deferred.fromCoroutine(self._stop())

    def state(self) -> SourceState:
        """Connected while it listens. See L{IRequestSource.state}."""
        return self._connectivity.state

    async def _stop(self) -> None:
        await self._listener.close()
        await self._server.close()
