"""The limits on HTTP clients."""

from __future__ import annotations

import time

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.logger import LogLevel

from pcapsvc.core.request import MAX_BODY_BYTES
from pcapsvc.net.http_server import CLOSE_SECONDS, LINGER_SECONDS, REQUEST_SECONDS
from tests.unit.http_case import HTTPTestCase, Response, Transport, TurnClock, token


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
        transport.send(b"\r\n\r\nGET /captures/abc1 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 9)
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

    def test_long_chunk(self) -> None:
        """So is a chunk that is announced to be longer, before it arrives."""
        head = b"POST /captures HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.assert_refused(self.say(head + b"%x\r\n" % (MAX_BODY_BYTES + 1)), 413)
        self.assert_refused(self.say(head + b"1\r\na\r\n%x\r\nb" % MAX_BODY_BYTES), 413)

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
            transport.send(bytes([byte]))
            self.clock.advance(REQUEST_SECONDS / 10)
        self.assert_refused(transport, 408)

    def test_idle_between(self) -> None:
        """The time starts again with each answer."""
        one = b"GET /captures/abc1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        transport = self.say(one)
        for _ in range(3):
            self.clock.advance(REQUEST_SECONDS - 1)
            transport.clear()
            transport.send(one)
            self.assertEqual(Response(transport.value()).code, 200)
        transport.clear()
        self.clock.advance(REQUEST_SECONDS)
        self.assertEqual((transport.is_lost, transport.value()), (True, b""))

    def test_half_closed(self) -> None:
        """A client that sends no more gets the answers to all it has requested, and is then disconnected."""
        one = b"GET /captures/abc1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for rest in (b"", b"GET /capt"):
            transport = self.connect()
            transport.protocol.dataReceived(one * 3 + rest)
            IHalfCloseableProtocol(transport.protocol).readConnectionLost()
            self.assertFalse(transport.is_lost)
            self.clock.advance(0)
            self.assertEqual(transport.value().count(b"HTTP/1.1 "), 3)
            self.assertTrue(transport.is_lost)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_half_closed_incomplete(self) -> None:
        """A client that sends no more and has requested nothing in full is disconnected at once."""
        for raw in (b"", b"POST /captures HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{}"):
            transport = self.say(raw)
            IHalfCloseableProtocol(transport.protocol).readConnectionLost()
            self.assertEqual((transport.is_lost, transport.value()), (True, b""))
        self.assertEqual(self.sink.submitted, [])

    def test_unread(self) -> None:
        """While a client doesn't read its answers, nothing is read or processed for it."""
        one = b"GET /captures/abc1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        transport = self.connect()
        write = transport.writeSequence

        def fill(data: list[bytes]) -> None:
            write(data)
            transport.producer.pauseProducing()

        transport.writeSequence = fill  # type: ignore[method-assign]
        transport.send(one * 3)
        self.assertEqual(transport.value().count(b"HTTP/1.1 200"), 1)
        self.assertEqual(transport.producerState, "paused")
        self.clock.advance(REQUEST_SECONDS - 1)
        transport.producer.resumeProducing()
        transport.send(b"")
        self.assertEqual(transport.value().count(b"HTTP/1.1 200"), 2)
        self.clock.advance(REQUEST_SECONDS - 1)
        self.assertFalse(transport.is_lost)
        self.clock.advance(1)
        self.assertTrue(transport.is_lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stubborn(self) -> None:
        """A connection that doesn't close is aborted."""
        transport = self.connect(stubborn=True)
        self.clock.advance(REQUEST_SECONDS)
        self.assertFalse(transport.is_lost)
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(transport.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StrangerTests(HTTPTestCase):
    """Clients that have not authenticated keep nobody else out, and come last."""

    make_clock = TurnClock
    tokens = (token("s3cret-token"),)
    MINE = b"GET /captures/abc1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer s3cret-token\r\n\r\n"
    THEIRS = b"GET /captures/abc1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    # Of 16 connections: three quarters, and half of those.
    STRANGERS, FROM_ONE_ADDRESS = 12, 6

    def address(self, number: int) -> IPv4Address:
        """An address of a client."""
        return IPv4Address("TCP", f"192.0.2.{number}", 1000)

    def still_open(self, clients: list[Transport]) -> list[int]:
        """Which clients are connected, by number."""
        return [number for number, client in enumerate(clients) if not client.is_lost]

    def test_long_targets(self) -> None:
        """What a stranger's request costs does not depend on what its long target contains."""

        def seconds(target: bytes) -> float:
            begun = time.thread_time()
            response = Response(self.say(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n").value())
            self.assertEqual(response.code, 401)
            return time.thread_time() - begun

        targets = [part * (15_000 // len(part)) for part in (b"a", b"/", b"/%41", b"?", b"&a=1", b"&%41=")]
        targets = [targets[0], *(b"/captures?" + target for target in targets)]
        # In turns, so that all are measured on a machine that is equally busy.
        rounds = [[seconds(b"/" + target) for target in targets] for _ in range(10)]
        plain, *others = map(min, zip(*rounds, strict=True))
        self.assertLess(max(others), 3 * plain)

    def test_oldest_makes_room(self) -> None:
        """If one address has too many silent connections, its oldest ones are closed; this is logged once."""
        other = self.connect(address=self.address(2))
        clients = [self.connect(address=self.address(1)) for _ in range(20)]
        self.assertEqual(self.still_open(clients), list(range(20 - self.FROM_ONE_ADDRESS, 20)))
        self.assertTrue(all(client.aborted for client in clients[:14]))
        self.assertFalse(other.is_lost)
        self.assertEqual([event["log_level"] for event in self.events], [LogLevel.warn])

    def test_networks(self) -> None:
        """The addresses of one IPv6 network count as one, and an IPv4 address in IPv6 as itself."""
        six = [self.connect(address=IPv6Address("TCP", f"2001:db8::{n:x}", 1)) for n in range(9)]
        self.assertEqual(len(self.still_open(six)), self.FROM_ONE_ADDRESS)
        mapped = [self.connect(address=IPv6Address("TCP", f"::ffff:192.0.2.{n}", 1)) for n in range(6)]
        self.assertEqual(len(self.still_open(mapped)), 6)

    def test_busiest_makes_room(self) -> None:
        """If there are too many strangers, those of the address that has most make room."""
        few = [self.connect(address=self.address(n)) for n in range(1, 8)]
        many = [self.connect(address=self.address(100)) for _ in range(5)]
        last = self.connect(address=self.address(101))
        self.assertEqual(self.still_open(few), list(range(7)))
        self.assertEqual(self.still_open(many), [1, 2, 3, 4])
        self.assertFalse(last.is_lost)

    def test_authenticated_stay(self) -> None:
        """Clients that have authenticated are not closed for strangers, which get fewer then."""
        mine = [self.say(self.MINE) for _ in range(8)]
        strangers = [self.connect(address=self.address(n)) for n in range(40)]
        self.assertEqual(self.still_open(mine), list(range(8)))
        self.assertEqual(len(self.still_open(strangers)), 8)
        mine[0].clear()
        mine[0].send(self.MINE)
        self.assertEqual(Response(mine[0].value()).code, 200)

    def test_always_room(self) -> None:
        """Clients that have authenticated leave room, too: the last ones get an answer, and are closed."""
        mine = [self.say(self.MINE) for _ in range(30)]
        self.assertEqual({Response(client.value()).code for client in mine}, {200})
        self.assertEqual(self.still_open(mine), list(range(14)))

    def test_handshakes_stay(self) -> None:
        """A connection that has just sent something is not closed before one that has not."""
        slow = self.connect()
        slow.send(self.MINE[:9])
        clients = [self.connect() for _ in range(20)]
        self.assertFalse(slow.is_lost)
        slow.send(self.MINE[9:])
        self.assertEqual(Response(slow.value()).code, 200)
        self.assertEqual(len(self.still_open(clients)), self.FROM_ONE_ADDRESS - 1)

    def test_slow_make_room(self) -> None:
        """If all have just sent something, the oldest of them makes room."""
        clients = []
        for _ in range(self.FROM_ONE_ADDRESS + 1):
            clients.append(self.connect())
            clients[-1].send(b"G")
        self.assertEqual(self.still_open(clients), list(range(1, self.FROM_ONE_ADDRESS + 1)))

    def test_waiting_stay(self) -> None:
        """Connections that wait for their turn are not closed, and no more are accepted for now."""
        clients = [self.connect(address=self.address(1)) for _ in range(self.FROM_ONE_ADDRESS)]
        for client in clients:
            client.protocol.dataReceived(self.MINE)
        self.assertTrue(self.endpoint.port.is_paused)
        self.assertIsNone(self.endpoint.factory.buildProtocol(self.address(1)))
        self.clock.pump([0] * 10)
        self.assertEqual({Response(client.value()).code for client in clients}, {200})
        self.assertFalse(self.endpoint.port.is_paused)

    def test_refused_make_room(self) -> None:
        """Connections that were refused are closed before others, however much more they have sent."""
        theirs = range(self.FROM_ONE_ADDRESS - 1)
        clients = [self.connect(address=self.address(1), stubborn=True) for _ in theirs]
        for client in clients:
            client.protocol.dataReceived(self.THEIRS * 1000)
        self.clock.advance(0)
        mine = self.connect(address=self.address(1))
        self.connect(address=self.address(1))
        self.assertFalse(mine.is_lost)
        self.assertTrue(clients[0].aborted)
        mine.send(self.MINE)
        self.assertEqual(Response(mine.value()).code, 200)

    def test_refused(self) -> None:
        """A request without the token ends its connection; what was sent after it is not answered."""
        transport = self.say(self.THEIRS * 1000)
        response = Response(transport.value())
        self.assertEqual((response.code, response.rest), (401, b""))
        self.assertEqual(response.headers["connection"], "close")
        self.assertTrue(transport.is_lost)

    def test_no_body(self) -> None:
        """Without the token no body is read, and no C{100 Continue} sent."""
        transport = self.say(
            b"POST /captures HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        )
        self.assertEqual(Response(transport.value()).code, 401)
        self.assertFalse(transport.is_lost)
        transport.send(b"{}" * 5)
        self.assertTrue(transport.is_lost)
        self.assertEqual(self.sink.submitted, [])

    def test_turns(self) -> None:
        """A connection has one request answered in a turn, and reads nothing more before."""
        transport = self.connect()
        transport.protocol.dataReceived(self.MINE * 3)
        self.assertEqual((transport.value(), transport.producerState), (b"", "paused"))
        for count in (1, 2, 3):
            self.clock.advance(0)
            self.assertEqual(transport.value().count(b"HTTP/1.1 200"), count)
        self.assertEqual(transport.producerState, "producing")

    def test_pieces(self) -> None:
        """What a client sends at once is processed in pieces, each in a turn: chunks may be a byte long."""
        transport = self.connect()
        head = self.MINE.replace(b"GET /captures/abc1", b"POST /captures").removesuffix(b"\r\n")
        body = b"1\r\n \r\n" * 5000 + b"0\r\n\r\n"
        transport.protocol.dataReceived(head + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        turns = 0
        while not transport.value():
            self.assertEqual(transport.producerState, "paused")
            self.clock.advance(0)
            turns += 1
        self.assertEqual(Response(transport.value()).code, 202)
        self.assertGreaterEqual(turns, len(body) // 2048)
        self.assertEqual(transport.producerState, "producing")

    def test_pipelined(self) -> None:
        """A client that sends request after request has no more read than a little ahead."""
        transport = self.connect()
        transport.protocol.dataReceived(self.MINE * 1000)
        self.clock.advance(0)
        self.assertEqual(transport.producerState, "paused")
        transport.send(b"")
        self.assertEqual(transport.value().count(b"HTTP/1.1 200"), 1000)
        self.assertEqual(transport.producerState, "producing")

    def test_order(self) -> None:
        """Clients that have authenticated come first, whoever asked before."""
        mine, theirs = self.say(self.MINE), self.connect()
        mine.clear()
        answers: list[str] = []
        for name, client in (("theirs", theirs), ("mine", mine)):
            client.write = lambda data, name=name: answers.append(name)
            client.writeSequence = client.write
        theirs.protocol.dataReceived(self.THEIRS)
        mine.protocol.dataReceived(self.MINE)
        self.clock.advance(0)
        self.assertEqual(list(dict.fromkeys(answers)), ["mine", "theirs"])

    def test_pace(self) -> None:
        """Few connections are accepted in one turn of the reactor."""
        self.connect()
        self.clock.advance(0)
        self.assertEqual(self.endpoint.port.numberAccepts, 8)
