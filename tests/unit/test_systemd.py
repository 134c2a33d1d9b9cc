"""Notifications of the service manager."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.host.systemd import Readiness
from tests.unit.logged import logged


class Reactor(Clock):
    """A reactor that a test starts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.starting: list[Callable[[], None]] = []

    def callWhenRunning(self, function: Callable[[], None]) -> None:
        """Keep it for L{run}."""
        self.starting.append(function)

    def run(self) -> None:
        """Start."""
        for call in self.starting:
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

    def fill(self) -> None:
        """Leave no room in the manager's socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    other.sendto(b"X=1", self.path)

    def empty(self, manager: socket.socket) -> list[bytes]:
        """What the manager reads, besides that."""
        read = []
        with contextlib.suppress(BlockingIOError):
            while True:
                read.append(manager.recv(100))
        return [each for each in read if each != b"X=1"]

    def test_busy_manager(self) -> None:
        """A manager that is busy is notified as soon as it has room. A newer state replaces an older one."""
        manager = self.manager(self.path)
        readiness = self.readiness(self.path)
        readiness.startService()
        self.fill()
        self.reactor.run()
        self.reactor.advance(1)
        self.assertEqual(self.empty(manager), [])
        self.reactor.advance(1)
        self.assertEqual(self.empty(manager), [b"READY=1"])
        self.fill()
        self.reactor.run()
        readiness.stopService()
        self.assertEqual(self.empty(manager), [])
        self.reactor.advance(1)
        self.assertEqual(self.empty(manager), [b"STOPPING=1\nEXTEND_TIMEOUT_USEC=25000000"])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_manager_that_never_reads(self) -> None:
        """After a minute, it is logged, and not tried any more."""
        self.manager(self.path)
        self.readiness(self.path).startService()
        self.fill()
        messages = logged(self)
        self.reactor.run()
        self.reactor.pump([0.1] * 599)
        self.assertEqual(messages(), [])
        self.reactor.pump([0.1] * 3)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(len(messages()), 1)

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
            self.reactor.starting.clear()
        self.assertEqual(len(lines), 1)
        self.assertIn("could not send 'READY=1' to the service manager", lines[0])
