"""Captures without the daemon's own packets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.errors import RequestRejected
from pcapsvc.core.filter import Program
from pcapsvc.core.own_traffic import OwnSockets, OwnTraffic
from pcapsvc.interfaces.capture import IPacketHandle, IReadHook

#: How old the list of the process's sockets may be when packets are read: in seconds, and as a multiple of
#: the time that it takes to make it, which grows with the number of descriptors. A connection that begins is
#: added at once.
FRESH_SECONDS = 0.001
FRESH_MULTIPLE = 20
#: How often the list is updated before a read, for connections that other threads are opening meanwhile.
MOST_LOOKS = 4


class IOwnTrafficReactor(IReactorTime, IReactorFromThreads):
    """What is asked of the reactor here."""


class ISocketTable(Protocol):
    """The sockets of the process: see L{pcapsvc.packets.own_sockets.SocketTable}."""

    @property
    def has_news(self) -> bool:
        """Whether a connection has begun since the last look."""

    def watch(self) -> None:
        """Take note of connections when they are opened."""

    def unwatch(self) -> None:
        """No longer take note of them."""

    def look(self) -> OwnSockets:
        """The sockets that are open, or were since the last look."""


class OwnTrafficFilter:
    """
    Excludes the packets of this process's TCP connections.

    Before packets are read, the sockets are looked at, and the filter changes with them: it applies to
    packets that have arrived before as well. So a connection that is opened while a capture runs is
    excluded from its beginning.

    @param compile_now: compiles a filter for a handle, while everything waits
        (L{pcapsvc.interfaces.capture.IPacketSystem}). It may: the text is ours, not a stranger's; it is one
        of a form that libpcap compiles in up to 5 ms, as it has up to 64 connections; and packets of a
        connection may only be read once it is excluded.
    @param table: makes the table of the process's sockets, given a function to call when a connection is
        opened.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IOwnTrafficReactor,
        *,
        compile_now: Callable[[IPacketHandle, str], Program],
        table: Callable[[Callable[[], object]], ISocketTable],
    ) -> None:
        self._reactor = reactor
        self._compile_now = compile_now
        self._table = table(lambda: reactor.callFromThread(self._look))
        self._traffic = OwnTraffic()
        self._looked: float | None = None
        self._fresh_seconds = FRESH_SECONDS
        self._watching = 0
        self._full = False

    def watch(self, interface: str) -> IReadHook:
        """
        Exclude them from a capture. To be called before its handle is opened.

        @param interface: its name, for the log.
        """
        self._table.watch()
        self._watching += 1
        return _OwnTrafficHook(interface, self._own, self._compile_now, self._closed)

    def _own(self) -> str:
        """The filter that the packets of this process pass."""
        now = self._reactor.seconds()
        if self._looked is None or not 0 <= now - self._looked < self._fresh_seconds:
            self._look()
        # Packets of a connection that another thread has opened meanwhile may be read next.
        for _ in range(MOST_LOOKS):
            if not self._table.has_news:
                break
            self._look()
        return self._traffic.bpf

    def _look(self) -> None:
        if not self._watching:
            # A thread may have opened a connection while the last capture was closed.
            self._table.unwatch()
            return
        began = self._reactor.seconds()
        sockets = self._table.look()
        self._looked = self._reactor.seconds()
        self._fresh_seconds = max(FRESH_SECONDS, FRESH_MULTIPLE * (self._looked - began))
        self._traffic.update(sockets, self._looked)
        if self._traffic.left_out and not self._full:
            self._log.warn(
                "the daemon has more connections than can be excluded from captures: {count} too many",
                count=self._traffic.left_out,
            )
        self._full = bool(self._traffic.left_out)

    def _closed(self) -> None:
        self._watching -= 1
        if not self._watching:
            self._table.unwatch()


@implementer(IReadHook)
class _OwnTrafficHook:
    _log = Logger()

    def __init__(
        self,
        interface: str,
        own: Callable[[], str],
        compile_now: Callable[[IPacketHandle, str], Program],
        closed: Callable[[], None],
    ) -> None:
        self._interface = interface
        self._own = own
        self._compile_now = compile_now
        self._closed: Callable[[], None] | None = closed
        self._excluded = ""

    def before_read(self, handle: IPacketHandle) -> None:
        # While the filter is changed, another connection may be opened.
        for _ in range(MOST_LOOKS):
            own = self._own()
            if own == self._excluded:
                return
            self._excluded = own
            try:
                program = handle.program
                handle.set_filter(program.without(self._compile_now(handle, own)) if own else program)
            except RequestRejected as error:
                # There is no TCP on this link type.
                self._log.warn(
                    "{interface}: the daemon's own packets can't be excluded: {problem}",
                    interface=self._interface,
                    problem=str(error),
                )

    def close(self) -> None:
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()
