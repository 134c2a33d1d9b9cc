"""An S3 server in the same process that accepts anything."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import botocore.session
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from pcapsvc.core.errors import DestinationError
from pcapsvc.destinations.s3.destination import S3
from pcapsvc.threads import Threads
from peers.s3 import shared_loader
from tests.unit.contents import MemfdContent, make_artifact

SECRET = "v3ry/s3cr3t+k3y"


class Handler(BaseHTTPRequestHandler):
    """Keeps what is put, and answers as the test says."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.headers["x-client"] = str(self.client_address)
        self.server.requests.append((self.path, self.headers, body))
        status, answer = self.server.answer()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        if self.server.etag is not None and status == 200:
            self.send_header("ETag", self.server.etag(body))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def do_HEAD(self) -> None:
        self.server.heads += 1
        status, headers = self.server.head() or (self.server.answer()[0], {"Content-Length": "0"})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """On the loopback, on any port."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.heads = 0
        self.requests: list[tuple[str, Any, bytes]] = []
        self.answer: Callable[[], tuple[int, bytes]] = lambda: (200, b"")
        self.headers: dict[str, str] = {}
        self.etag: Callable[[bytes], str] | None = md5_tag
        self.head: Callable[[], tuple[int, dict[str, str]] | None] = lambda: None
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


def md5_tag(body: bytes) -> str:
    """The entity tag of an object that S3 stores."""
    return f'"{hashlib.md5(body).hexdigest()}"'


def refusal(status: int, code: str, message: str = "no") -> Callable[[], tuple[int, bytes]]:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return lambda: (status, body)


class S3Case(TestCase):
    """With a server, and threads."""

    def setUp(self) -> None:
        self.patch(botocore.session, "create_loader", shared_loader)
        self.server = Server()
        serving = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        serving.start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.threads = Threads(reactor)
        self.threads.startService()
        self.addCleanup(self.threads.stopService)
        self.content = MemfdContent(os.urandom(300_000))
        self.addCleanup(self.content.close)

    def make(self, **changes: Any) -> S3:
        values: dict[str, Any] = {
            "access_id": "AKIDEXAMPLE",
            "access_key": SECRET,
            "endpoint": self.server.endpoint,
            "bucket": "captures",
        }
        return S3(run_in_thread=self.threads.run, run_elsewhere=self.threads.run, **{**values, **changes})

    async def refused(self, asked: dict[str, Any] | None = None, **changes: Any) -> DestinationError:
        stored = self.make(**changes).store(make_artifact(self.content, **(asked or {})))
        error = await self.assertFailure(stored, DestinationError)
        assert isinstance(error, DestinationError)
        self.assertNotIn(SECRET, str(error))
        self.assertTrue(self.content.all_closed)
        return error
