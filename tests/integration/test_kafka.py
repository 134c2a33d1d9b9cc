"""The Kafka source and a real broker."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kafka.errors import KafkaTimeoutError
from twisted.internet import defer, reactor, task, threads
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.sources.kafka import KafkaSecurity, KafkaSource
from pcapsvc.sources.kafka.connection import Connection, Unreachable
from pcapsvc.sources.kafka.reader import Reader
from pcapsvc.sources.polling import Backoff
from pcapsvc.testing import MemorySink
from tests.peers.certificates import Authority
from tests.peers.kafka import KafkaBroker
from tests.peers.process import free_port

REQUESTS = 1000
#: How long the broker stays away, and how fast requests are sent meanwhile.
AWAY_SECONDS = 2.0
A_SECOND = 150

_shared: list[KafkaBroker] = []
#: A process dies with the thread that started it: not one of the reactor's, which end with each test.
_starter = ThreadPoolExecutor(1)


def shared_broker() -> KafkaBroker:
    """
    The broker of all these tests: to start one takes seconds. It runs when a test begins,
    and ends with the test runner.
    """
    if not _shared:
        broker = KafkaBroker()
        atexit.register(broker.stop)
        broker.start()
        _shared.append(broker)
    return _shared[0]


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


class KafkaTestCase(unittest.TestCase):
    """What tests with a real broker share."""

    timeout = 120

    def setUp(self) -> None:
        self.broker = shared_broker()
        # Each test has a topic of its own.
        self.topic = self.id().rpartition(".")[2]
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    def observe(self, event: Any) -> None:
        """Keep what the source logs."""
        if "kafka" in event.get("log_namespace", ""):
            self.lines.append(f"{event['log_level'].name}: {formatEvent(event)}")

    def source(self, **options: Any) -> tuple[KafkaSource, MemorySink]:
        """A source, and where it submits. It is not started."""
        sink = MemorySink()
        servers = options.pop("servers", [self.broker.server])
        group, security = options.pop("group", None), options.pop("security", KafkaSecurity())
        quick = {"metadata_seconds": 1.0, **options.pop("quick", {})}

        def connect() -> Connection:
            return Connection(servers, self.topic, group=group, client_id="test", security=security, **quick)

        source = KafkaSource(
            reactor,
            sink,
            servers=servers,
            topic=self.topic,
            group=group,
            connect=connect,
            backoff=Backoff(0.05, 0.2),
            **options,
        )
        self.addCleanup(self.stop, source)
        return source, sink

    async def listen(self, **options: Any) -> tuple[KafkaSource, MemorySink]:
        """A source that reads the topic, and where it submits."""
        source, sink = self.source(**options)
        before = len(self.logged("reading topic"))
        source.startService()
        await self.until(lambda: len(self.logged("reading topic")) > before)
        return source, sink

    async def stop(self, source: KafkaSource) -> None:
        """Stop a source; it never takes two seconds."""
        began = time.monotonic()
        await source.stopService()
        self.assertLess(time.monotonic() - began, 2.0)

    def logged(self, words: str) -> list[str]:
        """The lines of the log that have these words."""
        return [line for line in self.lines if words in line]

    async def until(self, condition: Callable[[], Any], seconds: float = 40.0) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), deadline, self.lines)
            await self.sleep(0.02)

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        await task.deferLater(reactor, seconds, lambda: None)

    async def produce(self, *bodies: bytes, partition: int | None = None) -> None:
        """Send messages, and wait until the broker has them."""
        await threads.deferToThread(self.broker.produce, self.topic, bodies, partition)

    async def produce_behind(self, body: bytes, seconds: float, partition: int = 0) -> None:
        """Send a message as a producer does whose clock is behind."""

        def send() -> None:
            producer = self.broker.producer()
            try:
                timestamp_ms = int((time.time() - seconds) * 1000)
                producer.send(self.topic, body, partition=partition, timestamp_ms=timestamp_ms).get(30)
            finally:
                producer.close(30)

        await threads.deferToThread(send)

    def bodies(self, *sinks: MemorySink) -> list[bytes]:
        """What was submitted."""
        return [body for sink in sinks for _, body in sink.submitted]


class KafkaSourceTests(KafkaTestCase):
    """What is heard, by whom, and where it begins."""

    async def test_every_node_hears_every_message(self) -> None:
        """Without a group, each source hears all partitions, and nothing of what was sent before it began."""
        self.broker.create_topic(self.topic, 3)
        await self.produce(*[b"before %d" % number for number in range(9)])
        _, one = await self.listen()
        _, other = await self.listen()
        sent = [b"%d" % number for number in range(30)]
        began = time.time()
        await self.produce(*sent)
        await self.until(lambda: len(self.bodies(one, other)) >= 60)
        for sink in (one, other):
            self.assertEqual(sorted(sent), sorted(self.bodies(sink)))
            self.assertEqual({"kafka"}, {source for source, _ in sink.submitted})
            for sent_at in sink.sent_at:
                assert sent_at is not None
                self.assertLess(abs(sent_at - began), 20)

    async def test_partitions_added_later(self) -> None:
        """What is sent to a partition that was added a moment ago is heard, from its first message on."""
        self.broker.create_topic(self.topic, 1)
        _, sink = await self.listen()
        self.broker.add_partitions(self.topic, 3)
        for partition in range(3):
            # Its clock may be behind by more than the source has been listening.
            await self.produce_behind(b"first of %d" % partition, 60, partition)
            await self.produce(b"second of %d" % partition, partition=partition)
        await self.until(lambda: len(sink.submitted) >= 6)
        expected = [word + b" of %d" % partition for word in (b"first", b"second") for partition in range(3)]
        self.assertEqual(sorted(expected), sorted(self.bodies(sink)))

    async def test_a_group_shares(self) -> None:
        """Each message reaches one node of a group; what is sent while all are away, one that comes back."""
        self.broker.create_topic(self.topic, 4)
        source, one = await self.listen(group="sharing")
        other_source, other = await self.listen(group="sharing")
        sent: list[bytes] = []

        async def send(count: int) -> None:
            new = [b"%d" % number for number in range(len(sent), len(sent) + count)]
            sent.extend(new)
            await self.produce(*new)
            await self.until(lambda: len(self.bodies(one, other)) >= len(sent))

        deadline = time.monotonic() + 30
        while not (one.submitted and other.submitted):
            self.assertLess(time.monotonic(), deadline, "the group was never divided")
            await send(20)
        self.assertEqual(sorted(sent), sorted(self.bodies(one, other)))
        await self.stop(source)
        await self.stop(other_source)
        await self.produce(b"while away")
        _, third = await self.listen(group="sharing")
        await self.until(lambda: third.submitted)
        self.assertEqual([b"while away"], self.bodies(third))

    async def test_a_group_that_is_stopped_in_a_stream(self) -> None:
        """A node of a group is stopped and started again while messages flow: none is lost."""
        self.broker.create_topic(self.topic)
        producer = await threads.deferToThread(self.broker.producer)
        self.addCleanup(threads.deferToThread, producer.close, 5)
        sent: list[bytes] = []
        is_over = threading.Event()

        def send() -> None:
            while not is_over.is_set():
                sent.append(b"%d" % len(sent))
                producer.send(self.topic, sent[-1])
                time.sleep(1 / A_SECOND)
            producer.flush(30)

        source, sink = await self.listen(group="restarting")
        sinks = [sink]
        sending = threads.deferToThread(send)
        try:
            for _ in range(4):
                await self.until(lambda sink=sink: len(sink.submitted) > 20)
                await self.stop(source)
                source, sink = await self.listen(group="restarting")
                sinks.append(sink)
        finally:
            is_over.set()
            await sending
        await self.until(lambda: sent[-1] in self.bodies(*sinks))
        self.assertEqual(set(), set(sent) - set(self.bodies(*sinks)))

    async def test_a_missing_topic(self) -> None:
        """A topic that is missing is told and waited for, and isn't created, though the broker would."""
        source, sink = self.source()
        source.startService()
        await self.until(lambda: self.logged("there is no topic"))
        await self.sleep(1.5)
        self.assertEqual(1, len(self.lines), self.lines)
        self.assertNotIn(self.topic, self.broker.topics())
        self.broker.create_topic(self.topic)
        await self.produce(b"at once")
        await self.until(lambda: sink.submitted)
        self.assertEqual([b"at once"], self.bodies(sink))

    async def test_a_topic_created_anew(self) -> None:
        """A topic that is deleted and created again is read from its first message on."""
        self.broker.create_topic(self.topic)
        _, sink = await self.listen()
        await self.produce(b"old")
        await self.until(lambda: sink.submitted)
        self.broker.delete_topic(self.topic)
        await self.until(lambda: self.logged("there is no topic"))
        self.broker.create_topic(self.topic)
        await self.produce_behind(b"new", 60)
        await self.until(lambda: len(sink.submitted) > 1)
        self.assertEqual([b"old", b"new"], self.bodies(sink))

    async def test_a_codec_that_is_missing(self) -> None:
        """Where the broker compresses by what isn't installed here, that is told and passed over."""
        self.broker.create_topic(self.topic, 1, compression_type="zstd")
        _, sink = await self.listen()
        await self.produce(b"compressed")
        await self.until(lambda: sink.submitted or self.logged("can't be read"))
        if not sink.submitted:
            self.assertIn("error: ", self.logged("partition 0 has what can't be read")[0])


class SecureTests(KafkaTestCase):
    """Logging in, and TLS, on SASL_SSL."""

    def setUp(self) -> None:
        super().setUp()
        self.broker.create_topic(self.topic)

    async def _hears(self, **changed: Any) -> None:
        security = self.broker.security(**changed)
        _, sink = await self.listen(servers=[self.broker.secure_server], security=security)
        await self.produce(b"secret")
        await self.until(lambda: sink.submitted)
        self.assertEqual([b"secret"], self.bodies(sink))

    async def _is_told(self, words: str, **options: Any) -> None:
        source, _ = self.source(servers=[self.broker.secure_server], **options)
        source.startService()
        await self.until(lambda: self.lines)
        await self.sleep(1.5)
        self.assertEqual(1, len(self.lines), self.lines)
        self.assertIn(words, self.lines[0])
        self.assertNotIn("hunter2", self.lines[0])

    async def test_plain(self) -> None:
        """PLAIN logs in."""
        await self._hears(sasl_mechanism="PLAIN")

    async def test_scram_256(self) -> None:
        """SCRAM-SHA-256 logs in."""
        await self._hears(sasl_mechanism="SCRAM-SHA-256")

    async def test_scram_512(self) -> None:
        """SCRAM-SHA-512 logs in."""
        await self._hears(sasl_mechanism="SCRAM-SHA-512")

    async def test_token(self) -> None:
        """OAUTHBEARER logs in with the token in a file, as it is when it connects."""
        file = Path(self.mktemp())
        file.write_text("hunter2\n")
        security = self.broker.security(sasl_mechanism="OAUTHBEARER", sasl_oauth_token_file=str(file))
        source, sink = self.source(servers=[self.broker.secure_server], security=security)
        source.startService()
        await self.until(lambda: self.logged("the login was refused"))
        file.write_text(self.broker.token() + "\n")
        await self.until(lambda: self.logged("reading topic"))
        await self.produce(b"token")
        await self.until(lambda: sink.submitted)
        self.assertEqual(2, len(self.lines), self.lines)

    async def test_wrong_password(self) -> None:
        """A wrong password is told once, by every mechanism, and not shown."""
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
            self.lines.clear()
            wrong = self.broker.security(sasl_mechanism=mechanism, sasl_plain_password="hunter2")
            await self._is_told("the login was refused (the user, the password or the token)", security=wrong)

    async def test_wrong_authority(self) -> None:
        """A certificate that a stranger signed is refused, and that is told."""
        folder = Path(self.mktemp())
        folder.mkdir()
        stranger = self.broker.security(ssl_cafile=str(Authority(folder, "stranger").file))
        await self._is_told("TLS failed", security=stranger)

    async def test_without_tls(self) -> None:
        """To speak in the clear to a port that wants TLS doesn't hang: it is told."""
        await self._is_told(
            "don't answer as they should", security=KafkaSecurity(), quick={"bootstrap_seconds": 0.5}
        )


class OutageTests(KafkaTestCase):
    """The broker goes away, and comes back."""

    async def restart(self) -> None:
        """Start the broker again."""
        starting = _starter.submit(self.broker.start)
        await self.until(starting.done)
        starting.result()

    async def test_down_at_the_start(self) -> None:
        """Where the broker is down at the start, that is told once; what is sent when it is up is heard."""
        self.broker.create_topic(self.topic)
        self.broker.kill()
        source, sink = self.source()
        source.startService()
        await self.until(lambda: self.logged("can't be connected to: Connection refused"))
        began = time.time()
        # Not even the first message after is missed, however quick it is, and its clock behind.
        await self.restart()
        await self.produce_behind(b"first", time.time() - began + 3)
        await self.until(lambda: sink.submitted)
        self.assertEqual([b"first"], self.bodies(sink))
        self.assertEqual(1, len(self.logged("Connection refused")), self.lines)

    async def _survives(self, *groups: str | None) -> None:
        """A stream of requests, in whose middle the broker is killed and started again."""
        self.broker.create_topic(self.topic, 3)
        sinks = [(await self.listen(group=group))[1] for group in groups]
        producer = await threads.deferToThread(self.broker.producer, linger_ms=5)
        self.addCleanup(threads.deferToThread, producer.close, 5)
        sent: list[Any] = []

        def send() -> None:
            for number in range(REQUESTS):
                sent.append(producer.send(self.topic, b"%d" % number))
                time.sleep(1 / A_SECOND)
            for each in sent:
                each.get(60)

        sending = threads.deferToThread(send)
        await self.until(lambda: len(sent) > REQUESTS // 4)
        await threads.deferToThread(self.broker.kill)
        await self.sleep(AWAY_SECONDS)
        await self.restart()
        await sending
        for sink in sinks:
            await self.until(lambda sink=sink: len(set(self.bodies(sink))) >= REQUESTS)
        await self.sleep(1.0)
        for sink in sinks:
            counts = Counter(self.bodies(sink))
            self.assertEqual({b"%d" % number: 1 for number in range(REQUESTS)}, dict(counts))
        self.assertEqual(len(groups), len(self.logged("warn: ")), self.lines)

    async def test_killed_in_a_stream(self) -> None:
        """Of 1,000 requests none is lost and none is done twice, on two nodes that hear all of them."""
        await self._survives(None, None)

    async def test_killed_in_a_stream_of_a_group(self) -> None:
        """Nor by a node of a group."""
        await self._survives("surviving")

    async def test_frozen(self) -> None:
        """A broker that is connected, and says nothing, is noticed; when it goes on, it is heard."""
        self.broker.create_topic(self.topic)
        _, sink = await self.listen(quick={"request_seconds": 1.0})
        self.broker.freeze()
        try:
            await self.until(lambda: self.logged("warn: "))
        finally:
            self.broker.thaw()
        await self.produce(b"after")
        await self.until(lambda: sink.submitted)
        self.assertEqual([b"after"], self.bodies(sink))

    async def test_a_port_that_hangs_up(self) -> None:
        """Where something else takes connections and ends them at once, attempts become fewer and fewer."""
        self.broker.create_topic(self.topic)
        _, sink = await self.listen()
        await threads.deferToThread(self.broker.kill)
        host, _, port = self.broker.server.rpartition(":")
        accepted: list[float] = []
        with socket.create_server((host, int(port)), backlog=128) as other:

            def hang_up() -> None:
                # Until the port is shut.
                with contextlib.suppress(OSError):
                    while True:
                        other.accept()[0].close()
                        accepted.append(time.monotonic())

            hanging_up = threads.deferToThread(hang_up)
            try:
                await self.until(lambda: len(accepted) > 2)
                # Each wait is twice as long as the one before: a dozen at most, where it was hundreds.
                await self.sleep(5.0)
            finally:
                other.shutdown(socket.SHUT_RDWR)
                await hanging_up
        await self.restart()
        self.assertLess(len(accepted), 30)
        await self.produce(b"after")
        await self.until(lambda: sink.submitted)

    async def test_a_token_that_goes_away(self) -> None:
        """Where the token's file is gone when the broker comes back, that is told at once."""
        self.broker.create_topic(self.topic)
        file = Path(self.mktemp())
        file.write_text(self.broker.token())
        security = self.broker.security(sasl_mechanism="OAUTHBEARER", sasl_oauth_token_file=str(file))
        _, sink = await self.listen(servers=[self.broker.secure_server], security=security)
        file.unlink()
        await threads.deferToThread(self.broker.kill)
        await self.restart()
        await self.until(lambda: self.logged("there is no token to log in with: No such file"))
        file.write_text(self.broker.token())
        await self.produce(b"after")
        await self.until(lambda: sink.submitted)
        self.assertEqual([b"after"], self.bodies(sink))

    async def test_stop_in_an_outage(self) -> None:
        """While the broker is away, attempts leave nothing behind, and a stop is quick, for a group too."""
        self.broker.create_topic(self.topic)
        quick = {"reconnect_seconds": 0.1}
        alone, _ = await self.listen(quick=quick)
        shared, sink = await self.listen(group="stopping", quick=quick)
        await self.produce(b"one")
        await self.until(lambda: sink.submitted)
        await threads.deferToThread(self.broker.kill)
        try:
            await self.until(lambda: len(self.logged("there is no connection to")) == 2)
            before = descriptors(), threading.active_count()
            # Some thirty attempts.
            await self.sleep(2.0)
            self.assertLessEqual(descriptors(), before[0] + 2)
            self.assertEqual(before[1], threading.active_count())
            self.assertEqual(2, len(self.logged("warn: ")), self.lines)
            await defer.gatherResults(
                [defer.Deferred.fromCoroutine(self.stop(source)) for source in (alone, shared)]
            )
        finally:
            await self.restart()

    async def test_stop_in_a_poll(self) -> None:
        """A stop is quick while a poll waits, and nothing is left of the source."""
        self.broker.create_topic(self.topic)
        source, _ = await self.listen()
        before = threading.active_count()
        await self.sleep(0.1)
        await self.stop(source)
        await self.until(lambda: threading.active_count() <= before - 2)


class AttemptsTests(unittest.TestCase):
    """Attempts to connect that fail."""

    timeout = 120

    def attempt(self, times: int, server: str) -> None:
        """Fail so many times; afterwards there are as many threads and descriptors as before."""
        reader = Reader(
            lambda: Connection(
                [server],
                "capture",
                group=None,
                client_id="test",
                security=KafkaSecurity(),
                bootstrap_seconds=0.05,
            ),
            is_shared=False,
            wall_clock=time.time,
        )
        failures = (Unreachable, KafkaTimeoutError)
        self.assertRaises(failures, reader.read)
        gc.collect()
        before = threading.active_count(), descriptors()
        for _ in range(times):
            self.assertRaises(failures, reader.read)
        self.assertEqual(before, (threading.active_count(), descriptors()))

    def test_nobody_listens(self) -> None:
        """Hundreds of attempts at a port where nobody listens leave nothing behind."""
        self.attempt(300, f"127.0.0.1:{free_port()}")

    def test_nobody_answers(self) -> None:
        """Nor do those at a server that takes connections, and never says a word."""
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as mute:
            self.attempt(100, f"127.0.0.1:{mute.getsockname()[1]}")

    async def test_stop_while_it_connects(self) -> None:
        """A stop breaks off an attempt that waits for an answer."""
        with socket.create_server(("127.0.0.1", 0), backlog=16) as mute:
            before = threading.active_count()
            server = f"127.0.0.1:{mute.getsockname()[1]}"
            source = KafkaSource(reactor, MemorySink(), servers=[server], topic="capture")
            source.startService()
            await task.deferLater(reactor, 0.5, lambda: None)
            began = time.monotonic()
            await source.stopService()
            self.assertLess(time.monotonic() - began, 2.0)
            while threading.active_count() > before:
                self.assertLess(time.monotonic() - began, 5.0)
                await task.deferLater(reactor, 0.02, lambda: None)
