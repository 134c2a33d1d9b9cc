"""What tests of the Kafka source with a real broker share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor, task, threads
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.net.kafka.security import KafkaSecurity
from pcapsvc.net.outages import Backoff
from pcapsvc.sources.kafka.connection import Connection
from pcapsvc.sources.kafka.source import KafkaSource
from pcapsvc.testing import MemorySink
from peers.kafka import shared_broker


class KafkaTestCase(unittest.TestCase):
    """What tests with a real broker share."""

    timeout = 600

    def setUp(self) -> None:
        self.broker = shared_broker()
        # Each test has a topic of its own.
        self.topic = self.id().rpartition(".")[2]
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    def observe(self, event: Any) -> None:
        """Collect what the source logs."""
        if "kafka" in event.get("log_namespace", ""):
            self.lines.append(f"{event['log_level'].name}: {formatEvent(event)}")

    def source(self, **options: Any) -> tuple[KafkaSource, MemorySink]:
        """A source that isn't started, and its sink."""
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
        """A source that reads the topic, and its sink."""
        source, sink = self.source(**options)
        before = len(self.logged("reading topic"))
        source.startService()
        await self.until(lambda: len(self.logged("reading topic")) > before)
        return source, sink

    async def stop(self, source: KafkaSource) -> None:
        """Stop a source. It waits for no answer, which would take 10 s."""
        began = time.monotonic()
        await source.stopService()
        self.assertLess(time.monotonic() - began, 8.0)

    def logged(self, words: str) -> list[str]:
        """The log lines that contain these words."""
        return [line for line in self.lines if words in line]

    async def until(self, condition: Callable[[], Any], seconds: float = 180.0) -> None:
        """Wait until a condition is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), deadline, self.lines)
            await self.sleep(0.02)

    async def sleep(self, seconds: float) -> None:
        """Wait for some seconds."""
        await task.deferLater(reactor, seconds, lambda: None)

    async def produce(self, *bodies: bytes, partition: int | None = None) -> None:
        """Send messages, and wait until the broker has them."""
        await threads.deferToThread(self.broker.produce, self.topic, bodies, partition)

    async def produce_behind(self, body: bytes, seconds: float, partition: int = 0) -> None:
        """Send a message as a producer whose clock is behind."""

        def send() -> None:
            producer = self.broker.producer()
            try:
                timestamp_ms = int((time.time() - seconds) * 1000)
                producer.send(self.topic, body, partition=partition, timestamp_ms=timestamp_ms).get(30)
            finally:
                producer.close(30)

        await threads.deferToThread(send)

    def bodies(self, *sinks: MemorySink) -> list[bytes]:
        """The submitted bodies."""
        return [body for sink in sinks for _, body in sink.submitted]
