"""Listens for the manhole, as a part of the daemon."""

# Conch has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger

from pcapsvc.core.errors import Problem, SettingsError, shown
from pcapsvc.core.mask import Mask
from pcapsvc.host.manhole.keys import AuthorizedKeys, fingerprint, load_host_key, read_authorized_keys
from pcapsvc.host.manhole.session import Sessions
from pcapsvc.host.manhole.ssh import Factory
from pcapsvc.host.manhole.time_limit import TimeLimit
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.listen import Listener, listening_endpoint

#: The mode of a unix socket whose endpoint says none: for the owner and the group.
SOCKET_MODE = "660"


class ManholeService(Service):
    """
    The manhole.

    @param listen: a server endpoint string of Twisted.
    @param authorized_keys: the path of the keys that may log in.
    @param host_key: the path of the host's own key.
    @param namespace: makes the names of a new console.
    @param mask: takes secrets out of a text.
    """

    name = "manhole"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        listen: str,
        authorized_keys: str,
        host_key: str,
        namespace: Callable[[], dict[str, Any]],
        mask: Mask,
        run_in_thread: RunInThread,
        limit: TimeLimit | None = None,
    ) -> None:
        self._reactor = reactor
        self._listen = listen
        self._authorized_keys = authorized_keys
        self._host_key = host_key
        self._run_in_thread = run_in_thread
        self._limit = limit or TimeLimit()
        self._sessions = Sessions(reactor, namespace=namespace, mask=mask, limit=self._limit)
        self._factory: Factory | None = None
        self._listener = Listener("manhole", listen, "manhole.listen")

    @property
    def listening(self) -> Deferred[IAddress | None] | None:
        """See L{Listener}."""
        return self._listener.listening

    def startService(self) -> None:
        """
        Begin to listen. If there is no host key yet, it is created.

        @raise SettingsError: if there is no host key, or the endpoint says at once that it can't
            be listened on, so that the process ends.
        """
        try:
            key, created = load_host_key(self._host_key)
        except ValueError as error:
            problem = Problem(path="manhole.hostkey", value=shown(self._host_key), rule=str(error))
            raise SettingsError([problem]) from None
        self._log.info(
            "manhole: the host key is {fingerprint}{created}",
            fingerprint=fingerprint(key),
            created=", which is new" if created else "",
        )
        self._factory = Factory(self._reactor, key, self._read_keys, self._sessions)
        factory = self._factory
        self._listener.open(lambda: self._begin_to_listen(factory), factory.gate.guard)
        self._limit.install()
        super().startService()

    def stopService(self) -> Deferred[None]:
        """
        Listen no more, and close all sessions at once.

        @return: fires when that is done; clients are not waited for.
        """
        super().stopService()
        self._limit.uninstall()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self._listener.close()
        if self._factory is not None:
            await self._factory.close()

    def _begin_to_listen(self, factory: Factory) -> Deferred[IListeningPort]:
        endpoint = listening_endpoint(self._reactor, self._listen, socket_mode=SOCKET_MODE)
        return endpoint.listen(factory)

    def _read_keys(self) -> Deferred[AuthorizedKeys]:
        return self._run_in_thread(read_authorized_keys, self._authorized_keys)
