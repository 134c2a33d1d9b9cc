"""
The console at a terminal: editing of lines, history, and a pace that leaves the reactor to captures.

What a client sends is worked off for a few milliseconds in each turn of the reactor, and after a line
that ran for a while the next one waits as long: otherwise a pasted file would run as one.
"""

# Conch has hardly any types.
# mypy: disallow-untyped-calls=False
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.conch.insults.insults import ServerProtocol
from twisted.conch.manhole import Manhole
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from pcapsvc.core.errors import FAULT
from pcapsvc.host.manhole.console import Console, Exit

#: What a client may have sent without its being worked off, in bytes.
MAX_TYPED_AHEAD = 64 * 1024

MAX_LINE_CHARACTERS = 4096
MAX_HISTORY_LINES = 200

# How long keys are worked off in one turn.
_TURN_SECONDS = 0.005

# The longest sequence that a key sends is some 8 bytes.
_MAX_ESCAPE_BYTES = 32

BANNER = b"pcapsvc manhole: help() describes what is here; Ctrl-D leaves.\n"


class Terminal(Manhole):
    """
    Conch's console, with a L{Console} in place of its interpreter.

    @param run: runs a line in a L{Console}; returns whether it needs more lines, and may
        raise L{Exit}.
    """

    interpreter: Any

    def __init__(self, console: Console, run: Callable[[str], bool]) -> None:
        super().__init__()
        self._console = console
        self._run = run

    def connectionMade(self) -> None:
        """As in Conch."""
        super().connectionMade()
        self.interpreter = _Lines(self._console)

    def initializeScreen(self) -> None:
        """Leave the terminal as it is: no reset, and no mode that would have to be taken back."""
        self.mode = "insert"
        self.terminal.write(BANNER)
        self.terminal.write(self.ps[self.pn])

    def terminalSize(self, width: int, height: int) -> None:
        """Remember the size; nothing is drawn anew."""
        self.width, self.height = width, height

    def keystrokeReceived(self, keyID: Any, modifier: Any) -> None:
        """Ignore keys that mean nothing, which Conch logs."""
        if keyID in self.keyHandlers or keyID in self._printableChars:
            super().keystrokeReceived(keyID, modifier)

    def characterReceived(self, ch: bytes, moreCharactersComing: bool) -> None:
        """Put in a character, as long as the line isn't too long."""
        if len(self.lineBuffer) >= MAX_LINE_CHARACTERS:
            self.terminal.write(b"\a")
            return
        if self.mode == "insert" and self.lineBufferIndex < len(self.lineBuffer):
            # ICH (ECMA-48, section 8.3.64): make room for one character.
            self.terminal.write(b"\x1b[@")
        super().characterReceived(ch, moreCharactersComing)

    def handle_INSERT(self) -> None:
        """Insert or overwrite."""
        self.mode = "typeover" if self.mode == "insert" else "insert"

    def handle_TAB(self) -> None:
        """Indent to the next stop."""
        for _ in range(self.TABSTOP - self.lineBufferIndex % self.TABSTOP):
            self.characterReceived(b" ", False)

    def lineReceived(self, line: bytes) -> None:
        """Run a line."""
        del self.historyLines[:-MAX_HISTORY_LINES]
        self.historyPosition = len(self.historyLines)
        try:
            self.pn = int(self._run(line.decode("utf-8", "replace")))
        except Exit:
            self.handle_QUIT()
            return
        if self._needsNewline():
            self.terminal.nextLine()
        self.terminal.write(self.ps[self.pn])


class _Lines:
    """What Conch's L{Manhole} asks of an interpreter otherwise."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def resetBuffer(self) -> None:
        """Forget the lines that wait for more."""
        self._console.forget_lines()


class Screen(ServerProtocol):
    """
    Takes what a client sends, and works it off at a pace.

    @param cut: is called with the reason if the session has to end.
    """

    transport: Any

    def __init__(self, reactor: Any, terminal: Terminal, cut: Callable[[str], None]) -> None:
        super().__init__(lambda: terminal)
        self._reactor = reactor
        self._cut = cut
        self._typed: deque[bytes] = deque()
        self._size = 0
        self._turn: IDelayedCall | None = None

    def dataReceived(self, data: bytes) -> None:
        """Take what was typed."""
        self._size += len(data)
        if self._size > MAX_TYPED_AHEAD:
            self._cut("More was typed than is worked off.")
            return
        self._typed.extend(data[index : index + 1] for index in range(len(data)))
        if self._turn is None:
            self._work()

    def _work(self) -> None:
        self._turn = None
        began = self._reactor.seconds()
        while self._typed and self.terminalProtocol is not None:
            key = self._typed.popleft()
            self._size -= 1
            try:
                super().dataReceived(key)
            except BaseException:
                self._typed.clear()
                self._cut(FAULT)
                raise
            if self.state == b"bracket-escaped" and len(self.escBuf) > _MAX_ESCAPE_BYTES:
                self.state = b"data"
            took = self._reactor.seconds() - began
            if self._typed and (took >= _TURN_SECONDS or key in b"\r\n"):
                self._turn = self._reactor.callLater(took, self._work)
                return

    def loseConnection(self) -> None:
        """Close, and leave the terminal as it is."""
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget what was typed."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._typed.clear()
        super().connectionLost(reason)
