"""Captures to a server of files, over SSH."""

# Conch has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.folder import folder_of
from pcapsvc.core.no_options import WithoutOptions
from pcapsvc.core.result import Receipt
from pcapsvc.core.text import one_line
from pcapsvc.destinations.sftp.hostkey import HostKey
from pcapsvc.destinations.sftp.keyfile import UnusableKey, read_key_file
from pcapsvc.destinations.sftp.ssh import MOST_RECEIVED_BYTES, Login, Session, load_key
from pcapsvc.destinations.sftp.transfer import Transfer
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.named_endpoint import NamedEndpoint
from pcapsvc.net.threaded_file import ThreadedFile

CONNECT_SECONDS = 10.0

# How much is read in one turn of the reactor. Packets that mean nothing take Conch up to 5 microseconds each,
# and are 16 bytes long at least.
_READ_BYTES = 8 * 1024


@implementer(IDestination)
class SFTP(WithoutOptions):
    """
    Writes captures to a directory of a server, each under a temporary name (C{.NAME.part}), which becomes
    C{NAME} when all of it is there. An existing file is never replaced: if it has the size of the capture, an
    earlier attempt succeeded, as names are unique.

    A server is believed only if it has one of the host keys that are configured. The daemon logs in with a
    key, and with nothing else.

    Retryable: connection errors, time-outs, and what SFTP calls a failure: a full disk, a quota. Not
    retryable: another host key, a login that is refused, a key that can't be used, a missing permission.

    Each attempt has its own connection, which is closed with it.

    @param run_in_thread: reads captures and the key, whose disk may hang.
    @param key_file: the path of the private key, which is read for each attempt.
    @param passphrase: of the key; L{None} if it has none.
    @param host_keys: those that the server may have.
    @param directory: where captures are to be; it may have placeholders (see L{pcapsvc.core.folder}). If it
        isn't there, it is made. Empty is where the login leads to.
    """

    name = "sftp"

    def __init__(
        self,
        reactor: Any,
        *,
        run_in_thread: RunInThread,
        host: str,
        port: int,
        user: str,
        key_file: str,
        host_keys: tuple[HostKey, ...],
        passphrase: str | None = None,
        directory: str = "",
    ) -> None:
        self._reactor = reactor
        self._run_in_thread = run_in_thread
        self._host = host
        self._port = port
        self._user = user
        self._key_file = key_file
        self._passphrase = passphrase
        self._host_keys = host_keys
        self._directory = directory
        shown_host = f"[{host}]" if ":" in host else host
        self._base = f"sftp://{shown_host}" if port == 22 else f"sftp://{shown_host}:{port}"

    def store(self, artifact: Artifact) -> Deferred[Receipt]:
        """See L{IDestination.store}. The receipt's location is a URL; C{~} is the directory of the login."""
        return Deferred.fromCoroutine(self._store(artifact))

    async def _store(self, artifact: Artifact) -> Receipt:
        directory = folder_of(self._directory, artifact)
        # An absolute one stays absolute.
        directory = directory.rstrip("/") or directory[:1]
        try:
            login = Login(user=self._user, key=await self._key(), host_keys=self._host_keys)
            session = await self._connect(login, artifact.content.size)
            try:
                await self._transfer(session, artifact, directory)
            except (ConnectionLost, ConnectionError) as error:
                raise session.problem or DestinationError(str(error), retryable=True) from None
            finally:
                session.end()
        except CancelledError:
            raise
        except DestinationError as error:
            raise error.at(self._base) from None
        except Exception as error:  # noqa: BLE001 - no threads, no descriptors, or what Conch raises
            words = one_line(str(error)) or type(error).__name__
            raise DestinationError(f"{self._base}: {words}", retryable=True) from None
        path = directory if directory.startswith("/") else "/".join(filter(None, ("/~", directory)))
        return Receipt(destination=self.name, location=f"{self._base}{path.rstrip('/')}/{artifact.name}")

    async def _key(self) -> Any:
        def load() -> Any:
            return load_key(read_key_file(self._key_file), self._passphrase)

        try:
            return await self._run_in_thread(load)
        except ValueError as error:
            passes = isinstance(error, UnusableKey) and error.passes
            raise DestinationError(f"the key file {self._key_file} {error}", retryable=passes) from None

    async def _connect(self, login: Login, size: int) -> Session:
        most = MOST_RECEIVED_BYTES + size // 100
        make = partial(Session, self._reactor, login, most_received_bytes=most)
        endpoint = NamedEndpoint(
            self._reactor,
            self._host,
            self._port,
            timeout_seconds=CONNECT_SECONDS,
            read_bytes=_READ_BYTES,
        )
        session: Any = await endpoint.connect(_Connections.forProtocol(make))
        assert isinstance(session, Session)
        return session

    async def _transfer(self, session: Session, artifact: Artifact, directory: str) -> None:
        try:
            client = await session.opened
            size = artifact.content.size
            transfer = Transfer(client, directory=directory, name=artifact.name, size=size)
            if artifact.may_be_there and await transfer.is_there():
                return
            file = ThreadedFile(artifact.content.open(), self._run_in_thread)
            try:
                await transfer.store(_chunks(file))
            finally:
                file.close()
        except CancelledError:
            session.abort()
            raise


class _Connections(Factory):
    """One connection, of which nothing is logged but how the attempt ends."""

    noisy = False


async def _chunks(file: ThreadedFile) -> AsyncIterator[bytes]:
    """The content of a file."""
    while chunk := await file.read():
        yield chunk
