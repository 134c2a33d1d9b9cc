"""
Requests from a queue of Amazon SQS, or of a compatible service.

A queue delivers a message to one of its pollers at a time, until one deletes it. So a request for another
node goes back to the queue, for that node to receive.

The numbers are from the Amazon SQS API Reference and Developer Guide.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application import service
from twisted.internet import defer, task
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.message import Message as Request
from pcapsvc.core.result import Accepted, Busy, Ended, NotForThisNode, Rejected, Verdict
from pcapsvc.core.source_state import SourceState
from pcapsvc.core.text import one_line
from pcapsvc.interfaces.requests import IRequestSink, IRequestSource
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.connectivity import Connectivity
from pcapsvc.net.outages import RETRY_SECONDS, Backoff, Outage
from pcapsvc.net.sqs.client import described, make_boto3_client
from pcapsvc.sources.polling import OwnThread, Poller, drain
from pcapsvc.sources.sqs.envelope import unwrapped
from pcapsvc.sources.sqs.memory import Memory
from pcapsvc.sources.sqs.outstanding import Outstanding, Submitted
from pcapsvc.sources.sqs.queue import Message, Queue, Received, Step
from pcapsvc.sources.sqs.settler import NotSettled, Settler

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

#: How long a node pauses after a poll that returned nothing but messages that it knows, for each such poll in
#: sequence; never above L{IDLE_SECONDS}. A queue that doesn't delete what it says it deletes would otherwise
#: be polled, and its messages logged, hundreds of times a second.
REPEAT_SECONDS = 0.05

#: How many submitted messages may not be settled yet. Until there are fewer, no more are received: the
#: pipeline prepares up to 128 requests of a source (L{pcapsvc.judge.MOST_PENDING}), and other nodes may have
#: room.
MOST_OUTSTANDING = 100

#: How long, and how many, processed messages are remembered.
REMEMBERED_SECONDS = 2 * 3600.0
REMEMBERED_MESSAGES = 20_000

#: The shortest time between polls of an empty queue: without it, short polls would never pause.
IDLE_SECONDS = 1.0


@implementer(IRequestSource)
class SQSSource(service.Service):
    """
    Polls a queue, and submits each message. Each is settled after its own verdict; polling goes on while
    verdicts are awaited.

    - Messages that were accepted, rejected, or ended captures are deleted.
    - Messages for other nodes are returned or deleted, see C{unmatched}.
    - If the node is busy, a message is returned to the queue for a few seconds.

    SQS delivers at least once. A message that was accepted or rejected, and comes again, is deleted again and
    not submitted. One that comes again while its verdict is awaited is settled by that.

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
    @param run_in_thread: runs one function after the other; L{None} is two threads of the source's own, of
        which one polls, and the other one settles messages.
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
        self._settled = Memory(remembered_seconds, remembered_messages)
        self._chance = chance
        self._connectivity = Connectivity(wall_clock)
        self._polling_thread = OwnThread(reactor, "pcapsvc-sqs")
        self._settling_thread = OwnThread(reactor, "pcapsvc-sqs-settle")
        self._run_in_thread = run_in_thread or self._polling_thread.run
        self._settle_in_thread = run_in_thread or self._settling_thread.run
        self._make_client = make_client or (
            lambda: make_boto3_client(
                url, region, endpoint, access_id, access_key, wait_seconds + answer_seconds
            )
        )
        self._queue: Queue | None = None
        self._poller: Poller[Received] | None = None
        self._settler: Settler | None = None
        self._outstanding: Outstanding | None = None
        self._pause: defer.Deferred[None] | None = None
        self._polled_at = 0.0
        self._empty_polls = 0
        # Polls since the last one with a message that was not known.
        self._repeats = 0
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
        self._settler = Settler(self._reactor, self._queue.settle, run_in_thread=self._settle_in_thread)
        self._outstanding = Outstanding(
            self._reactor,
            most=MOST_OUTSTANDING,
            hide=self._stay_hidden,
            hide_seconds=self._hidden_seconds / 2,
        )
        self._polled_at = self._reactor.seconds()
        self._empty_polls = self._repeats = 0
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
        return defer.Deferred.fromCoroutine(self._stop(queue, stopped))

    def state(self) -> SourceState:
        """Connected while its last attempt to receive messages has worked. See L{IRequestSource.state}."""
        return self._connectivity.state

    async def _stop(self, queue: Queue, stopped: defer.Deferred[None]) -> None:
        assert self._outstanding is not None and self._settler is not None
        await drain(self._reactor, self._outstanding.pending(), self._outstanding.give_up)
        await stopped
        self._settler.stop()
        # This is not waited for: the thread may still be polling.
        self._run_in_thread(queue.end).addErrback(lambda why: None)
        self._polling_thread.stop()
        self._settling_thread.stop()

    def _failed(self, problem: Exception) -> None:
        """A poll has failed, or what followed it."""
        words = self._report(problem)
        if not isinstance(problem, NotSettled):
            self._connectivity.failed(words)

    def _report(self, problem: Exception) -> str:
        kind, words = described(problem.reason if isinstance(problem, NotSettled) else problem)
        words = one_line(words, secrets=self._secrets)
        self._outage.report(kind, words)
        return words

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
            self._repeats += 1
            await self._judge_all(messages)
            if self._repeats > 1:
                await self._wait(min(IDLE_SECONDS, REPEAT_SECONDS * self._repeats))
        if self._settles:
            self._outage.ended("listening")
        if not messages:
            await self._rest()
        self._polled_at = self._reactor.seconds()
        if self._outstanding is not None:
            await self._outstanding.has_room()

    async def _judge_all(self, messages: list[Message]) -> None:
        """Submit the messages of a poll, and settle those whose verdicts fire at once."""
        copies: dict[str, list[Message]] = {}
        for message in messages:
            copies.setdefault(message.message_id, []).append(message)
        steps = [step for same in copies.values() for step in self._judge(same)]
        if steps:
            await self._settle(steps)
        if len(steps) == len(messages):
            await self._stand_back(steps)

    def _judge(self, copies: list[Message]) -> Sequence[Step]:
        """
        Submit a message, unless that was done before.

        @return: what happens to it in the queue; nothing if its verdict is awaited. It is settled after that.
        """
        assert self._outstanding is not None
        now, message = self._reactor.seconds(), copies[0]
        body, envelope_id = unwrapped(message.body)
        # SQS and SNS assign their ids independently: they may be equal.
        keys = [f"SQS {message.message_id}", *([] if envelope_id is None else [f"SNS {envelope_id}"])]
        submitted = self._outstanding.find(keys)
        if submitted is not None or any(self._settled.knows(key, now) for key in keys):
            self._log.info(
                "SQS {url}: message {id} was delivered again", url=self._url, id=one_line(message.message_id)
            )
            if submitted is None:
                return _steps(copies, None)
            submitted.copies += copies
            return ()
        verdict = self._submit(message, body)
        fired: list[Verdict] = []
        verdict.addCallback(fired.append)
        if fired:
            return self._decided(copies, keys, fired[0])
        waiting = Submitted(keys=keys, copies=copies, verdict=verdict)
        self._outstanding.add(waiting)
        verdict.addCallback(lambda _: self._settle_later(waiting, fired[0]))
        return ()

    def _submit(self, message: Message, body: str) -> defer.Deferred[Verdict]:
        def failed(why: Failure) -> Verdict:
            # One message must not block the others.
            self._log.failure(
                "SQS {url}: message {id} failed", why, url=self._url, id=one_line(message.message_id)
            )
            return Busy(reason="it failed")

        self._repeats = 0
        return defer.maybeDeferred(
            self._sink.submit,
            Request(source=self.name, body=body.encode("utf-8", "surrogatepass"), sent_at=message.sent_at),
        ).addErrback(failed)

    def _decided(self, copies: list[Message], keys: Sequence[str], verdict: Verdict) -> list[Step]:
        """What happens to a message in the queue."""
        if isinstance(verdict, Accepted | Ended | Rejected):
            now = self._reactor.seconds()
            for key in keys:
                self._settled.remember(key, now)
            return _steps(copies, None)
        if isinstance(verdict, NotForThisNode):
            if self._deletes_unmatched:
                return _steps(copies, None)
            longest = min(RELEASE_MOST_SECONDS, 1 + copies[0].received_times / RELEASE_ROUNDS)
            return _steps(copies, int(self._chance() * longest), elsewhere=True)
        low, high = self._busy_seconds
        return _steps(copies, min(high, low + int(self._chance() * (high - low + 1))))

    def _settle_later(self, submitted: Submitted, verdict: Verdict) -> None:
        """Settle a message whose verdict was slow."""
        outstanding = self._outstanding
        assert outstanding is not None
        outstanding.decided(submitted)
        steps = self._decided(submitted.copies, submitted.keys, verdict)
        settling = defer.Deferred.fromCoroutine(self._settle(steps))
        settling.addErrback(self._not_settled).addBoth(lambda _: outstanding.settled(submitted))

    def _not_settled(self, why: Failure) -> None:
        if isinstance(why.value, NotSettled):
            self._report(why.value)
        elif not isinstance(why.value, defer.CancelledError):
            self._log.failure("SQS {url}: internal error", why, url=self._url)

    async def _settle(self, steps: Sequence[Step]) -> None:
        """
        Delete messages, or return them to the queue.

        @raise NotSettled: if that failed. They are delivered again after their visibility timeout; those that
            were accepted are remembered.
        """
        assert self._settler is not None
        try:
            await self._settler.settle(steps)
        except NotSettled:
            self._settles = False
            raise
        self._settles = True

    def _stay_hidden(self, messages: list[Message]) -> None:
        """Renew the visibility timeouts of messages."""
        assert self._settler is not None
        # If this fails, another node may get a message, too. This one recognizes it.
        steps = _steps(messages, self._hidden_seconds)
        defer.Deferred.fromCoroutine(self._settler.settle(steps)).addErrback(lambda _: None)

    async def _rest(self) -> None:
        """Pause, if the server says at once, and repeatedly, that the queue is empty."""
        self._empty_polls += 1
        left = self._polled_at + IDLE_SECONDS - self._reactor.seconds()
        if left > 0 and self._empty_polls > 1:
            await self._wait(left)

    async def _stand_back(self, steps: Sequence[Step]) -> None:
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


def _steps(copies: Sequence[Message], hide_seconds: int | None, *, elsewhere: bool = False) -> list[Step]:
    """The same for every copy of a message: to delete one deletes the message."""
    return [Step(message=copy, hide_seconds=hide_seconds, elsewhere=elsewhere) for copy in copies]
