"""Connections of somebody else to the daemon's servers, and what stands between it and one of them."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from peers.kafka import KafkaBroker
from peers.process import free_port
from peers.redis import RedisServer

#: How often a stranger talks each time.
TALKS = 3

#: How long it waits for an answer, and for the end of its connections.
ANSWER_SECONDS = 180.0
_CLOSED_SECONDS = 10.0

# The states of a connection on which nothing more is said: TIME_WAIT and CLOSE (include/net/tcp_states.h).
_OVER = {"06", "07"}


class Strangers:
    """
    Connections of another process than the daemon: this one.

    @ivar ports: their local ports.
    @ivar talked: those of them that had something to say.
    """

    def __init__(self) -> None:
        self.ports: set[int] = set()
        self.talked: set[int] = set()

    def connect(self, port: int, host: str = "127.0.0.1", *, own_port: int = 0) -> socket.socket:
        """
        A connection. Its port is known before it is made, so that it is where it is refused, too.

        @param own_port: its port; 0 for any that is free.
        """
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            made.bind((host, own_port))
            self.ports.add(made.getsockname()[1])
            made.settimeout(ANSWER_SECONDS)
            made.connect((host, port))
        except BaseException:
            made.close()
            raise
        return made

    def reach(self, port: int, host: str) -> bool:
        """Whether somebody listens."""
        try:
            self.connect(port, host).close()
        except OSError:
            return False
        return True

    def talk(self, port: int, words: bytes, host: str = "127.0.0.1") -> None:
        """
        Say something, and hear an answer, a few times.

        Each time, it has a port that nobody else has had. The kernel might give it that of a connection that
        was refused before, by a server that was starting: packets of that one would be in one file, and not
        always in the other.
        """
        for _ in range(TALKS):
            with self.connect(port, host, own_port=free_port()) as made:
                client: int = made.getsockname()[1]
                self.talked.add(client)
                made.sendall(words)
                assert made.recv(4096)
            _wait_until_closed({client})


class RestartableRedis(RedisServer):
    """One to which all connections while it starts are known."""

    def __init__(self, strangers: Strangers, host: str) -> None:
        super().__init__(host=host)
        self._strangers = strangers

    def _answers(self) -> bool:
        return self._strangers.reach(self.port, self.host)


class RestartableKafka(KafkaBroker):
    """Likewise, on several addresses."""

    def __init__(self, *hosts: str) -> None:
        super().__init__(host=hosts[0], more_hosts=hosts[1:])

    def start_again(self, strangers: Strangers, host: str) -> None:
        """
        Start it, and wait until it listens on an address.

        @param strangers: those who find out.
        """
        self._process.start(
            [*self._command, str(self._file)],
            lambda: strangers.reach(self.ports[host], host),
        )


class Relay:
    """
    Passes connections on to a port of 127.0.0.1.

    @ivar port: its own, on an address that may be another.
    @ivar connected: set by each connection.
    """

    def __init__(self, behind: int, host: str) -> None:
        self.connected = threading.Event()
        self._open: list[socket.socket] = []
        relay = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", behind)) as server:
                    relay._open += [self.request, server]
                    relay.connected.set()
                    back = threading.Thread(target=_pass_on, args=(server, self.request))
                    back.start()
                    _pass_on(self.request, server)
                    back.join()

        class Server(socketserver.ThreadingTCPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True

        self._server = Server((host, 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def cut(self) -> None:
        """End all connections."""
        while self._open:
            _shut(self._open.pop())

    def stop(self) -> None:
        """Listen no more, and end all connections."""
        self._server.shutdown()
        self.cut()
        self._server.server_close()


def _connected_ports() -> Iterator[int]:
    """The ports at both ends of each TCP connection of this host that is not over (proc(5), net/tcp)."""
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            _, local, remote, state = line.split()[:4]
            if state not in _OVER:
                yield from (int(end.rpartition(":")[2], 16) for end in (local, remote))


def _wait_until_closed(ports: Collection[int]) -> None:
    """
    Wait until connections are closed at both ends, but not for ever: somebody else may have been given one of
    the ports.
    """
    deadline = time.monotonic() + _CLOSED_SECONDS
    while not set(_connected_ports()).isdisjoint(ports) and time.monotonic() < deadline:
        time.sleep(0.02)


def _pass_on(source: socket.socket, destination: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            destination.sendall(data)
    except OSError:
        pass  # it was cut
    _shut(source)
    _shut(destination)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
