"""
The SSH side, on Twisted Conch: a connection to a server whose key is known, a login by key, and a channel for
SFTP. Nothing else is offered: no password, no agent, no compression, no forwarding.

What a server may send, and how long it may take, is bounded.
"""

# Conch has hardly any types.
# mypy: disallow-untyped-calls=False
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.conch.ssh.channel import SSHChannel
from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.connection import SSHConnection
from twisted.conch.ssh.filetransfer import (
    FX_OK,
    FXP_ATTRS,
    FXP_FSTAT,
    FXP_HANDLE,
    FXP_LSTAT,
    FXP_OPEN,
    FXP_STAT,
    FXP_STATUS,
    FXP_VERSION,
    FileTransferClient,
    SFTPError,
)
from twisted.conch.ssh.keys import Key
from twisted.conch.ssh.transport import DISCONNECT_KEY_EXCHANGE_FAILED, SSHClientTransport
from twisted.conch.ssh.userauth import MSG_USERAUTH_REQUEST, SSHUserAuthClient
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import ILogObserver, LogEvent, Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.errors import DestinationError
from pcapsvc.core.text import one_line
from pcapsvc.destinations.sftp.hostkey import SIGNATURES, HostKey, fingerprint, kind_of

#: How long it may take until files can be transferred, from the beginning of the connection, in seconds.
LOGIN_SECONDS = 30.0
#: How long a request may go without an answer of any kind, in seconds.
SILENCE_SECONDS = 60.0
#: How long a connection that we end may linger, in seconds.
CLOSE_SECONDS = 5.0
#: What the server may send in all, in bytes, in addition to a hundredth of what it receives.
MOST_RECEIVED_BYTES = 1024 * 1024
# The longest line before the server says its version, and of that (RFC 4253, section 4.2: 255).
_LONGEST_LINE_BYTES = 4096
# The longest packet of a server (RFC 4253, section 6.1), and the longest answer about files: none is read.
# Conch needs time that grows with the square of the length: a megabyte of empty extensions took it 23 s.
_LONGEST_PACKET_BYTES = 35_000
_LONGEST_ANSWER_BYTES = 8 * 1024
# The smallest packets that a server may insist on. With less, each write would be a hundred of them.
_LEAST_PACKET_BYTES = 4096

# Those of Conch's that need no SHA-1, and no prime of the server's.
_KEY_EXCHANGES = [
    b"curve25519-sha256",
    b"curve25519-sha256@libssh.org",
    b"ecdh-sha2-nistp256",
    b"ecdh-sha2-nistp384",
    b"ecdh-sha2-nistp521",
]
_CIPHERS = [b"aes256-ctr", b"aes192-ctr", b"aes128-ctr"]
_MACS = [b"hmac-sha2-512", b"hmac-sha2-256"]


# What requests are answered with, if it isn't a status alone.
_EXPECTED = {FXP_OPEN: FXP_HANDLE, FXP_STAT: FXP_ATTRS, FXP_LSTAT: FXP_ATTRS, FXP_FSTAT: FXP_ATTRS}
_OK = struct.pack("!L", FX_OK)


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """
    Whom to talk to, and who we are.

    @ivar user: the name of the user there.
    @ivar key: the private L{Key}. It is in no error and no log.
    @ivar host_keys: those that the server may have.
    """

    user: str
    key: Any
    host_keys: tuple[HostKey, ...]

    def __repr__(self) -> str:
        return f"<Login of {self.user}>"

    @property
    def fingerprint(self) -> str:
        """That of our own key."""
        return fingerprint(self.key.public().blob())


@implementer(ILogObserver)
def _silent(event: LogEvent) -> None:
    """What matters of it becomes the error of the attempt."""


class Quiet:
    """A part of Conch's that does not log each step, partly in words of the server's."""

    _log = Logger(namespace="pcapsvc.destinations.sftp.conch", observer=_silent)


class Client(Quiet, FileTransferClient):
    """
    Requests for files.

    @ivar extensions: what the server supports in addition, by name.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self.extensions: dict[bytes, bytes] = {}
        # The kinds of answers to requests, but for errors, by the numbers of the requests.
        self._expected: dict[int, int] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether there are requests without an answer."""
        return bool(self.openRequests)

    def dataReceived(self, data: bytes) -> None:
        # Conch's leaves a request without an answer if that is malformed.
        received, at = self.buf + data, 0
        while at + 4 <= len(received):
            (length,) = struct.unpack_from("!L", received, at)
            if length > _LONGEST_ANSWER_BYTES:
                self._session.fail("sends an answer that is too long", retryable=True)
                return
            if at + 4 + length > len(received):
                break
            packet = received[at + 4 : at + 4 + length]
            at += 4 + length
            try:
                self._take(packet[0], packet[1:])
            except Exception:  # noqa: BLE001 - of whatever kind
                self._session.fail("sent a malformed answer", retryable=True)
                return
        self.buf = received[at:]

    def _take(self, kind: int, data: bytes) -> None:
        if kind == FXP_VERSION:
            self.packet_VERSION(data)
            return
        (request,) = struct.unpack_from("!L", data)
        expected, waiting = self._expected.pop(request), self.openRequests[request]
        try:
            self._answer(kind, expected, data)
        finally:
            if not waiting.called:
                # Conch has forgotten it. The loss of the connection must end it.
                self.openRequests[request] = waiting

    def _answer(self, kind: int, expected: int, data: bytes) -> None:
        if kind == FXP_STATUS and (expected == FXP_STATUS or data[4:8] != _OK):
            self.packet_STATUS(data)
        elif kind == expected == FXP_HANDLE:
            self.packet_HANDLE(data)
        elif kind == expected == FXP_ATTRS:
            self.packet_ATTRS(data)
        else:
            raise ValueError("an answer to something else")

    def _sendRequest(self, msg: int, data: bytes) -> Any:
        self._expected[self.counter] = _EXPECTED.get(msg, FXP_STATUS)
        return super()._sendRequest(msg, data)

    def gotServerVersion(self, version: int, extensions: dict[bytes, bytes]) -> None:
        self.extensions = extensions
        self._session.is_ready(self)

    def packet_STATUS(self, data: bytes) -> None:
        # Conch's leaves the request without an answer if the words aren't ASCII.
        request, data = self._parseRequest(data)
        (code,) = struct.unpack("!L", data[:4])
        words = getNS(data[4:])[0] if len(data) >= 8 else b""
        if code == FX_OK:
            request.callback(None)
        else:
            request.errback(SFTPError(code, words.decode("utf-8", "replace")))


class _Channel(Quiet, SSHChannel):
    """The channel with the subsystem for files."""

    name = b"session"
    conn: Any

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._client = Client(session)

    def channelOpen(self, specificData: bytes) -> None:
        if self.remoteMaxPacket < _LEAST_PACKET_BYTES:
            self._session.fail(f"accepts packets of up to {self.remoteMaxPacket} bytes only", retryable=False)
            return
        asked = self.conn.sendRequest(self, b"subsystem", NS(b"sftp"), wantReply=1)
        asked.addCallbacks(self._begin, self._refused)

    def _begin(self, _: object) -> None:
        self._client.makeConnection(self)

    def _refused(self, _: Failure) -> None:
        self._session.fail("does not offer SFTP to this user", retryable=False)

    def openFailed(self, reason: Any) -> None:
        self._session.fail("refused to open a channel", retryable=True)

    def dataReceived(self, data: bytes) -> None:
        self._client.dataReceived(data)

    def extReceived(self, dataType: int, data: bytes) -> None:
        """What the server's program says on its standard error."""

    def eofReceived(self) -> None:
        self._session.fail("closed the channel for files", retryable=True)

    def closed(self) -> None:
        self._session.fail("closed the channel for files", retryable=True)
        if self._client.connected:
            self._client.connectionLost(Failure(ConnectionError("the channel was closed")))


class _Connection(Quiet, SSHConnection):
    """What comes after the login."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def serviceStarted(self) -> None:
        super().serviceStarted()
        self.openChannel(_Channel(self._session))


class _UserAuth(Quiet, SSHUserAuthClient):
    """A login with one key. Nothing else is tried."""

    transport: Any

    def __init__(self, login: Login, session: Session) -> None:
        super().__init__(login.user.encode(), _Connection(session))
        self._login = login
        self._session = session

    def serviceStarted(self) -> None:
        public = self._login.key.public()
        algorithms = SIGNATURES[public.sshType().decode()]
        known = self.transport.peerExtensions.get(b"server-sig-algs", b"").split(b",")
        algorithm = next((each for each in algorithms if each in known), algorithms[0])
        about = b"\x01" + NS(algorithm) + NS(public.blob())
        asked = NS(self.user) + NS(self.instance.name) + NS(b"publickey") + about
        signed = NS(self.transport.sessionID) + bytes((MSG_USERAUTH_REQUEST,)) + asked
        self.askForAuth(b"publickey", about + NS(self._login.key.sign(signed, signatureType=algorithm)))

    def ssh_USERAUTH_FAILURE(self, packet: bytes) -> None:
        _, partial = getNS(packet)
        who = f"{one_line(self._login.user, most=100)} with the key {self._login.fingerprint}"
        if partial[:1] == b"\x01":
            self._session.fail(f"wants more than a key from {who}", retryable=False)
        else:
            self._session.fail(f"refused the login of {who}", retryable=False)

    def ssh_USERAUTH_PK_OK(self, packet: bytes) -> None:
        self._session.fail("sent a malformed packet", retryable=True)

    def ssh_USERAUTH_BANNER(self, packet: bytes) -> None:
        """Nobody reads it here."""


class Session(Quiet, SSHClientTransport):
    """
    One connection.

    @ivar opened: fires with a L{Client}; fails with L{DestinationError}.
    @ivar problem: why the connection is of no use; L{None} as long as it is.
    """

    ourVersionString = b"SSH-2.0-pcapsvc"
    supportedKeyExchanges: list[bytes] = _KEY_EXCHANGES
    supportedCiphers = _CIPHERS
    supportedMACs = _MACS
    supportedCompressions: list[bytes] = [b"none"]  # noqa: RUF012 - as Conch has it
    transport: Any

    def __init__(self, reactor: Any, login: Login, *, most_received_bytes: int) -> None:
        self._reactor = reactor
        self._login = login
        self._left_bytes = most_received_bytes
        # What has arrived before the server's version.
        self._early = b""
        kinds = dict.fromkeys(key.kind for key in login.host_keys)
        self.supportedPublicKeys = [each for kind in kinds for each in SIGNATURES[kind]]
        self._is_logging_in = False
        self._is_verified = False
        self._is_ending = False
        self._client: Client | None = None
        self._timer: IDelayedCall | None = None
        self.problem: DestinationError | None = None
        self.opened: Deferred[Client] = Deferred(lambda _: self.abort())

    def __repr__(self) -> str:
        return "<Session>"

    def connectionMade(self) -> None:
        self._arm(LOGIN_SECONDS)
        super().connectionMade()

    def fail(self, words: str, *, retryable: bool) -> None:
        """
        The connection is of no use. The first problem counts.

        @param words: go on from "the server".
        """
        if self.problem is None and not self._is_ending:
            self.problem = DestinationError(f"the server {words}", retryable=retryable)
        self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        self._is_ending = True
        if self.transport is not None:
            self.transport.abortConnection()

    def end(self) -> None:
        """Close the connection in order, if the server lets us."""
        if self._is_ending:
            return
        self._is_ending = True
        self._arm(CLOSE_SECONDS)
        self.loseConnection()

    def is_ready(self, client: Client) -> None:
        """Files can be transferred."""
        if not self.opened.called:
            self._client = client
            self._arm(SILENCE_SECONDS)
            self.opened.callback(client)

    def dataReceived(self, data: bytes) -> None:
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self.fail("sends too much", retryable=True)
            return
        if self._client is not None and not self._is_ending:
            self._arm(SILENCE_SECONDS)
        if not self.gotVersion:
            data, self._early = self._early + data, b""
            data = self._without_greeting(data)
        try:
            if data:
                super().dataReceived(data)
        except Exception as error:  # noqa: BLE001 - of whatever kind: the packet was malformed
            self.fail(f"sent a malformed packet ({type(error).__name__})", retryable=True)

    def dispatchMessage(self, messageNum: int, payload: bytes) -> None:
        if len(payload) > _LONGEST_PACKET_BYTES:
            self.fail("sends a packet that is too long", retryable=True)
        else:
            super().dispatchMessage(messageNum, payload)

    def _without_greeting(self, data: bytes) -> bytes:
        """
        The line with the server's version, and what follows it; empty as long as it has not arrived. Conch
        takes lines before it for packets, unless all of it arrives at once.
        """
        version = data if data.startswith(b"SSH-") else data[len(data.partition(b"\nSSH-")[0]) + 1 :]
        if b"\n" in version:
            return version
        # The line that has begun.
        self._early = data.rpartition(b"\n")[2]
        if len(self._early) > _LONGEST_LINE_BYTES:
            self.fail("does not speak the protocol as expected", retryable=True)
        return b""

    def _arm(self, seconds: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.reset(seconds)
        else:
            self._timer = self._reactor.callLater(seconds, self._time_is_up)

    def _time_is_up(self) -> None:
        if self._is_ending:
            self.abort()
        elif self._client is None:
            self.fail(f"has not completed the login within {LOGIN_SECONDS:g} s", retryable=True)
        elif self._client.is_waiting:
            self.fail(f"has not answered for {SILENCE_SECONDS:g} s", retryable=True)
        else:
            # It is our own disk that is slow.
            self._arm(SILENCE_SECONDS)

    def verifyHostKey(self, hostKey: bytes, fingerprint: bytes) -> Deferred[Any]:
        if hostKey in [key.blob for key in self._login.host_keys]:
            self._is_verified = True
            return succeed(True)
        self.fail(_other_key(hostKey, self._login.host_keys), retryable=False)
        return fail(ValueError("another key"))

    def connectionSecure(self) -> None:
        # Also whenever keys are exchanged again.
        if not self._is_logging_in:
            self._is_logging_in = True
            self.requestService(_UserAuth(self._login, self))

    def sendDisconnect(self, reason: int, desc: bytes) -> None:
        if not self._is_ending:
            if reason == DISCONNECT_KEY_EXCHANGE_FAILED and not self._is_verified:
                kinds = ", ".join(dict.fromkeys(key.kind for key in self._login.host_keys))
                words = f"has no host key of a kind that is configured ({kinds})"
                self.fail(f"{words}, or no algorithm in common", retryable=False)
            else:
                self.fail("does not speak the protocol as expected", retryable=True)
            return
        super().sendDisconnect(reason, desc)

    def receiveError(self, reasonCode: int, description: bytes) -> None:
        words = one_line(description.decode("utf-8", "replace"), most=200)
        self.fail(f"has disconnected: {words}", retryable=True)

    def connectionLost(self, reason: Any = None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self.problem is None:
            words = one_line(str(getattr(reason, "value", "")), most=200)
            self.problem = DestinationError(f"the server has closed the connection: {words}", retryable=True)
        self._is_ending = True
        super().connectionLost(reason)
        if not self.opened.called:
            self.opened.errback(self.problem)


def _other_key(blob: bytes, expected: Sequence[HostKey]) -> str:
    shown = f"{kind_of(blob) or 'a key of an unknown type'} {fingerprint(blob)}"
    return f"has another host key than is configured: {shown}, and not {', or '.join(map(str, expected))}"


def load_key(content: bytes, passphrase: str | None) -> Any:
    """
    The private L{Key} in a file's content. Takes a while if there is a passphrase.

    @raise ValueError: if there is none that can be used. The message is a rule, without anything of the key.
    """
    try:
        key = Key.fromString(content, passphrase=None if passphrase is None else passphrase.encode())
        is_private, kind, size = not key.isPublic(), key.sshType().decode(), key.size()
    except Exception:  # noqa: BLE001 - Conch and cryptography raise many things, and none of it may be shown
        hint = " with the passphrase of sftp.passphrasefile" if passphrase is not None else ""
        raise ValueError(f"must be a private key that can be read{hint}") from None
    if not is_private:
        raise ValueError("must be a private key, and it is a public one")
    if kind not in SIGNATURES or (kind == "ssh-rsa" and size < 2048):
        raise ValueError("must be a stronger key: Ed25519, ECDSA, or RSA of 2048 bits or more")
    return key
