"""Requests by HTTP, without a network."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet import defer, error
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial import unittest
from zope.interface import implementer

from pcapsvc.core.errors import Problem, SettingsError
from pcapsvc.core.request import MAX_BODY_BYTES
from pcapsvc.core.result import Accepted, Busy, NotForThisNode, Rejected, StartedCapture
from pcapsvc.sources.http.source import (
    CLOSE_SECONDS,
    LINGER_SECONDS,
    REQUEST_SECONDS,
    HTTPSource,
    http_endpoint,
)
from pcapsvc.testing import MemorySink

ADDRESS = IPv4Address("TCP", "127.0.0.1", 8480)
ONE = Accepted(captures=(StartedCapture(capture_id="abc1", interface="eth0"),))


@implementer(IListeningPort)
class FakePort:
    """A port that is open until it is told not to be."""

    def __init__(self) -> None:
        self.is_open = True

    def startListening(self) -> None:
        """It listens already."""

    def stopListening(self) -> defer.Deferred[None]:
        self.is_open = False
        return defer.succeed(None)

    def getHost(self) -> IPv4Address:
        return ADDRESS


@implementer(IStreamServerEndpoint)
class FakeEndpoint:
    """
    An endpoint that keeps the factory.

    @ivar answer: what C{listen} answers; L{None} is a port that is open.
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
    A connection that closes when it is told to, unless its client is stubborn.

    @ivar aborted: whether it was closed by force.
    """

    def __init__(self, host_address: Any, stubborn: bool = False) -> None:
        super().__init__(hostAddress=host_address, peerAddress=ADDRESS)
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

    def lose(self, reason: Exception) -> None:
        """The connection is gone."""
        if not self.is_lost:
            self.is_lost = True
            self.protocol.connectionLost(Failure(reason))


class Response:
    """The first answer in what a client was sent; C{rest} is what follows it."""

    def __init__(self, raw: bytes, *, has_body: bool = True) -> None:
        head, _, rest = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        _, code, self.reason = status.split(" ", 2)
        self.code = int(code)
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(self.headers["content-length"]) if has_body else 0
        self.rest = rest[length:]
        self.content = json.loads(rest[:length]) if has_body else None


class HTTPTestCase(unittest.SynchronousTestCase):
    """A source that listens, and clients for it."""

    token: str | None = None
    max_connections = 4
    host_address: Any = ADDRESS

    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoint = FakeEndpoint()
        self.sink = MemorySink(ONE)
        self.states: dict[str, Any] = {"abc1": {"id": "abc1", "state": "running"}}
        self.source = HTTPSource(
            self.clock,
            self.endpoint,
            self.sink,
            lookup=self.look_up,
            token=self.token,
            endpoint_name="tcp:8480",
            max_connections=self.max_connections,
        )
        self.source.startService()
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def look_up(self, capture_id: str) -> Any:
        """The state of a capture."""
        return self.states.get(capture_id)

    def connect(self, *, stubborn: bool = False) -> Transport:
        """A client's connection."""
        transport = Transport(self.host_address, stubborn)
        transport.protocol = self.endpoint.factory.buildProtocol(ADDRESS)
        transport.protocol.makeConnection(transport)
        return transport

    def say(self, raw: bytes) -> Transport:
        """Connect, and send."""
        transport = self.connect()
        transport.protocol.dataReceived(raw)
        return transport

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Response:
        """One request on a connection of its own, and its answer."""
        given = {"Host": "localhost", "Content-Length": str(len(body)), "Connection": "close", **headers}
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
        transport = self.say(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
        response = Response(transport.value(), has_body=method != "HEAD")
        self.assertEqual(response.rest, b"")
        self.assertEqual(response.headers["content-type"], "application/json")
        self.assertNotIn("server", response.headers)
        self.assertTrue(transport.is_lost)
        return response


class PostTests(HTTPTestCase):
    """C{POST /captures}: each verdict has its answer."""

    def test_accepted(self) -> None:
        """Of one capture, the id, the interface, and where to ask for it."""
        response = self.ask("POST", "/captures", b'{"node":"any"}')
        self.assertEqual(response.code, 202)
        self.assertEqual(
            response.content, {"captures": [{"id": "abc1", "interface": "eth0"}], "problems": []}
        )
        self.assertEqual(response.headers["location"], "/captures/abc1")
        self.assertEqual(self.sink.submitted, [("http", b'{"node":"any"}')])

    def test_several(self) -> None:
        """Of several there is no one place; the problems of others are told."""
        self.sink.verdict = Accepted(
            captures=(
                StartedCapture(capture_id="a", interface="eth0"),
                StartedCapture(capture_id="b", interface="eth1"),
            ),
            problems=(Problem(path="interface", value="'eth2'", rule="is down"),),
        )
        response = self.ask("POST", "/captures", b"{}")
        self.assertEqual(response.code, 202)
        self.assertEqual([capture["id"] for capture in response.content["captures"]], ["a", "b"])
        self.assertEqual(
            response.content["problems"], [{"path": "interface", "value": "'eth2'", "rule": "is down"}]
        )
        self.assertNotIn("location", response.headers)

    def test_rejected(self) -> None:
        """Every problem is told."""
        self.sink.verdict = Rejected(
            problems=(
                Problem(path="packets", value="-1", rule="is wrong"),
                Problem(path="node", rule="is no"),
            )
        )
        response = self.ask("POST", "/captures", b"{}")
        self.assertEqual(response.code, 400)
        self.assertEqual(
            response.content,
            {
                "problems": [
                    {"path": "packets", "value": "-1", "rule": "is wrong"},
                    {"path": "node", "value": None, "rule": "is no"},
                ]
            },
        )

    def test_busy(self) -> None:
        """A client hears why, and when to come back."""
        self.sink.verdict = Busy(reason="32 captures run")
        response = self.ask("POST", "/captures", b"{}")
        self.assertEqual((response.code, response.content), (503, {"error": "32 captures run"}))
        self.assertEqual(response.headers["retry-after"], "10")

    def test_for_others(self) -> None:
        """What is for other nodes is not found here."""
        self.sink.verdict = NotForThisNode()
        response = self.ask("POST", "/captures", b"{}")
        self.assertEqual(response.code, 404)
        self.assertIn("not for this node", response.content["error"])

    def test_form(self) -> None:
        """The type doesn't matter: what C{curl -d} calls a form is not taken for one."""
        for kind in ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain"):
            self.assertEqual(self.ask("POST", "/captures?x=%", b"{}", Content_Type=kind).code, 202)
        self.assertEqual({body for _, body in self.sink.submitted}, {b"{}"})

    def test_chunked(self) -> None:
        """A body in chunks is put together."""
        transport = self.say(
            b"POST /captures HTTP/1.1\r\nHost: [::1]:8480\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'2\r\n{"\r\n3\r\na":\r\n2\r\n1}\r\n0\r\n\r\n'
        )
        self.assertEqual(Response(transport.value()).code, 202)
        self.assertEqual(self.sink.submitted, [("http", b'{"a":1}')])

    def test_broken_sink(self) -> None:
        """A fault of ours is JSON, tells nothing of the code, and is logged."""

        class Broken(MemorySink):
            def submit(self, source: str, body: bytes) -> Any:
                raise ZeroDivisionError("secret")

        source = HTTPSource(self.clock, self.endpoint, Broken(), lookup=self.look_up)
        source.startService()
        response = self.ask("POST", "/captures", b"{}")
        self.assertEqual(response.code, 500)
        self.assertNotIn("secret", str(response.content))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        [failed] = [formatEvent(event) for event in self.events if event["log_level"] >= LogLevel.warn]
        self.assertEqual(failed, "HTTP: POST /captures failed")

    def test_nothing_logged(self) -> None:
        """Requests that are answered, in whatever way, are no lines of the log: twistd would print them."""
        self.events.clear()
        self.assertEqual(self.ask("POST", "/captures", b"{}").code, 202)
        self.assertEqual(self.ask("GET", "/captures/abc1").code, 200)
        self.assertEqual(self.ask("GET", "/captures/nosuch").code, 404)
        self.assertEqual(self.ask("DELETE", "/captures").code, 405)
        self.assertEqual([formatEvent(event) for event in self.events], [])

    def test_continue(self) -> None:
        """A client that waits to be told so is told to go on."""
        transport = self.say(
            b"POST /captures HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        self.assertEqual(transport.value(), b"HTTP/1.1 100 Continue\r\n\r\n")
        transport.clear()
        transport.protocol.dataReceived(b"{}")
        self.assertEqual(Response(transport.value()).code, 202)

    def test_one_after_another(self) -> None:
        """A connection serves many requests, also where they are sent at once."""
        one = b"POST /captures HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
        transport = self.say(one * 3)
        raw = transport.value()
        for _ in range(3):
            response = Response(raw)
            self.assertEqual(response.code, 202)
            raw = response.rest
        self.assertEqual(raw, b"")
        self.assertFalse(transport.is_lost)


class GetTests(HTTPTestCase):
    """C{GET /captures/ID}, and what is elsewhere."""

    def test_state(self) -> None:
        """A capture's state, as it is looked up."""
        response = self.ask("GET", "/captures/abc1?pretty")
        self.assertEqual((response.code, response.content), (200, self.states["abc1"]))

    def test_head(self) -> None:
        """HEAD has the headers of GET, and no body."""
        expected = self.ask("GET", "/captures/abc1").headers
        self.assertEqual(self.ask("HEAD", "/captures/abc1").headers, expected)

    def test_nowhere(self) -> None:
        """Anything else is not found, as is a capture that isn't known."""
        for path in "/ /captures/ /captures/zz /captures/a/b /captures/.. /%00 * captures".split():
            response = self.ask("GET", path)
            self.assertEqual(response.code, 404, path)
            self.assertIn("error", response.content)

    def test_method(self) -> None:
        """Another method hears which there are."""
        for method, path, allowed in (
            ("GET", "/captures", "POST"),
            ("HEAD", "/captures", "POST"),
            ("DELETE", "/captures/abc1", "GET, HEAD"),
            ("POST", "/captures/abc1", "GET, HEAD"),
            ("OPTIONS", "/captures", "POST"),
        ):
            response = self.ask(method, path)
            self.assertEqual((response.code, response.headers["allow"]), (405, allowed))
        self.assertEqual(self.sink.submitted, [])

    def test_state_that_is_no_json(self) -> None:
        """A state that can't be put in JSON is a fault of ours."""
        self.states["bad"] = {"x": float("nan")}
        self.assertEqual(self.ask("GET", "/captures/bad").code, 500)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class BrowserTests(HTTPTestCase):
    """What a page in a browser could send is refused."""

    def test_origin(self) -> None:
        """Whatever bears an Origin, though it be our own or C{null}."""
        for origin in ("http://evil.example", "null", "http://localhost:8480"):
            response = self.ask("POST", "/captures", b"{}", Origin=origin)
            self.assertEqual(response.code, 403)
            self.assertIn("Origin", response.content["error"])
        self.assertEqual(self.sink.submitted, [])

    def test_names(self) -> None:
        """A host's name, which DNS may point anywhere, is refused; so is what only looks like an address."""
        for host in ["", "[evil]", *"evil.test evil.test:80 127.0.0.1.evil.test localhost.evil".split()]:
            self.assertEqual(self.ask("POST", "/captures", b"{}", Host=host).code, 403, host)
        self.assertEqual(self.sink.submitted, [])

    def test_addresses(self) -> None:
        """Addresses and localhost are let in, with any port."""
        for host in "127.0.0.1 127.0.0.1:8480 10.1.2.3:1 [::1] [::1]:8480 LOCALHOST localhost:9".split():
            self.assertEqual(self.ask("POST", "/captures", b"{}", Host=host).code, 202, host)

    def test_no_host(self) -> None:
        """HTTP/1.1 wants one Host; HTTP/1.0 can do without."""
        self.assertEqual(Response(self.say(b"GET /captures/abc1 HTTP/1.1\r\n\r\n").value()).code, 400)
        two = self.say(b"GET /captures/abc1 HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")
        self.assertEqual(Response(two.value()).code, 400)
        self.assertEqual(Response(self.say(b"GET /captures/abc1 HTTP/1.0\r\n\r\n").value()).code, 200)

    def test_absolute_form(self) -> None:
        """Where the request target is a whole URL, its host counts, and not the header."""
        for target, host, code in (
            ("http://localhost/captures", "localhost", 202),
            ("HTTP://127.0.0.1:8480/captures?x=http://evil.test", "evil.test", 202),
            ("https://[::1]/captures", "[::1]", 202),
            ("http://evil.test/captures", "localhost", 403),
            ("http://evil.test", "localhost", 403),
            ("http://localhost@evil.test/captures", "localhost", 404),
            ("http://localhost", "localhost", 404),
            ("http:///captures", "localhost", 404),
            ("ftp://localhost/captures", "localhost", 404),
        ):
            self.assertEqual(self.ask("POST", target, b"{}", Host=host).code, code, target)
        self.assertEqual(self.ask("GET", "http://localhost/captures/abc1").content, self.states["abc1"])

    def test_absolute_form_without_host(self) -> None:
        """A whole URL is no substitute for the header that HTTP/1.1 wants; HTTP/1.0 can do without."""
        for version, code in ((b"1.1", 400), (b"1.0", 200)):
            transport = self.say(b"GET http://localhost/captures/abc1 HTTP/%s\r\n\r\n" % version)
            self.assertEqual(Response(transport.value()).code, code)


class UnixSocketTests(HTTPTestCase):
    """Over a unix socket, where no name can point."""

    host_address = UNIXAddress("/run/pcapsvc/http.sock")

    def test_names(self) -> None:
        """The host can be called by any name, or by none."""
        for host in ("pcapsvc", "evil.test:80", ""):
            self.assertEqual(self.ask("POST", "/captures", b"{}", Host=host).code, 202)
        self.assertEqual(self.ask("POST", "http://pcapsvc/captures", b"{}").code, 202)

    def test_origin(self) -> None:
        """Pages are refused all the same: something may pass them on."""
        self.assertEqual(self.ask("POST", "/captures", b"{}", Origin="http://localhost").code, 403)


class TokenTests(HTTPTestCase):
    """With a token, who doesn't bear it gets nothing."""

    token = "s3cret-tökén"

    def test_wrong(self) -> None:
        """No token, a wrong one, or one in another way: 401 on every route."""
        for path in ("/captures", "/captures/abc1", "/elsewhere"):
            for given in (
                {},
                {"Authorization": "Bearer no"},
                {"Authorization": "Bearer"},
                {"Authorization": f"Basic {self.right()}"},
                {"Authorization": self.right()},
            ):
                response = self.ask("POST", path, b"{}", **given)
                self.assertEqual((response.code, response.headers["www-authenticate"]), (401, "Bearer"))
        self.assertEqual(self.sink.submitted, [])

    def test_right(self) -> None:
        """The right one opens; the scheme's case doesn't matter; and a name as the Host is no harm."""
        for scheme in ("Bearer", "bearer"):
            response = self.ask(
                "POST", "/captures", b"{}", Authorization=f"{scheme} {self.right()}", Host="node7.example"
            )
            self.assertEqual(response.code, 202)

    def test_origin(self) -> None:
        """Pages are refused all the same."""
        response = self.ask("POST", "/captures", Authorization=f"Bearer {self.right()}", Origin="null")
        self.assertEqual(response.code, 403)

    @staticmethod
    def right() -> str:
        """The token's bytes, one character each."""
        return TokenTests.token.encode().decode("latin-1")


class BoundTests(HTTPTestCase):
    """Nobody gets more of us than is his due."""

    def assert_refused(self, transport: Transport, code: int) -> None:
        """There is an answer, of one error; then nothing more is heard, and the connection closes."""
        response = Response(transport.value())
        self.assertEqual((response.code, list(response.content)), (code, ["error"]))
        self.assertEqual(response.headers["connection"], "close")
        self.assertEqual(response.rest, b"")
        self.assertFalse(transport.is_lost)
        transport.protocol.dataReceived(b"\r\n\r\nGET /captures/abc1 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 9)
        self.assertEqual(Response(transport.value()).rest, b"")
        self.clock.advance(LINGER_SECONDS)
        self.assertTrue(transport.is_lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.sink.submitted, [])

    def test_longest_body(self) -> None:
        """A body of just the most is taken, whole and in chunks."""
        body = b" " * MAX_BODY_BYTES
        self.assertEqual(self.ask("POST", "/captures", body).code, 202)
        head = b"POST /captures HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        transport = self.say(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        self.assertEqual(Response(transport.value()).code, 202)

    def test_long_body(self) -> None:
        """One that says it is longer is refused before it comes; nobody is told to go on."""
        transport = self.say(
            b"POST /captures HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1)
        )
        self.assert_refused(transport, 413)

    def test_long_chunks(self) -> None:
        """One in chunks is refused when it gets longer, though it came at once, with its end."""
        head = b"POST /captures HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        self.assert_refused(self.say(head + chunk * 3), 413)
        self.assert_refused(self.say(head + chunk * 3 + b"0\r\n\r\n"), 413)

    def test_nonsense(self) -> None:
        """What is no HTTP is told so, in JSON."""
        for raw in (
            b"\x16\x03\x01\x02\x00\x01\r\n",
            b"GET\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST /captures HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
            b"POST /captures HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\nHost: localhost\r\n\r\n{}",
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
            b"POST /captures HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 600 + b"\r\n",
            b"GET / HTTP/1.1\r\n" + b"".join(b"A: %s\r\n" % (b"b" * 4000) for _ in range(9)) + b"\r\n",
        ):
            self.assert_refused(self.say(raw), 400)

    def test_long_line(self) -> None:
        """A line without an end is told so, by the reason that goes with the status."""
        transport = self.say(b"GET /" + b"x" * 20000)
        self.assertEqual(Response(transport.value()).reason, "Request Header Fields Too Large")
        self.assert_refused(transport, 431)

    def test_silent(self) -> None:
        """A client that says nothing is closed, without an answer."""
        transport = self.connect()
        self.clock.advance(REQUEST_SECONDS)
        self.assertTrue(transport.is_lost)
        self.assertEqual(transport.value(), b"")

    def test_slow(self) -> None:
        """One that sends a byte now and then doesn't get more time."""
        transport = self.connect()
        for byte in b"GET /captu":
            transport.protocol.dataReceived(bytes([byte]))
            self.clock.advance(REQUEST_SECONDS / 10)
        self.assert_refused(transport, 408)

    def test_idle_between(self) -> None:
        """The time starts anew with each answer."""
        one = b"GET /captures/abc1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        transport = self.say(one)
        for _ in range(3):
            self.clock.advance(REQUEST_SECONDS - 1)
            transport.clear()
            transport.protocol.dataReceived(one)
            self.assertEqual(Response(transport.value()).code, 200)
        transport.clear()
        self.clock.advance(REQUEST_SECONDS)
        self.assertEqual((transport.is_lost, transport.value()), (True, b""))

    def test_stubborn(self) -> None:
        """A connection that doesn't close is closed by force."""
        transport = self.connect(stubborn=True)
        self.clock.advance(REQUEST_SECONDS)
        self.assertFalse(transport.is_lost)
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_connections(self) -> None:
        """More connections than there may be are not let in, which is told once, until there is room."""
        open_ones = [self.connect() for _ in range(self.max_connections)]
        for _ in range(3):
            self.assertIsNone(self.endpoint.factory.buildProtocol(ADDRESS))
        self.assertEqual([event["log_level"] for event in self.events], [LogLevel.warn])
        open_ones[0].lose(error.ConnectionDone())
        self.connect()


class LifeTests(HTTPTestCase):
    """The start and the stop."""

    def test_listening(self) -> None:
        """It says where it listens."""
        assert self.source.listening is not None
        self.assertEqual(self.successResultOf(self.source.listening), ADDRESS)

    def test_stop(self) -> None:
        """The port is closed, then the connections; the stop waits for the last, which is closed by force."""
        polite, stubborn = self.connect(), self.connect(stubborn=True)
        stopped = self.source.stopService()
        self.assertFalse(self.endpoint.port.is_open)
        self.assertTrue(polite.is_lost)
        self.assertNoResult(stopped)
        self.assertIsNone(self.endpoint.factory.buildProtocol(ADDRESS))
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(stubborn.aborted)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_start_again(self) -> None:
        """What was stopped can be started."""
        self.successResultOf(self.source.stopService())
        self.source.startService()
        self.assertEqual(self.ask("GET", "/captures/abc1").code, 200)

    def test_taken(self) -> None:
        """Where the address is taken, the start fails, and the log names the endpoint."""
        self.successResultOf(self.source.stopService())
        self.endpoint.answer = defer.fail(error.CannotListenError("127.0.0.1", 8480, OSError(98, "in use")))
        refused = self.assertRaises(SettingsError, self.source.startService)
        self.assertTrue(
            str(refused).startswith("http.listen = 'tcp:8480': must be an endpoint that can be listened on (")
        )
        critical = [event for event in self.events if event["log_level"] == LogLevel.critical]
        self.assertEqual([event["endpoint"] for event in critical], ["tcp:8480"])
        self.assertIn("in use", critical[0]["problem"])
        assert self.source.listening is not None
        self.assertIsNone(self.successResultOf(self.source.listening))

    def test_taken_later(self) -> None:
        """Where that shows later, C{listening} says so, and the log."""
        self.successResultOf(self.source.stopService())
        self.endpoint.answer = defer.Deferred()
        self.source.startService()
        assert self.source.listening is not None
        self.assertNoResult(self.source.listening)
        self.endpoint.answer.errback(OSError("no"))
        self.assertIsNone(self.successResultOf(self.source.listening))
        self.assertEqual([event["log_level"] for event in self.events], [LogLevel.critical])
        self.successResultOf(self.source.stopService())

    def test_stop_while_opening(self) -> None:
        """A stop before it listens is no problem."""
        self.successResultOf(self.source.stopService())
        self.endpoint.answer = defer.Deferred()
        self.source.startService()
        self.successResultOf(self.source.stopService())
        self.assertEqual([event for event in self.events if event["log_level"] >= LogLevel.warn], [])


class EndpointTests(unittest.SynchronousTestCase):
    """L{http_endpoint}: what is a unix socket, and with which mode."""

    def mode_of(self, description: str) -> int:
        """The mode with which a socket would be made."""
        reactor = MemoryReactor()
        http_endpoint(reactor, description).listen(None)  # type: ignore[arg-type]
        [(_path, _factory, _backlog, mode, _lock)] = reactor.unixServers
        return int(mode)

    def test_mode(self) -> None:
        """For the owner and the group, unless it is given, with or without its name."""
        self.assertEqual(self.mode_of("unix:/run/pcapsvc.sock"), 0o660)
        self.assertEqual(self.mode_of(r"unix:/run/a\:b.sock:backlog=5"), 0o660)
        self.assertEqual(self.mode_of("unix:address=/run/a.sock"), 0o660)
        self.assertEqual(self.mode_of("unix:/run/a.sock:mode=600"), 0o600)
        self.assertEqual(self.mode_of("unix:/run/a.sock:600"), 0o600)

    def test_tcp(self) -> None:
        """Others are what Twisted makes of them."""
        reactor = MemoryReactor()
        http_endpoint(reactor, "tcp:8480:interface=127.0.0.1").listen(None)  # type: ignore[arg-type]
        self.assertEqual(reactor.tcpServers[0][0], 8480)
