"""A channel: it publishes every event, or counts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from pcapsvc.core.event import CaptureDone, CaptureFailed, CaptureProgress, Payload
from pcapsvc.core.labels import Labels
from pcapsvc.core.report_queue import Report
from pcapsvc.core.source_state import SourceState
from pcapsvc.interfaces.reports import IEventChannel, IPublisher, Published
from pcapsvc.net.outages import Backoff
from pcapsvc.reports.channel import DRAIN_SECONDS, DROPPED_SECONDS, LINGER_SECONDS, EventChannel
from pcapsvc.testing import MemoryPublisher, event_factory
from tests.unit.event_schema import problems
from tests.unit.logged import logged

LABELS = Labels(via="http", requestid="r-1", interface="lo")
NOW = 1_700_000_000.0
PROGRESS = CaptureProgress(packets=1, bytes=2, seconds=3.0)


class EventChannelTests(unittest.SynchronousTestCase):
    """A channel to a broker in memory, with a queue of 10 events."""

    def setUp(self) -> None:
        """A channel that has not been started."""
        self.clock, self.publisher = Clock(), MemoryPublisher()
        self.events = event_factory(wall_clock=self.wall_clock)
        self.channel = EventChannel(
            self.clock,
            self.publisher,
            self.events,
            name="redis",
            limit=10,
            wall_clock=self.wall_clock,
            backoff=Backoff(1.0, 8.0, chance=lambda: 1.0),
        )
        self.messages = logged(self)
        self.addCleanup(self.assert_stopped)

    def wall_clock(self) -> float:
        """The time."""
        return NOW + self.clock.seconds()

    def assert_stopped(self) -> None:
        """It can be stopped, and then leaves no timer. Everything that was published is valid."""
        if self.channel.running:
            stopping = self.channel.stopService()
            self.clock.pump([DRAIN_SECONDS])
            self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for document in self.publisher.published:
            self.assertEqual(problems(document), [])

    def report(self, count: int = 1, data: Payload | None = None) -> None:
        """Report events."""
        for _ in range(count):
            self.channel.report(self.events.event(data or CaptureDone(), LABELS, "abc"))

    def start(self) -> None:
        """Start the channel."""
        self.channel.startService()

    def linger(self) -> None:
        """Let the events be published that were reported."""
        self.clock.advance(LINGER_SECONDS)

    def types(self) -> list[str]:
        """The types of what was published, without the common part."""
        return [document["type"].removeprefix("pcapsvc.") for document in self.publisher.published]

    def hold(self) -> list[tuple[Sequence[Report], Deferred[Published]]]:
        """From now on, the broker doesn't answer."""
        held: list[tuple[Sequence[Report], Deferred[Published]]] = []

        def answer(reports: Sequence[Report]) -> Deferred[Published]:
            held.append((reports, Deferred()))
            return held[-1][1]

        self.publisher.answer = answer
        return held

    def refuse_connections(self, problem: Exception) -> None:
        """From now on, connections are refused."""
        self.publisher.opening = lambda: fail(problem)

    def test_interfaces(self) -> None:
        """It provides its interfaces, and wants progress."""
        verifyObject(IEventChannel, self.channel)
        verifyObject(IPublisher, self.publisher)
        self.assertTrue(self.channel.wants_progress())
        self.assertEqual((self.channel.name, self.channel.waiting, self.channel.dropped), ("redis", 0, 0))

    def test_published(self) -> None:
        """Events are published together, in order, and not within the report."""
        self.start()
        self.report()
        self.report(1, PROGRESS)
        self.assertEqual((self.types(), self.channel.waiting), ([], 2))
        self.linger()
        self.assertEqual((self.types(), self.channel.waiting), (["capture.done", "capture.progress"], 0))
        self.report()
        self.linger()
        self.assertEqual(len(self.types()), 3)

    def test_before_the_start(self) -> None:
        """What is reported before it is connected is published then."""
        self.report(7)
        self.start()
        self.assertEqual(len(self.types()), 7)

    def test_while_publishing(self) -> None:
        """What is reported while the broker has not answered is published after that."""
        held = self.hold()
        self.start()
        self.report()
        self.linger()
        self.report(3)
        self.linger()
        self.assertEqual([len(reports) for reports, _ in held], [1])
        held[0][1].callback(Published(arrived=held[0][0]))
        self.assertEqual([len(reports) for reports, _ in held], [1, 3])

    def test_state(self) -> None:
        """The state is connected, or has the problem, and since when."""
        self.assertEqual(self.channel.state(), SourceState())
        self.refuse_connections(OSError("refused"))
        self.start()
        self.assertEqual(
            self.channel.state(),
            SourceState(since=NOW, problem="can't publish to topic 'capture-events': refused"),
        )
        self.publisher.opening = lambda: succeed(True)
        self.clock.advance(1)
        self.assertEqual(self.channel.state(), SourceState(connected=True, since=NOW + 1))
        self.assertEqual(
            self.messages(),
            [
                "Events to broker.example: can't publish to topic 'capture-events': refused; retrying",
                "Events to broker.example: publishing to topic 'capture-events'",
            ],
        )

    def test_no_proof(self) -> None:
        """If connecting proves nothing, it is connected once an event has arrived."""
        self.publisher.opening = lambda: succeed(False)
        self.start()
        self.assertFalse(self.channel.state().connected)
        self.report()
        self.linger()
        self.assertTrue(self.channel.state().connected)

    def test_back_off(self) -> None:
        """The pauses grow until an event has arrived, though connecting works."""
        self.publisher.answer = lambda reports: fail(OSError("no permission"))
        self.report()
        self.start()
        for pause in (1, 2, 4, 8, 8):
            before = self.publisher.closed
            self.clock.advance(pause - 0.1)
            self.assertEqual(self.publisher.closed, before)
            self.clock.advance(0.1)
            self.assertEqual(self.publisher.closed, before + 1)
        self.publisher.answer = self.publisher.arrive
        self.clock.advance(8)
        self.assertEqual(len(self.types()), 1)
        self.publisher.losing.errback(OSError("lost"))
        self.clock.advance(1)
        self.assertTrue(self.channel.state().connected)

    def test_reports_do_not_shorten_a_pause(self) -> None:
        """What is reported during a pause waits for its end."""
        self.refuse_connections(OSError("refused"))
        self.start()
        closed = self.publisher.closed
        self.report()
        self.linger()
        self.assertEqual(self.publisher.closed, closed)

    def test_lost_while_idle(self) -> None:
        """A connection that is lost while there is nothing to publish is noticed, and made again."""
        self.start()
        self.publisher.losing.errback(OSError("reset"))
        self.assertFalse(self.channel.state().connected)
        self.clock.advance(1)
        self.assertTrue(self.channel.state().connected)

    def test_close_fails(self) -> None:
        """A connection that does not close properly is logged, and another one is made."""

        def refuse() -> Deferred[None]:
            raise ZeroDivisionError("the close")

        self.publisher.closing = refuse
        self.refuse_connections(OSError("no"))
        self.start()
        self.assertIn("the connection did not close properly", " ".join(self.messages()))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.publisher.closing = lambda: succeed(None)
        self.publisher.opening = lambda: succeed(True)
        self.report()
        self.clock.advance(8)
        self.linger()
        self.assertEqual(len(self.types()), 1)

    def test_again(self) -> None:
        """What may have arrived is published again, with the same id, before anything else."""
        held = self.hold()
        self.start()
        self.report(2)
        self.linger()
        self.report(1, CaptureFailed(problem="x"))
        [(first, answer)] = held
        answer.errback(OSError("reset"))
        self.publisher.answer = self.publisher.arrive
        self.clock.advance(1)
        self.assertEqual(self.types(), ["capture.done", "capture.done", "capture.failed"])
        ids = [document["id"] for document in self.publisher.published]
        self.assertEqual(ids[:2], [report.event_id for report in first])

    def test_dropped(self) -> None:
        """Once the channel is back, dropped events are reported in their place, with number and time."""
        held = self.hold()
        self.start()
        self.report(2)
        self.linger()
        self.clock.advance(1)
        self.report(5, PROGRESS)
        self.report(9)
        self.assertEqual((self.channel.waiting, self.channel.dropped), (10, 6))
        held[0][1].errback(OSError("reset"))
        self.publisher.answer = self.publisher.arrive
        self.clock.advance(1)
        self.assertEqual(self.types(), ["capture.done"] * 2 + ["reports.dropped"] + ["capture.done"] * 8)
        self.assertEqual(
            self.publisher.published[2]["data"],
            {"channel": "redis", "dropped": 6, "since": "2023-11-14T22:13:21.020000Z"},
        )
        self.assertNotIn("subject", self.publisher.published[2])
        self.assertEqual((self.channel.waiting, self.channel.dropped), (0, 6))
        self.assertIn("Events to broker.example: 6 were dropped", self.messages())

    def test_dropped_and_lost_again(self) -> None:
        """The event about dropped events is kept until it has arrived; nothing is counted twice."""
        self.report(13)
        held = self.hold()
        self.start()
        [(first, answer)] = held
        self.assertIn(b'"dropped":3', first[0].json)
        self.report(4)
        answer.errback(OSError("reset"))
        self.publisher.answer = self.publisher.arrive
        self.clock.advance(1)
        self.clock.advance(DROPPED_SECONDS)
        counts = [
            document["data"]["dropped"]
            for document in self.publisher.published
            if document["type"] == "pcapsvc.reports.dropped"
        ]
        self.assertEqual((sum(counts), self.channel.dropped), (self.channel.dropped, self.channel.dropped))
        self.assertEqual(len(self.publisher.published) - len(counts) + self.channel.dropped, 17)

    def test_seldom_told(self) -> None:
        """If the channel can't keep up, dropped events are reported once a second, not with each batch."""
        self.report(11)
        self.start()
        self.assertEqual(self.types().count("reports.dropped"), 1)
        held = self.hold()
        self.report(1)
        self.linger()
        self.report(12)
        self.publisher.answer = self.publisher.arrive
        held[0][1].callback(Published(arrived=held[0][0]))
        self.assertEqual(self.types().count("reports.dropped"), 1)
        self.clock.advance(DROPPED_SECONDS)
        self.assertEqual(self.types().count("reports.dropped"), 2)

    def test_some_left(self) -> None:
        """What the broker had no room for is published again after a pause; the connection stays."""

        def some(reports: Sequence[Report]) -> Deferred[Published]:
            self.publisher.answer = self.publisher.arrive
            self.publisher.arrive(reports[1:])
            return succeed(Published(arrived=reports[1:]))

        self.publisher.answer = some
        self.start()
        self.report(3)
        self.linger()
        self.assertEqual((len(self.types()), self.channel.waiting), (2, 1))
        self.clock.advance(1)
        self.assertEqual((len(self.types()), self.channel.waiting, self.publisher.closed), (3, 0, 0))

    def test_refused(self) -> None:
        """What the broker will never accept is dropped and counted, and holds up nothing else."""

        def refuse(reports: Sequence[Report]) -> Deferred[Published]:
            self.publisher.answer = self.publisher.arrive
            self.publisher.arrive(reports[1:])
            return succeed(Published(arrived=reports[1:], refused=reports[:1]))

        self.publisher.answer = refuse
        self.start()
        self.report(3)
        self.linger()
        self.clock.advance(DROPPED_SECONDS)
        self.assertEqual(self.types(), ["capture.done", "capture.done", "reports.dropped"])
        self.assertEqual(self.channel.dropped, 1)
        self.assertTrue(any("was refused" in text for text in self.messages()))

    def test_stop(self) -> None:
        """A stop publishes what is left before it disconnects."""
        self.start()
        self.report(7)
        self.successResultOf(self.channel.stopService())
        self.assertEqual((len(self.types()), self.publisher.closed), (7, 1))
        self.assertEqual(self.channel.state().connected, False)

    def test_stop_that_hangs(self) -> None:
        """A stop waits so long for the broker, and then counts and logs what is left."""
        self.hold()
        self.start()
        self.report(7)
        stopping = self.channel.stopService()
        self.clock.advance(DRAIN_SECONDS - 0.1)
        self.assertNoResult(stopping)
        self.clock.advance(0.1)
        self.successResultOf(stopping)
        self.assertEqual((self.channel.waiting, self.channel.dropped), (0, 7))
        self.assertIn("Events to broker.example: 7 were not published", self.messages())

    def test_stop_cancelled(self) -> None:
        """A stop can be cut short."""
        self.hold()
        self.start()
        self.report(1)
        stopping = self.channel.stopService()
        stopping.cancel()
        stopping.addErrback(lambda why: why.trap(CancelledError))
        self.successResultOf(stopping)
        self.assertEqual(self.publisher.closed, 1)

    def test_stop_during_a_pause(self) -> None:
        """A stop makes one more attempt at once, in place of the pause."""
        self.refuse_connections(OSError("refused"))
        self.start()
        self.report(2)
        self.publisher.opening = lambda: succeed(True)
        self.successResultOf(self.channel.stopService())
        self.assertEqual(len(self.types()), 2)

    def test_stop_in_an_outage(self) -> None:
        """If the broker is still out of reach, the stop is over."""
        self.refuse_connections(OSError("refused"))
        self.start()
        self.report(2)
        self.successResultOf(self.channel.stopService())
        self.assertEqual(self.channel.dropped, 2)

    def test_stop_while_connecting(self) -> None:
        """A stop waits so long for a connection, and then ends the attempt."""
        cancelled: list[Any] = []
        self.publisher.opening = lambda: Deferred(cancelled.append)
        self.start()
        stopping = self.channel.stopService()
        self.clock.advance(DRAIN_SECONDS)
        self.successResultOf(stopping)
        self.assertEqual(len(cancelled), 1)

    def test_started_again(self) -> None:
        """It can be started again after a stop."""
        self.start()
        self.successResultOf(self.channel.stopService())
        self.start()
        self.report()
        self.linger()
        self.assertEqual(len(self.types()), 1)

    def test_stopped_before_the_start(self) -> None:
        """A stop without a start does nothing."""
        self.successResultOf(self.channel.stopService())
