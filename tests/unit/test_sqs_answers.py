"""What passes for an answer of SQS, with boto3 and a server that answers anything."""

from __future__ import annotations

import json
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.net.sqs.answer import ForeignAnswer, check_answer
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

    def test_halves_of_surrogate_pairs(self) -> None:
        """Text that isn't Unicode, of any message, doesn't keep the others from being received."""
        fine = {"MessageId": "m", "ReceiptHandle": "r", "Body": "\\ud800"}
        attribute = {**fine, "MessageAttributes": {"a": {"StringValue": "\udc00"}}}
        self.answer({"Messages": [fine, {**fine, "Body": "x\ud800"}, attribute]})
        bodies = [message.body for message in self.queue.receive().messages]
        self.assertEqual(["\\ud800", "x\ufffd", "\\ud800"], bodies)
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

    def test_long_error(self) -> None:
        """Of a long text of an error, the beginning is reported, whatever its notation."""
        for body in (
            json.dumps({"__type": "x#AccessDenied", "message": "é" * 5000}).encode(),
            json.dumps({"__type": "x#AccessDenied", "message": "é" * 5000}, ensure_ascii=False).encode(),
            ("é" * 5000).encode(),
        ):
            response = {"status_code": 400, "headers": {}, "body": body}
            check_answer(None, response)
            self.assertEqual(json.loads(response["body"])["message"], "é" * 4096)

    def test_what_is_skipped(self) -> None:
        """
        Of what isn't used, no object is made, wherever it is: a library would hold Python's lock for seconds.
        """
        operation = SimpleNamespace(output_shape=SimpleNamespace(members={"Messages": None}))
        many = b"[" + b"[]," * 300_000 + b"[]]"
        keys = b"".join(b'"%d":[],' % number for number in range(80_000))
        for status, body in (
            (200, b'{"Messages": ' + many + b"}"),
            (200, b'{"Messages": [{"MessageId": ' + many + b"}]}"),
            (200, b'{"Messages": [{"MessageId": "a", "Attributes": {"SentTimestamp": ' + many + b"}}]}"),
            (200, b'{"Messages": [], "more": ' + many + b"}"),
            (200, b"{" + keys + b'"Messages": []}'),
            (400, b'{"message": ' + many + b"}"),
            (400, b"{" + keys + b'"message": "no"}'),
        ):
            response = {"status_code": status, "headers": {}, "body": body}
            tracemalloc.start()
            try:
                check_answer(operation, response)
                self.assertLess(tracemalloc.get_traced_memory()[1], 5 * len(body))
            finally:
                tracemalloc.stop()
            self.assertLess(len(response["body"]), 2000)

    def test_more_than_ten(self) -> None:
        """No answer has more than ten messages. Any others are skipped."""
        self.answer(
            {"Messages": [{"MessageId": str(n), "ReceiptHandle": "r", "Body": "x"} for n in range(12)]}
        )
        self.assertEqual(len(self.queue.receive().messages), 10)
        self.assertTrue(self.queue.take())

    def test_passing_failures(self) -> None:
        """An entry that fails because there is too much to do, or because of KMS, is tried again."""
        message = Message(message_id="a", receipt="a", body="", sent_at=None, received_times=1)
        step = Step(message=message, hide_seconds=None)
        for code, passes in (
            ("ReceiptHandleIsInvalid", False),
            ("AWS.SimpleQueueService.NonExistentQueue", False),
            ("RequestThrottled", True),
            ("ThrottlingException", True),
            ("KMS.ThrottlingException", True),
            ("KmsThrottled", True),
            ("KMS.AccessDeniedException", True),
            ("AWS.SimpleQueueService.OverLimit", True),
        ):
            self.answer({"Failed": [{"Id": "0", "SenderFault": True, "Code": code}]})
            self.assertEqual(self.queue.settle([step]), [step] if passes else [], code)

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
