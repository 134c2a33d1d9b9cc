"""
The SSH side, on Twisted Conch: connections, logins by key, and channels.

Nothing but a session channel with a shell or a command is offered: no passwords, no forwarding, no
subsystems, no compression. Connections, channels, attempts to log in, what is read before the login
and what a client leaves unread are all bounded.
"""

# Conch has hardly any types.
# mypy: disallow-untyped-calls=False
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

from twisted.conch.avatar import ConchUser
from twisted.conch.error import ConchError
from twisted.conch.interfaces import IConchUser
from twisted.conch.ssh.connection import OPEN_RESOURCE_SHORTAGE, SSHConnection
from twisted.conch.ssh.factory import SSHFactory
from twisted.conch.ssh.transport import (
    SSHServerTransport,
)
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.line_limit import LineLimit
from pcapsvc.host.manhole.keys import AuthorizedKey, AuthorizedKeys
from pcapsvc.host.manhole.login import SIGNATURES, WEAK_SIGNATURES, KeyChecker, Quiet, UserAuth
from pcapsvc.host.manhole.session import Channel, Sessions
from pcapsvc.net.gate import Gate
from pcapsvc.net.turns import Turns

#: Connections at once that have logged in, and those that have not.
MAX_CONNECTIONS = 8
MAX_UNAUTHENTICATED = 8

#: Channels of one connection, each of which has one console at most.
MAX_CHANNELS = 4

#: How long a client has to log in.
LOGIN_SECONDS = 20

#: The pause between pieces of work for clients that have not logged in, in seconds. A login has about ten of
#: them, and exchanging keys takes some milliseconds.
STRANGER_PAUSE_SECONDS = 0.02

#: What a client may send before it has logged in, in bytes.
MAX_BYTES_BEFORE_LOGIN = 256 * 1024

# The longest packet before that (RFC 4253, section 6.1). Conch needs time that grows with the square of the
# length: 256 KiB of empty extensions took it 0.5 s.
_LONGEST_STRANGERS_PACKET_BYTES = 35_000

#: What a client may leave unread, in bytes. Beyond it, it is disconnected.
MAX_UNREAD_BYTES = 1024 * 1024

# OpenSSH's choice since 9.9 first; none with SHA-1, and none that needs a file of primes.
_KEY_EXCHANGES = (
    b"mlkem768x25519-sha256",
    b"curve25519-sha256",
    b"curve25519-sha256@libssh.org",
    b"ecdh-sha2-nistp256",
    b"ecdh-sha2-nistp384",
    b"ecdh-sha2-nistp521",
)
_CIPHERS = (b"aes256-ctr", b"aes192-ctr", b"aes128-ctr")
_MACS = (b"hmac-sha2-512", b"hmac-sha2-256")
_REFUSED_PER_SECOND = 2

_CREDENTIALS = struct.Struct("iII")


@implementer(IPushProducer)
class _Transport(Quiet, SSHServerTransport):
    """One connection."""

    version = b"pcapsvc"
    ourVersionString = b"SSH-2.0-pcapsvc"

    transport: Any
    factory: Any
    peer = "?"
    key: AuthorizedKey | None = None
    why_refused = "did not log in"
    _received = 0
    _is_paused = False
    _time_is_up: IDelayedCall | None = None
    _unread = 0

    def connectionMade(self) -> None:
        self.peer = _shown_peer(self.transport)
        self.transport.registerProducer(self, True)
        self._time_is_up = self.factory.reactor.callLater(LOGIN_SECONDS, self._not_in_time)
        super().connectionMade()

    def _not_in_time(self) -> None:
        self.why_refused = f"did not log in within {LOGIN_SECONDS} s"
        self.transport.abortConnection()

    def logged_in(self, key: AuthorizedKey) -> None:
        """Remember by whose key this connection is. If too many have logged in, close it."""
        if not self.factory.has_room():
            self.why_refused = f"logged in while {MAX_CONNECTIONS} others were"
            self.transport.abortConnection()
            return
        self.key = key
        self.transport.welcome()
        self._forget_time()

    def _forget_time(self) -> None:
        if self._time_is_up is not None and self._time_is_up.active():
            self._time_is_up.cancel()

    def dataReceived(self, data: bytes) -> None:
        if self.key is None:
            self._received += len(data)
            if self._received > MAX_BYTES_BEFORE_LOGIN:
                self.why_refused = "sent too much before it logged in"
                self.transport.abortConnection()
                return
        try:
            super().dataReceived(data)
        except Exception as error:  # noqa: BLE001 - of whatever kind: the packet was malformed
            if self.key is None:
                self.why_refused = f"sent a malformed packet ({type(error).__name__})"
            else:
                self.factory.log.failure("manhole: a packet from {peer} was not understood", peer=self.peer)
            self.transport.abortConnection()

    def dispatchMessage(self, messageNum: int, payload: bytes) -> None:
        if self.key is None and len(payload) > _LONGEST_STRANGERS_PACKET_BYTES:
            self.why_refused = "sent a packet that was too long before it logged in"
            self.transport.abortConnection()
        else:
            super().dispatchMessage(messageNum, payload)

    def sendPacket(self, messageType: int, payload: bytes) -> None:
        super().sendPacket(messageType, payload)
        if self._is_paused:
            self._unread += len(payload)
            self.check_unread(0)

    def check_unread(self, waiting: int) -> None:
        """
        Disconnect a client that doesn't read.

        @param waiting: how much waits in a channel, in bytes.
        """
        if waiting + self._unread > MAX_UNREAD_BYTES and self.connected:
            self.factory.log.warn("manhole: {peer} does not read; disconnected", peer=self.peer)
            self.connected = 0
            self.transport.abortConnection()

    def sendExtInfo(self, extensions: Any) -> None:
        # Conch says here what the host key can sign with. It is to be what clients may sign with
        # (RFC 8308, section 3.1): with less, OpenSSH offers no RSA key.
        super().sendExtInfo([(b"server-sig-algs", b",".join(SIGNATURES))])

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        self._unread = 0

    def stopProducing(self) -> None:
        """The connection is gone."""

    def receiveError(self, reasonCode: int, description: bytes) -> None:
        """Clients say in this way that they leave."""

    def connectionLost(self, reason: Any = None) -> None:
        self._forget_time()
        self.factory.lost(self)
        super().connectionLost(reason)


class _Connection(Quiet, SSHConnection):
    """The channels of a connection that has logged in."""

    transport: Any

    def serviceStarted(self) -> None:
        super().serviceStarted()
        self.transport.logged_in(self.transport.avatar.key)

    def getChannel(self, channelType: bytes, windowSize: int, maxPacket: int, data: bytes) -> Any:
        if len(self.channels) >= MAX_CHANNELS:
            raise ConchError("too many channels", OPEN_RESOURCE_SHORTAGE)
        return super().getChannel(channelType, windowSize, maxPacket, data)


class _User(Quiet, ConchUser):
    """Who has logged in. There are only session channels, and no global requests such as forwarding."""

    def __init__(self, key: AuthorizedKey, sessions: Sessions) -> None:
        super().__init__()
        self.key = key
        self.channelLookup[b"session"] = self._channel
        self._sessions = sessions

    def _channel(self, **arguments: Any) -> Channel:
        return Channel(self.key, self._sessions, **arguments)

    def lookupChannel(self, channelType: bytes, windowSize: int, maxPacket: int, data: bytes) -> Any:
        if maxPacket < 1:
            raise ConchError("packets must have a length", OPEN_RESOURCE_SHORTAGE)
        return super().lookupChannel(channelType, windowSize, maxPacket, data)

    def gotGlobalRequest(self, requestType: bytes, data: bytes) -> int:
        return 0


@implementer(IRealm)
class _Realm:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def requestAvatar(self, avatarId: Any, mind: object, *interfaces: Any) -> Any:
        """The user with a key."""
        return IConchUser, _User(avatarId, self._sessions), lambda: None


class Factory(Quiet, SSHFactory):
    """
    Makes connections.

    @param host_key: the host's private key, a L{Key}.
    @param read_keys: see L{KeyChecker}.
    """

    log = Logger()
    noisy = False
    protocol = _Transport
    services = {b"ssh-userauth": UserAuth, b"ssh-connection": _Connection}  # noqa: RUF012 - not changed by anybody
    primes = None

    def __init__(
        self,
        reactor: Any,
        host_key: Any,
        read_keys: Callable[[], Deferred[AuthorizedKeys]],
        sessions: Sessions,
    ) -> None:
        self.reactor = reactor
        self.privateKeys = {host_key.sshType(): host_key}
        self.publicKeys = {host_key.sshType(): host_key.public()}
        self.portal = Portal(_Realm(sessions), [KeyChecker(read_keys)])
        self._connections: set[_Transport] = set()
        # All clients may have the same address, that of loopback.
        self.gate = Gate(
            reactor,
            Turns(reactor, stranger_pause_seconds=STRANGER_PAUSE_SECONDS),
            name="manhole",
            max_connections=2 * (MAX_CONNECTIONS + MAX_UNAUTHENTICATED),
            max_strangers=MAX_UNAUTHENTICATED,
            max_per_address=MAX_UNAUTHENTICATED,
        )
        self._lines = LineLimit(_REFUSED_PER_SECOND)
        self._all_lost: Deferred[None] | None = None

    def buildProtocol(self, addr: Any) -> Any:
        """A connection, for which another that has not logged in may be closed; L{None} during a stop."""
        if self._all_lost is not None:
            return None
        connection = super().buildProtocol(addr)
        assert isinstance(connection, _Transport)
        _choose_algorithms(connection)
        entrant = self.gate.enter(addr, connection)
        if entrant is not None:
            self._connections.add(connection)
        return entrant

    def has_room(self) -> bool:
        """Whether another client may log in."""
        return sum(each.key is not None for each in self._connections) < MAX_CONNECTIONS

    def lost(self, connection: _Transport) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        is_refused = connection.key is None and self._all_lost is None
        if is_refused and self._lines.may_log(self.reactor.seconds()):
            self.log.warn("manhole: {peer} {why}", peer=connection.peer, why=connection.why_refused)
        self._check_lost()

    def close(self) -> Deferred[None]:
        """
        Disconnect everybody.

        @return: fires when that is done.
        """
        self._all_lost = Deferred()
        lost = self._all_lost
        for connection in tuple(self._connections):
            connection.transport.abortConnection()
        self._check_lost()
        return lost

    def _check_lost(self) -> None:
        if self._all_lost is not None and not self._all_lost.called and not self._connections:
            self._all_lost.callback(None)


def _choose_algorithms(connection: SSHServerTransport) -> None:
    connection.supportedKeyExchanges = [
        each for each in _KEY_EXCHANGES if each in connection.supportedKeyExchanges
    ]
    connection.supportedCiphers = [each for each in _CIPHERS if each in connection.supportedCiphers]
    connection.supportedMACs = list(_MACS)
    # How much comes out of compressed data that a stranger sends is not bounded.
    connection.supportedCompressions = [b"none"]
    # Those of the host key.
    connection.supportedPublicKeys = [
        each for each in connection.supportedPublicKeys if each not in WEAK_SIGNATURES
    ]


def _shown_peer(transport: Any) -> str:
    address = transport.getPeer()
    if (host := getattr(address, "host", None)) is not None:
        return f"{host}:{address.port}"
    # unix(7), SO_PEERCRED: the process id, user id and group id of whoever connected.
    credentials = transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return f"the unix socket (uid {uid})"
