"""Servers whose answers never end: what is read is bounded, and so is the time."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from botocore.exceptions import HTTPClientError
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.net.sqs.client import described, make_boto3_client
from pcapsvc.sources.sqs.queue import Queue
from peers.daemon import Daemon

_MEBIBYTE = 1 << 20
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: 600000000\r\n\r\n"

Answer = Callable[[socket.socket], None]


class Server:
    """
    A server on a free port of 127.0.0.1.

    @ivar sent: how many bytes a client took at most, of one connection.
    """

    def __init__(self, answer: Callable[[Server, socket.socket], None]) -> None:
        self.sent = 0
        self._sent: Counter[socket.socket] = Counter()
        self.stopped = threading.Event()
        server = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(10)
                with contextlib.suppress(OSError):
                    answer(server, self.request)

        class Threading(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Threading(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def send(self, client: socket.socket, data: bytes) -> None:
        """Send to a client."""
        client.sendall(data)
        self._sent[client] += len(data)
        self.sent = max(self.sent, self._sent[client])

    def stop(self) -> None:
        """Answer no more."""
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()


def _flood(server: Server, client: socket.socket) -> None:
    client.recv(65536)
    server.send(client, _HEAD + b'{"Messages": [{"Body": "')
    while not server.stopped.is_set():
        server.send(client, b"x" * 65536)


def _dribble(server: Server, client: socket.socket) -> None:
    client.recv(65536)
    server.send(client, _HEAD)
    while not server.stopped.wait(0.1):
        server.send(client, b" ")


def _frames(server: Server, client: socket.socket) -> None:
    """Announce a frame of 90 MB, and send it."""
    client.recv(65536)
    server.send(client, (90_000_000).to_bytes(4, "big"))
    while not server.stopped.is_set():
        server.send(client, bytes(65536))


def _highest_bytes(daemon: Daemon) -> int:
    """The most memory that a daemon had (proc(5))."""
    status = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


class EndlessTests(SynchronousTestCase):
    """Sources whose servers don't stop sending."""

    def start(self, answer: Callable[[Server, socket.socket], None]) -> Server:
        """A server."""
        server = Server(answer)
        self.addCleanup(server.stop)
        return server

    def daemon(self, configuration: str) -> Daemon:
        """A running daemon."""
        daemon = Daemon(configuration)
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def test_sqs(self) -> None:
        """Of an answer of 600 MB, the SQS source reads a few; it is logged, and tried again."""
        server = self.start(_flood)
        daemon = self.daemon(
            f'[sqs]\nlisten = true\nurl = "http://127.0.0.1:{server.port}/1/captures"\n'
            'accessid = "AKIAEXAMPLE"\naccesskey = "s3cret-key-of-this-test"'
        )
        self.assertIn("an answer is longer than 4194304 bytes", daemon.logged("SQS http://127.0.0.1"))
        time.sleep(3)
        self.assertLess(_highest_bytes(daemon), 200 * _MEBIBYTE)
        self.assertEqual(daemon.request("GET", "/captures/none")[0], 404)

    def test_sqs_dribbles(self) -> None:
        """A server that sends a byte now and then has as much time for an answer as any other."""
        server = self.start(_dribble)
        url = f"http://127.0.0.1:{server.port}/1/captures"
        queue = Queue(
            lambda: make_boto3_client(url, None, None, "AKIAEXAMPLE", "s3cret-key", 1.0),
            url,
            wait_seconds=0,
            chunk_size=10,
            hidden_seconds=30,
        )
        self.addCleanup(queue.end)
        began = time.monotonic()
        problem = self.assertRaises(HTTPClientError, queue.receive)
        self.assertLess(time.monotonic() - began, 10)
        self.assertIn("an answer was not complete within 1 s", described(problem)[1])

    def test_kafka(self) -> None:
        """A broker that announces a frame of 90 MB is disconnected."""
        server = self.start(_frames)
        daemon = self.daemon(
            f'[kafka]\nlisten = true\nserver = ["127.0.0.1:{server.port}"]\ntopic = "capture"'
        )
        daemon.logged("Kafka 127.0.0.1")
        time.sleep(3)
        self.assertLess(server.sent, 30 * _MEBIBYTE)
        self.assertLess(_highest_bytes(daemon), 150 * _MEBIBYTE)
