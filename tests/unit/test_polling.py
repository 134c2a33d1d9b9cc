"""What sources that poll have in common."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from twisted.internet import defer, reactor
from twisted.internet.task import Clock, deferLater
from twisted.logger import Logger
from twisted.trial import unittest

from pcapsvc.net.outages import Backoff, Outage
from pcapsvc.sources.polling import CLEAN_UP_SECONDS, STOP_SECONDS, OwnThread, Poller
from pcapsvc.threads import NoThread


class BackoffTests(unittest.SynchronousTestCase):
    def test_doubles_up_to_the_longest(self) -> None:
        """Each failure doubles the wait, up to the longest."""
        backoff = Backoff(0.5, 3.0, chance=lambda: 1.0)
        self.assertEqual([0.5, 1.0, 2.0, 3.0, 3.0], [backoff.failed() for _ in range(5)])

    def test_jitter(self) -> None:
        """Chance cuts a wait by up to half."""
        backoff = Backoff(1.0, 10.0, chance=lambda: 0.0)
        self.assertEqual([0.5, 1.0], [backoff.failed(), backoff.failed()])

    def test_a_success_begins_anew(self) -> None:
        """After a success, the next failure is a first one."""
        backoff = Backoff(0.5, 3.0, chance=lambda: 1.0)
        backoff.failed()
        backoff.failed()
        backoff.worked()
        self.assertEqual(0.5, backoff.failed())


class OutageTests(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.lines: list[str] = []
        self.outage = Outage(Logger(observer=self.observe), "Kafka a:9092")

    def observe(self, event: Any) -> None:
        self.lines.append(f"{event['log_level'].name} {event['log_format'].format(**event)}")

    def test_each_kind_once(self) -> None:
        """During an outage, each kind of problem is reported once, even if others occur in between."""
        for kind, problem in (("a", "first"), ("a", "second"), ("b", "third"), ("a", "fourth")):
            self.outage.report(kind, problem)
        self.assertEqual(
            [
                "warn Kafka a:9092: first; retrying",
                "warn Kafka a:9092: third; retrying",
            ],
            self.lines,
        )

    def test_each_change(self) -> None:
        """If every change is wanted, a problem that returns after another one is reported again."""
        outage = Outage(Logger(observer=self.observe), "Redis a:6379", each_change=True)
        for kind in ("a", "a", "b", "b", "a"):
            outage.report(kind, kind)
        self.assertEqual([f"warn Redis a:6379: {kind}; retrying" for kind in "aba"], self.lines)

    def test_the_end(self) -> None:
        """The end of an outage is reported once; the next outage is reported again."""
        self.outage.ended("listening")
        self.outage.ended("listening")
        self.outage.report("a", "gone")
        self.outage.ended("listening")
        self.outage.report("a", "gone")
        self.assertEqual(
            ["info", "warn", "info", "warn"],
            [line.split()[0] for line in self.lines],
        )


class _Polls:
    """A thread runner whose work ends when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[defer.Deferred[Any]] = []
        self.cancelled = 0

    def run(self, function: Callable[..., Any], *args: Any) -> defer.Deferred[Any]:
        def cancel(deferred: defer.Deferred[Any]) -> None:
            self.cancelled += 1

        self.waiting.append(defer.Deferred(cancel))
        return self.waiting[-1]


class PollerTests(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.polls = _Polls()
        self.results: list[Any] = []
        self.failures: list[str] = []
        self.answer: defer.Deferred[None] | None = None
        self.poller: Poller[Any] = Poller(
            self.clock,
            lambda: None,
            self.on_result,
            failed=lambda problem: self.failures.append(str(problem)),
            backoff=Backoff(0.5, 10.0, chance=lambda: 1.0),
            run_in_thread=self.polls.run,
        )
        self.poller.start()
        self.addCleanup(self.poller.stop)

    def on_result(self, result: Any) -> defer.Deferred[None] | None:
        self.results.append(result)
        return self.answer

    def test_one_after_the_other(self) -> None:
        """The next poll follows when a result was processed."""
        self.polls.waiting[0].callback("one")
        self.polls.waiting[1].callback("two")
        self.assertEqual(["one", "two"], self.results)
        self.assertEqual(3, len(self.polls.waiting))

    def test_waits_until_a_result_is_processed(self) -> None:
        """There is no poll while a result is being processed."""
        self.answer = defer.Deferred()
        self.polls.waiting[0].callback("one")
        self.assertEqual(1, len(self.polls.waiting))
        answer, self.answer = self.answer, None
        answer.callback(None)
        self.assertEqual(2, len(self.polls.waiting))

    def test_a_failure_makes_a_pause(self) -> None:
        """After a failure the next poll comes later, and each failure makes it later still."""
        for pause in (0.5, 1.0, 2.0):
            count = len(self.polls.waiting)
            self.polls.waiting[-1].errback(OSError("no"))
            self.clock.advance(pause * 0.99)
            self.assertEqual(count, len(self.polls.waiting))
            self.clock.advance(pause * 0.01)
            self.assertEqual(count + 1, len(self.polls.waiting))
        self.assertEqual(["no"] * 3, self.failures)

    def test_a_failure_that_cannot_be_reported(self) -> None:
        """If the report fails as well, the next poll follows nevertheless."""
        self.failures = None  # type: ignore[assignment]
        self.polls.waiting[0].errback(OSError("no"))
        self.assertEqual(1, len(self.flushLoggedErrors(AttributeError)))
        self.clock.advance(0.5)
        self.assertEqual(2, len(self.polls.waiting))

    def test_a_result_that_cannot_be_processed_is_a_failure(self) -> None:
        """A failure to process a result is reported in the same way, and polling goes on."""
        self.answer = defer.fail(OSError("not acknowledged"))
        self.polls.waiting[0].callback("one")
        self.answer = None
        self.assertEqual(["not acknowledged"], self.failures)
        self.clock.advance(0.5)
        self.assertEqual(2, len(self.polls.waiting))

    def test_stop_during_a_poll(self) -> None:
        """A stop doesn't wait for a poll, whose result is dropped."""
        self.successResultOf(self.poller.stop())
        self.assertEqual(1, self.polls.cancelled)
        self.assertEqual([], self.results)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_stop_during_a_pause(self) -> None:
        """A stop ends a pause."""
        self.polls.waiting[0].errback(OSError("no"))
        self.successResultOf(self.poller.stop())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_stop_while_processing(self) -> None:
        """A stop waits until a result is processed, and there is no further poll."""
        answer = self.answer = defer.Deferred()
        self.polls.waiting[0].callback("one")
        stopped = self.poller.stop()
        self.assertNoResult(stopped)
        self.answer = None
        answer.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(1, len(self.polls.waiting))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_stop_cancels(self) -> None:
        """A stop cancels the processing of a result after a while."""
        self.answer = defer.Deferred()
        self.polls.waiting[0].callback("one")
        stopped = self.poller.stop()
        self.answer = None
        self.clock.advance(STOP_SECONDS)
        self.successResultOf(stopped)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_stop_is_bounded(self) -> None:
        """A stop doesn't wait for long until what was cancelled has ended."""
        on_and_on: defer.Deferred[None] = defer.Deferred()
        self.answer = defer.Deferred(lambda answer: answer.callback(None))
        self.answer.addCallback(lambda _: on_and_on)
        self.polls.waiting[0].callback("one")
        stopped = self.poller.stop()
        self.clock.advance(STOP_SECONDS)
        self.assertNoResult(stopped)
        self.clock.advance(CLEAN_UP_SECONDS)
        self.successResultOf(stopped)
        on_and_on.callback(None)
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertEqual(1, len(self.polls.waiting))

    def test_starts_again(self) -> None:
        """After a stop it can be started again."""
        self.successResultOf(self.poller.stop())
        self.poller.start()
        self.polls.waiting[-1].callback("one")
        self.assertEqual(["one"], self.results)


class OwnThreadTests(unittest.TestCase):
    def setUp(self) -> None:
        self.thread = OwnThread(reactor, "pcapsvc-test-polling")
        self.addCleanup(self.thread.stop)

    def alive(self) -> list[threading.Thread]:
        """The running threads of this name."""
        return [thread for thread in threading.enumerate() if "pcapsvc-test-polling" in thread.name]

    async def gone(self) -> None:
        """Wait until the thread has ended."""
        deadline = time.monotonic() + 60
        while self.alive():
            self.assertLess(time.monotonic(), deadline)
            await deferLater(reactor, 0.01, lambda: None)

    async def test_runs_in_one_daemon_thread(self) -> None:
        """Functions run one after the other, in a thread that keeps no process alive."""
        ran = await defer.gatherResults([self.thread.run(threading.current_thread) for _ in range(3)])
        self.assertEqual(1, len(set(ran)))
        self.assertTrue(ran[0].daemon)
        self.assertIsNot(threading.main_thread(), ran[0])

    async def test_what_is_raised(self) -> None:
        """What a function raises is returned as a failure, and the thread goes on."""
        with self.assertRaises(ZeroDivisionError):
            await self.thread.run(lambda: 1 // 0)
        self.assertEqual(5, await self.thread.run(lambda: 5))

    async def test_stop(self) -> None:
        """A stop doesn't block; the thread ends after its work, and another one starts when there is more."""
        hold = threading.Event()
        self.addCleanup(hold.set)
        held = self.thread.run(hold.wait)
        self.thread.stop()
        self.thread.stop()
        hold.set()
        self.assertTrue(await held)
        await self.gone()
        self.assertEqual(7, await self.thread.run(lambda: 7))

    async def test_no_thread(self) -> None:
        """If no thread can be started, the function fails, but not the next one. A stop needs no thread."""
        # There is no room for a stack of 64 TiB.
        self.addCleanup(threading.stack_size, threading.stack_size(1 << 46))
        await self.assertFailure(self.thread.run(lambda: 7), NoThread)
        self.thread.stop()
        threading.stack_size(0)
        self.assertEqual(7, await self.thread.run(lambda: 7))
        threading.stack_size(1 << 46)
        self.thread.stop()
        await self.gone()

    async def test_cancelled(self) -> None:
        """A function that was cancelled is no longer waited for, and its result is dropped."""
        hold = threading.Event()
        self.addCleanup(hold.set)
        held = self.thread.run(hold.wait)
        held.cancel()
        with self.assertRaises(defer.CancelledError):
            await held
        hold.set()
        self.assertEqual(3, await self.thread.run(lambda: 3))
