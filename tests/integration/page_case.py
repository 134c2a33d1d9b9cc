"""A visitor of the page of a real daemon."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.chromium import Visitor, shared_chromium
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.wire import Wire

#: Long enough for a busy machine, in milliseconds.
PATIENCE = 180_000

#: What a page that runs text as a script, or shows it as HTML, would not survive.
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"`${alert(3)}&lt;&#60;"


class PageTestCase(SynchronousTestCase):
    """The page in a real browser, which complains about nothing."""

    def setUp(self) -> None:
        """A browser."""
        self.chromium = shared_chromium()

    def wire(self) -> Wire:
        """A wire that exists until the end of the test."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        return wire

    def daemon(self, configuration: str = "", **options: Any) -> Daemon:
        """A daemon that runs until the end of the test, and reports progress ten times a second."""
        daemon = Daemon(f"{configuration}\n[reports]\nprogressinterval = 0.1\n", **options)
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def visit(self, daemon: Daemon, *, allowed: str = "", **options: Any) -> Visitor:
        """
        Open the page.

        @param allowed: what the browser may complain about.
        """
        visitor = self.chromium.visitor(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.addCleanup(visitor.close)

        def no_complaints() -> None:
            complaints = [one for one in visitor.complaints if not allowed or allowed not in one]
            self.assertEqual(complaints, [])

        # Before it is closed.
        self.addCleanup(no_complaints)
        visitor.page.goto(f"http://127.0.0.1:{daemon.port}/")
        return visitor


class EventCounter:
    """Reads the events of a daemon beside the page, and counts them."""

    def __init__(self, daemon: Daemon) -> None:
        self.events = 0
        self._connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=180)
        self._connection.request("GET", "/events")
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.status
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect."""
        if self._connection.sock is not None:
            self._connection.sock.shutdown(2)
        self._thread.join(10)
        self._connection.close()

    def wait_for(self, events: int) -> float:
        """Wait until so many more events have come. Returns how many seconds that took."""
        until, began = self.events + events, time.monotonic()
        while self.events < until:
            assert time.monotonic() < began + PATIENCE / 1000, (
                f"{until - self.events} of {events} did not come"
            )
            time.sleep(0.02)
        return time.monotonic() - began

    def _read(self) -> None:
        try:
            while line := self._answer.readline():
                self.events += line.startswith(b"data:")
        except (OSError, http.client.HTTPException):
            pass


def send(wire: Wire, packets: int) -> None:
    """Send UDP packets over a wire, of 128 bytes."""
    wire.send([udp_frame(number, size=128) for number in range(packets)])


def toml_list(*texts: str) -> str:
    """A list in TOML. JSON's strings are TOML's."""
    return json.dumps(list(texts))
