"""Kafka, by the synchronous client that the daemon uses as well."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

from pcapsvc.client.address import KafkaAddress
from pcapsvc.client.credentials import Credentials
from pcapsvc.client.lost import tls_words
from pcapsvc.client.status import NoAnswer, not_understood
from pcapsvc.core.text import one_line

_BOOTSTRAP_MS = 10_000
_REQUEST_MS = 10_000
_DELIVERY_MS = 15_000
_POLL_MS = 500


class KafkaTransport:
    """A topic. See L{pcapsvc.client.transport.ITransport}."""

    def __init__(self, address: KafkaAddress, credentials: Credentials) -> None:
        self._address = address
        self._credentials = credentials
        # The library logs each problem; we report them ourselves.
        self._refusals = _Refusals()
        log = logging.getLogger("kafka")
        log.addHandler(self._refusals)
        log.propagate = False

    def send(self, body: bytes) -> int | None:
        """Send a message, and wait until the brokers have it."""
        from kafka import KafkaProducer

        with _problems(self._address, self._refusals):
            producer = KafkaProducer(
                **self._configuration(),
                acks="all",
                # Needs a permission of its own with brokers before 3.0.
                enable_idempotence=False,
                max_block_ms=_REQUEST_MS,
                delivery_timeout_ms=_DELIVERY_MS,
            )
            try:
                producer.send(self._address.topic, body).get(_DELIVERY_MS / 1000)
            finally:
                producer.close(timeout=1)
        return None

    def events(self, requestid: str | None) -> KafkaEvents:
        """Read every partition from its end on, without a group: each reader gets all events."""
        from kafka import KafkaConsumer, TopicPartition

        topic = self._address.topic
        with _problems(self._address, self._refusals):
            consumer = KafkaConsumer(
                **self._configuration(),
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="latest",
                fetch_max_wait_ms=100,
            )
            try:
                if topic not in consumer.topics():
                    raise NoAnswer(
                        f"{self._address}: the topic does not exist, or is not visible to this user"
                    )
                partitions = [
                    TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()
                ]
                consumer.assign(partitions)
                # What is sent after this is read, even if reading begins later.
                for partition, offset in consumer.end_offsets(partitions).items():
                    consumer.seek(partition, offset)
            except BaseException:
                consumer.close()
                raise
        return KafkaEvents(self._address, consumer, self._refusals)

    def _configuration(self) -> dict[str, Any]:
        from pcapsvc.client.kafka_client import make_client

        address, credentials = self._address, self._credentials
        password = address.password if address.password is not None else credentials.password
        logs_in = address.username is not None
        protocol = ("SASL_" if logs_in else "") + ("SSL" if address.tls else "PLAINTEXT")
        configuration: dict[str, Any] = {
            "bootstrap_servers": list(address.servers),
            "client_id": "pcapctl",
            "kafka_client": partial(make_client, self._refusals.failed),
            "metrics_enabled": False,
            "security_protocol": protocol,
            "bootstrap_timeout_ms": _BOOTSTRAP_MS,
            "request_timeout_ms": _REQUEST_MS,
        }
        if address.tls:
            configuration["ssl_context"] = credentials.trust()
        if logs_in:
            configuration |= {
                "sasl_mechanism": address.mechanism,
                "sasl_plain_username": address.username,
                "sasl_plain_password": password or "",
            }
        return configuration


class KafkaEvents:
    """The records of a topic. See L{pcapsvc.client.transport.IEventStream}."""

    def __init__(self, address: KafkaAddress, consumer: Any, refusals: _Refusals) -> None:
        self._address = address
        self._refusals = refusals
        self._consumer = consumer
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        try:
            while not self._closed.is_set():
                with _problems(self._address, self._refusals):
                    found = self._consumer.poll(timeout_ms=_POLL_MS)
                for records in found.values():
                    yield from (record.value for record in records if record.value)
        except NoAnswer:
            if not self._closed.is_set():
                raise
        finally:
            self._consumer.close()

    def close(self) -> None:
        """End it, within half a second."""
        self._closed.set()


class _Refusals(logging.Handler):
    """
    Notices that a connection is refused, or a login. The library only logs that, and tries again until it
    gives up.

    @ivar is_refused: whether a login was.
    @ivar connecting: why the latest connection was not made, if one was not.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.is_refused = False
        self.connecting: Exception | None = None

    def failed(self, problem: Exception) -> None:
        """Remember why a connection was not made."""
        self.connecting = problem

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a message. It may repeat what was sent, and is not kept."""
        self.is_refused = self.is_refused or "AuthenticationFailed" in record.getMessage()


@contextlib.contextmanager
def _problems(address: KafkaAddress, refusals: _Refusals) -> Iterator[None]:
    """Turns what the library raises into L{NoAnswer}."""
    from kafka.errors import KafkaError, KafkaTimeoutError

    try:
        yield
    except NoAnswer:
        raise
    except (KafkaError, OSError, ValueError) as problem:
        if refusals.is_refused:
            raise NoAnswer(f"{address}: authentication failed") from None
        if isinstance(problem, KafkaTimeoutError) and refusals.connecting is not None:
            problem = refusals.connecting
        # An authentication error may repeat what was sent.
        kind = type(problem).__name__
        words = tls_words(problem) or one_line(str(problem).removeprefix(f"{kind}: ")) or kind
        raise NoAnswer(f"{address}: {words}") from None
    except Exception as problem:  # noqa: BLE001 - of whatever kind
        raise not_understood(address, problem) from None
