"""What a client of the manhole types."""

from __future__ import annotations

from typing import Any

from twisted.conch.insults.insults import TerminalProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial import unittest

from pcapsvc.core.errors import FAULT
from pcapsvc.host.manhole.terminal import Screen


class Faulty(TerminalProtocol):
    """Keeps each key, except for one that it can't take."""

    def __init__(self) -> None:
        self.keys: list[Any] = []

    def keystrokeReceived(self, keyID: Any, modifier: Any) -> None:
        if keyID == b"!":
            raise ZeroDivisionError
        self.keys.append(keyID)


class ScreenTests(unittest.SynchronousTestCase):
    """L{Screen}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.terminal = Faulty()
        self.cuts: list[str] = []
        self.screen = Screen(self.clock, self.terminal, self.cuts.append)  # type: ignore[arg-type]
        self.screen.makeConnection(StringTransport())

    def test_lines(self) -> None:
        """Each line is worked off in a turn of its own."""
        self.screen.dataReceived(b"a\rb\r")
        self.assertEqual(self.terminal.keys, [b"a", b"\r"])
        self.clock.advance(0)
        self.assertEqual(self.terminal.keys, [b"a", b"\r", b"b", b"\r"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.cuts, [])

    def test_fault(self) -> None:
        """An internal error ends the session: what was typed after it is not worked off."""
        self.screen.dataReceived(b"a\r!b\r")
        self.assertRaises(ZeroDivisionError, self.clock.advance, 0)
        self.assertEqual(self.cuts, [FAULT])
        self.screen.dataReceived(b"")
        self.assertEqual(self.terminal.keys, [b"a", b"\r"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
