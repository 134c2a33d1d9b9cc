"""A consumer of kafka-python (version 3.0), without its traps."""

from __future__ import annotations

import ssl
from collections.abc import Collection, Mapping, Sequence
from threading import Lock
from typing import Any, Protocol

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from pcapsvc.bounded import kafka_batches
from pcapsvc.net.kafka.client import (
    BOOTSTRAP_SECONDS,
    METADATA_SECONDS,
    RECONNECT_SECONDS,
    REQUEST_SECONDS,
    ClientMaker,
    connection_configuration,
    in_ms,
)
from pcapsvc.net.kafka.problems import MissingTopic
from pcapsvc.net.kafka.security import KafkaSecurity, reach_any, tls_context

#: How long a node of a consumer group may be silent before others get its partitions. Brokers allow 6 s and
#: more (group.min.session.timeout.ms); kafka-python's default is three times as long as this.
SESSION_SECONDS = 15.0

#: How long leaving a consumer group may take.
LEAVE_SECONDS = 0.5

#: How much of the topic a broker is asked for in one answer; but at least one batch, of 1 MiB by default
#: (message.max.bytes).
FETCH_BYTES = 4 * 1024 * 1024

#: The longest answer that is read. A broker that announces a longer one is disconnected.
MAX_ANSWER_BYTES = 16 * 1024 * 1024


class Record(Protocol):
    """What is used of a record of kafka-python."""

    offset: int
    timestamp: int | None
    value: bytes | None


class _Losses(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python has no types
    """
    Collects the partitions that the consumer group takes away. It is called in the client's own thread, in
    which nothing may wait: so nothing can be committed at that moment.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._owned: frozenset[TopicPartition] = frozenset()
        self._lost: set[TopicPartition] = set()

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """
        A rebalance begins. With the assignors that are configured, this names all partitions. The consumer
        keeps its positions in those that are assigned to it again.
        """

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """A rebalance has ended, and these are all partitions that this node has now."""
        with self._lock:
            self._lost |= self._owned.difference(assigned)
            self._owned = frozenset(assigned)

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """The session has timed out, and others have them already."""
        self.on_partitions_assigned(self._owned.difference(lost))

    def take(self) -> frozenset[TopicPartition]:
        """What was lost since the last call."""
        with self._lock:
            lost = frozenset(self._lost)
            self._lost.clear()
            return lost


class _UnseenJoin:
    """
    An attempt to join the consumer group that a poll didn't wait for to its end.

    The client would drop one that has ended before the next poll, and begin another, which has all nodes join
    again: without end, if polls are shorter than that takes. So this one never seems to have ended. Whoever
    waits for it has its result at once.

    @param attempt: a future of the client.
    """

    is_done = False

    def __init__(self, attempt: Any) -> None:
        self._attempt = attempt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attempt, name)

    def __await__(self) -> Any:
        return self._attempt.__await__()


class Connection:
    """
    A consumer of one topic. All methods except L{abort} are called in one thread, and block it for up to some
    seconds.

    @param servers: the servers to connect to first, each C{HOST:PORT}.
    @param metadata_seconds: see L{METADATA_SECONDS}; likewise the others.
    """

    def __init__(
        self,
        servers: Sequence[str],
        topic: str,
        *,
        group: str | None,
        client_id: str,
        security: KafkaSecurity,
        metadata_seconds: float = METADATA_SECONDS,
        request_seconds: float = REQUEST_SECONDS,
        bootstrap_seconds: float = BOOTSTRAP_SECONDS,
        reconnect_seconds: float = RECONNECT_SECONDS,
    ) -> None:
        self._servers = tuple(servers)
        self._topic = topic
        self._group = group
        self._client_id = client_id
        self._security = security
        self._metadata_seconds = metadata_seconds
        self._request_seconds = request_seconds
        self._bootstrap_seconds = bootstrap_seconds
        self._reconnect_seconds = reconnect_seconds
        self._maker = ClientMaker()
        self._consumer: Any = None
        self._losses = _Losses()

    def open(self) -> None:
        """
        Connect, authenticate, and look up the topic.

        @raise Unreachable: if no server can be connected to.
        @raise MissingTopic: if the topic does not exist.
        @raise kafka_errors.KafkaError: if the brokers refuse, or don't answer.
        @raise UnusableToken: if there is no token to authenticate with.
        @raise UnusableCertificates: if the file of CA certificates can't be used.
        @raise OSError: if another file of L{KafkaSecurity} can't be used.
        """
        kafka_batches.bound()
        context = tls_context(self._security)
        # Not left to the client: it would say why it failed only in its own log, and keep trying for the
        # whole bootstrap time-out.
        reach_any(self._servers, context)
        try:
            self._consumer = KafkaConsumer(**self._configuration(context))
            self._maker.look_for_topic(self._topic, self._request_seconds)
        except BaseException:
            # The consumer itself leaks the client's thread and descriptors when it fails.
            self.close()
            self._maker.raise_refusal()
            raise

    def close(self) -> None:
        """Leave the consumer group, and disconnect. A second call does nothing."""
        consumer, self._consumer = self._consumer, None
        try:
            if consumer is not None:
                consumer.close(autocommit=False, timeout_ms=in_ms(LEAVE_SECONDS))
        except Exception:  # noqa: BLE001 - the group removes this node after its session time-out
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """From any thread: close every connection. A method that is blocked raises."""
        self._maker.abort()

    def topic_id(self) -> object:
        """Tells the topic from another of the same name; L{None} with brokers before 2.8."""
        found: object = self._maker.client.cluster.topic_id(self._topic)
        return found

    def partitions(self) -> frozenset[TopicPartition]:
        """
        The partitions that have a leader, by the latest metadata.

        @raise MissingTopic: if the topic no longer exists.
        """
        numbers = self._maker.client.cluster.available_partitions_for_topic(self._topic)
        if numbers is None:
            raise MissingTopic
        return frozenset(TopicPartition(self._topic, number) for number in numbers)

    def all_partitions(self) -> frozenset[TopicPartition]:
        """All partitions, with or without a leader."""
        numbers = self._maker.client.cluster.partitions_for_topic(self._topic) or ()
        return frozenset(TopicPartition(self._topic, number) for number in numbers)

    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions that are being read."""
        return frozenset(self._consumer.assignment())

    def lost(self) -> str | None:
        """
        Which of the partitions that are being read has no connection to its broker, in words; L{None} if all
        have one.

        If none is being read, because other nodes of the group have them all, a connection to any broker will
        do.
        """
        client = self._maker.client
        cluster = client.cluster
        assignment = sorted(self._consumer.assignment())
        if not assignment and not any(client.connected(each.node_id) for each in cluster.brokers()):
            return "no connection to any broker"
        for partition in assignment:
            leader = cluster.leader_for_partition(partition)
            broker = None if leader in (None, -1) else cluster.broker_metadata(leader)
            if broker is None:
                return f"partition {partition.partition} of topic {self._topic!r} has no leader"
            if not client.connected(leader):
                return f"no connection to {broker.host}:{broker.port}"
        return None

    def assign(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read exactly these partitions, from these offsets."""
        self._consumer.assign(list(offsets))
        for partition, offset in offsets.items():
            self.seek(partition, offset)

    def subscribe(self) -> None:
        """Read the partitions that the consumer group assigns."""
        self._consumer.subscribe([self._topic], listener=self._losses)

    def revoked(self) -> frozenset[TopicPartition]:
        """
        The partitions that the consumer group has given to other nodes since the last call. It may have
        assigned some to this node again, which are then read from their committed offsets.
        """
        return self._losses.take()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Continue in a partition at this offset."""
        self._consumer.seek(partition, offset)

    def poll(self, timeout_seconds: float, most: int) -> Mapping[TopicPartition, Sequence[Record]]:
        """
        Up to C{most} records; waits for some if there are none. With 0 it only stays in the consumer group,
        though it may return a record of a partition that is assigned in the meantime.
        """
        self._maker.raise_refusal()
        paused = () if most else self.assignment()
        self._consumer.pause(*paused)
        try:
            polled: Mapping[TopicPartition, Sequence[Record]] = self._consumer.poll(
                timeout_ms=in_ms(timeout_seconds), max_records=most or 1
            )
        finally:
            self._keep_join()
            # The group may have taken some away.
            self._consumer.resume(*(self.assignment() & self._consumer.paused()))
        return polled

    def _keep_join(self) -> None:
        coordinator = self._consumer._coordinator
        attempt = coordinator._join_task
        if attempt is None:
            return
        if not isinstance(attempt, _UnseenJoin):
            coordinator._join_task = _UnseenJoin(attempt)
        # The client wouldn't go on with it, and never read again, if what it was begun for is over: metadata
        # that lacked a partition for a moment.
        coordinator.request_rejoin()

    def end_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset of the next record of each partition."""
        ends: dict[TopicPartition, int] = self._consumer.end_offsets(
            list(partitions), timeout_ms=in_ms(self._request_seconds)
        )
        return ends

    def offsets_at(self, partitions: Collection[TopicPartition], sent_at: float) -> dict[TopicPartition, int]:
        """
        The offset of the first record of each partition that was sent at this time or later; without the
        partitions that have none.

        @param sent_at: in seconds since the Unix epoch.
        """
        found = self._consumer.offsets_for_times(
            dict.fromkeys(partitions, in_ms(sent_at)), timeout_ms=in_ms(self._request_seconds)
        )
        return {partition: first.offset for partition, first in found.items() if first is not None}

    def has_commits(self, partitions: Collection[TopicPartition]) -> bool:
        """Whether the consumer group has committed an offset in any of these partitions."""
        timeout_ms = in_ms(self._request_seconds)
        return any(self._consumer.committed(each, timeout_ms=timeout_ms) is not None for each in partitions)

    def commit(self, offsets: Mapping[TopicPartition, int], timeout_seconds: float) -> None:
        """Commit the offsets of the next records to read."""
        marks = {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}
        self._consumer.commit(marks, timeout_ms=in_ms(timeout_seconds))

    def skipped(self) -> int:
        """How many batches of records were skipped since the last call, because they become too long."""
        return kafka_batches.skipped.take()

    def unreadable(self) -> TopicPartition | None:
        """
        The partition of the record that L{poll} could not read; L{None} if that is unknown.

        There must be no other poll after this: it would never return, as it reads on from an exhausted
        iterator.
        """
        records = self._consumer._fetcher._next_partition_records
        return None if records is None else records.topic_partition

    def _configuration(self, context: ssl.SSLContext | None) -> dict[str, Any]:
        return {
            **connection_configuration(self._servers, self._client_id, self._security, context),
            "kafka_client": self._maker,
            "group_id": self._group,
            # An offset is out of range if a partition has lost its end or its beginning. Messages that were
            # submitted before are recognized by their offsets and times.
            "auto_offset_reset": "earliest",
            "enable_auto_commit": False,
            # See L{_Losses}.
            "partition_assignment_strategy": (RangePartitionAssignor, RoundRobinPartitionAssignor),
            # An open transaction would silently hold up everything that is sent after it began, for up to
            # 15 minutes (transaction.max.timeout.ms).
            "isolation_level": "read_uncommitted",
            "fetch_max_bytes": FETCH_BYTES,
            "receive_message_max_bytes": MAX_ANSWER_BYTES,
            "bootstrap_timeout_ms": in_ms(self._bootstrap_seconds),
            "request_timeout_ms": in_ms(self._request_seconds),
            "metadata_max_age_ms": in_ms(self._metadata_seconds),
            "session_timeout_ms": in_ms(SESSION_SECONDS),
            "reconnect_backoff_max_ms": in_ms(self._reconnect_seconds),
        }
