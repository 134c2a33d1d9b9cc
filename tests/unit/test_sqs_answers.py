"""What passes for an answer of SQS, with boto3 and a server that answers anything."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from botocore.exceptions import ClientError
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.sources.sqs.queue import ForeignAnswer, Queue, described, make_boto3_client

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
