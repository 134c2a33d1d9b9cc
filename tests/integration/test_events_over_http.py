"""Events over HTTP: a daemon, and the clients that people use."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from typing import Any

import treq
from twisted.internet import defer, reactor, task, threads
from twisted.trial import unittest

from pcapsvc.core.event import RequestBusy
from pcapsvc.core.labels import Labels
from pcapsvc.core.role import ALL_ROLES
from pcapsvc.net import http_server
from pcapsvc.net.http_resource import Resource
from pcapsvc.net.http_server import HTTPServer
from pcapsvc.testing import event_factory
from pcapsvc.web.event_stream import Events, EventStreams
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.requirement import require_command
from peers.wire import Wire
from tests.unit.event_schema import problems


class Reader:
    """A client of C{/events} by curl, which is connected from the beginning."""

    def __init__(self, url: str, *arguments: str) -> None:
        program = require_command("curl", "curl")
        self.process = subprocess.Popen([program, "-sSN", "-D", "-", *arguments, url], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        # The head of the answer: from then on, it misses nothing.
        while self.process.stdout.readline().strip():
            pass

    def next(self) -> dict[str, str]:
        """The fields of the next event."""
        assert self.process.stdout is not None
        fields: dict[str, str] = {}
        while line := self.process.stdout.readline().decode():
            if line == "\n" and fields:
                return fields
            name, _, value = line.rstrip("\n").partition(": ")
            if name:
                fields[name] = value
        raise AssertionError("the stream has ended")

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


class DaemonTests(unittest.SynchronousTestCase):
    """A daemon, and a wire that it captures on."""

    def test_capture(self) -> None:
        """A client sees a capture from its request to its delivery, and later what it has missed."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        daemon = Daemon("[reports]\nprogressinterval = 0.2")
        self.addCleanup(daemon.stop)
        daemon.start()
        url = f"http://127.0.0.1:{daemon.port}/events"
        reader = Reader(url)
        self.addCleanup(reader.stop)
        others = Reader(f"{url}?requestid=r-1&type=pcapsvc.delivery")
        self.addCleanup(others.stop)
        capture = daemon.capture(interface=[wire.interface], bpf="udp port 9", packets=2, requestid="r-1")
        seen = [reader.next() for _ in range(4)]
        self.assertEqual(
            [each["event"].removeprefix("pcapsvc.") for each in seen],
            ["request.accepted", "capture.started", "capture.progress", "capture.progress"],
        )
        wire.send([udp_frame(1), udp_frame(2)])
        while seen[-1]["event"] != "pcapsvc.capture.done":
            seen.append(reader.next())
        for each in seen:
            event = json.loads(each["data"])
            self.assertEqual(problems(event), [])
            self.assertEqual((event["id"], event["type"]), (each["id"], each["event"]))
            self.assertEqual(event["data"]["requestid"], "r-1")
            self.assertEqual(event.get("subject", capture), capture)
        self.assertEqual(others.next()["event"], "pcapsvc.delivery.delivered")
        again = Reader(url, "-H", f"Last-Event-ID: {seen[1]['id']}")
        self.addCleanup(again.stop)
        rest = [each for each in seen[2:] if each["event"] != "pcapsvc.capture.progress"]
        found: list[dict[str, str]] = []
        while len(found) < len(rest):
            if (each := again.next())["event"] != "pcapsvc.capture.progress":
                found.append(each)
        self.assertEqual(found, rest)
        began = time.monotonic()
        daemon.signal(15)
        self.assertEqual(daemon.wait(), 0)
        # The stop of a daemon may take 20 s: those who read must not make it longer.
        self.assertLess(time.monotonic() - began, 10)
        reader.process.wait(10)


class ServerTests(unittest.TestCase):
    """A server of events on loopback."""

    timeout = 300

    def setUp(self) -> None:
        self.streams = EventStreams(reactor)
        root = Resource()
        root.putChild(b"events", Events(self.streams))
        self.server = HTTPServer(reactor, root, check=lambda request: ALL_ROLES, max_body_bytes=100)
        self.server.open()
        port = reactor.listenTCP(0, self.server, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        self.addCleanup(lambda: defer.Deferred.fromCoroutine(self.server.close()))
        self.port = port.getHost().port
        self.events = event_factory()

    def happen(self, count: int, size: int = 10) -> None:
        """Report events."""
        for _ in range(count):
            self.streams.report(self.events.event(RequestBusy(reason="x" * size), Labels(via="http")))

    async def until(self, condition: Any) -> None:
        """Wait until something is so."""
        while not condition():
            await task.deferLater(reactor, 0.02)

    async def test_treq(self) -> None:
        """treq reads the stream."""
        received: list[bytes] = []
        response = await treq.get(f"http://127.0.0.1:{self.port}/events", persistent=False)
        collecting = treq.collect(response, received.append)
        self.happen(3)
        await self.until(lambda: b"".join(received).count(b"\n\n") == 3)
        collecting.addErrback(lambda _: None)
        await defer.Deferred.fromCoroutine(self.server.close())
        await collecting

    async def test_stalled(self) -> None:
        """
        A client that doesn't read is disconnected: soon if much is waiting for it, and by the kernel if it is
        so little that the server can't tell.
        """
        self.patch(http_server, "REQUEST_SECONDS", 1.0)
        for count, size in ((400, 10_000), (30, 1000)):
            client = socket.socket()
            self.addCleanup(client.close)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect(("127.0.0.1", self.port))
            client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await self.until(lambda: len(self.server.answering) == 1)
            self.happen(count, size)
            await self.until(lambda: not self.server.connections)
            self.assertFalse(self.streams.wants_progress())

    async def test_idle(self) -> None:
        """A client that has read everything stays, however long nothing happens."""
        self.patch(http_server, "REQUEST_SECONDS", 0.5)
        client = socket.create_connection(("127.0.0.1", self.port))
        self.addCleanup(client.close)
        client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await self.until(lambda: len(self.server.answering) == 1)
        self.happen(1)
        await threads.deferToThread(self.read_until, client, b"\n\n")
        await task.deferLater(reactor, 2)
        self.assertEqual(len(self.server.connections), 1)
        self.happen(1)
        await threads.deferToThread(self.read_until, client, b"\n\n")

    @staticmethod
    def read_until(client: socket.socket, words: bytes) -> None:
        """Read until something arrives."""
        received = b""
        while words not in received:
            received += client.recv(4096)
