"""Requests on an SQS queue, without a network or a thread."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, succeed

from pcapsvc.core.errors import Problem
from pcapsvc.core.message import Message
from pcapsvc.core.result import Accepted, Busy, Ended, NotForThisNode, Rejected, Verdict
from pcapsvc.sources.sqs.settler import SETTLE_PAUSES_SECONDS
from pcapsvc.sources.sqs.source import (
    BUSY_SECONDS,
    HIDDEN_SECONDS,
    IDLE_SECONDS,
    MOST_OUTSTANDING,
    RELEASE_MOST_SECONDS,
    RELEASE_ROUNDS,
    STAND_BACK_SECONDS,
)
from tests.unit.sqs_case import URL, SQSTestCase, message, refusal


class VerdictTests(SQSTestCase):
    """The verdict decides what happens to a message."""

    def verdict(self, verdict: Verdict, **options: Any) -> None:
        """One message with this verdict."""
        self.sink.verdict = verdict
        self.poll(message("a", **options))

    def test_accepted(self) -> None:
        """An accepted message is deleted."""
        self.verdict(Accepted(captures=()))
        self.assertEqual(([["receipt of a"]], []), (self.client.deleted, self.client.hidden))

    def test_after_its_verdict(self) -> None:
        """The messages of a poll are submitted at once, and each is deleted after its own verdict."""
        verdicts = self.sink.hold()
        self.client.messages.append([message("a"), message("b"), message("c")])
        self.thread.step()
        self.assertEqual(len(self.sink.submitted), 3)
        self.assertEqual(self.thread.settling(), 0)
        for verdict, name in zip(reversed(verdicts), "cba", strict=True):
            verdict.callback(Accepted(captures=()))
            self.thread.settle()
            self.assertEqual(self.client.deleted[-1], [f"receipt of {name}"])

    def test_together(self) -> None:
        """Messages whose verdicts fire while others are being deleted are deleted together."""
        verdicts = self.sink.hold()
        self.client.messages.append([message(name) for name in "abc"])
        self.thread.step()
        for verdict in verdicts:
            verdict.callback(Accepted(captures=()))
        self.thread.settle()
        self.thread.settle()
        self.assertEqual(self.client.deleted, [["receipt of a"], ["receipt of b", "receipt of c"]])

    def test_polls_go_on(self) -> None:
        """While a verdict is awaited, the next messages are received, submitted and settled."""
        verdicts = self.sink.hold()
        self.client.messages += [[message("slow")], [message("quick")]]
        self.thread.step()
        self.thread.step()
        self.assertEqual(len(verdicts), 2)
        verdicts[1].callback(Accepted(captures=()))
        self.thread.settle()
        self.assertEqual(self.client.deleted, [["receipt of quick"]])
        verdicts[0].callback(Busy(reason="full"))
        self.thread.settle()
        self.assertEqual(self.client.hidden, [{"receipt of slow": 10}])

    def test_bound(self) -> None:
        """If too many messages are not settled, no more are received until there are fewer."""
        verdicts = self.sink.hold()
        for number in range(MOST_OUTSTANDING // 5):
            self.client.messages.append([message(f"{number}.{each}") for each in range(5)])
            self.thread.step()
        self.assertEqual(self.thread.work, [])
        verdicts[7].callback(Accepted(captures=()))
        self.assertEqual(len(self.thread.work), 1)
        self.thread.settle()
        self.client.messages.append([message("new")])
        self.thread.step()
        self.assertEqual(len(verdicts), MOST_OUTSTANDING + 1)

    def test_slow_verdict(self) -> None:
        """Messages whose verdicts are known are settled at once, though another one is slow to fire."""
        slow: Deferred[Verdict] = Deferred()
        verdicts = iter([succeed(NotForThisNode()), slow, succeed(NotForThisNode())])
        self.sink.answer = lambda: next(verdicts)
        self.client.messages.append([message("a"), message("b"), message("c")])
        self.thread.step()
        self.thread.step()
        self.assertEqual(self.client.hidden, [{"receipt of a": 0, "receipt of c": 0}])
        self.assertEqual(self.thread.settling(), 0)
        slow.callback(Accepted(captures=()))
        self.thread.settle()
        self.assertEqual(self.client.deleted, [["receipt of b"]])

    def test_stays_hidden(self) -> None:
        """While a verdict is awaited, the message stays hidden from others, however long that takes."""
        held = self.sink.hold()
        self.client.messages.append([message("a"), message("b")])
        self.thread.step()
        self.clock.advance(HIDDEN_SECONDS / 2)
        self.thread.settle()
        held[0].callback(Accepted(captures=()))
        self.thread.settle()
        self.clock.advance(HIDDEN_SECONDS / 2)
        self.client.settling.append(refusal("InternalError"))
        self.thread.settle()
        self.clock.advance(SETTLE_PAUSES_SECONDS[0])
        self.thread.settle()
        self.clock.advance(HIDDEN_SECONDS / 2)
        self.thread.settle()
        again = {"receipt of b": HIDDEN_SECONDS}
        self.assertEqual(self.client.hidden, [{"receipt of a": HIDDEN_SECONDS, **again}, again, again, again])
        held[1].callback(Accepted(captures=()))
        self.thread.settle()
        self.assertEqual(self.client.deleted, [["receipt of a"], ["receipt of b"]])
        self.clock.advance(HIDDEN_SECONDS)
        self.assertEqual(self.thread.settling(), 0)

    def test_copy_in_the_same_poll(self) -> None:
        """A copy that comes with the same poll is submitted once, and returned or deleted with the other."""
        verdicts = self.sink.hold()
        self.client.messages.append([message("a"), message("a", receipt="another receipt of a")])
        self.thread.step()
        [verdict] = verdicts
        verdict.callback(Busy(reason="full"))
        self.thread.settle()
        self.assertEqual(self.client.deleted, [])
        self.assertEqual(list(self.client.hidden[0]), ["receipt of a", "another receipt of a"])
        self.client.messages.append([message("a")])
        self.thread.step()
        self.assertEqual(len(verdicts), 2)
        verdicts[1].callback(Accepted(captures=()))
        self.thread.settle()

    def test_copy_in_a_later_poll(self) -> None:
        """
        A copy that comes while the verdict is awaited, be it of SQS or of SNS, is not submitted, and is
        returned or deleted as the verdict says: deleting it at once might lose the request.
        """
        verdicts = self.sink.hold()
        body = json.dumps({"Type": "Notification", "MessageId": "n", "Message": "x"})
        copies = [message("a", body), message("a", body, receipt="2"), message("b", body, receipt="3")]
        for copy in copies:
            self.client.messages.append([copy])
            self.thread.step()
            self.clock.advance(IDLE_SECONDS)
        [verdict] = verdicts
        self.assertEqual(self.thread.settling(), 0)
        verdict.callback(Busy(reason="full"))
        self.thread.settle()
        self.assertEqual((self.client.deleted, list(self.client.hidden[0])), ([], ["receipt of a", "2", "3"]))
        self.client.messages.append(copies[2:])
        self.thread.step()
        verdicts[1].callback(Accepted(captures=()))
        self.thread.settle()
        self.assertEqual(self.client.deleted, [["3"]])

    def test_rejected(self) -> None:
        """So is a rejected one."""
        self.verdict(Rejected(problems=(Problem(path="bpf", rule="no"),)))
        self.assertEqual(([["receipt of a"]], []), (self.client.deleted, self.client.hidden))

    def test_ended(self) -> None:
        """One that ended captures is deleted, even if it ended none; when it comes again, too."""
        self.verdict(Ended(captures=()))
        self.verdict(Ended(captures=()))
        self.assertEqual(([["receipt of a"]] * 2, []), (self.client.deleted, self.client.hidden))
        self.assertEqual(1, len(self.sink.submitted))

    def test_busy(self) -> None:
        """If the node is busy, a message is returned for a random time of some seconds."""
        low, high = BUSY_SECONDS
        for self.chance, seconds in ((0.0, low), (0.5, 10), (0.999, high)):
            self.verdict(Busy(reason="full"))
            self.assertEqual(({"receipt of a": seconds}), self.client.hidden[-1])
        self.assertEqual([], self.client.deleted)
        self.assertEqual(3, len(self.sink.submitted))

    def test_not_for_this_node(self) -> None:
        """A message for another node is returned for 0 s, or sometimes 1 s."""
        for self.chance, seconds in ((0.0, 0), (0.5, 0), (0.99, 0), (0.999, 1)):
            self.verdict(NotForThisNode())
            self.assertEqual(({"receipt of a": seconds}), self.client.hidden[-1])
        self.assertEqual([], self.client.deleted)

    def test_not_for_this_node_and_long_under_way(self) -> None:
        """A message that no node accepts circulates more and more slowly, up to a limit."""
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
        """The node lets others poll first: longer, the more often a message was received, up to a limit."""
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
        """It doesn't if one message was for this node."""
        verdicts = [Accepted(captures=()), NotForThisNode()]
        self.sink.answer = lambda: succeed(verdicts.pop(0))
        self.poll(message("a"), message("b"))
        self.assertEqual(1, len(self.thread.work))

    def test_many(self) -> None:
        """The messages of a poll take one call to delete, and one to return."""
        verdicts = [Accepted(captures=()), NotForThisNode(), Rejected(problems=()), Busy(reason="full")]
        self.sink.answer = lambda: succeed(verdicts.pop(0))
        self.poll(*(message(name) for name in "abcd"))
        self.assertEqual([["receipt of a", "receipt of c"]], self.client.deleted)
        self.assertEqual([{"receipt of b": 0, "receipt of d": 10}], self.client.hidden)

    def test_sink_that_raises(self) -> None:
        """An exception of the sink doesn't affect other messages, and its message is returned."""

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
    """The submitted body and time of a message."""

    def submitted(self, body: str, **attributes: object) -> tuple[bytes, float | None]:
        """The body and the time that are submitted for a message."""
        self.poll(message(f"number {len(self.sink.submitted)}", body, **attributes))
        return self.sink.submitted[-1][1], self.sink.sent_at[-1]

    def test_body(self) -> None:
        """The body is submitted in UTF-8; the sink rejects what can't be encoded."""
        self.assertEqual(('{"node":"ä"}'.encode(), None), self.submitted('{"node":"ä"}'))
        self.assertEqual((b"\xed\xa0\x80", None), self.submitted("\ud800"))
        self.assertEqual("sqs", self.sink.submitted[0][0])

    def test_time(self) -> None:
        """The time is the queue's time stamp, be it text or a number; malformed ones are ignored."""
        for stamp in ("1700000000123", 1700000000123):
            self.assertEqual((b"x", 1700000000.123), self.submitted("x", SentTimestamp=stamp))
        self.assertEqual((b"x", None), self.submitted("x", SentTimestamp="yesterday"))

    def test_what_is_asked_for(self) -> None:
        """A poll requests the configured numbers, the attributes, and a visibility timeout."""
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
        """The first poll is a short one, so that a problem with the queue shows soon."""
        self.poll()
        self.assertEqual(0, self.client.asked[0]["WaitTimeSeconds"])
        self.assertEqual([f"info: SQS {URL}: listening"], self.logged())

    def test_what_cannot_be_understood(self) -> None:
        """A malformed message doesn't affect the others of its poll."""
        strange = [{"nonsense": True}, {**message("b"), "Body": 1}, {"ReceiptHandle": "x", "Body": "{}"}]
        strange += [message("x" * 5000), message("d", receipt="x" * 10_000)]
        self.poll(message("a"), *strange, message("c"))
        self.assertEqual(2, len(self.sink.submitted))
        self.assertEqual([["receipt of a", "receipt of c"]], self.client.deleted)
        line = f"error: SQS {URL}: 5 malformed messages stay in the queue"
        self.assertEqual([line, f"info: SQS {URL}: listening"], self.logged())

    def test_envelope(self) -> None:
        """The message in an SNS notification is submitted."""
        request = '{"node": "any", "x": "\\u00e4"}'
        envelope = {"Type": "Notification", "MessageId": "n", "TopicArn": "arn:…", "Message": request}
        self.assertEqual((request.encode(), 1.5), self.submitted(json.dumps(envelope), SentTimestamp="1500"))

    def test_no_envelope(self) -> None:
        """What only looks like a notification is submitted unchanged."""
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
            # Longer than any that has a request in it.
            '{"Type": "Notification", "Message": "x", "y": ' + f"[{'[], ' * 110_000}[]]" + "}",
        ):
            self.assertEqual(body.encode("utf-8", "surrogatepass"), self.submitted(body)[0])


class AgainTests(SQSTestCase):
    """Messages that are delivered again."""

    def test_again(self) -> None:
        """An accepted message is deleted by its new receipt, and not submitted again."""
        self.poll(message("a", receipt="1"))
        self.poll(message("a", receipt="2"))
        self.assertEqual([["1"], ["2"]], self.client.deleted)
        self.assertEqual(1, len(self.sink.submitted))

    def test_twice_at_once(self) -> None:
        """A message that comes twice in one poll is submitted once."""
        self.poll(message("a", receipt="1"), message("a", receipt="2"))
        self.assertEqual([["1", "2"]], self.client.deleted)
        self.assertEqual(1, len(self.sink.submitted))

    def test_again_and_again(self) -> None:
        """A queue that answers with nothing new is polled less and less often, down to once a second."""
        waited = []
        for _ in range(40):
            self.poll(message("a"))
            began = self.clock.seconds()
            while not self.thread.work:
                self.clock.advance(1 / 64)
            waited.append(self.clock.seconds() - began)
        self.assertEqual([0.0, 0.0], waited[:2])
        self.assertEqual(sorted(waited), waited)
        self.assertEqual(IDLE_SECONDS, waited[-1])
        self.poll(message("b"))
        self.assertEqual(1, len(self.thread.work))
        self.assertEqual(2, len(self.sink.submitted))

    def test_after_a_restart(self) -> None:
        """Accepted messages are remembered when the source stops and starts."""
        self.poll(message("a"))
        self.source.stopService()
        self.thread.work.clear()
        self.source.startService()
        self.poll(message("a"))
        self.assertEqual(1, len(self.sink.submitted))

    def test_not_accepted(self) -> None:
        """A message that was returned is submitted again."""
        self.sink.verdict = Busy(reason="full")
        self.poll(message("a"))
        self.sink.verdict = Accepted(captures=())
        self.poll(message("a"))
        self.assertEqual(2, len(self.sink.submitted))

    def test_notifications_without_ids(self) -> None:
        """Notifications without an id, or with an empty one, don't count as the same."""
        for name, ids in (("a", {"MessageId": ""}), ("b", {"MessageId": ""}), ("c", {}), ("d", {})):
            envelope = {"Type": "Notification", "Message": name, **ids}
            self.poll(message(name, json.dumps(envelope)))
        self.assertEqual([b"a", b"b", b"c", b"d"], [body for _, body in self.sink.submitted])

    def test_an_id_of_both_kinds(self) -> None:
        """A notification doesn't count as the queue's message with the same id."""
        self.poll(message("a"))
        self.poll(message("b", json.dumps({"Type": "Notification", "MessageId": "a", "Message": "other"})))
        self.assertEqual([b"{}", b"other"], [body for _, body in self.sink.submitted])

    def test_notified_twice(self) -> None:
        """A notification that SNS sent twice has two SQS ids, but one SNS id: it is submitted once."""
        body = json.dumps({"Type": "Notification", "MessageId": "n", "Message": "x"})
        self.poll(message("a", body))
        self.poll(message("b", body))
        self.assertEqual(1, len(self.sink.submitted))
        self.assertEqual([["receipt of a"], ["receipt of b"]], self.client.deleted)

    def test_same_request(self) -> None:
        """Two messages with the same body are two requests."""
        self.poll(message("a", "x"), message("b", "x"))
        self.assertEqual(2, len(self.sink.submitted))

    def test_for_how_long(self) -> None:
        """A message is forgotten after a while."""
        self.poll(message("a"))
        self.clock.advance(99)
        self.poll(message("a"))
        self.assertEqual(1, len(self.sink.submitted))
        self.clock.advance(1)
        self.poll(message("a"))
        self.assertEqual(2, len(self.sink.submitted))

    def test_how_many(self) -> None:
        """If there are too many, the oldest is forgotten."""
        self.poll(*(message(name) for name in "abcd"))
        self.poll(*(message(name) for name in "bcd"))
        self.assertEqual(4, len(self.sink.submitted))
        self.poll(message("a"))
        self.assertEqual(5, len(self.sink.submitted))
