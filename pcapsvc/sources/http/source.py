"""Requests over HTTP: C{POST /captures}, and C{GET /captures/ID} for the state of a capture."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

from twisted.application import service
from twisted.internet import defer
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from pcapsvc.core.errors import Problem, SettingsError, shown
from pcapsvc.core.request import MAX_BODY_BYTES
from pcapsvc.interfaces.requests import IRequestSink
from pcapsvc.net.http_server import MAX_CONNECTIONS, HTTPServer
from pcapsvc.net.listen import listening_endpoint, shown_address
from pcapsvc.sources.http.admission import Admission
from pcapsvc.sources.http.routes import Lookup, routes

#: The mode of a unix socket, if its endpoint has none: for the owner and the group.
SOCKET_MODE = "660"


def http_endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """
    The endpoint that a server endpoint string of Twisted describes. Nothing is opened. A unix socket whose
    mode isn't given gets L{SOCKET_MODE}.

    @raise SettingsError: if Twisted can't use the string.
    """
    try:
        return listening_endpoint(reactor, description, socket_mode=SOCKET_MODE)
    except Exception as problem:
        raise _unusable(description, problem) from problem


def _unusable(listen: str, problem: BaseException | None) -> SettingsError:
    rule = f"must be an endpoint that can be listened on ({str(problem) or type(problem).__name__})"
    return SettingsError([Problem(path="http.listen", value=shown(listen), rule=rule)])


class HTTPSource(service.Service):
    """
    Submits what is posted to C{/captures}.

    @ivar name: the name of the source in requests that it submits.
    @ivar listening: fires with the address listened on, or with L{None} if it can't listen; never fails.
        L{None} before the start.
    """

    name = "http"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamServerEndpoint,
        sink: IRequestSink,
        *,
        lookup: Lookup,
        token: str | None = None,
        endpoint_name: str = "the HTTP endpoint",
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """
        @param reactor: provides time.
        @param lookup: returns the state of a capture by its id, ready for JSON; L{None} if the id is unknown.
        @param token: what clients must present; L{None} admits everyone.
        @param endpoint_name: what to call the endpoint in the log.
        """
        self._endpoint = endpoint
        self._endpoint_name = endpoint_name
        self._server = HTTPServer(
            reactor,
            routes(sink, self.name, lookup),
            check=Admission(token).check,
            max_body_bytes=MAX_BODY_BYTES,
            max_connections=max_connections,
        )
        self._port: IListeningPort | None = None
        self._opening: defer.Deferred[Any] | None = None
        self.listening: defer.Deferred[IAddress | None] | None = None

    def startService(self) -> None:
        """
        Start to listen.

        @raise SettingsError: if the endpoint fails at once, so that the process ends. If it fails later, see
            L{listening}. Both are logged.
        """
        self.listening = defer.Deferred()
        self._server.open()
        problems: list[Failure] = []
        self._opening = self._endpoint.listen(self._server)
        self._opening.addCallbacks(self._opened, self._not_opened, errbackArgs=(problems,))
        if problems:
            raise _unusable(self._endpoint_name, problems[0].value) from problems[0].value
        super().startService()

    def stopService(self) -> defer.Deferred[None]:
        """
        Stop listening, and close every connection, after the answers that are being worked out. Those are
        waited for up to L{ANSWER_SECONDS<pcapsvc.net.http_server.ANSWER_SECONDS>}.

        @return: fires when all connections are closed.
        """
        super().stopService()
        return defer.Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        port, self._port = self._port, None
        if port is not None:
            await defer.maybeDeferred(port.stopListening)
        await self._server.close()

    def _opened(self, port: IListeningPort) -> None:
        self._port = port
        self._server.gate.guard(port)
        address = port.getHost()
        self._log.info("HTTP: listening on {address}", address=shown_address(address))
        assert self.listening is not None
        self.listening.callback(address)

    def _not_opened(self, why: Failure, problems: list[Failure]) -> None:
        assert self.listening is not None
        if not why.check(defer.CancelledError):
            problems.append(why)
            self._log.critical(
                "HTTP: can't listen on {endpoint}: {problem}",
                endpoint=self._endpoint_name,
                problem=why.getErrorMessage(),
            )
        self.listening.callback(None)
