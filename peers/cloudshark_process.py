"""
The process of L{peers.cloudshark.CloudSharkServer}.

For each request it reads from a file how to behave. What it received it writes to files in the same
directory: C{N.json}, and C{N.bin} with the capture.

usage: cloudshark_process.py DIRECTORY ADDRESS PORT TOKEN CERTIFICATE KEY
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from multipart import MultipartError, MultipartParser, parse_options_header

_IN_MEMORY_BYTES = 1 << 20
_LARGEST_UPLOAD_BYTES = 1 << 30
_LARGEST_FIELD_BYTES = 64 << 10
_CHUNK_BYTES = 64 << 10
# The behaviours that store the upload as a capture, even if the client never learns of it.
_TAKEN = frozenset({"accept", "forget"})


class Bad(Exception):
    """A request is malformed; the message is for its sender."""


def parts_of(headers: Message, body: BinaryIO) -> tuple[Any, dict[str, str]]:
    """
    Parse an upload into its file and its fields.

    @raise Bad: it is not exactly what the API requires.
    """
    kind, options = parse_options_header(headers.get("Content-Type", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise Bad("Content-Type must be multipart/form-data with a boundary")
    length = int(headers["Content-Length"])
    try:
        parts = list(
            MultipartParser(
                body,
                options["boundary"],
                content_length=length,
                memfile_limit=_IN_MEMORY_BYTES,
                memory_limit=16 * _IN_MEMORY_BYTES,
                disk_limit=_LARGEST_UPLOAD_BYTES,
                strict=True,
            )
        )
    except MultipartError as error:
        raise Bad(f"the body is not well-formed: {error}") from error
    names = [part.name for part in parts]
    if len(set(names)) != len(names):
        raise Bad("there are two parts of the same name")
    files = [part for part in parts if part.filename is not None]
    if [part.name for part in files] != ["file"]:
        raise Bad("there must be exactly one file, named file")
    fields = {part.name: part.value for part in parts if part.filename is None}
    if any(len(value) > _LARGEST_FIELD_BYTES for value in fields.values()):
        raise Bad("a field is too long")
    return files[0], fields


class Limited:
    """The body of a request, and not a byte more; read slowly if asked to."""

    def __init__(self, stream: BinaryIO, length: int, bytes_per_second: float | None) -> None:
        self._stream = stream
        self._left = length
        self._bytes_per_second = bytes_per_second

    def read(self, size: int = -1) -> bytes:
        """Read up to C{size} bytes."""
        size = self._left if size < 0 else min(size, self._left)
        if self._bytes_per_second:
            size = min(size, max(1, int(self._bytes_per_second / 10)))
            time.sleep(size / self._bytes_per_second)
        data = self._stream.read(size)
        self._left -= len(data)
        return data


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        # The TLS handshake happens here, in the thread of the connection.
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def do_GET(self) -> None:
        """A search for a part of a file's name."""
        url = urlsplit(self.path)
        [part] = parse_qs(url.query).get("search[filename]", [""])
        refusal = self.server.orders()["search"]
        if url.path != f"/api/v1/{self.server.token}/search" or not part:
            self._answer(404, {"status": 404, "exceptions": ["no such token, or nothing to search for"]})
        elif refusal is not None:
            self._answer(
                refusal["status"], {"status": refusal["status"], "exceptions": refusal["exceptions"]}
            )
        else:
            self._answer(200, {"captures": self.server.find(part)})

    def do_POST(self) -> None:
        """An upload."""
        behaviour = self.server.behave()
        record: dict[str, Any] = {
            "time": time.monotonic(),
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }
        if "Content-Length" not in self.headers:
            self._finish(record, 411, {"status": 411, "exceptions": ["Content-Length is required"]})
            return
        kind = behaviour["kind"]
        length = int(self.headers["Content-Length"])
        if kind == "reset":
            self.rfile.read(min(length, behaviour["after_bytes"]))
            self.server.record(record)
            self._reset()
            return
        body = Limited(self.rfile, length, behaviour.get("bytes_per_second"))
        try:
            if self.path != f"/api/v1/{self.server.token}/upload":
                raise Bad("no such token")
            file, fields = parts_of(self.headers, body)  # type: ignore[arg-type]
        except Bad as error:
            while body.read(_CHUNK_BYTES):
                pass
            status = 404 if str(error) == "no such token" else 400
            self._finish(record, status, {"status": status, "exceptions": [str(error)]})
            return
        record |= {
            "filename": file.filename,
            "content_type": file.content_type,
            "size": file.size,
            "fields": fields,
            "taken": kind in _TAKEN,
        }
        self.server.record(record, file)
        if kind in _TAKEN:
            self.server.take(file.filename, behaviour.get("id", "forgotten"), file.size)
        if kind == "hang":
            self.server.stopped.wait()
        if kind == "forget":
            self._reset()
            return
        time.sleep(behaviour.get("delay_seconds", 0))
        if kind == "refuse":
            self._answer(
                behaviour["status"],
                {"status": behaviour["status"], "exceptions": behaviour["exceptions"]},
                headers=behaviour["headers"],
            )
        elif kind == "raw":
            self._answer(behaviour["status"], behaviour["body"].encode())
        else:
            self._answer(
                200,
                {"filename": file.filename, "id": behaviour["id"]},
                bytes_per_second=behaviour.get("answer_bytes_per_second"),
            )

    def _finish(self, record: dict[str, Any], status: int, body: object) -> None:
        self.server.record({**record, "refused": status})
        self.close_connection = True
        self._answer(status, body)

    def _answer(
        self,
        status: int,
        body: object,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        bytes_per_second: float | None = None,
    ) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if bytes_per_second is None:
            self.wfile.write(raw)
            return
        for byte in raw:
            self.wfile.write(bytes([byte]))
            time.sleep(1 / bytes_per_second)

    def _reset(self) -> None:
        # socket(7), SO_LINGER: a close with a linger time of 0 sends a reset.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.request.detach())
        self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            pass  # the connection is gone already
        finally:
            # The server closes the one that it accepted, which is empty since the handshake.
            self.request.close()


class Server(ThreadingHTTPServer):
    """The server, and its directory."""

    daemon_threads = True
    handler: type[BaseHTTPRequestHandler]

    def __init__(
        self, directory: Path, address: tuple[str, int], token: str, certificate: str, key: str
    ) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.token = token
        self.stopped = threading.Event()
        self._directory = directory
        self._lock = threading.Lock()
        self._received = 0
        self._captures: list[dict[str, Any]] = []
        self._told: tuple[int, int] = (-1, 0)
        super().__init__(address, self.handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print one line instead of a traceback."""
        print(f"{client_address}: {sys.exc_info()[1]!r}", file=sys.stderr, flush=True)

    def orders(self) -> dict[str, Any]:
        """The current orders."""
        orders: dict[str, Any] = json.loads((self._directory / "behaviour").read_text())
        return orders

    def behave(self) -> dict[str, Any]:
        """The behaviour for the next upload. The last one is for all further uploads."""
        with self._lock:
            orders = self.orders()
            serial, at = self._told
            at = at + 1 if serial == orders["serial"] else 0
            self._told = (orders["serial"], at)
            behaviours: list[dict[str, Any]] = orders["behaviours"]
            return behaviours[min(at, len(behaviours) - 1)]

    def take(self, filename: str, id: str, size: int) -> None:
        """Store a capture."""
        with self._lock:
            self._captures.append({"filename": filename, "id": id, "size": size})

    def find(self, part: str) -> list[dict[str, Any]]:
        """The captures whose names contain C{part}."""
        with self._lock:
            return [capture for capture in self._captures if part in capture["filename"]]

    def record(self, record: dict[str, Any], file: Any = None) -> None:
        """Record what was received, atomically."""
        with self._lock:
            number = self._received
            self._received += 1
        if file is not None:
            file.save_as(str(self._directory / f"{number}.bin"))
        draft = self._directory / f"{number}.draft"
        draft.write_text(json.dumps(record))
        draft.rename(self._directory / f"{number}.json")


Server.handler = Handler


if __name__ == "__main__":
    directory, address, port, *rest = sys.argv[1:]
    Server(Path(directory), (address, int(port)), *rest).serve_forever()
