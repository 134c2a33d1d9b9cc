"""An SQS source without a network or a thread, and a client whose answers the test determines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from botocore import exceptions
from twisted.internet import defer
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial import unittest
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NewConnectionError

from pcapsvc.core.result import NotForThisNode
from pcapsvc.sources.polling import CLEAN_UP_SECONDS, STOP_SECONDS
from pcapsvc.sources.sqs.source import STAND_BACK_SECONDS, SQSSource
from pcapsvc.testing import MemorySink

URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/captures"


class FakeThread:
    """
    A thread that works when the test calls L{step}.

    @ivar work: what it was given and has not done yet.
    """

    def __init__(self) -> None:
        self.work: list[tuple[defer.Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def run(self, function: Callable[..., Any], *args: Any) -> defer.Deferred[Any]:
        result: defer.Deferred[Any] = defer.Deferred()
        self.work.append((result, function, args))
        return result

    def step(self) -> None:
        """Do the first piece of work."""
        self._do(0)

    def settle(self) -> None:
        """Do the first piece of work that deletes or returns messages, whatever polls wait before it."""
        self._do([function.__name__ for _, function, _ in self.work].index("settle"))

    def settling(self) -> int:
        """How many pieces of such work there are."""
        return sum(function.__name__ == "settle" for _, function, _ in self.work)

    def _do(self, number: int) -> None:
        result, function, args = self.work.pop(number)
        outcome = defer.execute(function, *args)
        outcome.addBoth(lambda value: None if result.called else result.callback(value))


def message(
    name: str, body: str = "{}", *, receipt: str | None = None, received: int = 1, **attributes: object
) -> dict[str, Any]:
    """A message, as boto3 returns it."""
    return {
        "MessageId": name,
        "ReceiptHandle": receipt or f"receipt of {name}",
        "Body": body,
        "Attributes": {"ApproximateReceiveCount": str(received), **attributes},
    }


class FakeClient:
    """
    A client whose answers the test determines.

    @ivar messages: what the next polls return: lists of messages, or exceptions; after those, nothing.
    @ivar asked: the arguments of each poll.
    @ivar deleted: the receipts of deleted messages, a list for each call.
    @ivar hidden: the receipts of returned messages and their visibility timeouts, likewise.
    @ivar settling: the outcome of the next calls to delete or return: exceptions, or failed entries.
    """

    def __init__(self) -> None:
        self.messages: list[list[dict[str, Any]] | Exception] = []
        self.asked: list[dict[str, Any]] = []
        self.deleted: list[list[str]] = []
        self.hidden: list[dict[str, int]] = []
        self.settling: list[Exception | list[dict[str, Any]]] = []
        self.closed = False
        self.meanwhile: Callable[[], object] = lambda: None

    def receive_message(self, **arguments: Any) -> dict[str, Any]:
        self.asked.append(arguments)
        self.meanwhile()
        answer = self.messages.pop(0) if self.messages else []
        if isinstance(answer, Exception):
            raise answer
        return {"Messages": answer} if answer else {}

    def delete_message_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:
        self.deleted.append([entry["ReceiptHandle"] for entry in Entries])
        return self._settled(len(Entries))

    def change_message_visibility_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:
        self.hidden.append({entry["ReceiptHandle"]: entry["VisibilityTimeout"] for entry in Entries})
        return self._settled(len(Entries))

    def close(self) -> None:
        self.closed = True

    def _settled(self, count: int) -> dict[str, Any]:
        answer = self.settling.pop(0) if self.settling else []
        if isinstance(answer, Exception):
            raise answer
        failed = {entry["Id"] for entry in answer}
        done = [{"Id": str(number)} for number in range(count) if str(number) not in failed]
        return {"Successful": done, "Failed": [entry for entry in answer if "Code" in entry]}


class SQSTestCase(unittest.SynchronousTestCase):
    """A source that is started."""

    unmatched = "release"
    wait_seconds = 20

    def setUp(self) -> None:
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.clock = Clock()
        self.thread = FakeThread()
        self.client = FakeClient()
        self.clients = 0
        self.sink = MemorySink()
        self.chance = 0.5
        self.source = SQSSource(
            self.clock,
            self.sink,
            url=URL,
            access_id="AKIAEXAMPLE",
            access_key="s3cret/key",
            wait_seconds=self.wait_seconds,
            chunk_size=7,
            unmatched=self.unmatched,
            remembered_seconds=100.0,
            remembered_messages=3,
            run_in_thread=self.thread.run,
            make_client=self.make_client,
            chance=lambda: self.chance,
        )
        self.source.startService()

    def tearDown(self) -> None:
        self.source.stopService()
        self.clock.advance(STOP_SECONDS)
        self.clock.advance(CLEAN_UP_SECONDS)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def make_client(self) -> FakeClient:
        """The client; this counts how often it is made."""
        self.clients += 1
        return self.client

    def poll(self, *messages: dict[str, Any]) -> None:
        """Let one poll return messages, and the source process them."""
        self.client.messages.append(list(messages))
        self.thread.step()
        if messages:
            self.thread.step()
            if not self.thread.work and isinstance(self.sink.verdict, NotForThisNode):
                self.clock.advance(2 * STAND_BACK_SECONDS[1])

    def poll_fails(self, *problems: Exception) -> None:
        """Let polls fail, each after the pause that follows the previous failure."""
        for problem in problems:
            self.client.messages.append(problem)
            self.thread.step()
            self.clock.advance(30)

    def logged(self) -> list[str]:
        """The lines logged since the last call, with their levels."""
        events, self.events[:] = self.events[:], []
        return [
            f"{event['log_level'].name}: {formatEvent(event)}"
            for event in events
            if "sqs" in event.get("log_namespace", "") or "polling" in event.get("log_namespace", "")
        ]


def refusal(code: str, text: str = "no") -> exceptions.ClientError:
    """An error that the service answers."""
    return exceptions.ClientError(
        {"Error": {"Code": code, "Message": text}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "X"
    )


def unreachable(reason: OSError | None = None) -> exceptions.EndpointConnectionError:
    """The error of a service that can't be reached."""
    inner = NewConnectionError(HTTPConnection("sqs.example"), str(reason))
    inner.__cause__ = reason
    return exceptions.EndpointConnectionError(endpoint_url=URL, error=inner)
