"""What pcapctl makes of servers that answer, but not as they should."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from twisted.trial import unittest

from pcapsvc.bounded import boto_answers, kafka_reads
from pcapsvc.client import api as client_api
from pcapsvc.client import timed
from pcapsvc.client.address import HttpAddress, KafkaAddress, RedisAddress, SqsAddress, read_address
from pcapsvc.client.api import ApiProblem, NodeApi, capture_path
from pcapsvc.client.credentials import Credentials
from pcapsvc.client.status import ClientError, NoAnswer
from pcapsvc.client.transports import kafka as client_kafka
from pcapsvc.client.transports.kafka import KafkaTransport
from pcapsvc.client.transports.redis import RedisTransport
from pcapsvc.client.transports.sqs import SqsEvents, SqsTransport


def port_of(test: unittest.SynchronousTestCase, pieces: Iterable[bytes]) -> int:
    """
    The port of something that answers a client with this, once it has said anything, and then hangs up. If
    the client tries again, the answer goes on where it ended.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    test.addCleanup(listener.close)

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    for piece in pieces:
                        connection.sendall(piece)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()

    def end() -> None:
        listener.shutdown(socket.SHUT_RDWR)
        # Whoever gave up has hung up as well.
        thread.join(60.0)
        test.assertFalse(thread.is_alive(), "the client keeps the connection")

    test.addCleanup(end)
    return int(listener.getsockname()[1])


def haste(test: unittest.SynchronousTestCase) -> None:
    """Let four seconds pass whenever a client is about to read."""
    seconds = itertools.count(step=4)
    for module in (timed, boto_answers):
        test.patch(module, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))


class BodyTests(unittest.SynchronousTestCase):
    """Answers of something that listens where a node should."""

    def api(self, head: bytes, pieces: Iterable[bytes]) -> NodeApi:
        """The API of something that answers a request with this."""
        port = port_of(self, itertools.chain([head], pieces))
        return NodeApi(HttpAddress(host="127.0.0.1", port=port), Credentials())

    def test_deep(self) -> None:
        """JSON that is nested too deeply is no answer of a node, and no description of an error."""
        nested = b"[" * 100_000 + b"]" * 100_000
        error: Exception = self.assertRaises(
            NoAnswer, self.api(b"HTTP/1.1 200 OK\r\n\r\n", [nested]).call, "GET", "/node"
        )
        self.assertIn("does not answer as a node does", str(error))
        error = self.assertRaises(
            ApiProblem, self.api(b"HTTP/1.1 500 No\r\n\r\n", [nested]).call, "GET", "/node"
        )
        self.assertIn("500", str(error))

    def test_endless(self) -> None:
        """An answer that is too long, or endless, is not read to its end, which is reported."""
        self.patch(client_api, "MOST_ANSWER_BYTES", 1024 * 1024)
        for pieces in (itertools.repeat(b"1," * 50_000), [b"1," * 600_000]):
            api = self.api(b"HTTP/1.1 200 OK\r\n\r\n[", pieces)
            error = self.assertRaises(NoAnswer, api.call, "GET", "/node")
            self.assertEqual(str(error), f"{api.address}: the answer is longer than 1 MiB")

    def test_trickle(self) -> None:
        """Whoever sends a byte now and then has not answered in time, wherever in the answer that is."""
        haste(self)
        for head, piece in (
            *((b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (b"HTTP/1.1 200 OK\r\nA: ", b"b")),
            *((b"HTTP/1.1 200 OK\r\n\r\n", b" "), (b"HTTP/1.1 500 No\r\n\r\n", b" ")),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        ):
            api = self.api(head, itertools.repeat(piece))
            error: Exception = self.assertRaises(ClientError, api.call, "GET", "/node")
            expected = "answered 500" if b"500" in head else "timed out"
            self.assertIn(expected, str(error), head)

    def test_descriptor(self) -> None:
        """A connection is closed in fact, whatever still reads from it."""
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        reader, descriptor = timed.TimedReader(ours, 1.0), ours.fileno()
        stream = reader.makefile("rb")
        reader.disconnect()
        self.assertRaises(OSError, os.fstat, descriptor)
        self.assertRaises(ValueError, stream.read)

    def test_hang_up(self) -> None:
        """Once an answer is closed, the connection is, though something still refers to the answer."""
        kept: list[Any] = []
        # After the others have looked whether the connections are closed.
        self.addCleanup(kept.clear)
        for head in (b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n"):
            body = self.api(head, itertools.repeat(b"1," * 50_000)).open("GET", "/captures")
            kept.append((body, body.read(5)))
            body.close()
        for head in (b"HTTP/1.1 500 No\r\n\r\n", b"nothing of the kind\r\n"):
            api = self.api(head, itertools.repeat(b"1," * 50_000))
            kept.append(self.assertRaises(ClientError, api.open, "GET", "/captures"))

    def test_cut(self) -> None:
        """An answer that is cut off says so."""
        cut = self.api(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", [b'{"captures": []}'])
        error = self.assertRaises(NoAnswer, cut.call, "GET", "/captures")
        self.assertIn("closed too early", str(error))

    def test_other_status(self) -> None:
        """Only an answer of success is one: no redirect is followed, and no other body is read."""
        for head in (b"302 Found\r\nLocation: http://127.0.0.1:1/", b"101 Switching Protocols", b"199 No"):
            api = self.api(b"HTTP/1.1 " + head + b"\r\n\r\n", [b'{"captures": []}'])
            error = self.assertRaises(ApiProblem, api.call, "GET", "/captures")
            self.assertIn(f"answered {head[:3].decode()}: ", str(error))

    def test_token(self) -> None:
        """A token is sent in UTF-8, as nodes compare it."""
        node, client = socket.socketpair()
        self.addCleanup(node.close)
        node.sendall(b"HTTP/1.1 200 OK\r\n\r\n{}")
        node.shutdown(socket.SHUT_WR)
        self.patch(http.client.HTTPConnection, "connect", lambda made: setattr(made, "sock", client))
        address = HttpAddress(host="a")
        NodeApi(address, Credentials(token="g\u00e9heim\u20ac", trusted=(str(address),))).call("GET", "/node")
        self.assertIn("\r\nAuthorization: Bearer g\u00e9heim\u20ac\r\n".encode(), node.recv(65536))

    def test_withheld_token(self) -> None:
        """A node that requires a token, and was not sent it, is said to have been sent none."""
        for trusted, is_withheld in (
            ((), True),
            (("http://127.0.0.1",), True),
            (("http://127.0.0.1:*",), False),
        ):
            for token in ("a token", None):
                port = self.api(b"HTTP/1.1 401 No\r\n\r\n", []).address.port
                api = NodeApi(
                    HttpAddress(host="127.0.0.1", port=port), Credentials(token=token, trusted=trusted)
                )
                error = self.assertRaises(ApiProblem, api.call, "GET", "/node")
                expected = is_withheld and token is not None
                self.assertEqual("The token was not sent" in str(error), expected, (trusted, token))

    def test_connecting(self) -> None:
        """A node that has less time for an answer has no more than that to accept a connection."""
        waited: list[float] = []

        def connect(address: object, timeout: float, *_: object) -> None:
            waited.append(timeout)
            raise TimeoutError

        self.patch(socket, "create_connection", connect)
        api = NodeApi(HttpAddress(host="h", port=80), Credentials())
        for seconds in (3.0, 30.0):
            api.answer_seconds = seconds
            self.assertRaises(NoAnswer, api.call, "GET", "/node")
        self.assertEqual(waited, [3.0, 5.0])

    def test_bad_chunk(self) -> None:
        """A chunk of a negative or enormous length is no answer of a node."""
        for size in (b"-5", b"f" * 20, b"x"):
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\n{}\r\n"
            error = self.assertRaises(NoAnswer, self.api(head, []).call, "GET", "/node")
            self.assertIn("does not answer as a node does", str(error), size)

    def test_surrogates(self) -> None:
        """An id, or a parameter, may have half of a surrogate pair, of an event or the command line."""
        for path, query in ((capture_path("\udcff"), None), ("/captures", "\ud800")):
            api = self.api(b"HTTP/1.1 200 OK\r\n\r\n", [b'{"captures": []}'])
            self.assertEqual(api.call("GET", path, requestid=query), {"captures": []})

    def test_length(self) -> None:
        """A length with more digits than Python converts is as good as none."""
        api = self.api(
            b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", [b'{"captures": []}']
        )
        self.assertEqual(api.call("GET", "/captures"), {"captures": []})


class RedisTests(unittest.SynchronousTestCase):
    """A Redis server that sends something else than messages to a subscriber."""

    def problem(self, reply: bytes) -> str:
        """What becomes of the events."""
        port = port_of(self, [b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n" + reply])
        address = read_address(f"redis://127.0.0.1:{port}/c")
        assert isinstance(address, RedisAddress)
        events = RedisTransport(address, Credentials()).events(None)
        self.addCleanup(events.close)
        error = self.assertRaises(NoAnswer, next, iter(events))
        self.assertTrue(str(error).startswith(str(address)), error)
        return str(error)

    def test_error(self) -> None:
        """An error ends the stream, and is shown, on one line."""
        self.assertIn("the subscription was refused (ERR a b)", self.problem(b"-ERR a\tb\r\n"))

    def test_large(self) -> None:
        """A reply of too many values, or of too many bytes in all, is not read."""
        large = b"$%d\r\n" % (65 * 1024 * 1024)
        for reply in (
            b"*1000000000\r\n",
            b"*64\r\n*1\r\n",
            b"*1\r\n" * 65,
            large,
            b"*2\r\n$1\r\na\r\n" + large,
        ):
            self.assertIn("does not answer as Redis does", self.problem(reply), reply[:20])

    def test_trickle(self) -> None:
        """Whoever sends a byte now and then has not answered in time."""
        haste(self)
        port = port_of(self, itertools.chain([b"$60000000\r\n"], itertools.repeat(b"a")))
        address = read_address(f"redis://:secret@127.0.0.1:{port}/c")
        assert isinstance(address, RedisAddress)
        error = self.assertRaises(NoAnswer, RedisTransport(address, Credentials()).send, b"{}")
        self.assertEqual(str(error), f"{address}: timed out")


class SqsTests(unittest.SynchronousTestCase):
    """A service that answers, but not as SQS does."""

    def setUp(self) -> None:
        """Credentials."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            self.patch(os, "environ", {**os.environ, name: "x"})

    def transport(self, pieces: Iterable[bytes]) -> SqsTransport:
        """The queue of a service that answers with this."""
        port = port_of(self, pieces)
        return SqsTransport(SqsAddress(url=f"http://127.0.0.1:{port}/q"), Credentials())

    def test_shapes(self) -> None:
        """Answers of the wrong shape are reported as such."""
        for body in (b"[1]", b'{"Attributes": 5}', b'"x"'):
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            error = self.assertRaises(NoAnswer, self.transport([answer]).events, None)
            self.assertRegex(str(error), "sqs:http://127.0.0.1:[0-9]+/q: the answer can't be understood")

    def test_surrogate(self) -> None:
        """Half of a surrogate pair in an event doesn't cost the others that arrive with it."""
        bodies = ['{"data": {"x": "\ud800"}}', '{"data": {}}']
        messages = [{"Body": body, "ReceiptHandle": "x"} for body in bodies]
        client = SimpleNamespace(
            receive_message=lambda **_: {"Messages": messages}, delete_message_batch=lambda **_: None
        )
        events = iter(SqsEvents(SqsAddress(url="http://h/q"), client, None))
        found = [json.loads(next(events)) for _ in bodies]
        self.assertEqual(found, [{"data": {"x": "\ud800"}}, {"data": {}}])

    def test_trickle(self) -> None:
        """Whoever sends a byte now and then has not answered in time. The library tries twice."""
        haste(self)
        for head in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"):
            transport = self.transport(itertools.chain([head], itertools.repeat(b"a")))
            error = self.assertRaises(NoAnswer, transport.send, b"{}")
            self.assertIn("an answer was not complete within 15 s", str(error), head)
        # So does a proxy that is asked for a connection.
        port = port_of(self, itertools.chain([b"HTTP/1.1 200 OK\r\nA: "], itertools.repeat(b"a")))
        kept = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
        self.patch(os, "environ", {**kept, "https_proxy": f"http://127.0.0.1:{port}"})
        transport = SqsTransport(SqsAddress(url="https://sqs.example.org/q"), Credentials())
        error = self.assertRaises(NoAnswer, transport.send, b"{}")
        self.assertIn("an answer was not complete within 15 s", str(error))


class KafkaTests(unittest.SynchronousTestCase):
    """A server that answers, but not as a Kafka broker does."""

    def problem(self, scheme: str, pieces: Iterable[bytes]) -> str:
        """Why a request can't be sent to it."""
        self.patch(client_kafka, "_BOOTSTRAP_MS", 1500)
        port = port_of(self, pieces)
        address = read_address(f"{scheme}://127.0.0.1:{port}")
        assert isinstance(address, KafkaAddress)
        error = self.assertRaises(NoAnswer, KafkaTransport(address, Credentials()).send, b"{}")
        return str(error).removeprefix(f"{address}: ")

    def test_silent(self) -> None:
        """One that says nothing when TLS begins is not waited for."""
        released = threading.Event()

        def silence() -> Iterator[bytes]:
            released.wait(60.0)
            yield b""

        words = self.problem("kafkas", silence())
        # Before the server is waited for.
        released.set()
        self.assertEqual(words, "timed out")

    def test_other(self) -> None:
        """What is wrong with TLS is said."""
        self.assertEqual(self.problem("kafkas", [b"HTTP/1.1 400 No\r\n"]), "TLS failed: wrong version number")

    def test_endless(self) -> None:
        """Of what comes faster than it is looked at, a part is taken; and Ctrl-C is not the server's end."""
        endless = SimpleNamespace(recv=lambda size: bytes(size))
        data, problem = kafka_reads.receive(endless)
        self.assertEqual((len(data), problem), (kafka_reads.READ_BYTES, None))

        def interrupted(size: int) -> bytes:
            raise KeyboardInterrupt

        self.assertRaises(KeyboardInterrupt, kafka_reads.receive, SimpleNamespace(recv=interrupted))

    def test_last_words(self) -> None:
        """What arrives with the end of a connection comes before the end."""
        pieces = iter([b"no", b"", b""])
        ending = SimpleNamespace(recv=lambda size: next(pieces))
        self.assertEqual(kafka_reads.receive(ending), (b"no", None))
        data, problem = kafka_reads.receive(ending)
        self.assertEqual((data, str(problem)), (b"", "KafkaConnectionError: socket disconnected"))
