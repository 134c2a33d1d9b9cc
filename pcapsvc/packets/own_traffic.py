"""Captures without the daemon's own packets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.errors import RequestRejected
from pcapsvc.core.own_traffic import OwnSockets, OwnTraffic
from pcapsvc.core.recording import PacketCounts
from pcapsvc.interfaces.capture import IPacketDumper, IPacketHandle, IPacketSystem

#: How old what is known of the process's sockets may be where packets are read, in seconds.
FRESH_SECONDS = 0.001
#: How often is looked again, before packets are read, for connections that begin just now.
MOST_LOOKS = 4


class IOwnTrafficReactor(IReactorTime, IReactorFromThreads):
    """What is asked of the reactor here."""


class ISocketTable(Protocol):
    """What the process has open: see L{pcapsvc.packets.own_sockets.SocketTable}."""

    @property
    def unfinished(self) -> bool:
        """Whether another look is due soon."""

    def watch(self) -> None:
        """Hear of connections that begin."""

    def unwatch(self) -> None:
        """Hear of them no more."""

    def look(self) -> OwnSockets:
        """What is open, or was since the last look."""


@implementer(IPacketSystem)
class OwnTrafficFilter:
    """
    Leaves the packets of this process's TCP connections out.

    Before packets are read, the sockets are looked at, and where they have changed the
    filter is: what has arrived before goes through it as well. So a connection that
    begins while a capture runs is left out from its beginning.

    @param system: whose packets these are.
    @param table: makes the table of the process's sockets, given what it is to call when
        a connection begins.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IOwnTrafficReactor,
        system: IPacketSystem,
        *,
        table: Callable[[Callable[[], object]], ISocketTable],
    ) -> None:
        self._reactor = reactor
        self._system = system
        self._table = table(lambda: reactor.callFromThread(self._look))
        self._traffic = OwnTraffic()
        self._looked: float | None = None
        self._again: IDelayedCall | None = None
        self._open = 0
        self._full = False

    def open(self, interface: str, *, snap_length: int, bpf: str) -> IPacketHandle:
        """Begin to capture: see L{IPacketSystem.open}."""
        self._table.watch()
        self._open += 1
        try:
            # By the request's filter alone, so that it is judged by itself.
            handle = self._system.open(interface, snap_length=snap_length, bpf=bpf)
        except BaseException:
            self._closed()
            raise
        return _OwnTrafficHandle(handle, interface, self._own, self._closed)

    def _own(self) -> str:
        """The filter that this process's packets pass."""
        now = self._reactor.seconds()
        if self._looked is None or not 0 <= now - self._looked < FRESH_SECONDS:
            self._look()
        # What another thread is about to send may be there before its packets are read.
        for _ in range(MOST_LOOKS):
            if not self._table.unfinished:
                break
            self._look()
        return self._traffic.bpf

    def _look(self) -> None:
        if not self._open:
            # A thread may have heard of a connection while the last capture was closed.
            self._table.unwatch()
            return
        self._looked = self._reactor.seconds()
        self._traffic.update(self._table.look(), self._looked)
        if self._traffic.left_out and not self._full:
            self._log.warn(
                "{count} connections of the daemon itself are in its captures: they are too many",
                count=self._traffic.left_out,
            )
        self._full = bool(self._traffic.left_out)
        if self._table.unfinished and self._again is None:
            self._again = self._reactor.callLater(FRESH_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._again = None
        self._look()

    def _closed(self) -> None:
        self._open -= 1
        if not self._open:
            self._table.unwatch()
            if self._again is not None:
                self._again.cancel()
                self._again = None


@implementer(IPacketHandle)
class _OwnTrafficHandle:
    _log = Logger()

    def __init__(
        self, handle: IPacketHandle, interface: str, own: Callable[[], str], closed: Callable[[], None]
    ) -> None:
        self._handle = handle
        self._interface = interface
        self._own = own
        self._closed: Callable[[], None] | None = closed
        self._left_out = ""
        self.link_type: int = handle.link_type

    def fileno(self) -> int:
        return self._handle.fileno()

    def open_dumper(self, path: str) -> IPacketDumper:
        return self._handle.open_dumper(path)

    def dispatch(self, count: int, callback: Callable[[Any, bytes], object]) -> int:
        self._leave_out()
        return self._handle.dispatch(count, callback)

    def dump(self, count: int, dumper: IPacketDumper) -> int:
        self._leave_out()
        return self._handle.dump(count, dumper)

    def drain(self) -> None:
        self._handle.drain()

    def rearm(self, bpf: str) -> None:
        self._handle.rearm(bpf)
        self._left_out = ""

    def leave_out(self, bpf: str) -> None:
        self._handle.leave_out(bpf)
        self._left_out = bpf

    def counts(self) -> PacketCounts | None:
        return self._handle.counts()

    def close(self) -> None:
        self._handle.close()
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()

    def _leave_out(self) -> None:
        # While the filter is changed, another connection may have begun.
        for _ in range(MOST_LOOKS):
            own = self._own()
            if own == self._left_out:
                return
            self._left_out = own
            try:
                self._handle.leave_out(own)
            except RequestRejected as error:
                # There is no TCP on this link type.
                self._log.warn(
                    "{interface}: the daemon's own packets can't be left out: {problem}",
                    interface=self._interface,
                    problem=str(error),
                )
