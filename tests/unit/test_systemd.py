"""Notifications of the service manager."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable

from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.host.systemd import Readiness


class Reactor:
    """A reactor that a test starts."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def callWhenRunning(self, function: Callable[[], None]) -> None:
        """Keep it for L{run}."""
        self.calls.append(function)

    def run(self) -> None:
        """Start."""
        for call in self.calls:
            call()


class ReadinessTests(unittest.SynchronousTestCase):
    """L{Readiness}, with a socket like systemd's."""

    def setUp(self) -> None:
        """A reactor that is not running yet, and a path for the manager's socket."""
        self.reactor = Reactor()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "notify")

    def manager(self, address: str) -> socket.socket:
        """A manager that listens."""
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(manager.close)
        manager.bind(address)
        manager.setblocking(False)
        return manager

    def readiness(self, address: str | None) -> Readiness:
        """The service."""
        return Readiness(self.reactor, address, stop_timeout_seconds=20)

    def test_ready_and_stopping(self) -> None:
        """It is ready when the reactor runs, and not before. A stop asks for the time that it may take."""
        manager = self.manager(self.path)
        readiness = self.readiness(self.path)
        readiness.startService()
        self.assertRaises(BlockingIOError, manager.recv, 100)
        self.reactor.run()
        self.assertEqual(manager.recv(100), b"READY=1")
        readiness.stopService()
        self.assertEqual(manager.recv(100), b"STOPPING=1\nEXTEND_TIMEOUT_USEC=25000000")

    def test_abstract(self) -> None:
        """An address that begins with @ is in the abstract namespace."""
        name = f"pcapsvc-test-{os.getpid()}"
        manager = self.manager(f"\0{name}")
        self.readiness(f"@{name}").startService()
        self.reactor.run()
        self.assertEqual(manager.recv(100), b"READY=1")

    def test_stopped_before_it_was_ready(self) -> None:
        """A service that is stopped before the reactor runs is never ready."""
        manager = self.manager(self.path)
        readiness = self.readiness(self.path)
        readiness.startService()
        readiness.stopService()
        self.reactor.run()
        self.assertTrue(manager.recv(100).startswith(b"STOPPING=1"))
        self.assertRaises(BlockingIOError, manager.recv, 100)

    def test_no_manager(self) -> None:
        """Without a manager nothing is sent. If it can't be reached, that is logged as a warning."""
        lines: list[str] = []

        def keep(event: LogEvent) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(keep)
        self.addCleanup(globalLogPublisher.removeObserver, keep)
        for address in (None, "", self.path):
            readiness = self.readiness(address)
            readiness.startService()
            self.reactor.run()
            self.reactor.calls.clear()
        self.assertEqual(len(lines), 1)
        self.assertIn("could not send 'READY=1' to the service manager", lines[0])
