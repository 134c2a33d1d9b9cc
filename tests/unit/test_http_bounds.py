"""The limits on HTTP clients."""

from __future__ import annotations

from twisted.internet import error
from twisted.logger import LogLevel

from pcapsvc.core.request import MAX_BODY_BYTES
from pcapsvc.net.http_server import CLOSE_SECONDS, LINGER_SECONDS, REQUEST_SECONDS
from tests.unit.http_case import ADDRESS, HTTPTestCase, Response, Transport


class BoundTests(HTTPTestCase):
    """Each client gets bounded memory, time and connections."""

    def assert_refused(self, transport: Transport, code: int) -> None:
        """There is one error; nothing more is read, and the connection closes."""
        response = Response(transport.value())
        self.assertEqual(response.code, code)
        self.assert_problem(response)
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
        """A body of the greatest length is accepted, whole and in chunks."""
        body = b" " * MAX_BODY_BYTES
        self.assertEqual(self.ask("POST", "/captures", body).code, 202)
        head = b"POST /captures HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        transport = self.say(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        self.assertEqual(Response(transport.value()).code, 202)

    def test_long_body(self) -> None:
        """A body that is announced to be longer is refused before it is sent, without C{100 Continue}."""
        transport = self.say(
            b"POST /captures HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1)
        )
        self.assert_refused(transport, 413)

    def test_long_chunks(self) -> None:
        """A chunked body is refused once it gets longer, even if it arrives at once."""
        head = b"POST /captures HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        self.assert_refused(self.say(head + chunk * 3), 413)
        self.assert_refused(self.say(head + chunk * 3 + b"0\r\n\r\n"), 413)

    def test_nonsense(self) -> None:
        """Anything but HTTP gets a problem document."""
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
        """A line that is too long gets 431, with the right reason phrase."""
        transport = self.say(b"GET /" + b"x" * 20000)
        self.assertEqual(Response(transport.value()).reason, "Request Header Fields Too Large")
        self.assert_refused(transport, 431)

    def test_silent(self) -> None:
        """A silent client is disconnected without an answer."""
        transport = self.connect()
        self.clock.advance(REQUEST_SECONDS)
        self.assertTrue(transport.is_lost)
        self.assertEqual(transport.value(), b"")

    def test_slow(self) -> None:
        """A client that sends a byte now and then doesn't get more time."""
        transport = self.connect()
        for byte in b"GET /captu":
            transport.protocol.dataReceived(bytes([byte]))
            self.clock.advance(REQUEST_SECONDS / 10)
        self.assert_refused(transport, 408)

    def test_idle_between(self) -> None:
        """The time starts again with each answer."""
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
        """A connection that doesn't close is aborted."""
        transport = self.connect(stubborn=True)
        self.clock.advance(REQUEST_SECONDS)
        self.assertFalse(transport.is_lost)
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_connections(self) -> None:
        """Connections above the limit are refused, which is logged once, until there is room."""
        open_ones = [self.connect() for _ in range(self.max_connections)]
        for _ in range(3):
            self.assertIsNone(self.endpoint.factory.buildProtocol(ADDRESS))
        self.assertEqual([event["log_level"] for event in self.events], [LogLevel.warn])
        open_ones[0].lose(error.ConnectionDone())
        self.connect()
