"""Logins by key: attempts, and who is let in."""

# Conch has hardly any types.
# mypy: disallow-untyped-calls=False
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable
from typing import Any

from twisted.conch.error import ConchError, ValidPublicKey
from twisted.conch.ssh.common import getNS
from twisted.conch.ssh.keys import Key
from twisted.conch.ssh.transport import DISCONNECT_NO_MORE_AUTH_METHODS_AVAILABLE, DISCONNECT_PROTOCOL_ERROR
from twisted.conch.ssh.userauth import SSHUserAuthServer
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import ISSHPrivateKey
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.host.manhole.keys import KEY_TYPES, AuthorizedKey, AuthorizedKeys
from pcapsvc.threads import NotRunning

#: How often a client may try; a key that is merely offered counts.
MAX_LOGIN_ATTEMPTS = 12

# SHA-1 is not for signatures any longer (RFC 8332, section 1).
WEAK_SIGNATURES = (b"ssh-rsa", b"ssh-dss")
#: The signatures by which clients may log in.
SIGNATURES = (
    *(each.encode() for each in KEY_TYPES if each != "ssh-rsa"),
    b"rsa-sha2-512",
    b"rsa-sha2-256",
)


@implementer(ILogObserver)
def _observer(event: LogEvent) -> None:
    """
    Pass on what goes wrong on this side. Conch logs each step of each connection, partly in words of the
    client's, and what it refuses as an error.
    """
    failure = event.get("log_failure")
    if failure is not None and not failure.check(ConchError):
        globalLogPublisher(event)


class Quiet:
    """A part of Conch's that does not fill the log."""

    _log = Logger(namespace="pcapsvc.host.manhole.conch", observer=_observer)


class UserAuth(Quiet, SSHUserAuthServer):
    """Logins, one attempt at a time. Each counts, also one that only asks what there is."""

    transport: Any
    _attempts = 0
    _is_trying = False

    def serviceStarted(self) -> None:
        self.clock = self.transport.factory.reactor
        super().serviceStarted()

    def ssh_USERAUTH_REQUEST(self, packet: bytes) -> Any:
        self._attempts += 1
        if self._attempts > MAX_LOGIN_ATTEMPTS:
            self.transport.why_refused = "tried too often to log in"
            self.transport.sendDisconnect(DISCONNECT_NO_MORE_AUTH_METHODS_AVAILABLE, b"too many attempts")
            return None
        if self._is_trying:
            self.transport.sendDisconnect(DISCONNECT_PROTOCOL_ERROR, b"one attempt at a time, please")
            return None
        self._is_trying = True

        def done(result: Any) -> Any:
            self._is_trying = False
            return result

        trying = super().ssh_USERAUTH_REQUEST(packet)
        return trying if trying is None else trying.addBoth(done)

    def auth_publickey(self, packet: bytes) -> Any:
        _, blob, _ = getNS(packet[1:], 2)

        def refused(why: Failure) -> Failure:
            if why.check(UnauthorizedLogin):
                digest = b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
                self.transport.why_refused = f"did not log in; its key SHA256:{digest} is not accepted"
            return why

        return super().auth_publickey(packet).addErrback(refused)


@implementer(ICredentialsChecker)
class KeyChecker:
    """
    Knows who may log in. The file is read for each attempt: a key that was removed from it
    is gone.

    @param read_keys: reads the file, in a thread.
    """

    _log = Logger()
    credentialInterfaces = (ISSHPrivateKey,)

    def __init__(self, read_keys: Callable[[], Deferred[AuthorizedKeys]]) -> None:
        self._read_keys = read_keys
        self._problems: tuple[str, ...] = ()

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        """See L{ICredentialsChecker}. The id is an L{AuthorizedKey}."""
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: Any) -> AuthorizedKey:
        try:
            found = await self._read_keys()
        except NotRunning:
            raise UnauthorizedLogin("stopping") from None
        except ValueError as error:
            self._log.error("manhole: nobody can log in: authorizedkeys {problem}", problem=str(error))
            raise UnauthorizedLogin("no keys") from None
        if found.problems != self._problems:
            self._problems = found.problems
            for problem in found.problems[:10]:
                self._log.warn("manhole: authorizedkeys: {problem}; it is skipped", problem=problem)
        key = found.keys.get(credentials.blob)
        if key is None:
            raise UnauthorizedLogin("not an authorized key")
        if not credentials.signature:
            raise ValidPublicKey
        if not _is_signed(credentials):
            raise UnauthorizedLogin("the signature is wrong")
        return key


def _is_signed(credentials: Any) -> bool:
    try:
        if getNS(credentials.signature)[0] in WEAK_SIGNATURES:
            return False
        return bool(Key.fromString(credentials.blob).verify(credentials.signature, credentials.sigData))
    except Exception:  # noqa: BLE001 - a stranger's signature: what is broken is wrong
        return False
