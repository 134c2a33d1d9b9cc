"""
Writes the archives of classes with which the Java programs start faster, if they are missing.

usage: python -m peers.archives

Java writes an archive when a program ends that has used the classes (JEP 350, -XX:ArchiveClassesAtExit):
those of its start, and those of whatever tests ask for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest import SkipTest

from kafka import KafkaConsumer

from peers import kafka, sqs
from peers.jars import archive_of

# Sorting and writing the classes takes seconds.
_PATIENCE_SECONDS = 120.0
_NAME = "archived"


def _durable(**options: Any) -> sqs.SQSServer:
    return sqs.SQSServer(durable=True, **options)


def _use_kafka(broker: kafka.KafkaBroker) -> None:
    """Produce, and consume in a group, with and without TLS; and administer topics."""
    broker.create_topic(_NAME)
    broker.produce(_NAME, [b"message"])
    security = {name: value for name, value in vars(broker.security()).items() if value is not None}
    for server, options in ((broker.server, {}), (broker.secure_server, security)):
        consumer = KafkaConsumer(
            _NAME,
            bootstrap_servers=server,
            group_id=server,
            auto_offset_reset="earliest",
            consumer_timeout_ms=_PATIENCE_SECONDS * 1000,
            **options,
        )
        next(consumer)
        consumer.close()
        broker.committed(server, _NAME)
    broker.add_partitions(_NAME, 2)
    broker.allow(_NAME, "READ")
    broker.delete_topic(_NAME)


def _use_sqs(server: sqs.SQSServer) -> None:
    """Send and receive, with and without order."""
    for name, attributes, more in (
        (_NAME, {}, {}),
        (
            f"{_NAME}.fifo",
            {"FifoQueue": "true", "ContentBasedDeduplication": "true"},
            {"MessageGroupId": "1"},
        ),
    ):
        url = server.create_queue(name, **attributes)
        server.send(url, ["message"], **more)
        server.delete(url, server.receive(url, WaitTimeSeconds=1, MessageSystemAttributeNames=["All"]))
        server.receive(url, WaitTimeSeconds=1)
        server.counts(url)


def main() -> None:
    """Write what is missing, of the programs that are there."""
    programs: tuple[tuple[str, Callable[..., Any], Callable[[Any], None]], ...] = (
        (kafka.PROGRAM, kafka.KafkaBroker, _use_kafka),
        (sqs.PROGRAM, _durable, _use_sqs),
    )
    for program, make, use in programs:
        archive = archive_of(program)
        if archive.exists():
            continue
        new = archive.with_suffix(f".{os.getpid()}")
        try:
            server = make(wrapper=("env", f"JAVA_TOOL_OPTIONS=-XX:ArchiveClassesAtExit={new}"))
        except SkipTest:
            continue
        try:
            server.start()
            use(server)
            server.exit(_PATIENCE_SECONDS)
        finally:
            server.stop()
        new.rename(archive)


if __name__ == "__main__":
    main()
