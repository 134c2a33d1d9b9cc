"""
Clients of a daemon's HTTP API that watch it, in a process of their own, which needs little CPU time.

usage: python audience_process.py PORT READERS

So many read C{/events}, and one gets C{/metrics} each second. It prints C{ready} when all readers have the
beginning of their answers. At SIGTERM it prints a line of JSON: C{seconds}, how long it was ready; C{events},
how many each reader got; C{scrapes} and C{slowest}, how many times the metrics were answered, and how many
seconds the slowest answer took; and C{problems}, the reasons why anybody was disconnected or refused.
"""

from __future__ import annotations

import http.client
import json
import selectors
import signal
import socket
import sys
import threading
import time
from typing import Any

_SCRAPE_SECONDS = 1.0
_PATIENCE_SECONDS = 180.0
_EVENTS = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
_MARK = b"\nevent: "


class _Reader:
    """A client of C{/events}."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS)
        self.socket.sendall(_EVENTS)
        self.events = 0
        self._last = b""
        if not self.read().startswith(b"HTTP/1.1 200 "):
            raise ConnectionError("refused")
        self.socket.setblocking(False)

    def read(self) -> bytes:
        """Count the events in what has come."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("disconnected")
        seen = self._last + data
        self.events += seen.count(_MARK)
        self._last = seen[1 - len(_MARK) :]
        return data


class _Scraper:
    """
    A client of C{/metrics}.

    @ivar seconds: how long each answer took.
    """

    def __init__(self, port: int) -> None:
        self.seconds: list[float] = []
        self.problems: list[str] = []
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Scrape no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_SECONDS)
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due += _SCRAPE_SECONDS
            began = time.monotonic()
            try:
                connection.request("GET", "/metrics")
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200 or b"pcapsvc_captures_running" not in text:
                    raise http.client.HTTPException(f"/metrics: {answer.status}")
            except (OSError, http.client.HTTPException) as error:
                self.problems.append(str(error))
                connection.close()
            else:
                self.seconds.append(time.monotonic() - began)
        connection.close()


class _Ended(Exception):
    """SIGTERM has come."""


def _end(*_: Any) -> None:
    raise _Ended


def _watch(port: int, count: int) -> dict[str, Any]:
    problems: list[str] = []
    readers = [_Reader(port) for _ in range(count)]
    scraper = _Scraper(port)
    selector = selectors.DefaultSelector()
    for reader in readers:
        selector.register(reader.socket, selectors.EVENT_READ, reader)
    print("ready", flush=True)
    began = time.monotonic()
    try:
        while True:
            for key, _ in selector.select():
                try:
                    key.data.read()
                except OSError as error:
                    problems.append(str(error))
                    selector.unregister(key.fileobj)
    except _Ended:
        seconds = time.monotonic() - began
        scraper.stop()
    return {
        "seconds": seconds,
        "events": [reader.events for reader in readers],
        "scrapes": len(scraper.seconds),
        "slowest": max(scraper.seconds, default=0.0),
        "problems": problems + scraper.problems,
    }


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    print(json.dumps(_watch(int(sys.argv[1]), int(sys.argv[2]))), flush=True)
