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

from twisted.internet import reactor, threads
from twisted.trial import unittest

from pcapsvc.core.result import Accepted, StartedCapture
from pcapsvc.sources.http.source import HTTPSource, http_endpoint
from pcapsvc.testing import MemorySink
from peers.certificates import Authority
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.wire import Wire
from tests.unit.http_case import add_captures, one_capture, token

# Packets are lost if the daemon is not scheduled for long enough.
needs_machine_alone = True

_TOKEN = "s3cret-token-of-this-test"
_FRAMES = 100_000
_PER_SECOND = 50_000


class SilentTests(unittest.TestCase):
    """Connections that say nothing keep nobody out, though all clients have the same address."""

    timeout = 60
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
            client = socket.create_connection(("127.0.0.1", port), timeout=10)
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
            await self.assert_served(http.client.HTTPConnection("127.0.0.1", port, timeout=10))

    async def test_tls(self) -> None:
        """Handshakes that are not begun, or not finished; and clients that have authenticated before stay."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        authority = Authority(Path(directory.name))
        ours = authority.issue("http")
        port = await self.port(f"ssl:0:interface=127.0.0.1:privateKey={ours.key}:certKey={ours.certificate}")
        context = ssl.create_default_context(cafile=str(authority.file))

        def client() -> http.client.HTTPConnection:
            return http.client.HTTPSConnection("localhost", port, timeout=10, context=context)

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
        capture = daemon.capture(
            interface=[wire.interface], bpf="udp port 9", packets=_FRAMES, timeout=20, snap=128
        )
        crowd = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.crowd_process", str(daemon.port), "60", "6"]
        )
        self.addCleanup(crowd.wait)
        time.sleep(1)
        frames = [udp_frame(number) for number in range(_FRAMES)]
        sender = threading.Thread(target=wire.send, args=(frames, _PER_SECOND))
        sender.start()
        seconds = []
        while sender.is_alive():
            began = time.monotonic()
            self.assertEqual(daemon.request("GET", f"/captures/{capture}")[0], 200)
            seconds.append(time.monotonic() - began)
        self.assertLess(max(seconds), 2.0)
        state = daemon.done(capture)
        self.assertEqual((state["reason"], state["packets"], state["dropped"]), ("packets", _FRAMES, 0))
