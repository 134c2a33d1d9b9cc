"""
A gate between a listening socket and a server: strangers must neither lock others out nor block the reactor.

A client is a stranger until it has authenticated (L{Entrant.welcome}).

  - What arrives is processed in turns (see L{Turns}), a piece of it in each, one connection after the other.
    Until then, nothing more is read from that connection. With TLS, this includes the handshake.
  - No connection is kept waiting because strangers hold others: if there are too many of them, from one
    address or altogether, one that was refused makes room, or else the one that has been silent longest. Some
    room is for clients that have authenticated.
  - While many connections wait for their turn, no more are accepted. They wait in the kernel.
"""

# Twisted's wrappers have hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, ISSLTransport
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import alsoProvides

from pcapsvc.net.turns import Turns

# How many connections are accepted in one turn of the reactor. Twisted accepts 100 and more.
_ACCEPTED_AT_ONCE = 8

# How long after it has sent something a connection counts as silent.
_SILENT_SECONDS = 1.0

# How much of what a client has sent is processed in one turn: 2 KiB of tiny chunks take three milliseconds.
_PIECE_BYTES = 2 * 1024

# How often it is logged that connections make room.
_QUIET_SECONDS = 60.0


class Gate:
    """
    Admits connections.

    @param turns: those of the server.
    @param name: what a log line begins with.
    @param max_connections: how many may be open.
    @param max_strangers: how many of them may be strangers'; by default, three quarters.
    @param max_per_address: how many strangers' there may be from one address (for IPv6, one /64 network), by
        default half of those. Connections by a unix socket have no address.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        turns: Turns,
        *,
        name: str,
        max_connections: int,
        max_strangers: int | None = None,
        max_per_address: int | None = None,
    ) -> None:
        self._reactor = reactor
        self.turns = turns
        self._name = name
        self._max_connections = max_connections
        self._max_strangers = max_strangers or max(1, max_connections * 3 // 4)
        self._max_per_address = max_per_address or max(1, self._max_strangers // 2)
        # In the order in which they came.
        self._strangers: dict[Entrant, None] = {}
        self._known: set[Entrant] = set()
        self._waiting = 0
        self._port: Any = None
        self._is_closed = False
        self._quiet_until = 0.0
        self._is_paced = False

    def seconds(self) -> float:
        """The time."""
        return float(self._reactor.seconds())

    def guard(self, port: Any) -> None:
        """
        Accept connections no faster than they are served.

        @param port: the listening port.
        """
        self._port = port

    def enter(self, address: IAddress | None, protocol: Any) -> Entrant | None:
        """
        A new connection.

        @return: the protocol to be connected in place of C{protocol}; L{None} if there is no room.
        """
        self._pace()
        origin = _origin(address)
        if not self._make_room(origin):
            return None
        entrant = Entrant(self, protocol, origin)
        self._strangers[entrant] = None
        return entrant

    def welcome(self, entrant: Entrant) -> bool:
        """
        A client has authenticated.

        @return: whether it may stay connected: there must remain room for others.
        """
        if entrant in self._strangers:
            if len(self._known) >= self._max_connections - max(1, self._max_connections // 8):
                return False
            del self._strangers[entrant]
            self._known.add(entrant)
        return entrant in self._known

    def leave(self, entrant: Entrant) -> None:
        """A connection is closed, or makes room."""
        self._strangers.pop(entrant, None)
        self._known.discard(entrant)

    def waits(self, more: int) -> None:
        """Count strangers' connections that wait for their turn."""
        self._waiting += more
        # The others are for connections in the middle of a handshake.
        should_close = self._waiting >= max(1, self._max_per_address // 2)
        if self._port is None or should_close == self._is_closed:
            return
        self._is_closed = should_close
        if should_close:
            self._port.pauseProducing()
        else:
            self._port.resumeProducing()

    def _make_room(self, origin: str | None) -> bool:
        room = min(self._max_strangers, self._max_connections - len(self._known))
        same = [each for each in self._strangers if origin is not None and each.origin == origin]
        if len(same) >= self._max_per_address:
            candidates: Iterable[Entrant] = same
        elif len(self._strangers) >= room:
            [(most, _)] = Counter(each.origin for each in self._strangers).most_common(1)
            candidates = [each for each in self._strangers if each.origin == most]
        else:
            return True
        now = self.seconds()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            self._log.warn(
                "{name}: {count} connections have not authenticated; closing the oldest that are silent",
                name=self._name,
                count=len(self._strangers),
            )
        idle = [each for each in candidates if each.is_refused or not each.is_waiting]
        if not idle:
            return False
        # The oldest of those that are worth least.
        chosen = min(idle, key=lambda each: each.worth(now))
        self.leave(chosen)
        chosen.evict()
        return True

    def _pace(self) -> None:
        if self._port is not None and not self._is_paced:
            # Twisted takes more at once the more there are.
            self._is_paced = True
            self._reactor.callLater(0, self._paced)

    def _paced(self) -> None:
        self._is_paced = False
        self._port.numberAccepts = _ACCEPTED_AT_ONCE

    def registerProtocol(self, entrant: Entrant) -> None:
        """See L{twisted.protocols.policies.WrappingFactory}."""

    def unregisterProtocol(self, entrant: Entrant) -> None:
        """See L{twisted.protocols.policies.WrappingFactory}."""
        self.leave(entrant)


def _origin(address: IAddress | None) -> str | None:
    """What counts as one address."""
    host = getattr(address, "host", None)
    if host is None:
        return None
    try:
        found = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return str(host)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.IPv6Network((found, 64), strict=False))
    return str(found)


class Entrant(ProtocolWrapper):
    """
    A connection, which is the transport of the server's protocol.

    @ivar origin: what counts as one address; L{None} if there is none.
    @ivar is_waiting: whether something was received, and waits for its turn.
    @ivar is_refused: whether the server has refused it, and only waits until it is closed.
    """

    factory: Any
    transport: Any
    wrappedProtocol: Any

    def __init__(self, gate: Gate, protocol: Any, origin: str | None) -> None:
        super().__init__(gate, protocol)  # type: ignore[arg-type] # it is all of a factory that is needed
        self.origin = origin
        self.is_waiting = False
        self.is_refused = False
        self._served_at: float | None = None
        self._counts = False
        self._is_known = False
        self._is_lost = False
        self._is_ended = False
        self._is_paused = False
        self._received = b""
        self._decrypt: Any = None

    def makeConnection(self, transport: Any) -> None:
        is_tls: bool = ISSLTransport.providedBy(transport)
        if is_tls:
            # What TLS receives, in place of what it has decrypted: a handshake costs most.
            self._decrypt, transport.dataReceived = transport.dataReceived, self._await_turn
        super().makeConnection(transport)
        if not is_tls and IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
            alsoProvides(self, IHalfCloseableProtocol)

    def welcome(self) -> bool:
        """
        Its client has authenticated.

        @return: whether it may stay connected after the answer.
        """
        self._is_known = self.factory.welcome(self)
        return self._is_known

    def refuse(self) -> None:
        """Its client has not authenticated, and is about to be disconnected."""
        self.is_refused = True

    def worth(self, now: float) -> int:
        """How much it is worth to keep it: one that has just sent something may be in a handshake."""
        if self.is_refused:
            return 0
        is_silent = self._served_at is None or now - self._served_at > _SILENT_SECONDS
        return 1 if is_silent else 2

    def evict(self) -> None:
        """Make room for another one."""
        self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._decrypt is None:
            self._await_turn(data)
        elif self.wrappedProtocol is not None:
            self.wrappedProtocol.dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._is_lost = True
        if self.is_waiting:
            self.factory.turns.withdraw(self._take_turn)
            self._stop_waiting()
        super().connectionLost(reason)

    def readConnectionLost(self) -> None:
        """The client sends no more. The server learns of it after what was sent."""
        self._is_ended = True
        if not self.is_waiting:
            self.wrappedProtocol.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Nothing: only the server itself could cause this."""

    def pauseProducing(self) -> None:
        """The server wants nothing more for now."""
        self._is_paused = True
        self._pause_or_resume()

    def resumeProducing(self) -> None:
        """The server wants more."""
        self._is_paused = False
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        if self._is_lost or self.disconnecting or not hasattr(self.transport, "pauseProducing"):
            return
        # After its end, reading would only find the end again.
        if self._is_ended:
            return
        if self._is_paused or self.is_waiting:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    def _await_turn(self, data: bytes) -> None:
        if self._is_lost:
            return
        self._received += data
        if not self.is_waiting:
            self._wait()

    def _wait(self) -> None:
        self.is_waiting = True
        self._counts = not self._is_known
        if self._counts:
            self.factory.waits(1)
        self._pause_or_resume()
        self.factory.turns.ask(self._take_turn, is_known=self._is_known)

    def _stop_waiting(self) -> None:
        self.is_waiting = False
        if self._counts:
            self.factory.waits(-1)

    def _take_turn(self) -> None:
        self._stop_waiting()
        self._served_at = self.factory.seconds()
        piece, self._received = self._received[:_PIECE_BYTES], self._received[_PIECE_BYTES:]
        try:
            (self._decrypt or self.wrappedProtocol.dataReceived)(piece)
            if self._is_ended and not self._is_lost and not self._received:
                self.wrappedProtocol.readConnectionLost()
        except BaseException:
            self.transport.abortConnection()
            raise
        if self._received and not self._is_lost:
            self._wait()
        else:
            self._pause_or_resume()
