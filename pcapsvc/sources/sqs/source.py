"""
Requests from a queue of Amazon SQS, or of a compatible service.

A queue delivers a message to one of its pollers at a time, until one deletes it. So a request for another
node goes back to the queue, for that node to receive.

The numbers are from the Amazon SQS API Reference and Developer Guide.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
from twisted.application import service
from twisted.internet import defer, task
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core import message as submitted
from pcapsvc.core.result import Accepted, Busy, Ended, NotForThisNode, Rejected
from pcapsvc.core.source_state import SourceState
from pcapsvc.core.text import one_line
from pcapsvc.interfaces.requests import IRequestSink, IRequestSource
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.connectivity import Connectivity
from pcapsvc.net.outages import RETRY_SECONDS, Backoff, Outage
from pcapsvc.net.sqs.client import Unsettled, described, make_boto3_client
from pcapsvc.sources.polling import OwnThread, Poller
from pcapsvc.sources.sqs.queue import Message, Queue, Received, Step

#: The visibility timeout of a received message, whatever the queue's own is. If its node dies before the
#: message is deleted or returned, others see it after this time. While its verdict is awaited, the timeout is
#: renewed each time that half of it has passed.
HIDDEN_SECONDS = 30

#: How long a server has to answer after the end of a long poll.
ANSWER_SECONDS = 10.0

#: The visibility timeout of a message that is returned for another node is random: up to 1 s, plus 1 s for
#: each RELEASE_ROUNDS times that it was received, and never above RELEASE_MOST_SECONDS. SQS accepts whole
#: seconds, so it is rounded down. While few nodes have seen the message it is 0, so that it reaches the right
#: node soonest: with three nodes, timeouts of 0 or 1 s took four times as long, and as many receptions. If
#: that node never polls, the message circulates more and more slowly.
RELEASE_ROUNDS = 200
RELEASE_MOST_SECONDS = 60

#: How long a node pauses that has received nothing but messages for other nodes: the first number for each
#: time that they were received, up to the second one; varied at random by up to half. The others poll first
#: in the meantime. Otherwise a queue may keep giving a message to the same few pollers.
STAND_BACK_SECONDS = (0.03, 2.0)

#: The range of the visibility timeout of a message that is returned because the node is busy.
BUSY_SECONDS = (5, 15)

#: How long, and how many, processed messages are remembered.
REMEMBERED_SECONDS = 2 * 3600.0
REMEMBERED_MESSAGES = 20_000

#: The pauses between attempts to delete or return messages.
SETTLE_PAUSES_SECONDS = (0.1, 0.3)

#: The shortest time between polls of an empty queue: without it, short polls would never pause.
IDLE_SECONDS = 1.0


@implementer(IRequestSource)
class SQSSource(service.Service):
    """
    Polls a queue, and submits each message.

    - Messages that were accepted, rejected, or ended captures are deleted.
    - Messages for other nodes are returned or deleted, see C{unmatched}.
    - If the node is busy, a message is returned to the queue for a few seconds.

    SQS delivers at least once. A message that was accepted or rejected, and comes again, is deleted again and
    not submitted.

    An outage is logged once, and so is its end.

    @param reactor: provides time, and accepts calls from threads.
    @param url: the queue's URL.
    @param region: L{None} is the region in the URL; if it has none, the one that Amazon's tools are
        configured with.
    @param endpoint: the URL of a compatible service; L{None} is Amazon, or, if the queue's URL isn't
        Amazon's, the server in it.
    @param access_id: with C{access_key}, the credentials. Without them, they are looked up where Amazon's
        tools do: the environment, a profile, a role.
    @param access_key: the secret; it is never logged.
    @param wait_seconds: how long a poll waits for a message: 0 to 20.
    @param chunk_size: the most messages that a poll returns: 1 to 10.
    @param unmatched: C{release} returns messages for other nodes to the queue; C{delete} is for nodes
        that have a queue each.
    @param hidden_seconds: see L{HIDDEN_SECONDS}; likewise the others.
    @param run_in_thread: runs one function after the other; L{None} is the source's own thread.
    @param make_client: makes a client in place of boto3's; is called in the thread.
    @param chance: returns a number from 0 to less than 1.
    @param wall_clock: returns the time in seconds since the Unix epoch.
    @ivar name: the name of the source in requests that it submits.
    """

    name = "sqs"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        sink: IRequestSink,
        *,
        url: str,
        region: str | None = None,
        endpoint: str | None = None,
        access_id: str | None = None,
        access_key: str | None = None,
        wait_seconds: int = 20,
        chunk_size: int = 10,
        unmatched: str = "release",
        hidden_seconds: int = HIDDEN_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        busy_seconds: tuple[int, int] = BUSY_SECONDS,
        retry_seconds: tuple[float, float] = RETRY_SECONDS,
        remembered_seconds: float = REMEMBERED_SECONDS,
        remembered_messages: int = REMEMBERED_MESSAGES,
        run_in_thread: RunInThread | None = None,
        make_client: Callable[[], Any] | None = None,
        chance: Callable[[], float] = random.random,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._sink = sink
        self._url = url
        self._secrets = () if access_key is None else ((access_key, "[access key]"),)
        self._wait_seconds = wait_seconds
        self._chunk_size = chunk_size
        self._deletes_unmatched = unmatched == "delete"
        self._hidden_seconds = hidden_seconds
        self._busy_seconds = busy_seconds
        self._retry_seconds = retry_seconds
        self._settled = _Memory(remembered_seconds, remembered_messages)
        self._chance = chance
        self._connectivity = Connectivity(wall_clock)
        self._own_thread = OwnThread(reactor, "pcapsvc-sqs") if run_in_thread is None else None
        self._run_in_thread = run_in_thread or self._in_own_thread
        self._make_client = make_client or (
            lambda: make_boto3_client(
                url, region, endpoint, access_id, access_key, wait_seconds + answer_seconds
            )
        )
        self._queue: Queue | None = None
        self._poller: Poller[Received] | None = None
        self._pause: defer.Deferred[None] | None = None
        self._polled_at = 0.0
        self._empty_polls = 0
        # Whether the latest messages could be deleted or returned.
        self._settles = True

    def startService(self) -> None:
        """Start polling."""
        super().startService()  # type: ignore[no-untyped-call]
        self._connectivity.started()
        self._outage = Outage(self._log, f"SQS {self._url}")
        self._queue = Queue(
            self._make_client,
            self._url,
            wait_seconds=self._wait_seconds,
            chunk_size=self._chunk_size,
            hidden_seconds=self._hidden_seconds,
        )
        self._polled_at = self._reactor.seconds()
        self._empty_polls = 0
        self._settles = True
        self._poller = Poller(
            self._reactor,
            self._queue.receive,
            lambda received: defer.Deferred.fromCoroutine(self._process(received)),
            failed=self._failed,
            backoff=Backoff(*self._retry_seconds, chance=self._chance),
            run_in_thread=self._run_in_thread,
        )
        self._poller.start()

    def stopService(self) -> defer.Deferred[None]:
        """
        Stop polling. This doesn't wait for a poll that is running: messages that it still receives are
        returned at once, or, if the process has ended by then, become visible after L{HIDDEN_SECONDS}.

        @return: fires when the submitted messages are deleted or returned, or after
            L{pcapsvc.sources.polling.STOP_SECONDS}.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._connectivity.stopped()
        queue, self._queue = self._queue, None
        poller, self._poller = self._poller, None
        if queue is None or poller is None:
            return defer.succeed(None)
        queue.close()
        stopped = poller.stop()
        if self._pause is not None:
            self._pause.cancel()
        return stopped.addBoth(self._stopped, queue)

    def state(self) -> SourceState:
        """Connected while its last attempt to receive messages has worked. See L{IRequestSource.state}."""
        return self._connectivity.state

    def _stopped(self, result: None, queue: Queue) -> None:
        # This is not waited for: the thread may still be polling.
        self._run_in_thread(queue.end).addErrback(lambda why: None)
        if self._own_thread is not None:
            self._own_thread.stop()

    def _in_own_thread(self, function: Callable[..., Any], *args: Any) -> defer.Deferred[Any]:
        assert self._own_thread is not None
        return self._own_thread.run(function, *args)

    def _failed(self, problem: Exception) -> None:
        kind, words = described(problem)
        words = one_line(words, secrets=self._secrets)
        self._connectivity.failed(words)
        self._outage.report(kind, words)

    async def _process(self, received: Received) -> None:
        queue = self._queue
        if queue is None or not queue.take():
            return
        self._connectivity.connected()
        messages = received.messages
        if received.malformed:
            self._log.error(
                "SQS {url}: {count} malformed messages stay in the queue",
                url=self._url,
                count=received.malformed,
            )
        if messages:
            self._empty_polls = 0
            self._settles = False
            await self._judge_all(queue, messages)
            self._settles = True
        if self._settles:
            self._outage.ended("listening")
        if not messages:
            await self._rest()
        self._polled_at = self._reactor.seconds()

    async def _judge_all(self, queue: Queue, messages: list[Message]) -> None:
        """
        Submit the messages of a poll, and settle each after its verdict.

        Those for other nodes don't wait for a filter that is slow to compile here.
        """
        copies: dict[str, list[Message]] = {}
        for message in messages:
            copies.setdefault(message.message_id, []).append(message)
        # All are submitted before the first verdict is awaited.
        judging = {
            message_id: defer.Deferred.fromCoroutine(self._judge(same[0]))
            for message_id, same in copies.items()
        }
        slow = {message_id: judged for message_id, judged in judging.items() if not judged.called}

        async def steps(judged: dict[str, defer.Deferred[Step]]) -> list[Step]:
            # To delete a copy deletes the message.
            return [
                replace(await step, message=copy)
                for message_id, step in judged.items()
                for copy in copies[message_id]
            ]

        done = await steps({each: judged for each, judged in judging.items() if each not in slow})
        if done:
            await self._settle(queue, done)
        if slow:
            await self._stay_hidden(queue, slow, copies)
            await self._settle(queue, await steps(slow))
        else:
            await self._stand_back(done)

    async def _stay_hidden(
        self, queue: Queue, judging: dict[str, defer.Deferred[Step]], copies: dict[str, list[Message]]
    ) -> None:
        """Await verdicts, and renew the visibility timeouts of their messages in the meantime."""

        def renew() -> defer.Deferred[Any]:
            steps = [
                Step(message=copy, hide_seconds=self._hidden_seconds)
                for message_id, judged in judging.items()
                if not judged.called
                for copy in copies[message_id]
            ]
            # If this fails, another node may get a message, too. This one recognizes it.
            return self._run_in_thread(queue.settle, steps).addErrback(lambda _: None)

        renewing = task.LoopingCall(renew)
        renewing.clock = self._reactor
        renewing.start(self._hidden_seconds / 2, now=False)
        try:
            await defer.DeferredList(list(judging.values()))
        finally:
            renewing.stop()

    async def _rest(self) -> None:
        """Pause, if the server says at once, and repeatedly, that the queue is empty."""
        self._empty_polls += 1
        left = self._polled_at + IDLE_SECONDS - self._reactor.seconds()
        if left > 0 and self._empty_polls > 1:
            await self._wait(left)

    async def _stand_back(self, steps: list[Step]) -> None:
        """Pause if all messages were for other nodes, so that one of those receives them next."""
        if all(step.elsewhere for step in steps):
            each, longest = STAND_BACK_SECONDS
            seconds = each * min(step.message.received_times for step in steps)
            await self._wait(min(longest, seconds) * (0.5 + self._chance()))

    async def _wait(self, seconds: float) -> None:
        if self._queue is None:
            return
        self._pause = task.deferLater(self._reactor, seconds)
        try:
            await self._pause
        except defer.CancelledError:
            pass  # The source is being stopped.
        finally:
            self._pause = None

    async def _judge(self, message: Message) -> Step:
        """Submit a message, and decide what happens to it in the queue."""
        now = self._reactor.seconds()
        body, envelope_id = _unwrapped(message.body)
        # SQS and SNS assign their ids independently: they may be equal.
        keys = [f"SQS {message.message_id}", *([] if envelope_id is None else [f"SNS {envelope_id}"])]
        if any(self._settled.knows(key, now) for key in keys):
            self._log.info(
                "SQS {url}: message {id} was delivered again", url=self._url, id=one_line(message.message_id)
            )
            return Step(message=message, hide_seconds=None)
        # Before the verdict: SNS may have sent it twice, and the second one comes with the same poll.
        for key in keys:
            self._settled.remember(key, now)
        try:
            verdict = await self._sink.submit(
                submitted.Message(
                    source=self.name, body=body.encode("utf-8", "surrogatepass"), sent_at=message.sent_at
                )
            )
        except Exception:  # noqa: BLE001 - one message must not block the others
            self._log.failure(
                "SQS {url}: message {id} failed", url=self._url, id=one_line(message.message_id)
            )
            verdict = Busy(reason="it failed")
        if isinstance(verdict, Accepted | Ended | Rejected):
            return Step(message=message, hide_seconds=None)
        for key in keys:
            self._settled.forget(key)
        if isinstance(verdict, NotForThisNode):
            if self._deletes_unmatched:
                return Step(message=message, hide_seconds=None)
            longest = min(RELEASE_MOST_SECONDS, 1 + message.received_times / RELEASE_ROUNDS)
            return Step(message=message, hide_seconds=int(self._chance() * longest), elsewhere=True)
        low, high = self._busy_seconds
        return Step(message=message, hide_seconds=min(high, low + int(self._chance() * (high - low + 1))))

    async def _settle(self, queue: Queue, steps: list[Step]) -> None:
        """
        Delete messages, or return them to the queue.

        @raise Exception: if that failed. They are delivered again after their visibility timeout; those that
            were submitted are remembered.
        """
        for pause_seconds in (*SETTLE_PAUSES_SECONDS, None):
            try:
                steps = await self._run_in_thread(queue.settle, steps)
                if not steps:
                    return
                problem: Exception = Unsettled(f"{len(steps)} messages could not be deleted or returned")
            except defer.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - boto3 raises errors of many libraries
                problem = error
            if pause_seconds is None:
                raise problem
            await task.deferLater(self._reactor, pause_seconds)


class _Memory:
    """The processed messages, for a while."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._since: OrderedDict[str, float] = OrderedDict()

    def remember(self, key: str, now: float) -> None:
        """Remember a message from now on. If there are too many, forget the oldest."""
        self._since[key] = now
        self._since.move_to_end(key)
        if len(self._since) > self._most:
            self._since.popitem(last=False)

    def forget(self, key: str) -> None:
        """It is to be seen to again when it comes again."""
        self._since.pop(key, None)

    def knows(self, key: str, now: float) -> bool:
        """Whether a message is remembered."""
        while self._since and next(iter(self._since.values())) + self._seconds <= now:
            self._since.popitem(last=False)
        return key in self._since


_MAX_ENVELOPE_ID_CHARACTERS = 200


class _Envelope(msgspec.Struct):
    """What SNS wraps a message in, unless delivery is raw (SNS Developer Guide, "HTTP/HTTPS JSON")."""

    kind: str = msgspec.field(name="Type")
    message: str = msgspec.field(name="Message")
    message_id: str | None = msgspec.field(name="MessageId", default=None)


_read_envelope = msgspec.json.Decoder(_Envelope).decode


def _unwrapped(body: str) -> tuple[str, str | None]:
    """The message itself, and the id of the SNS envelope that it was in; L{None} without one."""
    if '"Notification"' not in body:
        return body, None
    try:
        envelope = _read_envelope(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return body, None
    if envelope.kind != "Notification":
        return body, None
    # Compatible services may omit the id. It is remembered: one that is too long is not SNS's.
    is_usable = 0 < len(envelope.message_id or "") <= _MAX_ENVELOPE_ID_CHARACTERS
    return envelope.message, envelope.message_id if is_usable else None
