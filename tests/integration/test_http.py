"""The HTTP source on a real listener, with clients of others."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor, threads
from twisted.trial import unittest

from pcapsvc.core.errors import SettingsError
from pcapsvc.core.request import MAX_BODY_BYTES
from pcapsvc.core.result import Accepted, StartedCapture
from pcapsvc.sources.http.source import HTTPSource, http_endpoint
from pcapsvc.testing import MemorySink
from peers.certificates import Authority
from peers.requirement import require_command
from tests.unit.http_case import add_captures, one_capture, token

BODY = b'{"node":"any","interface":["eth0"]}'


class ListeningTestCase(unittest.TestCase):
    """A source that listens on a free port of loopback."""

    timeout = 120

    def start(self, description: str = "tcp:0:interface=127.0.0.1", **options: Any) -> HTTPSource:
        """A source that listens."""
        self.sink = MemorySink(Accepted(captures=(StartedCapture(capture_id="abc1", interface="eth0"),)))
        source = HTTPSource(
            reactor,
            http_endpoint(reactor, description),
            self.sink,
            **options,
        )
        captures = one_capture("abc1")
        self.state = captures.get("abc1") or {}
        add_captures(reactor, source, captures)
        source.startService()
        self.addCleanup(source.stopService)
        return source

    async def port_of(self, source: HTTPSource) -> int:
        """The port that it listens on."""
        assert source.listening is not None
        address: Any = await source.listening
        return int(address.port)

    def directory(self) -> Path:
        """A directory of this test."""
        path = Path(self.mktemp()).absolute()
        path.mkdir()
        return path

    async def curl(self, *arguments: str, body: bytes = b"") -> tuple[int, Any]:
        """The status and the JSON that curl gets."""
        program = require_command("curl", "curl")

        def run() -> tuple[int, Any]:
            done = subprocess.run(
                [program, "-sS", "--max-time", "60", "-w", "\n%{http_code}", *arguments],
                input=body,
                capture_output=True,
                check=False,
            )
            content, _, code = done.stdout.decode().rpartition("\n")
            return int(code), json.loads(content) if content.strip() else done.stderr.decode()

        result: tuple[int, Any] = await threads.deferToThread(run)
        return result


class HalfClosedTests(ListeningTestCase):
    """A client that shuts down its side after the request."""

    async def test_answered(self) -> None:
        """It gets the answer, and the connection is closed."""
        port = await self.port_of(self.start())

        def talk() -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
                head = b"POST /captures HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
                client.sendall(head % len(BODY) + BODY)
                client.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: client.recv(4096), b""))

        self.assertTrue((await threads.deferToThread(talk)).startswith(b"HTTP/1.1 202 "))


class CurlTests(ListeningTestCase):
    """What the documentation shows: curl."""

    async def test_tls(self) -> None:
        """TLS works with clients that negotiate a protocol, and with those that don't."""
        authority = Authority(self.directory())
        ours = authority.issue("http")
        source = self.start(
            f"ssl:0:interface=127.0.0.1:privateKey={ours.key}:certKey={ours.certificate}",
            tokens=[token("secret")],
        )
        port = await self.port_of(source)
        for more in ((), ("--no-alpn",), ("--http1.0",)):
            answer = await self.curl(
                *("--cacert", str(authority.file), "-H", "Authorization: Bearer secret", *more),
                f"https://localhost:{port}/captures/abc1",
            )
            self.assertEqual(answer, (200, {**self.state, "pcap": False}), more)

    async def test_post(self) -> None:
        """C{curl -d} starts a capture, and the answer says where to ask for it."""
        url = f"http://localhost:{await self.port_of(self.start())}/captures"
        code, content = await self.curl("-d", BODY.decode(), url)
        self.assertEqual((code, content["captures"][0]["id"]), (202, "abc1"))
        self.assertEqual(self.sink.submitted, [("http", BODY)])
        self.assertEqual(await self.curl(f"{url}/abc1"), (200, {**self.state, "pcap": False}))

    async def test_continue(self) -> None:
        """A body for which curl expects C{100 Continue} arrives; one that is too long is refused."""
        url = f"http://127.0.0.1:{await self.port_of(self.start())}/captures"
        expect = ("-H", "Expect: 100-continue", "--data-binary", "@-", url)
        code, _ = await self.curl(*expect, body=b" " * MAX_BODY_BYTES)
        self.assertEqual(code, 202)
        code, content = await self.curl(*expect, body=b" " * (MAX_BODY_BYTES + 1))
        self.assertEqual((code, content["status"]), (413, 413))

    async def test_flood(self) -> None:
        """A body of megabytes, announced or chunked, gets 413, which the client can read."""
        url = f"http://127.0.0.1:{await self.port_of(self.start())}/captures"
        body = bytes(8 * 1024 * 1024)
        for header in ("Expect:", "Transfer-Encoding: chunked"):
            code, content = await self.curl(
                "-H", header, "-H", "Expect:", "--data-binary", "@-", url, body=body
            )
            self.assertEqual((code, content["status"]), (413, 413))
        self.assertEqual(self.sink.submitted, [])

    async def test_absolute_form(self) -> None:
        """A client that uses the node as its proxy sends URLs, whose host counts."""
        proxy = f"http://127.0.0.1:{await self.port_of(self.start())}"
        for host, expected in (("localhost", 200), ("evil.test", 403)):
            code, _ = await self.curl("--noproxy", "", "--proxy", proxy, f"http://{host}/captures/abc1")
            self.assertEqual(code, expected)

    async def test_unix_socket(self) -> None:
        """A unix socket has mode 660, serves curl by any host name, and is removed by the stop."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = Path(directory.name) / "pcapsvc.sock"
        source = self.start(f"unix:{path}")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o660)
        for host in ("localhost", "pcapsvc"):
            code, _ = await self.curl(
                "--unix-socket", str(path), "-d", BODY.decode(), f"http://{host}/captures"
            )
            self.assertEqual(code, 202)
        await source.stopService()
        self.assertFalse(path.exists())


class ClientTests(ListeningTestCase):
    """Other clients."""

    async def test_head_and_keep_alive(self) -> None:
        """The standard library's client sends several requests on one connection, HEAD among them."""
        port = await self.port_of(self.start(tokens=[token("right")]))

        def ask() -> list[tuple[int, int]]:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            self.addCleanup(client.close)
            found = []
            for method, path, presented in (
                ("POST", "/captures", "right"),
                ("HEAD", "/captures/abc1", "right"),
                ("GET", "/captures/abc1", "right"),
                ("GET", "/captures/abc1", "wrong"),
                ("POST", "/captures", "right"),
            ):
                client.request(method, path, BODY, {"Authorization": f"Bearer {presented}"})
                response = client.getresponse()
                found.append((response.status, len(response.read())))
            return found

        found = await threads.deferToThread(ask)
        self.assertEqual([code for code, _ in found], [202, 200, 200, 401, 202])
        self.assertEqual(found[1][1], 0)
        self.assertEqual(len(self.sink.submitted), 2)

    async def test_taken(self) -> None:
        """If the address is in use, the start fails."""
        port = await self.port_of(self.start())
        description = f"tcp:{port}:interface=127.0.0.1"
        source = HTTPSource(reactor, http_endpoint(reactor, description), self.sink)
        self.assertRaises(SettingsError, source.startService)
        assert source.listening is not None
        self.assertIsNone(await source.listening)

    async def test_stop(self) -> None:
        """A stop closes idle and busy connections, and frees the port."""
        source = self.start()
        port = await self.port_of(source)
        clients = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(3)]
        for client in clients:
            self.addCleanup(client.close)
        clients[1].sendall(b"POST /captures HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        clients[2].sendall(b"GET /captures/abc1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertIn(b"200", await threads.deferToThread(clients[2].recv, 4096))
        await source.stopService()
        for client in clients:
            self.assertEqual(await threads.deferToThread(client.recv, 4096), b"")
        self.assertRaises(OSError, socket.create_connection, ("127.0.0.1", port), 1)
