"""Where servers listen: server endpoint strings of Twisted."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from twisted.internet import endpoints
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from pcapsvc.core.errors import Problem, SettingsError, shown
from pcapsvc.net.unix_socket import UnixListener

#: How many connections may wait in the kernel, if a string doesn't say. Twisted's default is 50, beyond which
#: clients wait for seconds before they try again.
BACKLOG = 512

# How many parameters without a name come before the backlog (twisted.internet.endpoints.serverFromString).
_BEFORE_BACKLOG = {"tcp": 2, "tcp6": 1, "ssl": 5, "unix": 2}


def listening_endpoint(reactor: Any, description: str, *, socket_mode: str) -> IStreamServerEndpoint:
    """
    The endpoint that a server endpoint string describes. Nothing is opened. A unix socket on which
    nobody listens is replaced: see L{UnixListener}.

    @param socket_mode: the octal mode of a unix socket, if the string has none; Twisted's default is 666.

    @raise Exception: if Twisted can't use the string.
    """
    kind, *parameters = re.split(r"(?<!\\):", description)
    positional = [part for part in parameters if not re.search(r"(?<!\\)=", part)]
    if kind == "unix":
        reactor = UnixListener(reactor)
        if not any(part.startswith("mode=") for part in parameters) and len(positional) < 2:
            description += f":mode={socket_mode}"
    has_backlog = any(part.startswith("backlog=") for part in parameters)
    if not has_backlog and len(positional) <= _BEFORE_BACKLOG.get(kind, -1):
        description += f":backlog={BACKLOG}"
    endpoint: IStreamServerEndpoint = endpoints.serverFromString(reactor, description)
    return endpoint


def shown_address(address: IAddress) -> str:
    """An address that is listened on, for the log."""
    match address:
        case IPv6Address():
            return f"[{address.host}]:{address.port}"
        case IPv4Address():
            return f"{address.host}:{address.port}"
        case UNIXAddress():
            return os.fsdecode(address.name or b"")
        case _:
            return str(address)


class Listener:
    """
    Listens on an endpoint, for a service.

    @param name: what the log calls the server: C{HTTP}.
    @param endpoint: what the log and problems call the endpoint.
    @param path: the key of the configuration that names it.

    @ivar listening: fires with the address listened on, or with L{None} if it can't listen; never fails.
        L{None} before L{open}.
    @ivar problem: why it can't listen, in words; L{None} if it can, or that isn't known yet.
    """

    _log = Logger()

    def __init__(self, name: str, endpoint: str, path: str) -> None:
        self._name = name
        self._endpoint = endpoint
        self._path = path
        self._port: IListeningPort | None = None
        self._opening: Deferred[Any] | None = None
        self.listening: Deferred[IAddress | None] | None = None
        self.problem: str | None = None

    def open(
        self, listen: Callable[[], Deferred[IListeningPort]], opened: Callable[[IListeningPort], object]
    ) -> None:
        """
        Start to listen.

        @param listen: starts it.
        @param opened: is called with the port.

        @raise SettingsError: if that fails at once, so that the process ends. If it fails later, see
            L{listening}. Both are logged.
        """
        self.listening, self.problem = Deferred(), None
        problems: list[Failure] = []
        self._opening = maybeDeferred(listen)
        self._opening.addCallbacks(
            self._opened, self._not_opened, callbackArgs=(opened,), errbackArgs=(problems,)
        )
        if problems:
            raise unusable(self._path, self._endpoint, problems[0].value) from problems[0].value

    async def close(self) -> None:
        """Stop listening. Connections stay."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)

    def _opened(self, port: IListeningPort, opened: Callable[[IListeningPort], object]) -> None:
        self._port = port
        opened(port)
        address = port.getHost()
        self._log.info("{name}: listening on {address}", name=self._name, address=shown_address(address))
        assert self.listening is not None
        self.listening.callback(address)

    def _not_opened(self, why: Failure, problems: list[Failure]) -> None:
        assert self.listening is not None
        if not why.check(CancelledError):
            problems.append(why)
            self.problem = f"can't listen on {self._endpoint}: {why.getErrorMessage()}"
            self._log.critical(
                "{name}: can't listen on {endpoint}: {problem}",
                name=self._name,
                endpoint=self._endpoint,
                problem=why.getErrorMessage(),
            )
        self.listening.callback(None)


def unusable(path: str, endpoint: str, problem: BaseException | None) -> SettingsError:
    """The error that an endpoint can't be listened on."""
    rule = f"must be an endpoint that can be listened on ({str(problem) or type(problem).__name__})"
    if isinstance(problem, OSError) and problem.filename is not None:
        # Another file, such as /dev/null, which Twisted opens as a reserve.
        rule = f"can't be listened on, as something else is missing: {problem.filename}: {problem.strerror}"
    return SettingsError([Problem(path=path, value=shown(endpoint), rule=rule)])
