"""What clients of the manhole may take of the daemon."""

from __future__ import annotations

import signal
import struct
import time
from collections.abc import Sequence
from typing import Any

from twisted.conch.ssh.transport import MSG_EXT_INFO
from twisted.internet import defer, protocol, reactor
from twisted.python.failure import Failure

from pcapsvc.host.manhole import ssh
from peers.ssh import FAILED
from tests.integration.manhole_case import ManholeCase


class BoundTests(ManholeCase):
    """What clients may take of the daemon."""

    limit_seconds = 1.0

    async def test_endless_line(self) -> None:
        """A line that doesn't end is interrupted; a session that floods is cut."""
        began = time.monotonic()
        ended = await self.run_client("while True: pass")
        self.assertEqual(ended.status, 1)
        self.assertIn("TakesTooLong", ended.output)
        ended = await self.run_client("while True: print('flood')")
        self.assertIn("more characters were cut off", ended.output)
        self.assertIn("TakesTooLong", ended.output)
        self.assertLess(len(ended.output), 70_000)
        self.assertLess(time.monotonic() - began, 60)

    async def test_client_that_does_not_read(self) -> None:
        """A client that leaves too much unread is disconnected."""
        client = self.client(options=("-tt",))
        await client.seen(b">>> ")
        client.transport.pauseProducing()  # type: ignore[union-attr]
        client.type("print('x' * 60_000)\r" * 500)
        await self.until(lambda: any("does not read; disconnected" in line for line in self.log), "that")
        client.transport.resumeProducing()  # type: ignore[union-attr]
        await client.ended
        self.assertEqual((await self.run_client("1")).status, 0)

    async def test_sessions(self) -> None:
        """The number of open sessions is limited; when one is closed, another can be opened."""
        clients = [self.client(options=("-tt",)) for _ in range(2)]
        self.patch(ssh, "MAX_CONNECTIONS", 2)
        for client in clients:
            await client.seen(b">>> ")
        self.assertEqual((await self.run_client("1")).status, FAILED)
        clients[0].type("\x04")
        await clients[0].ended
        await self.until(lambda: sum("ended" in line for line in self.log) == 1, "the end of a session")
        self.assertEqual((await self.run_client("1")).status, 0)

    async def test_fault(self) -> None:
        """If a command can't even begin, due to an internal error, its client is disconnected."""
        del self.names
        self.assertEqual((await self.run_client("1")).status, 1)
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)

    async def test_stop(self) -> None:
        """A stop closes all sessions at once, whatever their clients do."""
        clients = [self.client(options=("-tt",)) for _ in range(2)]
        for client in clients:
            await client.seen(b">>> ")
        clients[0].transport.signalProcess(signal.SIGSTOP)  # type: ignore[union-attr]
        began = time.monotonic()
        await self.manhole.stopService()
        self.assertLess(time.monotonic() - began, 8.0)
        clients[0].transport.signalProcess(signal.SIGCONT)  # type: ignore[union-attr]
        for client in clients:
            self.assertEqual((await client.ended).status, FAILED)


class StrangerTests(ManholeCase):
    """Connections that don't log in."""

    def connect(self, data: Sequence[bytes] = ()) -> Stranger:
        """One that sends something."""
        stranger = Stranger(list(data))
        reactor.connectTCP("127.0.0.1", self.port, _Once(stranger))  # type: ignore[attr-defined]
        self.addCleanup(stranger.close)
        return stranger

    async def test_login_time(self) -> None:
        """Whoever does not log in within some time is disconnected, such as one that says nothing."""
        self.patch(ssh, "LOGIN_SECONDS", 0.2)
        stranger = self.connect()
        await stranger.closed

    async def test_nonsense(self) -> None:
        """Malformed packets close their connection, and log a line."""
        for data in (
            b"GET / HTTP/1.1\r\n\r\n" * 1000,
            b"SSH-2.0-x\r\n" + bytes(range(256)) * 20,
            b"SSH-2.0-x\r\n\0\0\0\x0c\x0a\x14" + b"\0" * 10,
            b"SSH-\n",
        ):
            await self.connect([data]).closed
        self.assertEqual((await self.run_client("1")).status, 0)
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_long_packet(self) -> None:
        """A packet that is longer than a login needs is not parsed: that would hold up everything else."""
        extensions = struct.pack("!L", 8000) + bytes(64_000)
        packet = struct.pack("!LBB", 2 + len(extensions) + 6, 6, MSG_EXT_INFO) + extensions + bytes(6)
        await self.connect([b"SSH-2.0-x\r\n", packet]).closed
        await self.until(
            lambda: any("sent a packet that was too long before it logged in" in line for line in self.log),
            "that",
        )

    async def test_strangers(self) -> None:
        """Those who come and do not log in keep nobody out: the oldest of them make room."""
        strangers = [self.connect() for _ in range(12)]
        await defer.DeferredList([stranger.closed for stranger in strangers[:4]])
        self.assertFalse(any(stranger.closed.called for stranger in strangers[4:]))
        self.assertEqual((await self.run_client("1")).status, 0)
        self.assertEqual((await self.run_client("2")).status, 0)


class Stranger(protocol.Protocol):
    """
    A connection that sends something, and waits.

    @ivar closed: fires when it was closed.
    """

    def __init__(self, data: list[bytes]) -> None:
        self._data = data
        self.closed: defer.Deferred[None] = defer.Deferred()

    def connectionMade(self) -> None:
        """Send."""
        assert self.transport is not None
        self.transport.writeSequence(self._data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """Say so."""
        self.closed.callback(None)

    def close(self) -> None:
        """Close it."""
        if self.transport is not None and not self.closed.called:
            self.transport.abortConnection()


class _Once(protocol.ClientFactory):
    noisy = False

    def __init__(self, made: protocol.Protocol) -> None:
        self._made = made

    def buildProtocol(self, addr: object) -> Any:
        return self._made
