"""Whoever reads the events at the other side of a broker."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from peers.kafka import KafkaBroker
from peers.redis import RedisServer
from peers.sqs import SQSServer


class RedisListener:
    """
    Subscribes to a channel, in a thread.

    @ivar events: what was published since, decoded.
    @ivar raw: the same, as it was received.
    """

    def __init__(self, server: RedisServer, channel: str = "capture-events") -> None:
        self._socket = socket.create_connection((server.host, server.port), timeout=60)
        self._socket.settimeout(None)
        self._file = self._socket.makefile("rwb")
        self.events: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        if server.password is not None:
            self._say("AUTH", server.password)
            assert self._file.readline() == b"+OK\r\n"
        self._say("SUBSCRIBE", channel)
        assert self._reply()[0] == b"subscribe"
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Unsubscribe."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()

    def _say(self, *words: str) -> None:
        parts = [b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words]
        self._file.write(b"*%d\r\n" % len(words) + b"".join(parts))
        self._file.flush()

    def _reply(self) -> list[bytes]:
        count = int(self._line()[1:])
        return [self._value() for _ in range(count)]

    def _value(self) -> bytes:
        line = self._line()
        return self._file.read(int(line[1:]) + 2)[:-2] if line.startswith(b"$") else line[1:-2]

    def _line(self) -> bytes:
        line = self._file.readline()
        if not line:
            raise ConnectionError("closed")
        return line

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                body = self._reply()[2]
                self.raw.append(body)
                self.events.append(json.loads(body))


def read_topic(
    broker: KafkaBroker, topic: str = "capture-events", *, patience_seconds: float = 180.0
) -> list[tuple[bytes | None, bytes]]:
    """
    The key and the value of each record that a topic has by now.

    @raise AssertionError: if there is no such topic, or if they can't be read in time.
    """
    consumer = KafkaConsumer(bootstrap_servers=broker.server, group_id=None)
    try:
        numbers = consumer.partitions_for_topic(topic)
        assert numbers, f"there is no topic {topic}"
        partitions = [TopicPartition(topic, number) for number in numbers]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        found: list[tuple[bytes | None, bytes]] = []
        deadline = time.monotonic() + patience_seconds
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            assert time.monotonic() < deadline, (
                f"of {sum(ends.values())} records, only these were read: {found}"
            )
            for records in consumer.poll(1000).values():
                found += [(record.key, record.value) for record in records]
        return found
    finally:
        consumer.close()


def read_queue(server: SQSServer, url: str) -> list[dict[str, Any]]:
    """Receive all messages of a queue, and delete them."""
    found: list[dict[str, Any]] = []
    while messages := server.receive(
        url, MaxNumberOfMessages=10, MessageSystemAttributeNames=["All"], WaitTimeSeconds=1
    ):
        found += messages
        server.delete(url, messages)
    return found
