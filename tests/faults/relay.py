"""A TCP relay that can be made to fail."""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import dataclass

_CHUNK_BYTES = 16384


@dataclass(frozen=True, kw_only=True)
class Cut:
    """
    What happens to connections.

    @ivar sent_bytes: after so many bytes of the client's.
    @ivar answered_bytes: or after so many of the server's.
    @ivar silently: nothing arrives any more, instead of a reset.
    @ivar greeting: what the client gets in place of the server's, for as long as it stays.
    @ivar sent_bytes_per_second: how fast the client's bytes arrive, if they arrive slowly.
    @ivar answered_bytes_per_second: how fast the server's do.
    """

    sent_bytes: int | None = None
    answered_bytes: int | None = None
    silently: bool = False
    greeting: bytes | None = None
    sent_bytes_per_second: int | None = None
    answered_bytes_per_second: int | None = None


class Relay:
    """
    The relay, on a free port of 127.0.0.1.

    @ivar cut: what happens to connections from now on; L{None} is nothing.
    @ivar accepted: how many connections there were.
    """

    def __init__(self, port: int) -> None:
        """
        @param port: the server's port on 127.0.0.1.
        """
        self.cut: Cut | None = None
        self.accepted = 0
        self._behind = port
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start to serve."""
        self._begin(self._serve)

    def stop(self) -> None:
        """Close all connections, and end the threads. A second call does nothing."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _begin(self, function: object, *args: object) -> None:
        thread = threading.Thread(target=function, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.accepted += 1
            self._begin(self._relay, client, self.cut or Cut())

    def _relay(self, client: socket.socket, cut: Cut) -> None:
        with client:
            client.settimeout(0.05)
            if cut.greeting is not None:
                self._greet(client, cut.greeting)
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._behind), timeout=10)
            except OSError:
                return
            with server:
                server.settimeout(0.05)
                answers = (server, client, cut, cut.answered_bytes, cut.answered_bytes_per_second)
                back = threading.Thread(target=self._pass, args=answers)
                back.start()
                self._pass(client, server, cut, cut.sent_bytes, cut.sent_bytes_per_second)
                back.join()

    def _greet(self, client: socket.socket, greeting: bytes) -> None:
        while not self._stopped.is_set():
            try:
                client.sendall(greeting)
            except TimeoutError:
                continue
            except OSError:
                return

    def _pass(
        self, one: socket.socket, other: socket.socket, cut: Cut, most: int | None, rate: int | None
    ) -> None:
        passed = 0
        chunk_bytes = _CHUNK_BYTES if rate is None else min(max(1, rate // 20), _CHUNK_BYTES)
        while not self._stopped.is_set():
            try:
                data = one.recv(chunk_bytes)
            except TimeoutError:
                continue
            except OSError:
                data = b""
            if not data:
                _shut(one, other)
                return
            passed += len(data)
            if rate is not None:
                self._stopped.wait(len(data) / rate)
            if most is not None and passed > most:
                if cut.silently:
                    continue
                for each in (one, other):
                    # socket(7), SO_LINGER: a close with a time of 0 sends a reset.
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                _shut(one, other)
                return
            self._send(other, data)

    def _send(self, to: socket.socket, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._stopped.is_set():
            try:
                view = view[to.send(view) :]
            except TimeoutError:
                continue
            except OSError:
                return


def _shut(*sockets: socket.socket) -> None:
    for each in sockets:
        try:
            each.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
