"""Events to an SQS queue, by a client that the test plays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.task import Clock
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from pcapsvc.core.report_queue import Report
from pcapsvc.interfaces.reports import IPublisher, Published
from pcapsvc.reports.sqs.publisher import MOST_BYTES, SqsPublisher
from pcapsvc.testing import run_now


def about(subject: str | None, count: int, size: int = 20) -> list[Report]:
    """Events about a capture, or about requests."""
    return [Report(f"{subject}-{number}", subject, False, b"x" * size) for number in range(count)]


class Client:
    """
    A client.

    @ivar requests: the entries of each request.
    @ivar outcomes: how the next requests end: an error, or the results of single entries by their place.
    @ivar code: of the entries that fail.
    """

    def __init__(self) -> None:
        self.requests: list[list[dict[str, Any]]] = []
        self.outcomes: list[Exception | dict[int, bool | None]] = []
        self.code = "InvalidMessageContents"
        self.closed = False

    def send_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:
        """Accept what isn't to fail: by the sender's fault, or not; L{None} isn't answered."""
        self.requests.append(Entries)
        outcome = self.outcomes.pop(0) if self.outcomes else {}
        if isinstance(outcome, Exception):
            raise outcome
        failed = [
            {"Id": str(place), "SenderFault": fault, "Code": self.code}
            for place, fault in outcome.items()
            if fault is not None
        ]
        done = [{"Id": entry["Id"]} for place, entry in enumerate(Entries) if place not in outcome]
        return {"Successful": done, **({"Failed": failed} if failed else {})}

    def close(self) -> None:
        """Close the connections."""
        self.closed = True


class SqsPublisherTests(unittest.SynchronousTestCase):
    """A publisher to a queue."""

    def setUp(self) -> None:
        """A publisher that is open."""
        self.client = Client()
        self.publisher = self.make("https://q/events")

    def make(self, url: str) -> SqsPublisher:
        """A publisher that is open."""
        publisher = SqsPublisher(Clock(), url=url, run_in_thread=run_now, make_client=lambda: self.client)
        self.assertIs(self.successResultOf(publisher.open()), False)
        return publisher

    def publish(self, reports: Sequence[Report]) -> Published:
        """Publish events."""
        return self.successResultOf(self.publisher.publish(reports))

    def assert_published(
        self, reports: Sequence[Report], arrived: Sequence[Report], refused: Sequence[Report] = ()
    ) -> None:
        """Publish events, of which these arrive, and those are refused."""
        published = self.publish(reports)
        self.assertEqual(sorted(published.arrived, key=str), sorted(arrived, key=str))
        self.assertEqual(list(published.refused), list(refused))

    def test_interface(self) -> None:
        """It is a publisher. Disconnecting closes the client."""
        verifyObject(IPublisher, self.publisher)
        self.successResultOf(self.publisher.close())
        self.assertTrue(self.client.closed)
        self.successResultOf(self.publisher.close())

    def test_ten_at_once(self) -> None:
        """A request has up to ten events, with up to 256 KiB together."""
        reports = about("abc", 25)
        self.assert_published(reports, reports)
        self.assertEqual([len(request) for request in self.client.requests], [10, 10, 5])
        self.client.requests.clear()
        large = about("abc", 5, MOST_BYTES // 2)
        self.assert_published(large, large)
        self.assertEqual([len(request) for request in self.client.requests], [2, 2, 1])

    def test_too_large(self) -> None:
        """An event that no request has room for is refused without being sent."""
        reports = [*about("abc", 1, MOST_BYTES + 1), *about("def", 1)]
        self.assert_published(reports, reports[1:], reports[:1])
        self.assertEqual(len(self.client.requests), 1)

    def test_requests_first(self) -> None:
        """What is about requests is sent before what is about captures; the order of a capture is kept."""
        reports = [*about("abc", 3), *about(None, 1), *about("def", 2)]
        self.assert_published(reports, reports)
        sent = [entry["MessageBody"] for request in self.client.requests for entry in request]
        self.assertEqual(len(sent), 6)
        self.assertEqual(len(self.client.requests[0]), 1)

    def test_some_fail(self) -> None:
        """An entry that fails is left over, with those after its request; one at fault is refused."""
        reports = about("abc", 15)
        self.client.outcomes = [{2: False, 4: True, 7: None}]
        left = {reports[2], reports[4], reports[7], *reports[10:]}
        self.assert_published(reports, [one for one in reports if one not in left], [reports[4]])
        self.assertEqual(len(self.client.requests), 1)

    def test_all_refused(self) -> None:
        """If all are at fault, that is all that there is to say."""
        reports = about("abc", 2)
        self.client.outcomes = [{0: True, 1: True}]
        self.assert_published(reports, [], reports)

    def test_throttled(self) -> None:
        """Throttling counts as the sender's fault, and passes: the event is left over."""
        reports = about("abc", 3)
        self.client.code = "KMS.ThrottlingException"
        self.client.outcomes = [{1: True}]
        self.assert_published(reports, [reports[0], reports[2]])

    def test_an_error(self) -> None:
        """An error is raised if nothing has arrived."""
        self.client.outcomes = [OSError("reset")]
        self.failureResultOf(self.publisher.publish(about("abc", 15)), OSError)
        self.assertEqual(len(self.client.requests), 1)

    def test_a_late_error(self) -> None:
        """What had arrived before an error isn't sent again."""
        reports = about("abc", 15)
        self.client.outcomes = [{}, OSError("reset")]
        self.assert_published(reports, reports[:10])

    def test_an_error_before_the_captures(self) -> None:
        """If what is about requests can't be sent, nothing overtakes it."""
        self.client.outcomes = [OSError("reset")]
        self.failureResultOf(self.publisher.publish([*about("abc", 1), *about(None, 1)]), OSError)
        self.assertEqual(len(self.client.requests), 1)

    def test_fifo(self) -> None:
        """In a FIFO queue, a capture is a group, and the event's id recognizes what is sent again."""
        self.publish(about("abc", 1))
        self.assertEqual(self.client.requests[0][0].keys(), {"Id", "MessageBody"})
        self.publisher = self.make("https://q/events.fifo")
        self.publish([*about("abc", 1), *about(None, 1)])
        groups = {
            entry["MessageDeduplicationId"]: entry["MessageGroupId"]
            for request in self.client.requests[1:]
            for entry in request
        }
        self.assertEqual(groups, {"abc-0": "abc", "None-0": "None-0"})
