"""The Kafka source, with a fake connection."""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kafka import errors as kafka_errors
from twisted.internet import defer
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.core.result import Busy
from pcapsvc.net.kafka.problems import MissingTopic
from pcapsvc.net.kafka.security import KafkaSecurity, Unreachable
from pcapsvc.net.kafka.token import TokenFile, UnusableToken
from pcapsvc.net.outages import Backoff
from pcapsvc.net.pem import UnusableCertificates
from pcapsvc.sources import polling
from pcapsvc.sources.kafka.reader import LongGone, NewTopic
from pcapsvc.sources.kafka.source import STOP_SECONDS, KafkaSource
from pcapsvc.testing import MemorySink
from tests.unit.test_kafka_reader import BEGAN, ZERO, Broker, Record


class Thread:
    """A thread runner whose functions run when the test calls L{turn}."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[defer.Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = deque()

    def run(self, function: Callable[..., Any], *args: Any) -> defer.Deferred[Any]:
        self.waiting.append((defer.Deferred(), function, args))
        return self.waiting[-1][0]

    def turn(self) -> None:
        """Run the next function, and deliver its result."""
        result, function, args = self.waiting.popleft()
        try:
            outcome = function(*args)
        except Exception as problem:  # noqa: BLE001 - it is what is asked for
            result.errback(problem)
        else:
            result.callback(outcome)


class KafkaSourceTests(unittest.SynchronousTestCase):
    """L{KafkaSource} submits messages, logs outages, and stops."""

    def setUp(self) -> None:
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)
        self.clock, self.thread, self.broker, self.sink = Clock(), Thread(), Broker(), MemorySink()
        self.source = self.make_source()
        self.source.startService()

    def make_source(self, group: str | None = None) -> KafkaSource:
        """A source that isn't started."""
        return KafkaSource(
            self.clock,
            self.sink,
            servers=("a.example:9092", "b.example:9092"),
            topic="capture",
            group=group,
            wall_clock=lambda: BEGAN,
            connect=self.broker.connect,
            backoff=Backoff(0.5, 10.0, chance=lambda: 1.0),
            run_in_thread=self.thread.run,
        )

    def share(self) -> None:
        """Replace the source by one in a group."""
        self.thread.waiting.clear()
        self.source = self.make_source("sharing")
        self.source.startService()

    def observe(self, event: Any) -> None:
        """Collect what the source logs."""
        if "kafka" in event.get("log_namespace", ""):
            self.lines.append(f"{event['log_level'].name}: {formatEvent(event)}")

    def test_submits(self) -> None:
        """Each message is submitted with its time stamp."""
        self.broker.batches.append({ZERO: [Record(10, b"one"), Record(11, b"two", None)]})
        self.thread.turn()
        self.assertEqual([("kafka", b"one"), ("kafka", b"two")], self.sink.submitted)
        self.assertEqual([BEGAN, None], self.sink.sent_at)

    def commits(self) -> list[Any]:
        """What was committed."""
        return [call[1] for call in self.broker.calls if call[0] == "commit"]

    def test_after_the_verdicts(self) -> None:
        """In a group, reading goes on while verdicts are slow; each message is committed after its own."""
        self.share()
        verdicts = self.sink.hold()
        self.broker.batches.extend([{ZERO: [Record(10, b"one"), Record(11)]}, {ZERO: [Record(12)]}, {}])
        for _ in range(3):
            self.thread.turn()
        self.assertEqual(len(self.sink.submitted), 3)
        verdicts[1].callback(self.sink.verdict)
        self.thread.turn()
        self.assertEqual([], self.commits())
        verdicts[0].callback(self.sink.verdict)
        self.thread.turn()
        self.assertEqual([{ZERO: 12}], self.commits())
        verdicts[2].errback(ZeroDivisionError())
        self.thread.turn()
        self.assertEqual([{ZERO: 12}, {ZERO: 13}], self.commits())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_busy(self) -> None:
        """A request that is answered as busy is committed: Kafka can't take it back."""
        self.share()
        held = self.sink.hold()
        self.broker.batches.append({ZERO: [Record(10)]})
        self.thread.turn()
        held[0].callback(Busy(reason="full"))
        self.thread.turn()
        self.assertEqual([{ZERO: 11}], self.commits())

    def test_slow_verdict(self) -> None:
        """Without a group, nothing is committed, and reading goes on while a verdict is slow."""
        verdicts = self.sink.hold()
        self.broker.batches.extend([{ZERO: [Record(10, b"one")]}, {ZERO: [Record(11, b"two")]}])
        self.thread.turn()
        self.thread.turn()
        self.assertEqual([("kafka", b"one"), ("kafka", b"two")], self.sink.submitted)
        verdicts[0].callback(self.sink.verdict)
        verdicts[1].errback(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_stop_before_the_verdicts(self) -> None:
        """A stop waits for verdicts for a while, and then cancels those that are missing."""
        self.share()
        verdicts = self.sink.hold()
        self.broker.batches.append({ZERO: [Record(10, b"one"), Record(11, b"two", None)]})
        self.thread.turn()
        self.broker.batches.append({ZERO: [Record(12)]})
        self.thread.turn()
        stopping = self.source.stopService()
        verdicts[0].callback(self.sink.verdict)
        self.clock.advance(polling.STOP_SECONDS - 0.1)
        self.assertFalse(verdicts[1].called)
        self.clock.advance(0.1)
        self.assertTrue(all(verdict.called for verdict in verdicts))
        while self.thread.waiting:
            self.thread.turn()
        self.successResultOf(stopping)
        # The others were given up, and another node of the group gets them.
        self.assertEqual([{ZERO: 11}], self.commits())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_refused_because_of_the_stop(self) -> None:
        """Requests that are answered as busy after the stop has begun aren't committed either."""
        self.share()
        verdicts = self.sink.hold()
        self.broker.batches.append({ZERO: [Record(10), Record(11)]})
        self.thread.turn()
        stopping = self.source.stopService()
        verdicts[0].callback(self.sink.verdict)
        verdicts[1].callback(Busy(reason="the daemon is stopping"))
        while self.thread.waiting:
            self.thread.turn()
        self.successResultOf(stopping)
        self.assertEqual([{ZERO: 11}], self.commits())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_an_outage(self) -> None:
        """An outage is logged once, however long it lasts, and so is its end."""
        self.thread.turn()
        self.broker.batches.append(kafka_errors.UnknownError("what the server said"))
        self.thread.turn()
        self.broker.problem = Unreachable("can't connect to a.example:9092: Connection refused")
        for _ in range(5):
            self.clock.advance(10)
            self.thread.turn()
        self.broker.problem = None
        self.clock.advance(10)
        self.thread.turn()
        self.thread.turn()
        who = "Kafka a.example:9092, b.example:9092"
        silent = "unexpected error (UnknownError)"
        down = "can't connect to a.example:9092: Connection refused"
        self.assertEqual(
            [
                f"info: {who}: reading topic 'capture'",
                f"warn: {who}: {silent}; retrying",
                f"warn: {who}: {down}; retrying",
                f"info: {who}: reading topic 'capture'",
            ],
            self.lines,
        )

    def test_a_lost_connection(self) -> None:
        """A connection that is lost while reading is logged once, although nothing is raised."""
        self.broker.lost = "no connection to a.example:9092"
        for _ in range(4):
            self.thread.turn()
        self.assertEqual(
            ["warn: Kafka a.example:9092, b.example:9092: no connection to a.example:9092; retrying"],
            self.lines,
        )

    def test_in_words(self) -> None:
        """Each kind of problem is logged in our own words: a server's might contain a secret."""
        for problem, words in (
            (kafka_errors.KafkaTimeoutError("hunter2"), "do not answer properly"),
            (MissingTopic(), "topic 'capture' does not exist; it is not created"),
            (NewTopic(), "topic 'capture' was deleted and created again"),
            (LongGone("no connection"), "no connection"),
            (kafka_errors.SaslAuthenticationFailedError("hunter2"), "authentication failed"),
            (kafka_errors.UnsupportedSaslMechanismError("hunter2"), "do not support this sasl_mechanism"),
            (
                kafka_errors.TopicAuthorizationFailedError({"hunter2"}),
                "no permission to read topic",
            ),
            (
                kafka_errors.GroupAuthorizationFailedError("hunter2"),
                "no permission to use the",
            ),
            (kafka_errors.ClusterAuthorizationFailedError("hunter2"), "ClusterAuthorizationFailedError"),
            (kafka_errors.KafkaConfigurationError("hunter2"), "unexpected error (KafkaConfigurationError)"),
            (ssl.SSLError(1, "hunter2"), "a certificate or key file is wrong"),
            (UnusableCertificates("/ca.pem", "must be"), "TLS can't be set up: ssl_cafile must be"),
            (FileNotFoundError(2, "No such file", "/ca.pem"), "No such file (/ca.pem)"),
            (UnusableToken("it is not UTF-8 (/token)"), "it is not UTF-8 (/token)"),
            (ZeroDivisionError("hunter2"), "unexpected error (ZeroDivisionError)"),
        ):
            self.broker.batches.append(kafka_errors.UnknownError())
            self.thread.turn()
            self.lines.clear()
            self.broker.problem = problem
            self.clock.advance(10)
            self.thread.turn()
            self.assertIn(words, self.lines[0])
            self.assertNotIn("hunter2", self.lines[0])
            self.broker.problem = None
            self.clock.advance(10)
            self.thread.turn()

    def test_a_gap(self) -> None:
        """Skipped records are logged as an error."""
        self.broker.stuck = ZERO
        self.broker.batches.append(kafka_errors.UnsupportedCodecError("no zstd"))
        self.thread.turn()
        self.assertIn("error: Kafka, topic 'capture': partition 0 contains unreadable records", self.lines[0])

    def test_stop(self) -> None:
        """A stop ends polling, and waits until everything is closed."""
        self.thread.turn()
        stopped = self.source.stopService()
        self.assertNoResult(stopped)
        while self.thread.waiting:
            self.thread.turn()
        self.successResultOf(stopped)
        self.assertEqual(0, self.broker.open_connections)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_stop_while_a_message_comes(self) -> None:
        """What a poll returns after the stop is dropped, and not committed: the group reads it later."""
        self.share()
        self.broker.batches.extend([{ZERO: [Record(10, b"heard")]}, {ZERO: [Record(11, b"dropped")]}])
        self.thread.turn()
        stopped = self.source.stopService()
        while self.thread.waiting:
            self.thread.turn()
        self.successResultOf(stopped)
        self.assertEqual([("kafka", b"heard")], self.sink.submitted)
        self.assertEqual(["subscribe", ("commit", {ZERO: 11})], self.broker.calls)

    def test_stop_of_what_hangs(self) -> None:
        """A stop that takes too long closes the connection by force."""
        self.thread.turn()
        stopped = self.source.stopService()
        self.clock.advance(STOP_SECONDS)
        self.successResultOf(stopped)
        self.assertTrue(self.broker.connections[0].aborted.wait(60))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_begins_anew(self) -> None:
        """After a stop it can be started again, and starts at the newest offset."""
        self.thread.turn()
        stopped = self.source.stopService()
        while self.thread.waiting:
            self.thread.turn()
        self.successResultOf(stopped)
        self.broker.ends = {ZERO: 99}
        self.source.startService()
        self.thread.turn()
        self.assertEqual(("assign", {ZERO: 99}), self.broker.calls[-1])

    def test_passwords_are_not_shown(self) -> None:
        """The C{repr} of the security settings shows no password."""
        self.assertNotIn("hunter2", repr(KafkaSecurity(sasl_plain_password="hunter2")))


class TokenFileTests(unittest.SynchronousTestCase):
    """L{TokenFile} provides the token in a file."""

    def setUp(self) -> None:
        self.file = Path(self.mktemp())
        self.file.write_text("one\n")

    def test_as_it_is_now(self) -> None:
        """The token is the file's current content, without the end of the line."""
        tokens = TokenFile(str(self.file))
        self.assertEqual("one", tokens.token())
        self.file.write_text(" two")
        self.assertEqual("two", tokens.token())

    def test_no_text(self) -> None:
        """If it isn't UTF-8, neither the message nor its cause shows it."""
        self.file.write_bytes(b"hunter2\xff")
        problem = self.assertRaises(UnusableToken, TokenFile, str(self.file))
        self.assertIn(f"it is not UTF-8 ({self.file})", str(problem))
        self.assertIs(None, problem.__cause__ or problem.__context__)

    def test_no_file(self) -> None:
        """A file that has vanished is reported at the next authentication."""
        tokens = TokenFile(str(self.file))
        self.file.unlink()
        problem = self.assertRaises(UnusableToken, tokens.token)
        self.assertIn(f"No such file or directory ({self.file})", str(problem))
