"""An HTTP source without a network, and clients for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace
from twisted.internet import defer, error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial import unittest
from zope.interface import implementer

from pcapsvc.capture_files import CaptureFiles
from pcapsvc.captures import Captures
from pcapsvc.core.event import CaptureStarted, Payload
from pcapsvc.core.labels import Labels
from pcapsvc.core.result import Accepted, StartedCapture
from pcapsvc.core.role import ALL_ROLES, Role
from pcapsvc.core.session import CaptureLimits
from pcapsvc.destinations.local.destination import LocalDirectory
from pcapsvc.settings.secret import Secret
from pcapsvc.sources.http.source import HTTPSource
from pcapsvc.sources.http.tokens import Token
from pcapsvc.testing import MemorySink, event_factory, run_now
from pcapsvc.web.captures import CaptureList
from pcapsvc.web.pcap_file import Places

ADDRESS = IPv4Address("TCP", "127.0.0.1", 8480)
LIMITS = CaptureLimits(max_packets=10, max_bytes=1000, idle_seconds=5, duration_seconds=60)
ONE = Accepted(captures=(StartedCapture(capture_id="abc1", interface="eth0"),))


@implementer(IListeningPort)
class FakePort:
    """A port that is open until it is closed."""

    def __init__(self) -> None:
        self.is_open = True
        self.is_paused = False
        self.numberAccepts = 100

    def startListening(self) -> None:
        """It listens already."""

    def pauseProducing(self) -> None:
        self.is_paused = True

    def resumeProducing(self) -> None:
        self.is_paused = False

    def stopListening(self) -> defer.Deferred[None]:
        self.is_open = False
        return defer.succeed(None)

    def getHost(self) -> IPv4Address:
        return ADDRESS


@implementer(IStreamServerEndpoint)
class FakeEndpoint:
    """
    An endpoint that keeps the factory it is given.

    @ivar answer: what C{listen} returns; L{None} is an open port.
    """

    def __init__(self) -> None:
        self.factory: Any = None
        self.port = FakePort()
        self.answer: defer.Deferred[Any] | None = None

    def listen(self, factory: Any) -> defer.Deferred[Any]:
        self.factory = factory
        return defer.succeed(self.port) if self.answer is None else self.answer


class Transport(StringTransport):
    """
    A connection that closes on request, unless the client is stubborn.

    @ivar aborted: whether it was aborted.
    """

    def __init__(self, clock: Clock, host_address: Any, stubborn: bool = False) -> None:
        super().__init__(hostAddress=host_address, peerAddress=ADDRESS)
        self.clock = clock
        self.stubborn = stubborn
        self.protocol: Any = None
        self.is_lost = False
        self.aborted = False

    def loseConnection(self) -> None:
        super().loseConnection()
        if not self.stubborn:
            self.lose(error.ConnectionDone())

    def abortConnection(self) -> None:
        self.aborted = True
        self.lose(error.ConnectionAborted())

    def send(self, raw: bytes) -> None:
        """Let the client send something, and the server take its turns."""
        self.protocol.dataReceived(raw)
        while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
            self.clock.advance(0)

    def lose(self, reason: Exception) -> None:
        """Lose the connection."""
        if not self.is_lost:
            self.is_lost = True
            self.protocol.connectionLost(Failure(reason))


class Response:
    """The first response in what a client received; C{rest} is what follows it."""

    def __init__(self, raw: bytes, *, has_body: bool = True) -> None:
        head, _, rest = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        _, code, self.reason = status.split(" ", 2)
        self.code = int(code)
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = b""
        if has_body and self.headers.get("transfer-encoding") == "chunked":
            body, self.rest = dechunked(rest)
        else:
            length = int(self.headers["content-length"]) if has_body else 0
            body, self.rest = rest[:length], rest[length:]
        self.content = json.loads(body) if has_body else None


def dechunked(raw: bytes) -> tuple[bytes, bytes]:
    """A body that was sent in chunks (RFC 9112, section 7.1), to its end, and what follows it."""
    body = b""
    while True:
        size, _, raw = raw.partition(b"\r\n")
        chunk, raw = raw[: int(size, 16)], raw[int(size, 16) + 2 :]
        if not chunk:
            return body, raw
        body += chunk


def token(text: str, *roles: Role) -> Token:
    """A token, with all roles by default."""
    return Token(secret=Secret(text), roles=frozenset(roles) or ALL_ROLES)


def add_captures(reactor: Any, source: HTTPSource, captures: Captures, **places: Any) -> None:
    """Add C{/captures} to the tree of a source, as the API does."""
    places = {
        "files": CaptureFiles(reactor),
        "in_spool": None,
        "run_in_thread": run_now,
        "copy_in_thread": run_now,
        "stores": {"local": LocalDirectory(directory="/", run_in_thread=run_now)},
        **places,
    }
    posts = source.root.getStaticEntity(b"captures")
    source.root.putChild(
        b"captures", CaptureList(posts, Places(reactor=reactor, captures=captures, **places))
    )


def one_capture(capture_id: str) -> Captures:
    """Captures of which one has started."""
    captures = Captures(["local"])
    started = CaptureStarted(bpf="", snap_length=500, limits=LIMITS, started=1_700_000_000.0, link_type=1)
    labels = Labels(via="http", interface="eth0")
    captures.report(event_factory().event(started, labels, capture_id))
    return captures


class TurnClock(Clock):
    """As a reactor does, it leaves calls that are made meanwhile for the next turn."""

    def advance(self, amount: float) -> None:
        self.rightNow += amount
        for call in [call for call in self.calls if call.getTime() <= self.rightNow]:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)


class HTTPTestCase(unittest.SynchronousTestCase):
    """A listening source, and clients for it."""

    tokens: Sequence[Token] = ()
    max_connections = 16
    retain_bytes = 1000
    places: Mapping[str, Any] = {}
    host_address: Any = ADDRESS
    make_clock: type[Clock] = Clock

    def setUp(self) -> None:
        self.clock = self.make_clock()
        self.endpoint = FakeEndpoint()
        self.sink = MemorySink(ONE)
        self.reported = event_factory()
        self.captures = Captures(["local"])
        self.begin_capture("abc1")
        self.source = HTTPSource(
            self.clock,
            self.endpoint,
            self.sink,
            tokens=self.tokens,
            endpoint_name="tcp:8480",
            max_connections=self.max_connections,
        )
        self.files = CaptureFiles(self.clock, self.retain_bytes)
        self.files.startService()
        add_captures(self.clock, self.source, self.captures, files=self.files, **self.places)
        self.source.startService()
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def state_of(self, capture_id: str) -> dict[str, Any]:
        """The state of a capture whose packets are not held here."""
        state = self.captures.get(capture_id)
        assert state is not None
        return {**state, "pcap": False}

    def begin_capture(self, capture_id: str, *, link_type: Any = 1, **labels: Any) -> None:
        """A capture has started."""
        started = CaptureStarted(
            bpf="tcp", snap_length=500, limits=LIMITS, started=1_700_000_000.0, link_type=1
        )
        event = self.reported.event(started, Labels(via="http", interface="eth0", **labels), capture_id)
        # The event was valid when it was made.
        self.captures.report(replace(event, data=replace(started, link_type=link_type)))

    def report(self, capture_id: str, payload: Payload, **labels: Any) -> None:
        """Report an event of a capture."""
        event = self.reported.event(payload, Labels(via="http", interface="eth0", **labels), capture_id)
        self.captures.report(event)

    def connect(self, *, stubborn: bool = False, address: Any = ADDRESS) -> Transport:
        """A client's connection."""
        transport = Transport(self.clock, self.host_address, stubborn)
        transport.protocol = self.endpoint.factory.buildProtocol(address)
        transport.protocol.makeConnection(transport)
        return transport

    def say(self, raw: bytes) -> Transport:
        """Connect, and send."""
        transport = self.connect()
        transport.send(raw)
        return transport

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Response:
        """The response to one request on a connection of its own."""
        given = {"Host": "localhost", "Content-Length": str(len(body)), "Connection": "close", **headers}
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
        transport = self.say(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
        response = Response(transport.value(), has_body=method != "HEAD")
        self.assertEqual(response.rest, b"")
        if response.code < 400:
            self.assertEqual(response.headers["content-type"], "application/json")
        else:
            self.assert_problem(response)
        self.assertNotIn("server", response.headers)
        self.assertTrue(transport.is_lost)
        return response

    def assert_problem(self, response: Response) -> None:
        """An error is a problem document: its members go with the status."""
        self.assertEqual(response.headers["content-type"], "application/problem+json")
        if response.content is None:
            return
        self.assertEqual(response.content["status"], response.code)
        if response.content["type"] == "about:blank":
            self.assertEqual(response.content["title"], response.reason)
            self.assertEqual(set(response.content), {"type", "title", "status", "detail"})
