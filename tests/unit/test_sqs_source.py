"""Requests on a queue of SQS, without a network, a thread or a wait."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from botocore import exceptions
from twisted.internet import defer
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.core.errors import Problem
from pcapsvc.core.message import Message
from pcapsvc.core.result import Accepted, Busy, NotForThisNode, Rejected, Verdict
from pcapsvc.sources.polling import STOP_SECONDS
from pcapsvc.sources.sqs.queue import locate
from pcapsvc.sources.sqs.source import (
    BUSY_SECONDS,
    HIDDEN_SECONDS,
    IDLE_SECONDS,
    RELEASE_MOST_SECONDS,
    RELEASE_ROUNDS,
    SETTLE_PAUSES_SECONDS,
    STAND_BACK_SECONDS,
    SQSSource,
)
from pcapsvc.testing import MemorySink

URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/captures"


class FakeThread:
    """
    A thread that works when the test lets it.

    @ivar work: what it was given and has not done.
    """

    def __init__(self) -> None:
        self.work: list[tuple[defer.Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def run(self, function: Callable[..., Any], *args: Any) -> defer.Deferred[Any]:
        result: defer.Deferred[Any] = defer.Deferred()
        self.work.append((result, function, args))
        return result

    def step(self) -> None:
        """Do the first piece of work, to its end."""
        result, function, args = self.work.pop(0)
        outcome = defer.execute(function, *args)
        outcome.addBoth(lambda value: None if result.called else result.callback(value))


def message(
    name: str, body: str = "{}", *, receipt: str | None = None, received: int = 1, **attributes: object
) -> dict[str, Any]:
    """A message, as boto3 gives it."""
    return {
        "MessageId": name,
        "ReceiptHandle": receipt or f"receipt of {name}",
        "Body": body,
        "Attributes": {"ApproximateReceiveCount": str(received), **attributes},
    }


class FakeClient:
    """
    A client whose answers a test gives.

    @ivar messages: what comes next: lists of messages, or exceptions; nothing comes after them.
    @ivar asked: the arguments of each poll.
    @ivar deleted: the receipts that it was asked to delete, a list for each call.
    @ivar hidden: the receipts that it was asked to hide, and for how many seconds, likewise.
    @ivar settling: what the next calls of these two do: exceptions, or failed entries.
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
        return self._settled()

    def change_message_visibility_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:
        self.hidden.append({entry["ReceiptHandle"]: entry["VisibilityTimeout"] for entry in Entries})
        return self._settled()

    def close(self) -> None:
        self.closed = True

    def _settled(self) -> dict[str, Any]:
        answer = self.settling.pop(0) if self.settling else []
        if isinstance(answer, Exception):
            raise answer
        return {"Successful": [], "Failed": answer}


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
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def make_client(self) -> FakeClient:
        """The client; it counts how often it is made."""
        self.clients += 1
        return self.client

    def poll(self, *messages: dict[str, Any]) -> None:
        """Let one poll bring messages, and the source do what it does with them."""
        self.client.messages.append(list(messages))
        self.thread.step()
        if messages:
            self.thread.step()
            if not self.thread.work and isinstance(self.sink.verdict, NotForThisNode):
                self.clock.advance(2 * STAND_BACK_SECONDS[1])

    def poll_fails(self, *problems: Exception) -> None:
        """Let polls fail, each after the pause that follows the one before."""
        for problem in problems:
            self.client.messages.append(problem)
            self.thread.step()
            self.clock.advance(30)

    def told(self) -> list[str]:
        """What was logged since the last call, by level and in words."""
        events, self.events[:] = self.events[:], []
        return [
            f"{event['log_level'].name}: {formatEvent(event)}"
            for event in events
            if "sqs" in event.get("log_namespace", "") or "polling" in event.get("log_namespace", "")
        ]


def refusal(code: str, text: str = "no") -> exceptions.ClientError:
    """An error that the service answers with."""
    return exceptions.ClientError(
        {"Error": {"Code": code, "Message": text}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "X"
    )


def unreachable() -> exceptions.EndpointConnectionError:
    """The error of a service that isn't there."""
    return exceptions.EndpointConnectionError(endpoint_url=URL)


class VerdictTests(SQSTestCase):
    """What becomes of a message is the verdict's to say."""

    def verdict(self, verdict: Verdict, **options: Any) -> None:
        """One message that is judged so."""
        self.sink.verdict = verdict
        self.poll(message("a", **options))

    def test_accepted(self) -> None:
        """An accepted one is deleted."""
        self.verdict(Accepted(captures=()))
        self.assertEqual(([["receipt of a"]], []), (self.client.deleted, self.client.hidden))

    def test_after_the_verdicts(self) -> None:
        """Messages of a poll are submitted at once; none is deleted before all verdicts have fired."""
        verdicts = self.sink.hold()
        self.client.messages.append([message("a"), message("b"), message("c")])
        self.thread.step()
        self.assertEqual(len(self.sink.submitted), 3)
        for verdict in reversed(verdicts):
            self.assertEqual(self.thread.work, [])
            verdict.callback(Accepted(captures=()))
        self.thread.step()
        self.assertEqual(self.client.deleted, [["receipt of a", "receipt of b", "receipt of c"]])

    def test_copy_in_the_same_poll(self) -> None:
        """A copy that comes before the verdict is deleted, unless the first one is to come again."""
        verdicts = self.sink.hold()
        self.client.messages.append([message("a"), message("a", receipt="another receipt of a")])
        self.thread.step()
        [verdict] = verdicts
        verdict.callback(Busy(reason="full"))
        self.thread.step()
        self.assertEqual(self.client.deleted, [["another receipt of a"]])
        self.assertEqual(list(self.client.hidden[0]), ["receipt of a"])
        self.client.messages.append([message("a")])
        self.thread.step()
        self.assertEqual(len(verdicts), 2)
        verdicts[1].callback(Accepted(captures=()))
        self.thread.step()

    def test_rejected(self) -> None:
        """So is one that can't be done."""
        self.verdict(Rejected(problems=(Problem(path="bpf", rule="no"),)))
        self.assertEqual(([["receipt of a"]], []), (self.client.deleted, self.client.hidden))

    def test_busy(self) -> None:
        """One for which there is no room goes back for some seconds, by chance."""
        low, high = BUSY_SECONDS
        for self.chance, seconds in ((0.0, low), (0.5, 10), (0.999, high)):
            self.verdict(Busy(reason="full"))
            self.assertEqual(({"receipt of a": seconds}), self.client.hidden[-1])
        self.assertEqual([], self.client.deleted)
        self.assertEqual(3, len(self.sink.submitted))

    def test_not_for_this_node(self) -> None:
        """One for another node goes back at once, and by chance in a second."""
        for self.chance, seconds in ((0.0, 0), (0.5, 0), (0.99, 0), (0.999, 1)):
            self.verdict(NotForThisNode())
            self.assertEqual(({"receipt of a": seconds}), self.client.hidden[-1])
        self.assertEqual([], self.client.deleted)

    def test_not_for_this_node_and_long_under_way(self) -> None:
        """One that nobody takes goes round more and more slowly, within a bound."""
        for self.chance, rounds, seconds in (
            (0.499, 1, 0),
            (0.5, 1, 1),
            (0.999, 2, 2),
            (0.999, 10, 10),
            (0.5, 10, 5),
            (1.0, 1000, RELEASE_MOST_SECONDS),
        ):
            self.verdict(NotForThisNode(), received=rounds * RELEASE_ROUNDS)
            self.assertEqual(({"receipt of a": seconds}), self.client.hidden[-1])

    def test_standing_back(self) -> None:
        """Others come first with what is for them: for longer, the longer it goes round, within a bound."""
        self.sink.verdict = NotForThisNode()
        each, longest = STAND_BACK_SECONDS
        for self.chance, received, seconds in (
            (0.5, 1, each),
            (0.0, 4, 2 * each),
            (0.999, 4, 6 * each),
            (0.5, 1000, longest),
        ):
            old = message("old", received=10 * received)
            self.client.messages.append([message("a", received=received), old])
            self.thread.step()
            self.thread.step()
            self.clock.advance(0.99 * seconds)
            self.assertEqual([], self.thread.work)
            self.clock.advance(0.02 * seconds)
            self.assertEqual(1, len(self.thread.work))

    def test_not_standing_back(self) -> None:
        """Where one was for this node, more may be."""
        verdicts = [Accepted(captures=()), NotForThisNode()]
        self.sink.answer = lambda: succeed(verdicts.pop(0))
        self.poll(message("a"), message("b"))
        self.assertEqual(1, len(self.thread.work))

    def test_many(self) -> None:
        """Those of one poll are settled with one call for each kind."""
        verdicts = [Accepted(captures=()), NotForThisNode(), Rejected(problems=()), Busy(reason="full")]
        self.sink.answer = lambda: succeed(verdicts.pop(0))
        self.poll(*(message(name) for name in "abcd"))
        self.assertEqual([["receipt of a", "receipt of c"]], self.client.deleted)
        self.assertEqual([{"receipt of b": 0, "receipt of d": 10}], self.client.hidden)

    def test_sink_that_raises(self) -> None:
        """It keeps the others from nothing, and its message comes again."""

        def submit(message: Message) -> Deferred[Verdict]:
            if message.body == b"bad":
                raise RuntimeError("a mistake of ours")
            return succeed(Accepted(captures=()))

        self.sink.submit = submit  # type: ignore[method-assign]
        self.poll(message("a", "bad"), message("b", "good"))
        self.assertEqual([["receipt of b"]], self.client.deleted)
        self.assertEqual([{"receipt of a": 10}], self.client.hidden)
        self.assertEqual(1, len(self.flushLoggedErrors(RuntimeError)))


class DeleteUnmatchedTests(SQSTestCase):
    """With C{unmatched = "delete"}."""

    unmatched = "delete"

    def test_not_for_this_node(self) -> None:
        """A message for another node is deleted, and not remembered."""
        self.sink.verdict = NotForThisNode()
        self.poll(message("a"))
        self.poll(message("a"))
        self.assertEqual([["receipt of a"]] * 2, self.client.deleted)
        self.assertEqual(2, len(self.sink.submitted))


class MessageTests(SQSTestCase):
    """What of a message is submitted."""

    def submitted(self, body: str, **attributes: object) -> tuple[bytes, float | None]:
        """What a message comes to."""
        self.poll(message(f"number {len(self.sink.submitted)}", body, **attributes))
        return self.sink.submitted[-1][1], self.sink.sent_at[-1]

    def test_body(self) -> None:
        """Its body, in UTF-8; what can't be in UTF-8 is left for the sink to refuse."""
        self.assertEqual(('{"node":"ä"}'.encode(), None), self.submitted('{"node":"ä"}'))
        self.assertEqual((b"\xed\xa0\x80", None), self.submitted("\ud800"))
        self.assertEqual("sqs", self.sink.submitted[0][0])

    def test_time(self) -> None:
        """The queue's time stamp, in seconds, as text or as a number; nothing where it is nonsense."""
        for stamp in ("1700000000123", 1700000000123):
            self.assertEqual((b"x", 1700000000.123), self.submitted("x", SentTimestamp=stamp))
        self.assertEqual((b"x", None), self.submitted("x", SentTimestamp="yesterday"))

    def test_what_is_asked_for(self) -> None:
        """The settings, the attributes, and a time for which others don't see it."""
        self.poll()
        self.poll()
        names = ["SentTimestamp", "ApproximateReceiveCount"]
        self.assertEqual(
            {
                "QueueUrl": URL,
                "WaitTimeSeconds": 20,
                "MaxNumberOfMessages": 7,
                "VisibilityTimeout": HIDDEN_SECONDS,
                "MessageSystemAttributeNames": names,
                "AttributeNames": names,
            },
            self.client.asked[1],
        )

    def test_first_poll(self) -> None:
        """The first poll does not wait, so that it is soon known whether the queue can be polled."""
        self.poll()
        self.assertEqual(0, self.client.asked[0]["WaitTimeSeconds"])
        self.assertEqual([f"info: SQS {URL}: listening"], self.told())

    def test_what_cannot_be_understood(self) -> None:
        """A message of which not all is said that there is keeps the others of its poll from nothing."""
        strange = [{"nonsense": True}, {**message("b"), "Body": 1}, {"ReceiptHandle": "x", "Body": "{}"}]
        self.poll(message("a"), *strange, message("c"))
        self.assertEqual(2, len(self.sink.submitted))
        self.assertEqual([["receipt of a", "receipt of c"]], self.client.deleted)
        line = f"error: SQS {URL}: 3 malformed messages stay in the queue"
        self.assertEqual([line, f"info: SQS {URL}: listening"], self.told())

    def test_envelope(self) -> None:
        """Of a notification of SNS, the message in it."""
        request = '{"node": "any", "x": "\\u00e4"}'
        envelope = {"Type": "Notification", "MessageId": "n", "TopicArn": "arn:…", "Message": request}
        self.assertEqual((request.encode(), 1.5), self.submitted(json.dumps(envelope), SentTimestamp="1500"))

    def test_no_envelope(self) -> None:
        """What only looks like one is submitted as it is."""
        for body in (
            "Notification",
            '"Notification"',
            '["Notification"]',
            '{"Type": "Notification"}',
            '{"Type": "Notification", "Message": {}}',
            '{"Type": "Other", "Message": "x", "y": "Notification"}',
            '{"Type": "Notification", "Message": "x"',
            '{"Type": "Notification", "Message": "x", "y": ' + "[" * 5000,
            '{"y": "\ud800", "Type": "Notification", "Message": "x"}',
        ):
            self.assertEqual(body.encode("utf-8", "surrogatepass"), self.submitted(body)[0])


class AgainTests(SQSTestCase):
    """A message that comes again."""

    def test_again(self) -> None:
        """One that was accepted is deleted by its new receipt, and not submitted."""
        self.poll(message("a", receipt="1"))
        self.poll(message("a", receipt="2"))
        self.assertEqual([["1"], ["2"]], self.client.deleted)
        self.assertEqual(1, len(self.sink.submitted))

    def test_twice_at_once(self) -> None:
        """Twice in one poll is once."""
        self.poll(message("a", receipt="1"), message("a", receipt="2"))
        self.assertEqual([["1", "2"]], self.client.deleted)
        self.assertEqual(1, len(self.sink.submitted))

    def test_after_a_restart(self) -> None:
        """What was accepted is remembered when the source stops and starts."""
        self.poll(message("a"))
        self.source.stopService()
        self.thread.work.clear()
        self.source.startService()
        self.poll(message("a"))
        self.assertEqual(1, len(self.sink.submitted))

    def test_not_accepted(self) -> None:
        """One that went back is judged anew."""
        self.sink.verdict = Busy(reason="full")
        self.poll(message("a"))
        self.sink.verdict = Accepted(captures=())
        self.poll(message("a"))
        self.assertEqual(2, len(self.sink.submitted))

    def test_notifications_without_ids(self) -> None:
        """Notifications whose envelopes have no id, or an empty one, are not taken for one another."""
        for name, ids in (("a", {"MessageId": ""}), ("b", {"MessageId": ""}), ("c", {}), ("d", {})):
            envelope = {"Type": "Notification", "Message": name, **ids}
            self.poll(message(name, json.dumps(envelope)))
        self.assertEqual([b"a", b"b", b"c", b"d"], [body for _, body in self.sink.submitted])

    def test_an_id_of_both_kinds(self) -> None:
        """A notification isn't taken for the message of the queue that has the same id."""
        self.poll(message("a"))
        self.poll(message("b", json.dumps({"Type": "Notification", "MessageId": "a", "Message": "other"})))
        self.assertEqual([b"{}", b"other"], [body for _, body in self.sink.submitted])

    def test_notified_twice(self) -> None:
        """A notification that SNS put into the queue twice has two ids here, and one there."""
        body = json.dumps({"Type": "Notification", "MessageId": "n", "Message": "x"})
        self.poll(message("a", body))
        self.poll(message("b", body))
        self.assertEqual(1, len(self.sink.submitted))
        self.assertEqual([["receipt of a"], ["receipt of b"]], self.client.deleted)

    def test_same_request(self) -> None:
        """Two messages that ask for the same are two requests."""
        self.poll(message("a", "x"), message("b", "x"))
        self.assertEqual(2, len(self.sink.submitted))

    def test_for_how_long(self) -> None:
        """After its time a message is forgotten."""
        self.poll(message("a"))
        self.clock.advance(99)
        self.poll(message("a"))
        self.assertEqual(1, len(self.sink.submitted))
        self.clock.advance(1)
        self.poll(message("a"))
        self.assertEqual(2, len(self.sink.submitted))

    def test_how_many(self) -> None:
        """Where there are too many, the oldest is forgotten."""
        self.poll(*(message(name) for name in "abcd"))
        self.poll(*(message(name) for name in "bcd"))
        self.assertEqual(4, len(self.sink.submitted))
        self.poll(message("a"))
        self.assertEqual(5, len(self.sink.submitted))


class SettleTests(SQSTestCase):
    """To delete messages, or to give them back, can fail."""

    def test_in_part(self) -> None:
        """What failed alone is tried again, after a pause."""
        self.client.settling = [[{"Id": "1", "SenderFault": False, "Code": "InternalError"}]]
        self.poll(message("a"), message("b"), message("c"))
        self.assertEqual([], self.thread.work)
        self.clock.advance(SETTLE_PAUSES_SECONDS[0])
        self.thread.step()
        self.assertEqual(
            [["receipt of a", "receipt of b", "receipt of c"], ["receipt of b"]], self.client.deleted
        )
        self.assertEqual(1, len(self.thread.work))

    def test_our_fault(self) -> None:
        """A receipt that is no longer good is not tried again."""
        self.client.settling = [[{"Id": "0", "SenderFault": True, "Code": "ReceiptHandleIsInvalid"}]]
        self.poll(message("a"))
        self.poll()
        self.assertEqual(1, len(self.client.deleted))
        self.assertEqual([f"info: SQS {URL}: listening"], self.told())

    def test_in_vain(self) -> None:
        """After the last try that is told, once, and the polls go on after a pause."""
        for times in (1, 2):
            self.client.settling = [refusal("AccessDenied") for _ in range(3)]
            self.poll(message(f"message {times}"))
            for seconds in SETTLE_PAUSES_SECONDS:
                self.clock.advance(seconds)
                self.thread.step()
            self.clock.advance(30)
            self.poll()
        self.assertEqual(6, len(self.client.deleted))
        self.assertEqual([f"warn: SQS {URL}: the server answered AccessDenied: no; retrying"], self.told())
        self.poll(message("message 3"))
        self.assertEqual([f"info: SQS {URL}: listening"], self.told())


class OutageTests(SQSTestCase):
    """The service can't be reached, or refuses."""

    def test_told_once(self) -> None:
        """An outage and its end are told once each."""
        self.poll()
        self.told()
        self.poll_fails(*(unreachable() for _ in range(20)))
        self.assertEqual(
            [f'warn: SQS {URL}: Could not connect to the endpoint URL: "{URL}"; retrying'],
            self.told(),
        )
        self.poll(message("a"))
        self.poll()
        self.assertEqual([f"info: SQS {URL}: listening"], self.told())
        self.assertEqual(1, self.clients)

    def test_pauses(self) -> None:
        """The pause after each failure is longer, within a bound, and no poll falls into it."""
        self.chance = 1.0
        for seconds in (0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0):
            self.client.messages.append(unreachable())
            self.thread.step()
            self.clock.advance(seconds - 0.01)
            self.assertEqual([], self.thread.work)
            self.clock.advance(0.02)
            self.assertEqual(1, len(self.thread.work))

    def test_stale_connection(self) -> None:
        """A connection that was kept and has died meanwhile is no outage."""
        self.poll()
        self.client.messages = [exceptions.ConnectionClosedError(endpoint_url=URL), []]
        self.clock.advance(20)
        self.thread.step()
        self.poll(message("a"))
        self.assertEqual([f"info: SQS {URL}: listening"], self.told())
        self.assertEqual(1, len(self.sink.submitted))

    def test_cut_again_and_again(self) -> None:
        """A server that cuts every connection is one."""
        self.poll_fails(*(exceptions.ConnectionClosedError(endpoint_url=URL) for _ in range(3)))
        self.assertEqual(1, len(self.told()))

    def test_no_secret(self) -> None:
        """Whatever the service says, the key is in no log, nor is what could break a line of it."""
        self.poll_fails(refusal("SignatureDoesNotMatch", "s3cret/key or s3cret%2Fkey\nis wrong"))
        (line,) = self.told()
        self.assertEqual(
            f"warn: SQS {URL}: the server answered SignatureDoesNotMatch: "
            "[access key] or [access key] is wrong; retrying",
            line,
        )

    def test_no_credentials(self) -> None:
        """A client that found no credentials is made anew, so that it finds those that come later."""
        self.poll_fails(exceptions.NoCredentialsError(), exceptions.NoCredentialsError())
        self.poll()
        self.assertEqual(3, self.clients)
        warning, _ = self.told()
        self.assertIn("Unable to locate credentials", warning)

    def test_unforeseen(self) -> None:
        """What nobody has thought of doesn't end the polls, and its words, maybe a secret, are not shown."""
        self.poll_fails(RuntimeError("hunter2"), MemoryError())
        self.poll(message("a"))
        self.assertEqual(1, len(self.sink.submitted))
        warning, _ = self.told()
        self.assertIn("unexpected error (RuntimeError)", warning)
        self.assertNotIn("hunter2", warning)


class IdleTests(SQSTestCase):
    """Short polls rest."""

    wait_seconds = 0

    def test_rests(self) -> None:
        """From poll to poll a second goes by while nothing comes, and none while messages come."""
        self.poll()
        for _ in range(3):
            self.poll()
            self.clock.advance(IDLE_SECONDS - 0.01)
            self.assertEqual([], self.thread.work)
            self.clock.advance(0.02)
            self.assertEqual(1, len(self.thread.work))
        for name in "abc":
            self.poll(message(name))
        self.assertEqual(3, len(self.sink.submitted))

    def test_stop(self) -> None:
        """A stop does not wait for the rest."""
        self.poll()
        self.poll()
        self.successResultOf(self.source.stopService())
        self.assertEqual([], self.clock.getDelayedCalls())


class StopTests(SQSTestCase):
    """A stop waits for no poll, and no message is lost by it."""

    def test_before_the_start(self) -> None:
        """A second stop, or one before the start, does nothing."""
        self.successResultOf(self.source.stopService())
        self.successResultOf(self.source.stopService())

    def test_during_a_poll(self) -> None:
        """It is at once; what the poll brings then goes back at once, and the client is closed."""
        self.client.messages = [[message("a"), message("b")]]
        self.client.meanwhile = lambda: self.successResultOf(self.source.stopService())
        self.thread.step()
        self.assertEqual([{"receipt of a": 0, "receipt of b": 0}], self.client.hidden)
        self.thread.step()
        self.assertEqual(([], True, []), (self.sink.submitted, self.client.closed, self.thread.work))

    def test_after_a_poll(self) -> None:
        """What a poll brought that wasn't heard any more goes back, too."""
        self.client.messages = [[message("a")]]
        result, function, args = self.thread.work.pop(0)
        brought = function(*args)
        self.successResultOf(self.source.stopService())
        result.callback(brought)
        self.thread.step()
        self.assertEqual([{"receipt of a": 0}], self.client.hidden)
        self.assertEqual(([], True), (self.sink.submitted, self.client.closed))

    def test_while_settling(self) -> None:
        """Messages that were submitted are deleted first."""
        self.client.messages = [[message("a")]]
        self.thread.step()
        stopping = self.source.stopService()
        self.assertNoResult(stopping)
        self.thread.step()
        self.successResultOf(stopping)
        self.assertEqual([["receipt of a"]], self.client.deleted)
        self.thread.step()
        self.assertEqual(([], True), (self.thread.work, self.client.closed))

    def test_while_settling_in_vain(self) -> None:
        """That is waited for, but not for long."""
        self.client.messages = [[message("a")]]
        self.thread.step()
        stopping = self.source.stopService()
        self.clock.advance(STOP_SECONDS)
        self.successResultOf(stopping)

    def test_during_a_pause(self) -> None:
        """A pause after a failure is not waited for."""
        self.client.messages = [unreachable()]
        self.thread.step()
        self.successResultOf(self.source.stopService())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_again(self) -> None:
        """It can be started again, with another client."""
        self.source.stopService()
        self.thread.step()
        self.thread.step()
        self.source.startService()
        self.poll(message("a"))
        self.assertEqual(1, len(self.sink.submitted))


class LocateTests(unittest.SynchronousTestCase):
    """A queue's URL says where it is."""

    def test_region(self) -> None:
        """Amazon's URLs name the region, and where they are public, no endpoint is needed."""
        for host, region in (
            ("sqs.eu-west-1.amazonaws.com", "eu-west-1"),
            ("sqs.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            ("sqs-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
            ("sqs.eu-west-1.api.aws", "eu-west-1"),
            ("eu-west-1.queue.amazonaws.com", "eu-west-1"),
            ("queue.amazonaws.com", "us-east-1"),
        ):
            self.assertEqual((region, None), locate(f"https://{host}/1/q", None, None))

    def test_private(self) -> None:
        """A private endpoint is used as it is."""
        host = "vpce-0a-1b.sqs.eu-west-1.vpce.amazonaws.com"
        self.assertEqual(("eu-west-1", f"https://{host}"), locate(f"https://{host}/1/q", None, None))

    def test_others(self) -> None:
        """Another service is where the URL says, and has no region."""
        for url in ("http://127.0.0.1:9324/0/q", "http://127.0.0.1:9324/sqs.eu-west-1.amazonaws.com/q"):
            self.assertEqual((None, "http://127.0.0.1:9324"), locate(url, None, None))
        self.assertIsNone(locate("https://sqs.eu-west-1.amazonaws.com.example/0/q", None, None)[0])

    def test_configured(self) -> None:
        """What is configured goes before what is guessed."""
        self.assertEqual(("r", "http://e"), locate(URL, "r", "http://e"))
        self.assertEqual(("r", "http://e"), locate("http://host/q", "r", "http://e"))
