"""What passes for an answer of SQS, with boto3 and a server that answers anything."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from botocore.exceptions import ClientError
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.net.sqs.answer import ForeignAnswer
from pcapsvc.net.sqs.client import described, make_boto3_client
from pcapsvc.sources.sqs.queue import Message, Queue, Step

PAGE = b"<html><body>Welcome to the hotel. Please log in.</body></html>"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, kind, body = self.server.answer
        self.wfile.write(self.server.interim)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    answer = (200, "application/x-amz-json-1.0", b"{}")
    interim = b""


class AnswerTests(SynchronousTestCase):
    """A queue answers only if it is SQS that answers."""

    def setUp(self) -> None:
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.addCleanup(self.server.server_close)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.addCleanup(self.server.shutdown)
        url = f"http://127.0.0.1:{self.server.server_address[1]}/queue"
        self.queue = Queue(
            lambda: make_boto3_client(url, "eu-west-1", None, "AKIDEXAMPLE", "s3cret/key", 5.0),
            url,
            wait_seconds=0,
            chunk_size=1,
            hidden_seconds=30,
        )
        self.addCleanup(self.queue.end)

    def test_captive_portal(self) -> None:
        """A page, or anything else that SQS would not answer, is a problem; it is named, on one line."""
        for kind, body in (
            ("text/html", PAGE),
            ("text/html", b""),
            ("application/json", b'{"login": "required"}'),
            ("application/json", b"[]"),
            ("application/json", b"[" * 50000),
            ("application/json", b'{"Messages": "abc"}'),
            ("application/json", b'{"Messages": {"MessageId": "1"}}'),
        ):
            self.server.answer = (200, kind, body)
            problem = self.assertRaises(ForeignAnswer, self.queue.receive)
            words = described(problem)[1]
            self.assertEqual(words, f"answered 200, but not as SQS does ({kind})")

    def test_interim(self) -> None:
        """An interim response is not the answer."""
        self.server.interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        self.server.answer = (500, "text/html", PAGE)
        self.assertIn("500", described(self.assertRaises(ClientError, self.queue.receive))[1])
        self.server.answer = (200, "application/x-amz-json-1.0", b"{}")
        self.assertEqual(self.queue.receive().messages, [])

    def test_empty(self) -> None:
        """An empty object, an empty list, or messages are its answers."""
        for body, count in (
            ({}, 0),
            ({"Messages": []}, 0),
            ({"Messages": [{"MessageId": "1", "ReceiptHandle": "r", "Body": "x"}]}, 1),
        ):
            self.server.answer = (200, "application/x-amz-json-1.0", json.dumps(body).encode())
            self.assertEqual(len(self.queue.receive().messages), count)
            self.queue.take()

    def answer(self, body: Any, status: int = 200) -> None:
        """Answer with JSON from now on."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.server.answer = (status, "application/x-amz-json-1.0", raw)

    def test_odd_messages(self) -> None:
        """Items that aren't messages are malformed; the messages among them are received."""
        fine = {"MessageId": "m", "ReceiptHandle": "r", "Body": "x"}
        odd = [1, None, "x", [], {}, {**fine, "Body": 5}, {**fine, "MessageId": ["m"]}]
        self.answer({"Messages": [*odd, {**fine, "MessageAttributes": 5}]})
        received = self.queue.receive()
        self.assertEqual([message.message_id for message in received.messages], ["m"])
        self.assertEqual(received.malformed, len(odd))
        self.assertTrue(self.queue.take())

    def test_odd_attributes(self) -> None:
        """Attributes of the wrong type are as good as none."""
        fine = {"MessageId": "m", "ReceiptHandle": "r", "Body": "x"}
        for attributes in ([], "abc", 5, {"SentTimestamp": [], "ApproximateReceiveCount": None}):
            self.answer({"Messages": [{**fine, "Attributes": attributes}]})
            (message,) = self.queue.receive().messages
            self.assertEqual((message.sent_at, message.received_times), (None, 1))
            self.assertTrue(self.queue.take())

    def test_odd_error(self) -> None:
        """Of an error, what can be understood is reported: at least the status."""
        for body, words in (
            ({"__type": ["x"]}, "the server answered 400"),
            ({"__type": 5, "message": "no such queue"}, "the server answered 400: no such queue"),
            ({"__type": "x#Gone", "message": {"a": 1}}, "the server answered Gone"),
            ([], "the server answered 400"),
            ("abc", "the server answered 400"),
            (None, "the server answered 400"),
            (b"", "the server answered 400"),
            (b"[" * 50000, "the server answered 400"),
            (b"\xff page", "the server answered 400: \ufffd page"),
        ):
            self.answer(body, 400)
            problem = self.assertRaises(ClientError, self.queue.receive)
            self.assertEqual(described(problem)[1], words)

    def test_odd_settlement(self) -> None:
        """What an answer doesn't clearly report as done is tried again."""
        messages = [
            Message(message_id=name, receipt=name, body="", sent_at=None, received_times=1) for name in "ab"
        ]
        steps = [Step(message=message, hide_seconds=None) for message in messages]
        self.answer(
            {"Successful": [1, None, {"Id": ["1"]}, {"Id": "0"}], "Failed": [5, {"SenderFault": True}]}
        )
        self.assertEqual(self.queue.settle(steps), steps[1:])
        self.answer({"Successful": "abc"})
        self.assertRaises(ForeignAnswer, self.queue.settle, steps)
