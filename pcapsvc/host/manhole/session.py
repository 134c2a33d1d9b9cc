"""One session: who it is, what is logged of it, and its console, at a terminal or for one command."""

# Conch has hardly any types.
# mypy: disallow-untyped-calls=False
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Any

from twisted.conch.ssh.channel import SSHChannel
from twisted.conch.ssh.common import getNS
from twisted.conch.ssh.connection import EXTENDED_DATA_STDERR
from twisted.conch.ssh.session import parseRequest_pty_req, parseRequest_window_change
from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from pcapsvc.core.errors import FAULT
from pcapsvc.core.mask import Mask
from pcapsvc.core.text import one_line
from pcapsvc.host.manhole.console import Console
from pcapsvc.host.manhole.keys import AuthorizedKey
from pcapsvc.host.manhole.terminal import Screen, Terminal
from pcapsvc.host.manhole.time_limit import TimeLimit

_MAX_LOGGED_CHARACTERS = 1000
_MAX_SIZE = 10_000
_MAX_COMMAND_BYTES = 64 * 1024


class Sessions:
    """
    Makes the consoles of all sessions, and logs what happens in them.

    @param namespace: makes the names of a new console.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        namespace: Callable[[], dict[str, Any]],
        mask: Mask,
        limit: TimeLimit,
    ) -> None:
        self.reactor = reactor
        self._namespace = namespace
        self._mask = mask
        self._limit = limit
        self._numbers = itertools.count(1)

    def begin(self, key: AuthorizedKey, peer: str) -> Session:
        """A new session."""
        session = Session(next(self._numbers), self._mask)
        self._log.info(
            "manhole session {number}: begun by {key} from {peer}",
            number=session.number,
            key=str(key),
            peer=peer,
        )
        return session

    def console(self, write: Callable[[str], None], write_later: Callable[[str], None]) -> Console:
        """A new console."""
        return Console(self._namespace(), write, write_later=write_later, mask=self._mask, limit=self._limit)


class Session:
    """
    What is logged of a session.

    @ivar number: counted from 1, since the start.
    """

    _log = Logger()

    def __init__(self, number: int, mask: Mask) -> None:
        self.number = number
        self._mask = mask

    def log_line(self, line: str) -> None:
        """Log what was entered, before it is run: it may not come back."""
        text = one_line(self._mask(line), most=_MAX_LOGGED_CHARACTERS)
        if text:
            self._log.info("manhole session {number}: {line}", number=self.number, line=text)

    def ended(self) -> None:
        """Log the end."""
        self._log.info("manhole session {number}: ended", number=self.number)


class Channel(SSHChannel):
    """A session channel (RFC 4254, section 6), which has a shell or runs one command."""

    name = b"session"
    conn: Any
    _log = Logger()

    def __init__(self, key: AuthorizedKey, sessions: Sessions, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._key = key
        self._sessions = sessions
        self._session: Session | None = None
        self._console: Console | None = None
        self._screen: Screen | None = None
        self._size: tuple[int, int] | None = None

    def channelOpen(self, specificData: bytes) -> None:
        """Nothing yet: what the channel is for is requested."""

    def requestReceived(self, requestType: bytes, data: bytes) -> int:
        """Do what a client requests, unless it is unknown here or malformed."""
        request = {
            b"pty-req": self._terminal_requested,
            b"window-change": self._size_changed,
            b"shell": self._shell_requested,
            b"exec": self._command_requested,
        }.get(requestType)
        if request is None:
            return 0
        try:
            return int(request(data))
        except (ValueError, IndexError, TypeError, struct.error):
            return 0

    def _terminal_requested(self, data: bytes) -> bool:
        _, (rows, columns, *_), _ = parseRequest_pty_req(data)
        self._size = min(columns, _MAX_SIZE), min(rows, _MAX_SIZE)
        return True

    def _size_changed(self, data: bytes) -> bool:
        rows, columns, *_ = parseRequest_window_change(data)
        if self._screen is not None and self._screen.terminalProtocol is not None:
            self._screen.terminalProtocol.terminalSize(min(columns, _MAX_SIZE), min(rows, _MAX_SIZE))
        return True

    def _shell_requested(self, data: bytes) -> bool:
        if self._session is not None:
            return False
        session = self._begin()
        if self._size is None:
            self._write_error(
                "The console needs a terminal (ssh -t), or a command: ssh … 'captures.list()'\n"
            )
            self._finish(1)
            return True
        console = self._console = self._sessions.console(self._write_text, self._write_later)

        def run(line: str) -> bool:
            session.log_line(line)
            return console.push(line)

        terminal = Terminal(console, run)
        self._screen = Screen(self._sessions.reactor, terminal, self._cut)
        self._screen.makeConnection(_ScreenTransport(self.send, lambda: self._finish(0)))
        terminal.terminalSize(*self._size)
        return True

    def _command_requested(self, data: bytes) -> bool:
        if self._session is not None:
            return False
        command, _ = getNS(data)
        if len(command) > _MAX_COMMAND_BYTES:
            return False
        session = self._begin()
        # In a turn of its own, after the answer that grants the request.
        self._sessions.reactor.callLater(0, self._run, session, command.decode("utf-8", "replace"))
        return True

    def _run(self, session: Session, command: str) -> None:
        if self.localClosed:
            return
        try:
            console = self._console = self._sessions.console(self._write_text, self._write_text)
            session.log_line(command)
            status = console.run(command)
        except BaseException:
            self._cut(FAULT)
            raise
        console.when_idle().addCallback(lambda _: self._finish(status))

    def _begin(self) -> Session:
        self._session = self._sessions.begin(self._key, self.conn.transport.peer)
        return self._session

    def dataReceived(self, data: bytes) -> None:
        """Give what was typed to the terminal. A command reads nothing."""
        if self._screen is not None:
            self._screen.dataReceived(data)

    def extReceived(self, dataType: int, data: bytes) -> None:
        """Nothing reads this."""

    def eofReceived(self) -> None:
        """Close, unless a command still runs."""
        if self._screen is not None or self._session is None:
            self._finish(0)

    def closeReceived(self) -> None:
        """Close as well."""
        self.conn.sendClose(self)

    def closed(self) -> None:
        """End the session."""
        if self._screen is not None:
            self._screen.connectionLost(Failure(ConnectionDone()))
        if self._console is not None:
            self._console.close()
        if self._session is not None:
            self._session.ended()

    def send(self, data: bytes) -> None:
        """Send to the client, which is disconnected if it doesn't read."""
        if self.localClosed or self.closing:
            return
        self.write(data)
        self.conn.transport.check_unread(len(self.buf))

    def _write_text(self, text: str) -> None:
        if self._screen is None:
            self.send(text.encode("utf-8", "backslashreplace"))
        elif self._screen.terminalProtocol is not None:
            self._screen.terminalProtocol.addOutput(text.encode("utf-8", "backslashreplace"))

    def _write_later(self, text: str) -> None:
        if self._screen is not None and self._screen.terminalProtocol is not None:
            self._screen.terminalProtocol.addOutput(text.encode("utf-8", "backslashreplace"), True)

    def _write_error(self, text: str) -> None:
        self.writeExtended(EXTENDED_DATA_STDERR, text.encode())

    def _cut(self, reason: str) -> None:
        self._write_error(f"{reason}\n")
        self._finish(1)

    def _finish(self, status: int) -> None:
        """Close the channel with an exit status."""
        if self.localClosed or self.closing:
            return
        self.conn.sendRequest(self, b"exit-status", struct.pack(">L", status))
        self.conn.sendEOF(self)
        self.loseConnection()


class _ScreenTransport:
    """What L{Screen} asks of a transport."""

    def __init__(self, write: Callable[[bytes], None], lose: Callable[[], None]) -> None:
        self.write = write
        self.loseConnection = lose
