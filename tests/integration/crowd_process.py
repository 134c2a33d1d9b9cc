"""
Clients that send pipelined requests without end: C{python -m tests.integration.crowd_process PORT COUNT S}.

They read what they are sent, and connect again whenever they are disconnected.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time

_REQUESTS = b"GET /captures/none HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1500


def _run(port: int, count: int, seconds: float) -> None:
    selector = selectors.DefaultSelector()

    def connect() -> None:
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", port))
        selector.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE, [_REQUESTS])

    for _ in range(count):
        connect()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for key, events in selector.select(0.1):
            client, unsent = key.fileobj, key.data
            assert isinstance(client, socket.socket)
            try:
                if events & selectors.EVENT_WRITE:
                    unsent[0] = unsent[0][client.send(unsent[0]) :] or _REQUESTS
                if events & selectors.EVENT_READ and not client.recv(1 << 18):
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            except OSError:
                selector.unregister(client)
                client.close()
                connect()


if __name__ == "__main__":
    _run(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
