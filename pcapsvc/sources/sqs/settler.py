"""Deletes messages, or returns them to the queue, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet import defer, task
from twisted.logger import Logger
from twisted.python.failure import Failure

from pcapsvc.core.text import counted
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.sqs.client import Unsettled
from pcapsvc.sources.sqs.queue import Step

#: The pauses between attempts.
SETTLE_PAUSES_SECONDS = (0.1, 0.3)

#: How many messages one request to SQS settles ("DeleteMessageBatch").
_BATCH = 10


class NotSettled(Exception):
    """
    A message could not be deleted or returned. It is delivered again after its visibility timeout.

    @ivar reason: what the last attempt raised.
    """

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Settler:
    """
    Settles messages in the order in which it is given them. While one request is under way, others wait, and
    go together in the next one.

    @param settle: settles up to 10 messages, and returns those that are worth another attempt. It is called
        in the thread.
    @param run_in_thread: runs one function after the other. It isn't the thread of the polls, one of which
        may take 20 s.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, settle: Callable[[Sequence[Step]], list[Step]], *, run_in_thread: RunInThread
    ) -> None:
        self._reactor = reactor
        self._settle = settle
        self._run_in_thread = run_in_thread
        self._waiting: list[tuple[Step, defer.Deferred[None]]] = []
        self._is_working = False
        self._work: defer.Deferred[None] = defer.succeed(None)

    async def settle(self, steps: Sequence[Step]) -> None:
        """
        Settle messages.

        @raise NotSettled: if some could not be.
        """
        settled: list[defer.Deferred[None]] = [defer.Deferred() for _ in steps]
        self._waiting += zip(steps, settled, strict=True)
        if not self._is_working:
            self._work = defer.Deferred.fromCoroutine(self._go_on())
            self._work.addErrback(self._ended)
        results: list[Any] = [result for _, result in await defer.DeferredList(settled, consumeErrors=True)]
        for result in results:
            if isinstance(result, Failure):
                assert result.value is not None
                raise result.value

    def stop(self) -> None:
        """Give up what isn't settled. Its L{settle} is cancelled."""
        waiting, self._waiting = self._waiting, []
        self._work.cancel()
        for _, settled in waiting:
            settled.cancel()

    def _ended(self, why: Any) -> None:
        if not why.check(defer.CancelledError):
            self._log.failure("messages could not be settled", why)

    async def _go_on(self) -> None:
        self._is_working = True
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                try:
                    left, problem = await self._attempts([step for step, _ in batch])
                except defer.CancelledError:
                    for _, settled in batch:
                        settled.cancel()
                    raise
                for step, settled in batch:
                    if any(step is each for each in left):
                        settled.errback(NotSettled(problem))
                    else:
                        settled.callback(None)
        finally:
            self._is_working = False

    async def _attempts(self, steps: list[Step]) -> tuple[list[Step], Exception]:
        """Try several times; returns what is left, and the last problem."""
        problem: Exception = Unsettled("nothing")
        for pause_seconds in (*SETTLE_PAUSES_SECONDS, None):
            try:
                steps = await self._run_in_thread(self._settle, steps)
                problem = Unsettled(f"{counted(len(steps), 'message')} could not be deleted or returned")
            except defer.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - boto3 raises errors of many libraries
                problem = error
            if not steps or pause_seconds is None:
                break
            await task.deferLater(self._reactor, pause_seconds)
        return steps, problem
