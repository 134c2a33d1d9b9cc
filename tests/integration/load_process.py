"""
Clients that keep the daemon busy, in a process of their own.

usage: python -m tests.integration.load_process NAME PORT LEAST

It prints a line when they begin. They go on until its standard input ends; those that ask without waiting
for each answer then wait until they have more than LEAST. Then it prints how often they got what they wanted.
The names are those of L{LOADS}.
"""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_CONNECTIONS = 16
_PER_SECOND = 5_000
_STEP_SECONDS = 0.005
_BAD = json.dumps({"node": "any", "interface": ["lo"], "nosuch": 1}).encode()
_BODY_BYTES = 60_000


@dataclass(frozen=True, kw_only=True)
class Going:
    """
    Whether the clients go on.

    @ivar over: set when they end.
    @ivar least: how often they are to get what they want.
    """

    over: threading.Event
    least: int

    def __call__(self) -> bool:
        return not self.over.is_set()


#: Does something as long as it goes on, and returns how often.
Load = Callable[[int, Going], int]


def _at_once(client: Load) -> Load:
    """Many clients of a kind."""

    def load(port: int, going: Going) -> int:
        counts: list[int] = []
        threads = [
            threading.Thread(target=lambda: counts.append(client(port, going))) for _ in range(_CONNECTIONS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts)

    return load


def _post(bodies: Callable[[], bytes]) -> Load:
    """Post bodies that are refused, one after the other."""

    def client(port: int, going: Going) -> int:
        count = 0
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=180)
        while going():
            connection.request("POST", "/captures", bodies())
            answer = connection.getresponse()
            answer.read()
            count += answer.status == 400
        connection.close()
        return count

    return _at_once(client)


def _large_body() -> bytes:
    body = {"node": "any", "interface": [f"if{number}" for number in range(6000)]}
    return json.dumps(body).encode()[:_BODY_BYTES]


_numbers = itertools.count()


def _bomb() -> bytes:
    """An expression that RE2 would need a third of a second for, each time another one."""
    return json.dumps({"nodere": "(?i)" + "\\pL" * 330 + str(next(_numbers)), "interface": ["lo"]}).encode()


def _paced(port: int, going: Going, one: bytes, answer: bytes) -> int:
    """
    Send something at a rate, on one connection, and count the answers. In the end it waits for the least that
    is expected, and not for all: the daemon may take much longer for those than there are packets to capture.
    """
    client = socket.create_connection(("127.0.0.1", port), timeout=180)
    count = sent = 0
    kept = b""

    def receive() -> None:
        nonlocal count, kept
        while data := client.recv(1 << 16):
            kept += data
            count += kept.count(answer)
            kept = kept[-(len(answer) - 1) :]

    receiver = threading.Thread(target=receive)
    receiver.start()
    began = time.monotonic()
    while going():
        due = int((time.monotonic() - began) * _PER_SECOND) - sent
        client.sendall(one * due)
        sent += due
        time.sleep(_STEP_SECONDS)
    while count <= going.least and receiver.is_alive():
        time.sleep(_STEP_SECONDS)
    client.shutdown(socket.SHUT_RDWR)
    receiver.join()
    client.close()
    return count


def _refused_http(port: int, going: Going) -> int:
    head = f"POST /captures HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(_BAD)}\r\n\r\n"
    return _paced(port, going, head.encode() + _BAD, b"HTTP/1.1 400")


def _refused_redis(port: int, going: Going) -> int:
    words = (b"PUBLISH", b"capture", _BAD)
    publication = b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
    return _paced(port, going, publication, b":1\r\n")


def _handshakes(port: int, going: Going) -> int:
    """Begin handshakes, and go away as soon as the daemon has answered."""
    context = ssl.create_default_context()
    count = 0
    while going():
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
        except ssl.SSLWantReadError:
            pass
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=180) as client:
                client.sendall(outgoing.read())
                count += bool(client.recv(1 << 14))
        except OSError:
            pass  # It made room for another one.
    return count


def _silent(port: int, going: Going) -> int:
    """Connect, and say nothing: 200 at a time."""
    clients: list[socket.socket] = []
    count = 0
    while going():
        clients.append(socket.create_connection(("127.0.0.1", port), timeout=180))
        count += 1
        if len(clients) > 200:
            clients.pop(0).close()
    for client in clients:
        client.close()
    return count


#: All of them.
LOADS: dict[str, Load] = {
    "large bodies": _post(_large_body),
    "costly expressions": _post(_bomb),
    "refused over HTTP": _refused_http,
    "refused by Redis": _refused_redis,
    "handshakes": _at_once(_handshakes),
    "silent": _silent,
}


if __name__ == "__main__":
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    done = LOADS[sys.argv[1]](int(sys.argv[2]), Going(over=over, least=int(sys.argv[3])))
    sys.stdout.write(f"{done}\n")
