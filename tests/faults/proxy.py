"""An HTTP proxy that can be made to fail."""

from __future__ import annotations

import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Fault:
    """
    What happens to requests.

    @ivar only: what the first line of a request must have for this to happen; the others are passed on.
    @ivar read_bytes_per_second: read the body slowly.
    @ivar body_bytes: reset the connection after reading so much of the body; L{None} reads all of it.
    @ivar answer: the answer in place of the server's; L{None} passes the request on.
    @ivar silent: never answer.
    @ivar forgetful: pass the request on, and reset the connection instead of passing the answer back.
    @ivar answer_bytes_per_second: answer slowly.
    """

    only: bytes = b""
    read_bytes_per_second: float | None = None
    body_bytes: int | None = None
    answer: bytes | None = None
    silent: bool = False
    forgetful: bool = False
    answer_bytes_per_second: float | None = None


def answer(status: int, code: str, *headers: str) -> bytes:
    """An error response of S3 (S3 API Reference, "Error responses")."""
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    lines = [f"HTTP/1.1 {status} No", "Content-Type: application/xml", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode() + body


class FaultyProxy:
    """
    The proxy, on a free port. Each request has its own connection.

    @ivar fault: what happens to requests from now on; L{None} passes them on.
    @ivar times: the times of the requests, in seconds of the monotonic clock.
    @ivar answered: how many of them the server has answered.
    """

    def __init__(
        self,
        port: int,
        certificate: tuple[Path, Path] | None = None,
        host: str = "127.0.0.1",
        *,
        at: int,
    ) -> None:
        """
        @param port: the server's port on 127.0.0.1.
        @param host: the address that the proxy listens on.
        @param at: the proxy's own port: of L{peers.process.free_port}, as nobody else takes such a one while
            the proxy is down.
        @param certificate: the files of a certificate and its key, for TLS.
        """
        self.fault: Fault | None = None
        self.times: list[float] = []
        self.answered = 0
        self._behind = port
        self._stopped = threading.Event()
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*map(str, certificate))
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                try:
                    proxy._serve(self.request)
                except (OSError, ValueError):
                    pass  # the client has gone

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = False
            block_on_close = True

        self._server = Server((host, at), Handler)
        self.port = at
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def start(self) -> None:
        """Start to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Close all connections, and end the thread. A second call does nothing."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self, client: socket.socket) -> None:
        if self._context is None:
            self._answer(client)
            return
        client.settimeout(20)
        # The server closes the one that it knows, which is empty from here on.
        with self._context.wrap_socket(client, server_side=True) as secured:
            self._answer(secured)

    def _answer(self, client: socket.socket) -> None:
        client.settimeout(0.1)
        read = self._reader(client)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += read(1)
        self.times.append(time.monotonic())
        fault = self.fault or Fault()
        if fault.only not in head.split(b"\r\n", 1)[0]:
            fault = Fault()
        lines = [line for line in head.split(b"\r\n")[:-2] if not line.lower().startswith(b"expect:")]
        if len(lines) < head.count(b"\r\n") - 1:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")), 0
        )
        if fault.body_bytes is not None:
            self._read_all(read, min(length, fault.body_bytes))
            _reset(client)
            return
        body = self._read_all(read, length, fault.read_bytes_per_second)
        if fault.silent:
            # Tests that measure memory here mean the client's.
            del body
            read(1)
            return
        answered = fault.answer or self._pass_on(lines, body)
        if fault.forgetful:
            _reset(client)
            return
        if fault.answer_bytes_per_second is None:
            client.sendall(answered)
            return
        for byte in answered:
            client.sendall(bytes([byte]))
            if self._stopped.wait(1 / fault.answer_bytes_per_second):
                return

    def _reader(self, client: socket.socket) -> Callable[[int], bytes]:
        def read(most: int) -> bytes:
            while not self._stopped.is_set():
                try:
                    data = client.recv(min(most, 65536))
                except TimeoutError:
                    continue
                if data == b"":
                    raise OSError("the client is gone")
                return data
            raise OSError("the proxy stops")

        return read

    def _read_all(
        self, read: Callable[[int], bytes], length: int, bytes_per_second: float | None = None
    ) -> bytes:
        data = bytearray()
        while len(data) < length:
            most = length - len(data)
            if bytes_per_second is not None:
                most = min(most, int(bytes_per_second / 10))
                self._stopped.wait(0.1)
            data += read(most)
        return bytes(data)

    def _pass_on(self, lines: list[bytes], body: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self._behind), timeout=30) as server:
            server.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
            answered = bytearray()
            while data := server.recv(65536):
                answered += data
        self.answered += 1
        return bytes(answered)


def _reset(client: socket.socket) -> None:
    # socket(7), SO_LINGER: a close with a time of 0 sends a reset.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
