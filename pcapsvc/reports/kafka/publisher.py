"""
Publishes events by a producer of kafka-python (version 3.0), each confirmed by all replicas in sync.

An event's key is the id of its capture, so that all events of a capture are in one partition, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kafka import KafkaProducer
from kafka import errors as kafka_errors
from twisted.internet.defer import Deferred
from zope.interface import implementer

from pcapsvc.core.report_queue import Report
from pcapsvc.interfaces.reports import IPublisher, Published
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.kafka.client import (
    BOOTSTRAP_SECONDS,
    METADATA_SECONDS,
    RECONNECT_SECONDS,
    ClientMaker,
    connection_configuration,
    in_ms,
)
from pcapsvc.net.kafka.problems import described
from pcapsvc.net.kafka.security import KafkaSecurity, reach_any, tls_context
from pcapsvc.reports.channel import never_lost

#: How long a broker has to answer.
REQUEST_SECONDS = 5.0

#: How long the producer itself tries to deliver an event.
DELIVERY_SECONDS = 8.0

#: The longest answer that is read.
MAX_ANSWER_BYTES = 1024 * 1024

# How long disconnecting may take.
_CLOSE_SECONDS = 0.5
_WAIT_SECONDS = 1.5

# What is wrong with the event, and not with the broker.
_REFUSALS = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidRecordError,
)


class Producer:
    """
    A producer for one topic. All methods except L{abort} block; only L{abort} may be called while another one
    does.
    """

    def __init__(
        self, servers: Sequence[str], topic: str, *, client_id: str, security: KafkaSecurity
    ) -> None:
        self._servers = tuple(servers)
        self._topic = topic
        self._client_id = client_id
        self._security = security
        self._maker = ClientMaker()
        self._producer: Any = None

    def open(self) -> None:
        """
        Connect, and look up the topic. Fails as the source's consumer does: see
        L{pcapsvc.net.kafka.problems.described}.
        """
        context = tls_context(self._security)
        reach_any(self._servers, context)
        configuration = connection_configuration(self._servers, self._client_id, self._security, context)
        try:
            self._producer = KafkaProducer(
                **configuration,
                kafka_client=self._maker,
                acks="all",
                # Needs a permission of its own with brokers before 3.0, and an event may arrive twice anyway.
                enable_idempotence=False,
                # So that nothing that is sent again overtakes anything.
                max_in_flight_requests_per_connection=1,
                receive_message_max_bytes=MAX_ANSWER_BYTES,
                bootstrap_timeout_ms=in_ms(BOOTSTRAP_SECONDS),
                request_timeout_ms=in_ms(REQUEST_SECONDS),
                delivery_timeout_ms=in_ms(DELIVERY_SECONDS),
                max_block_ms=in_ms(REQUEST_SECONDS),
                metadata_max_age_ms=in_ms(METADATA_SECONDS),
                reconnect_backoff_max_ms=in_ms(RECONNECT_SECONDS),
            )
            self._maker.look_for_topic(self._topic, REQUEST_SECONDS, to_write=True)
        except BaseException:
            self.close()
            self._maker.raise_refusal()
            raise

    def send(self, reports: Sequence[Report]) -> Published:
        """
        Send events, and wait until they are confirmed.

        @raise kafka_errors.KafkaError: if none is.
        """
        self._maker.raise_refusal()
        arrived: list[Report] = []
        refused: list[Report] = []
        problem: Exception | None = None
        for report, sent in self._send_all(reports):
            try:
                if isinstance(sent, Exception):
                    raise sent
                sent.get(DELIVERY_SECONDS + REQUEST_SECONDS)
                arrived.append(report)
            except _REFUSALS:
                refused.append(report)
            except Exception as found:  # noqa: BLE001 - raised again, unless others have arrived
                problem = problem or found
        if problem is not None and not arrived:
            self._maker.raise_refusal()
            raise problem
        return Published(arrived=arrived, refused=refused)

    def _send_all(self, reports: Sequence[Report]) -> list[tuple[Report, Any]]:
        """Events that were sent, and what became of each: see L{_sent}."""
        sent: list[tuple[Report, Any]] = []
        for report in reports:
            sent.append((report, self._sent(report)))
            # The topic is gone, or the producer's memory is full. Each of the others would wait as long.
            if isinstance(sent[-1][1], kafka_errors.KafkaTimeoutError):
                break
        return sent

    def _sent(self, report: Report) -> Any:
        """The future of an event's confirmation, or why it could not be sent."""
        key = None if report.subject is None else report.subject.encode()
        try:
            return self._producer.send(self._topic, value=report.json, key=key)
        except Exception as problem:  # noqa: BLE001 - as above
            return problem

    def close(self) -> None:
        """Disconnect. A second call does nothing."""
        producer, self._producer = self._producer, None
        try:
            if producer is not None:
                producer.close(_CLOSE_SECONDS)
        except Exception:  # noqa: BLE001 - it is of no use any more
            pass
        finally:
            self._maker.abort()

    def abort(self) -> None:
        """From any thread: close every connection."""
        self._maker.abort()


@implementer(IPublisher)
class KafkaPublisher:
    """
    Publishes to a topic.

    @param servers: the servers to connect to first, each C{HOST:PORT}.
    @param run_in_thread: with two threads, for this alone.
    """

    most = 500
    most_bytes = 512 * 1024

    def __init__(
        self,
        reactor: Any,
        *,
        servers: Sequence[str],
        topic: str,
        client_id: str,
        security: KafkaSecurity,
        run_in_thread: RunInThread,
    ) -> None:
        self._reactor = reactor
        self._topic = topic
        self._new: Callable[[], Producer] = lambda: Producer(
            servers, topic, client_id=client_id, security=security
        )
        self._run_in_thread = run_in_thread
        self._producer: Producer | None = None
        self.server = f"Kafka {', '.join(servers)}"
        self.target = f"topic {topic!r}"

    def open(self) -> Deferred[bool]:
        """Connect: see L{IPublisher.open}."""
        self._producer = producer = self._new()
        return self._run_in_thread(producer.open).addCallback(lambda _: True)

    def publish(self, reports: Sequence[Report]) -> Deferred[Published]:
        """Publish events: see L{IPublisher.publish}."""
        assert self._producer is not None
        return self._run_in_thread(self._producer.send, reports)

    def when_lost(self) -> Deferred[None]:
        """The client reconnects by itself: see L{IPublisher.when_lost}."""
        return never_lost()

    def close(self) -> Deferred[None]:
        """Disconnect: see L{IPublisher.close}."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        closing = self._run_in_thread(producer.close)
        closing.addErrback(lambda _: None)
        await closing.addTimeout(_WAIT_SECONDS, self._reactor, lambda result, _: None)
        producer.abort()

    def described(self, problem: Exception) -> tuple[str, str]:
        """A problem in words: see L{IPublisher.described}."""
        return described(problem, self._topic, to="write to")
