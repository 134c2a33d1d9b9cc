"""Crowds of clients without the token: neither captures nor those who have it suffer."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from twisted.internet import defer, reactor, threads
from twisted.trial import unittest

from pcapsvc.core.result import Accepted, StartedCapture
from pcapsvc.net.http_server import MAX_CONNECTIONS
from pcapsvc.sources.http.source import HTTPSource, http_endpoint
from pcapsvc.testing import MemorySink
from peers.certificates import Authority
from peers.daemon import Daemon
from peers.wire import Wire
from tests.integration.traffic import generate
from tests.unit.http_case import add_captures, one_capture, token

# Longer than a connection that has sent something counts as busy.
_SILENT_SECONDS = 1.1
_TOKEN = "s3cret-token-of-this-test"
_FRAMES = 300_000
_PER_SECOND = 100_000


class SilentTests(unittest.TestCase):
    """Connections that say nothing keep nobody out, though all clients have the same address."""

    timeout = 120
    CROWD = 200

    async def port(self, listen: str) -> int:
        """The port of a source that listens."""
        source = HTTPSource(
            reactor,
            http_endpoint(reactor, listen),
            MemorySink(Accepted(captures=(StartedCapture(capture_id="abc1", interface="eth0"),))),
            tokens=[token(_TOKEN)],
        )
        add_captures(reactor, source, one_capture("abc1"))
        source.startService()
        self.addCleanup(source.stopService)
        assert source.listening is not None
        address: Any = await source.listening
        return int(address.port)

    def crowd(self, port: int, words: bytes = b"") -> None:
        """Make many connections, and say only the beginning of something."""
        for _ in range(self.CROWD):
            client = socket.create_connection(("127.0.0.1", port), timeout=60)
            self.addCleanup(client.close)
            try:
                client.sendall(words)
            except OSError:
                pass  # It made room for another one.

    async def assert_served(self, connection: http.client.HTTPConnection) -> None:
        """A client that has the token gets its answers, on one connection."""

        def ask() -> list[int]:
            codes = []
            for _ in range(3):
                connection.request("GET", "/captures/abc1", headers={"Authorization": f"Bearer {_TOKEN}"})
                answer = connection.getresponse()
                answer.read()
                codes.append(answer.status)
            return codes

        self.addCleanup(connection.close)
        self.assertEqual(await threads.deferToThread(ask), [200] * 3)

    async def test_plain(self) -> None:
        """Silent connections, and slow heads."""
        for words in (b"", b"GET /captures/abc1 HTTP/1.1\r\nHost: loc"):
            port = await self.port("tcp:0:interface=127.0.0.1")
            await threads.deferToThread(self.crowd, port, words)
            await self.assert_served(http.client.HTTPConnection("127.0.0.1", port, timeout=60))

    async def tls_port(self) -> tuple[int, ssl.SSLContext]:
        """The port of a source that listens with TLS, and how clients connect to it."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        authority = Authority(Path(directory.name))
        ours = authority.issue("http")
        port = await self.port(f"ssl:0:interface=127.0.0.1:privateKey={ours.key}:certKey={ours.certificate}")
        return port, ssl.create_default_context(cafile=str(authority.file))

    async def test_tls(self) -> None:
        """Handshakes that are not begun, or not finished; and clients that have authenticated before stay."""
        port, context = await self.tls_port()

        def client() -> http.client.HTTPConnection:
            return http.client.HTTPSConnection("localhost", port, timeout=60, context=context)

        early = client()
        await self.assert_served(early)
        hello = ssl.MemoryBIO()
        outgoing = ssl.MemoryBIO()
        try:
            context.wrap_bio(hello, outgoing, server_hostname="localhost").do_handshake()
        except ssl.SSLWantReadError:
            pass
        for words in (b"", outgoing.read()):
            await threads.deferToThread(self.crowd, port, words)
            await self.assert_served(client())
            await self.assert_served(early)

    def connect(self, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
        """A connection whose handshake is done."""
        plain = socket.create_connection(("127.0.0.1", port), timeout=60)
        made = context.wrap_socket(plain, server_hostname="localhost")
        self.addCleanup(made.close)
        return made

    async def test_tls_oldest_makes_room(self) -> None:
        """Of silent connections over TLS, it is the oldest that make room for others."""
        port, context = await self.tls_port()

        def crowd() -> list[bool]:
            made = [self.connect(port, context) for _ in range(60)]
            time.sleep(_SILENT_SECONDS)
            made += [self.connect(port, context) for _ in range(10)]
            return [self.is_open(each) for each in made]

        is_open = await threads.deferToThread(crowd)
        # Half of those that strangers may have are for one address.
        room = MAX_CONNECTIONS * 3 // 4 // 2
        self.assertEqual(is_open, [False] * (70 - room) + [True] * room)

    @staticmethod
    def is_open(connection: ssl.SSLSocket) -> bool:
        """Whether the server has not closed a connection on which it sends nothing."""
        connection.settimeout(0.05)
        try:
            return bool(connection.recv(1))
        except TimeoutError:
            return True
        except OSError:
            return False

    async def test_tls_without_token(self) -> None:
        """Whoever goes on without the token is disconnected, over TLS as well, and others come first."""
        port, context = await self.tls_port()
        ended = threading.Event()
        answers: list[bytes] = []

        def persist() -> None:
            while not ended.is_set():
                try:
                    with self.connect(port, context) as stranger:
                        stranger.sendall(b"GET /captures/abc1 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
                        received = b""
                        while data := stranger.recv(65536):
                            received += data
                        answers.append(received)
                except OSError:
                    pass  # It made room for another one.

        strangers = [threads.deferToThread(persist) for _ in range(8)]
        try:
            client = http.client.HTTPSConnection("localhost", port, timeout=60, context=context)
            began = time.monotonic()
            for _ in range(10):
                await self.assert_served(client)
            self.assertLess(time.monotonic() - began, 10)
        finally:
            ended.set()
            await defer.gatherResults(strangers)
        self.assertGreater(len(answers), 0)
        for received in answers:
            self.assertEqual((received.count(b"HTTP/1.1 "), received[9:12]), (1, b"401"))


class _Client(Daemon):
    """A daemon whose token the client has."""

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {_TOKEN}"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


class PipeliningTests(unittest.SynchronousTestCase):
    """Pipelined requests without the token."""

    # Packets are lost if the daemon is not scheduled for long enough.
    needs_machine_alone = True

    def test_pipelining(self) -> None:
        """Beside 60 connections full of them a capture loses nothing, and others get their answers soon."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        token = Path(directory.name) / "token"
        token.write_text(_TOKEN)
        token.chmod(0o600)
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        daemon = _Client(f"tokenfile = {json.dumps(str(token))}", general="maxpackets = 1000000")
        self.addCleanup(daemon.stop)
        daemon.start()
        capture = daemon.capture(interface=[wire.interface], bpf="udp port 9", packets=_FRAMES, snap=128)
        crowd = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.crowd_process", str(daemon.port), "60", "6"]
        )
        self.addCleanup(crowd.wait)
        self.addCleanup(crowd.terminate)
        time.sleep(1)
        sender = threading.Thread(target=lambda: generate(wire, _FRAMES, rate=_PER_SECOND))
        sender.start()
        seconds = []
        while sender.is_alive():
            began = time.monotonic()
            self.assertEqual(daemon.request("GET", f"/captures/{capture}")[0], 200)
            seconds.append(time.monotonic() - began)
        self.assertLess(max(seconds), 2.0)
        state = daemon.done(capture)
        self.assertEqual((state["reason"], state["packets"], state["dropped"]), ("packets", _FRAMES, 0))
