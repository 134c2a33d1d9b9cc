"""
Sends events to an SQS queue, up to ten in a request.

The numbers are from the Amazon SQS API Reference, "SendMessageBatch".
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.report_queue import Report
from pcapsvc.interfaces.reports import IPublisher, Published
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.sqs.answer import has_failed_for_good
from pcapsvc.net.sqs.client import described, make_boto3_client
from pcapsvc.reports.channel import never_lost

#: How many messages a request may have, and how many bytes they may have together. Some services still
#: have the limit of 256 KiB, which was Amazon's until 2025.
MOST_ENTRIES = 10
MOST_BYTES = 256 * 1024

#: How long the service may be silent, and how long an answer may take.
ANSWER_SECONDS = 5.0

#: How many requests are made at once. A request takes 10 to 50 ms, and there may be 1,000 events a second.
THREADS = 8


@implementer(IPublisher)
class SqsPublisher:
    """
    Sends to a queue.

    Events of the same capture are sent one request after the other, in order; those of different captures
    are sent at the same time. Events about requests are sent before those about captures, so that the
    acceptance of a request comes before what its captures do.

    In a FIFO queue, the events of a capture are a message group, and an event that is sent again within five
    minutes is delivered once.

    @param url: the queue's.
    @param region: see L{pcapsvc.net.sqs.client.locate}; likewise C{endpoint}.
    @param access_id: see L{make_boto3_client}; likewise C{access_key}.
    @param run_in_thread: with L{THREADS} threads, for this alone.
    @param make_client: makes the client, in place of boto3.
    """

    _log = Logger()

    most = 160
    most_bytes = 4 * 1024 * 1024

    def __init__(
        self,
        reactor: Any,
        *,
        url: str,
        region: str | None = None,
        endpoint: str | None = None,
        access_id: str | None = None,
        access_key: str | None = None,
        run_in_thread: RunInThread,
        make_client: Any = None,
    ) -> None:
        self._reactor = reactor
        self._url = url
        self._is_fifo = url.endswith(".fifo")
        self._make_client = make_client or (
            lambda: make_boto3_client(url, region, endpoint, access_id, access_key, ANSWER_SECONDS)
        )
        self._run_in_thread = run_in_thread
        self._client: Any = None
        self.server = f"SQS {url}"
        self.target = "the queue"

    def open(self) -> Deferred[bool]:
        """Make a client, which connects when it sends: see L{IPublisher.open}."""

        def made(client: Any) -> bool:
            self._client = client
            return False

        return self._run_in_thread(self._make_client).addCallback(made)

    def publish(self, reports: Sequence[Report]) -> Deferred[Published]:
        """Send events: see L{IPublisher.publish}."""
        return Deferred.fromCoroutine(self._publish(reports))

    async def _publish(self, reports: Sequence[Report]) -> Published:
        refused = [report for report in reports if len(report.json) > MOST_BYTES]
        usable = [report for report in reports if len(report.json) <= MOST_BYTES]
        arrived: list[Report] = []
        problems: list[Exception] = []
        for phase in (
            [report for report in usable if report.subject is None],
            [report for report in usable if report.subject is not None],
        ):
            if problems:
                break
            await self._send_all(phase, arrived, refused, problems)
        if problems and not arrived and not refused:
            raise problems[0]
        return Published(arrived=arrived, refused=refused)

    async def _send_all(
        self,
        reports: Sequence[Report],
        arrived: list[Report],
        refused: list[Report],
        problems: list[Exception],
    ) -> None:
        """Send events, in lanes that don't wait for each other."""
        sending = [self._run_in_thread(self._send_lane, lane) for lane in _lanes(reports)]
        for sent in sending:
            sent.addErrback(_problem)
        # If this is cancelled, what the threads do is of no interest any more.
        for _, found in await DeferredList(sending):
            if isinstance(found, Exception):
                problems.append(found)
            else:
                lane_arrived, lane_refused, problem = found
                arrived += lane_arrived
                refused += lane_refused
                problems += [] if problem is None else [problem]

    def _send_lane(self, lane: Sequence[Report]) -> tuple[list[Report], list[Report], Exception | None]:
        """
        In a thread: send events in order, until one can't be sent.

        @return: those that have arrived, those that were refused, and why it ended early.
        """
        arrived: list[Report] = []
        refused: list[Report] = []
        for batch in _batches(lane):
            try:
                answer = self._client.send_message_batch(
                    QueueUrl=self._url, Entries=[*map(self._entry, range(len(batch)), batch)]
                )
            except Exception as problem:  # noqa: BLE001 - whatever it is, the rest is sent later
                return arrived, refused, problem
            done = {entry.get("Id") for entry in answer.get("Successful") or ()}
            failed = filter(has_failed_for_good, answer.get("Failed") or ())
            hopeless = {entry.get("Id") for entry in failed}
            arrived += [report for number, report in enumerate(batch) if str(number) in done]
            refused += [report for number, report in enumerate(batch) if str(number) in hopeless - done]
            if len(done | hopeless) < len(batch):
                # Nothing may overtake those that are left.
                break
        return arrived, refused, None

    def _entry(self, number: int, report: Report) -> dict[str, str]:
        entry = {"Id": str(number), "MessageBody": report.json.decode()}
        if self._is_fifo:
            entry["MessageGroupId"] = report.subject or report.event_id
            entry["MessageDeduplicationId"] = report.event_id
        return entry

    def when_lost(self) -> Deferred[None]:
        """There is no connection to be lost: see L{IPublisher.when_lost}."""
        return never_lost()

    def close(self) -> Deferred[None]:
        """Close the client's connections: see L{IPublisher.close}."""
        client, self._client = self._client, None
        if client is None:
            return succeed(None)
        closing = self._run_in_thread(client.close).addErrback(lambda _: None)
        return closing.addTimeout(1.0, self._reactor, lambda result, _: None)

    def described(self, problem: Exception) -> tuple[str, str]:
        """A problem in words: see L{IPublisher.described}."""
        return described(problem)


def _lanes(reports: Iterable[Report]) -> list[list[Report]]:
    """Events that may be sent at the same time; those of one capture are in the same lane."""
    lanes: dict[int, list[Report]] = {}
    for report in reports:
        key = (report.subject or report.event_id).encode()
        lanes.setdefault(zlib.crc32(key) % THREADS, []).append(report)
    return [*lanes.values()]


def _batches(lane: Sequence[Report]) -> Iterator[list[Report]]:
    batch: list[Report] = []
    size = 0
    for report in lane:
        if batch and (len(batch) == MOST_ENTRIES or size + len(report.json) > MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(report)
        size += len(report.json)
    if batch:
        yield batch


def _problem(failure: Failure) -> Exception:
    return failure.value if isinstance(failure.value, Exception) else RuntimeError(repr(failure.value))
