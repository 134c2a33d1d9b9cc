"""The Kafka source, and a broker that fails."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kafka.errors import KafkaTimeoutError
from twisted.internet import defer, reactor, task, threads
from twisted.trial import unittest

from pcapsvc.net.kafka.security import KafkaSecurity, Unreachable
from pcapsvc.sources.kafka.connection import Connection
from pcapsvc.sources.kafka.reader import Reader
from pcapsvc.sources.kafka.source import KafkaSource
from pcapsvc.testing import MemorySink
from peers.process import free_port
from tests.integration.kafka_case import KafkaTestCase

REQUESTS = 1000
#: How long the broker is down, and how fast requests are sent in the meantime.
AWAY_SECONDS = 2.0
A_SECOND = 150

#: A process dies with the thread that started it: not one of the reactor's, which end with each test.
_starter = ThreadPoolExecutor(1)


def descriptors() -> int:
    """How many open descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


class OutageTests(KafkaTestCase):
    """The broker fails, and comes back."""

    async def restart(self) -> None:
        """Start the broker again."""
        starting = _starter.submit(self.broker.start)
        await self.until(starting.done)
        starting.result()

    async def test_killed_in_a_stream(self) -> None:
        """
        Of 1,000 requests none is lost and none is done twice, on two nodes that read all of them, nor on a
        node of a group.
        """
        groups = (None, None, "surviving")
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
                each.get(180)

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

    async def test_frozen(self) -> None:
        """A frozen broker is noticed; when it continues, messages are read."""
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

    async def test_changes_in_an_outage(self) -> None:
        """
        If another server accepts connections and closes them at once, attempts become rare. If the token's
        file is missing when the broker comes back, that is logged at once.
        """
        self.broker.create_topic(self.topic)
        file = Path(self.mktemp())
        file.write_text(self.broker.token())
        security = self.broker.security(sasl_mechanism="OAUTHBEARER", sasl_oauth_token_file=str(file))
        _, by_token = await self.listen(servers=[self.broker.secure_server], security=security)
        _, sink = await self.listen()
        file.unlink()
        await threads.deferToThread(self.broker.kill)
        await self._hang_up()
        await self.restart()
        await self.until(lambda: self.logged("no token to authenticate with: No such file"))
        file.write_text(self.broker.token())
        await self.produce(b"after")
        for each in (sink, by_token):
            await self.until(lambda each=each: each.submitted)
            self.assertEqual([b"after"], self.bodies(each))

    async def _hang_up(self) -> None:
        """In place of the broker, which is down, accept connections and close them at once, for a while."""
        host, _, port = self.broker.server.rpartition(":")
        accepted: list[float] = []
        with socket.create_server((host, int(port)), backlog=128) as other:

            def hang_up() -> None:
                # Until the port is closed.
                with contextlib.suppress(OSError):
                    while True:
                        other.accept()[0].close()
                        accepted.append(time.monotonic())

            hanging_up = threads.deferToThread(hang_up)
            try:
                await self.until(lambda: len(accepted) > 2)
                # Each pause is twice as long as the previous one: up to a dozen attempts, not hundreds.
                await self.sleep(5.0)
            finally:
                other.shutdown(socket.SHUT_RDWR)
                await hanging_up
        self.assertLess(len(accepted), 30)

    async def test_stop_and_start_in_an_outage(self) -> None:
        """
        While the broker is down, attempts leave nothing behind, and a stop is quick, also in a group. A
        broker that is down at a start is logged once; what is sent when it is up is read.
        """
        self.broker.create_topic(self.topic)
        self.broker.create_topic(f"{self.topic}-later")
        await self._stop_in_an_outage()
        self.topic += "-later"
        self.lines.clear()
        source, sink = self.source()
        source.startService()
        await self.until(lambda: self.logged(": Connection refused"))
        began = time.time()
        # Not even the first message is missed, however soon it is sent, and with a clock that is behind.
        await self.restart()
        await self.produce_behind(b"first", time.time() - began + 3)
        await self.until(lambda: sink.submitted)
        self.assertEqual([b"first"], self.bodies(sink))
        self.assertEqual(1, len(self.logged("Connection refused")), self.lines)

    async def _stop_in_an_outage(self) -> None:
        """Kill the broker while two sources read, and stop them."""
        quick = {"reconnect_seconds": 0.1}
        alone, _ = await self.listen(quick=quick)
        shared, sink = await self.listen(group="stopping", quick=quick)
        await self.produce(b"one")
        await self.until(lambda: sink.submitted)
        await threads.deferToThread(self.broker.kill)
        await self.until(lambda: len(self.logged("no connection to")) == 2)
        before = descriptors(), threading.active_count()
        # Some thirty attempts.
        await self.sleep(2.0)
        self.assertLessEqual(descriptors(), before[0] + 2)
        self.assertEqual(before[1], threading.active_count())
        self.assertEqual(2, len(self.logged("warn: ")), self.lines)
        await defer.gatherResults(
            [defer.Deferred.fromCoroutine(self.stop(source)) for source in (alone, shared)]
        )

    async def test_stop_in_a_poll(self) -> None:
        """A stop is quick while a poll waits, and the source leaves nothing behind."""
        self.broker.create_topic(self.topic)
        source, _ = await self.listen()
        before = threading.active_count()
        await self.sleep(0.1)
        await self.stop(source)
        await self.until(lambda: threading.active_count() <= before - 2)


class AttemptsTests(unittest.TestCase):
    """Failed attempts to connect."""

    timeout = 600

    def attempt(self, times: int, server: str) -> None:
        """Fail many times; then there are as many threads and descriptors as before."""
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
        """A hundred attempts to connect to a closed port leave nothing behind."""
        self.attempt(100, f"127.0.0.1:{free_port()}")

    def test_nobody_answers(self) -> None:
        """So do attempts with a server that accepts connections, but sends nothing."""
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as mute:
            self.attempt(40, f"127.0.0.1:{mute.getsockname()[1]}")

    async def test_stop_while_it_connects(self) -> None:
        """A stop aborts an attempt that waits for an answer."""
        with socket.create_server(("127.0.0.1", 0), backlog=16) as mute:
            before = threading.active_count()
            server = f"127.0.0.1:{mute.getsockname()[1]}"

            def connect() -> Connection:
                # For longer than a stop may take.
                return Connection(
                    [server],
                    "capture",
                    group=None,
                    client_id="test",
                    security=KafkaSecurity(),
                    bootstrap_seconds=60.0,
                )

            source = KafkaSource(reactor, MemorySink(), servers=[server], topic="capture", connect=connect)
            source.startService()
            await task.deferLater(reactor, 0.5, lambda: None)
            began = time.monotonic()
            await source.stopService()
            self.assertLess(time.monotonic() - began, 30.0)
            while threading.active_count() > before:
                self.assertLess(time.monotonic() - began, 40.0)
                await task.deferLater(reactor, 0.02, lambda: None)
