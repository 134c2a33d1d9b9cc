"""
A queue server in its own process: ElasticMQ, which implements the API of SQS.

It has visibility timeouts and long polls, and can keep its queues and messages on disk, so that they survive
a restart. It doesn't check signatures; the server in L{peers.s3} does.
"""

from __future__ import annotations

import atexit
import json
import select
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from peers.jars import java_command
from peers.process import OwnProcess, answers, free_port

PROGRAM = "elasticmq-server_2.13-1.6.11"
_CONFIGURATION = """
include classpath("application.conf")
node-address {{ protocol = http, host = "{host}", port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-hostname = "{host}", bind-port = {port}, sqs-limits = strict }}
rest-stats {{ enabled = false }}
# It wakes up once in so long, and has a few threads for the few clients of a test.
pekko.scheduler.tick-duration = 50ms
pekko.actor.default-dispatcher.fork-join-executor {{ parallelism-min = 2, parallelism-max = 2 }}
pekko.actor.internal-dispatcher.fork-join-executor {{ parallelism-min = 2, parallelism-max = 2 }}
"""
_DURABLE = """
queues-storage {{ enabled = true, path = "{directory}/queues.conf" }}
messages-storage {{ enabled = true, uri = "jdbc:h2:{directory}/messages;WRITE_DELAY=0" }}
"""
_BATCH = 10
# Longer than any long poll.
_ANSWER_SECONDS = 60.0


_shared: dict[bool, SQSServer] = {}


def shared_server(*, durable: bool = False) -> SQSServer:
    """
    The server of all tests that share one, as starting it takes seconds. It runs, even if a test has killed
    it, or it has crashed, and ends with this process.

    @param durable: as for L{SQSServer}.
    """
    server = _shared.get(durable)
    if server is None:
        server = _shared[durable] = SQSServer(durable=durable)
        atexit.register(server.stop)
        server.start()
    elif not server.is_running:
        server.restart()
    return server


class SQSServer:
    """
    A queue server on a free port.

    @ivar endpoint: its URL.
    """

    region = "elasticmq"

    def __init__(
        self, *, durable: bool = False, host: str = "127.0.0.1", wrapper: Sequence[str] = ()
    ) -> None:
        """
        @param durable: keep queues and messages on disk, about a second after they arrived.
        @param host: its address.
        @param wrapper: a prefix of the command, such as C{ip netns exec NAME}.
        """
        self._process = OwnProcess("sqs")
        self._host, self._port = host, free_port()
        self.endpoint = f"http://{host}:{self._port}"
        self._file = self._process.directory / "elasticmq.conf"
        configuration = _CONFIGURATION + (_DURABLE if durable else "")
        self._file.write_text(
            configuration.format(host=host, port=self._port, directory=self._process.directory)
        )
        main, encoding = "org.elasticmq.server.Main", "-Dstdout.encoding=UTF-8"
        self._command = [*wrapper, *java_command(PROGRAM, main, f"-Dconfig.file={self._file}", encoding)]
        self._client = _Client(host, self._port)
        self._durable = durable
        self._queues: set[str] = set()

    @property
    def is_running(self) -> bool:
        """Whether it was started, and has not ended since: a crash is an end, too."""
        return self._process.is_running

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process.start(self._command, lambda: answers(self._port, self._host))

    def stop(self) -> None:
        """End it for good, even if it is frozen or not running."""
        self._client.close()
        if self._process.is_running:
            # To end properly takes it time of the processors.
            self._process.signal(signal.SIGKILL)
        self._process.clean_up()

    def exit(self, patience_seconds: float) -> None:
        """Let it exit by itself."""
        self._process.exit(patience_seconds)

    def kill(self) -> None:
        """Kill it: no connection is closed properly."""
        self._process.signal(signal.SIGKILL)
        self._process.end()

    def restart(self) -> None:
        """
        Start it again, on the same port and with the data on disk, and wait until it has its queues again: it
        answers before.
        """
        self._process.start(self._command, lambda: answers(self._port, self._host) and self._has_its_queues())

    def _has_its_queues(self) -> bool:
        return not self._durable or self._queues <= set(self._client.call("ListQueues").get("QueueUrls", ()))

    def freeze(self) -> None:
        """Freeze its process: connections stay open, and nothing answers."""
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the frozen process."""
        self._process.signal(signal.SIGCONT)

    def create_queue(self, name: str, **attributes: str) -> str:
        """
        Create a queue.

        @param attributes: as in the SQS API Reference, "CreateQueue".
        @return: its URL.
        """
        url: str = self._client.call("CreateQueue", QueueName=name, Attributes=attributes)["QueueUrl"]
        self._queues.add(url)
        return url

    def send(self, url: str, bodies: Sequence[str], **more: Any) -> list[str]:
        """
        Send messages.

        @param more: more fields of each entry, as in the SQS API Reference, "SendMessageBatch".
        @return: their ids.
        """
        ids: list[str] = []
        for start in range(0, len(bodies), _BATCH):
            batch = bodies[start : start + _BATCH]
            entries = [{"Id": str(at), "MessageBody": body, **more} for at, body in enumerate(batch)]
            answer = self._client.call("SendMessageBatch", QueueUrl=url, Entries=entries)
            assert not answer.get("Failed"), answer
            ids += [
                sent["MessageId"] for sent in sorted(answer["Successful"], key=lambda one: int(one["Id"]))
            ]
        return ids

    def counts(self, url: str) -> tuple[int, int]:
        """How many messages in a queue are visible, and how many are in flight."""
        visible, hidden = "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"
        answer = self._client.call("GetQueueAttributes", QueueUrl=url, AttributeNames=[visible, hidden])
        return int(answer["Attributes"][visible]), int(answer["Attributes"][hidden])

    def receive(self, url: str, **more: Any) -> list[dict[str, Any]]:
        """Receive messages, as another client."""
        answer = self._client.call("ReceiveMessage", QueueUrl=url, **more)
        found: list[dict[str, Any]] = answer.get("Messages", [])
        return found

    def delete(self, url: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """Delete up to ten messages that were received."""
        entries = [
            {"Id": str(at), "ReceiptHandle": message["ReceiptHandle"]} for at, message in enumerate(messages)
        ]
        self._client.call("DeleteMessageBatch", QueueUrl=url, Entries=entries)


class _Client:
    """
    Calls the API in its JSON protocol (SQS API Reference, "Make requests to Amazon SQS using the AWS JSON
    protocol"), unsigned and without retries. boto3 would take as long for a call as the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        # Each is used by one thread at a time.
        self._idle: list[HTTPConnection] = []

    def call(self, action: str, **fields: Any) -> dict[str, Any]:
        """
        Call an action; returns its answer.

        @raise RuntimeError: the server refused.
        @raise OSError: it did not answer.
        """
        headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": f"AmazonSQS.{action}"}
        status, body = self.post(headers, json.dumps(fields).encode())
        if status != 200:
            raise RuntimeError(f"{action} was answered with {status}: {body.decode(errors='replace')}")
        found: dict[str, Any] = json.loads(body)
        return found

    def post(self, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """
        Send a request; returns the status and the body of its answer.

        @raise OSError: there was no answer. Likewise L{HTTPException}.
        """
        connection = self._connection()
        try:
            connection.request("POST", "/", body, dict(headers))
            with connection.getresponse() as answer:
                status, found = answer.status, answer.read()
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:
            self._idle.append(connection)
        return status, found

    def close(self) -> None:
        """Close the connections that are idle."""
        while self._idle:
            self._idle.pop().close()

    def _connection(self) -> HTTPConnection:
        """An idle connection that the server has not closed in the meantime, or a new one."""
        while self._idle:
            # Another thread may have taken the last one.
            with suppress(IndexError):
                connection = self._idle.pop()
                closed = select.poll()
                closed.register(connection.sock, select.POLLIN)
                if not closed.poll(0):
                    return connection
                connection.close()
        return HTTPConnection(*self._address, timeout=_ANSWER_SECONDS)


class ForgetfulProxy:
    """
    A proxy in front of a queue server that makes messages arrive twice, as SQS may: it answers some first
    deletions of a message with success, and makes the message visible again instead.

    "On rare occasions, one of the servers that stores a copy of a message might be
    unavailable when you receive or delete a message": SQS Developer Guide, "At-least-once
    delivery". Here the occasions are frequent.

    @ivar endpoint: its URL.
    @ivar forgotten: how many deletions it dropped.
    @ivar is_cut: whether it closes connections, as if the server were gone.
    """

    def __init__(self, endpoint: str, every: int = 2) -> None:
        """
        @param every: one in C{every} messages arrives twice.
        """
        address = urlsplit(endpoint)
        # It keeps its connections, as clients do: a new one takes the server as long as a request.
        self._client = _Client(address.hostname or "", address.port or 80)
        self._every = every
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self.forgotten = 0
        self.is_cut = False
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() in ("content-type", "x-amz-target", "authorization", "x-amz-date")
                }
                try:
                    status, answer = proxy._answer(headers, body)
                    self.send_response(status)
                    self.send_header("Content-Type", "application/x-amz-json-1.0")
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except (OSError, HTTPException):
                    # The server or the client has gone away.
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def start(self) -> None:
        """Start to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self._client.close()

    def _answer(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if self.is_cut:
            raise ConnectionError("cut")
        target = next(value for name, value in headers.items() if name.lower() == "x-amz-target")
        if not target.endswith(".DeleteMessageBatch"):
            return self._client.post(headers, body)
        asked = json.loads(body)
        forgotten, kept = [], []
        for entry in asked["Entries"]:
            (forgotten if self._forgets(entry["ReceiptHandle"]) else kept).append(entry)
        answer: dict[str, Any] = {"Successful": [], "Failed": []}
        if kept:
            status, raw = self._client.post(headers, json.dumps({**asked, "Entries": kept}).encode())
            if status != 200:
                return status, raw
            answer |= json.loads(raw)
        if forgotten:
            entries = [{**entry, "VisibilityTimeout": 0} for entry in forgotten]
            shown = {name: value for name, value in headers.items() if name.lower() != "x-amz-target"}
            shown["X-Amz-Target"] = target.replace("DeleteMessageBatch", "ChangeMessageVisibilityBatch")
            self._client.post(shown, json.dumps({**asked, "Entries": entries}).encode())
            answer["Successful"] = [*answer["Successful"], *({"Id": entry["Id"]} for entry in forgotten)]
        return 200, json.dumps(answer).encode()

    def _forgets(self, receipt: str) -> bool:
        # In ElasticMQ, a receipt handle begins with the id of the message.
        message = receipt.partition("#")[0]
        with self._lock:
            if message in self._seen:
                return False
            self._seen.add(message)
            if len(self._seen) % self._every:
                return False
            self.forgotten += 1
            return True
