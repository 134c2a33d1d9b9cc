"""A consumer of kafka-python, without what would catch us out there (version 3.0)."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any, Protocol

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.net.selector import NetworkSelector

from pcapsvc.net.pem import read_certificates
from pcapsvc.sources.kafka.manager import Client, Manager
from pcapsvc.sources.kafka.token import TokenFile

#: How long a server has to accept a connection; and how long all of them have to answer then.
CONNECT_SECONDS = 3.0
BOOTSTRAP_SECONDS = 10.0

#: How long an answer may take, until a broker counts as gone.
REQUEST_SECONDS = 10.0

#: How often the brokers are asked for the topic's partitions.
METADATA_SECONDS = 10.0

#: How long to wait before a broker that went away is tried again, at most; a fifth more or less, by chance.
RECONNECT_SECONDS = 5.0

#: How long a node of a group may be silent before others take its partitions. Brokers allow 6 s and more
#: (group.min.session.timeout.ms), and kafka-python would wait three times as long.
SESSION_SECONDS = 15.0

#: How long leaving a group may take.
LEAVE_SECONDS = 0.5

#: How often the topic is asked for before it counts as missing: an answer may be to a question that was
#: asked for something else, before ours.
ASKED_TIMES = 3


@dataclass(frozen=True, kw_only=True, repr=False)
class KafkaSecurity:
    """
    How to speak to the brokers. The names are kafka-python's, save the last.

    @ivar sasl_oauth_token_file: the path of a file with a token, read for each connection.
    """

    security_protocol: str = "PLAINTEXT"
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True
    sasl_mechanism: str | None = None
    sasl_plain_username: str | None = None
    sasl_plain_password: str | None = None
    sasl_oauth_token_file: str | None = None


class Record(Protocol):
    """What is asked of a record of kafka-python."""

    offset: int
    timestamp: int | None
    value: bytes | None


class Unreachable(Exception):
    """No server can be connected to; its words say why."""


class MissingTopic(Exception):
    """The topic isn't there."""


class Connection:
    """
    A consumer of one topic. All methods but L{abort} are called in one thread, and
    block there for some seconds at most.

    @param servers: where to ask first, each C{HOST:PORT}.
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
        self._lock = Lock()
        self._is_aborted = False
        self._client: Any = None
        self._manager: Manager | None = None
        self._consumer: Any = None

    def open(self) -> None:
        """
        Connect, log in, and look for the topic.

        @raise Unreachable: where no server can be connected to.
        @raise MissingTopic: where the servers don't know the topic.
        @raise kafka_errors.KafkaError: where they say no, or nothing.
        @raise UnusableToken: where there is no token to log in with.
        @raise OSError: where another file of L{KafkaSecurity} can't be used.
        """
        context = _tls_context(self._security)
        # Not left to the client, which would tell its log alone why it failed, and try for its
        # whole time to bootstrap.
        _reach_any(self._servers, context)
        try:
            self._consumer = KafkaConsumer(**self._configuration(context))
            self._look_for_topic()
        except BaseException:
            # The consumer itself would leave the client's thread and descriptors behind.
            self.close()
            self._raise_refusal()
            raise

    def close(self) -> None:
        """Leave the group, and disconnect. A second call does nothing."""
        consumer, self._consumer = self._consumer, None
        try:
            if consumer is not None:
                consumer.close(autocommit=False, timeout_ms=_ms(LEAVE_SECONDS))
        except Exception:  # noqa: BLE001 - it can't leave the group, and is thrown out of it in time
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """From any thread: cut every connection. What blocks in another method raises."""
        with self._lock:
            self._is_aborted = True
        if self._client is not None:
            self._client.close()

    def topic_id(self) -> object:
        """What tells this topic from another of the same name; L{None} where brokers before 2.8 don’t say."""
        found: object = self._client.cluster.topic_id(self._topic)
        return found

    def partitions(self) -> frozenset[TopicPartition]:
        """
        The partitions that have a leader, by what was heard last.

        @raise MissingTopic: where there is no such topic any more.
        """
        numbers = self._client.cluster.available_partitions_for_topic(self._topic)
        if numbers is None:
            raise MissingTopic
        return frozenset(TopicPartition(self._topic, number) for number in numbers)

    def all_partitions(self) -> frozenset[TopicPartition]:
        """Those, and the partitions that have no leader."""
        numbers = self._client.cluster.partitions_for_topic(self._topic) or ()
        return frozenset(TopicPartition(self._topic, number) for number in numbers)

    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions that are being read."""
        return frozenset(self._consumer.assignment())

    def lost(self) -> str | None:
        """
        Which partition that is being read has no broker connected to, in words; L{None} where all have.

        Where none is being read, as others of the group have them all, any broker will do.
        """
        cluster = self._client.cluster
        assignment = sorted(self._consumer.assignment())
        if not assignment and not any(self._client.connected(each.node_id) for each in cluster.brokers()):
            return "there is no connection to any broker"
        for partition in assignment:
            leader = cluster.leader_for_partition(partition)
            broker = None if leader in (None, -1) else cluster.broker_metadata(leader)
            if broker is None:
                return f"partition {partition.partition} of topic {self._topic!r} has no leader"
            if not self._client.connected(leader):
                return f"there is no connection to {broker.host}:{broker.port}"
        return None

    def assign(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read these partitions, and no others, from these offsets."""
        self._consumer.assign(list(offsets))
        for partition, offset in offsets.items():
            self.seek(partition, offset)

    def subscribe(self) -> None:
        """Read the partitions that the group gives us."""
        self._consumer.subscribe([self._topic])

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on in a partition at this offset."""
        self._consumer.seek(partition, offset)

    def poll(self, timeout_seconds: float, most: int) -> Mapping[TopicPartition, Sequence[Record]]:
        """What there is to read, at most so many records; it waits where there is nothing."""
        self._raise_refusal()
        polled: Mapping[TopicPartition, Sequence[Record]] = self._consumer.poll(
            timeout_ms=_ms(timeout_seconds), max_records=most
        )
        return polled

    def end_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset of each partition's next record."""
        ends: dict[TopicPartition, int] = self._consumer.end_offsets(
            list(partitions), timeout_ms=_ms(self._request_seconds)
        )
        return ends

    def offsets_at(self, partitions: Collection[TopicPartition], sent_at: float) -> dict[TopicPartition, int]:
        """
        The offset of the first record of each partition that has one which was sent then or later.

        @param sent_at: in seconds since the Unix epoch.
        """
        found = self._consumer.offsets_for_times(
            dict.fromkeys(partitions, _ms(sent_at)), timeout_ms=_ms(self._request_seconds)
        )
        return {partition: first.offset for partition, first in found.items() if first is not None}

    def has_commits(self, partitions: Collection[TopicPartition]) -> bool:
        """Whether the group has committed anything in these partitions."""
        timeout_ms = _ms(self._request_seconds)
        return any(self._consumer.committed(each, timeout_ms=timeout_ms) is not None for each in partitions)

    def commit(self, offsets: Mapping[TopicPartition, int], timeout_seconds: float) -> None:
        """Tell the group how far these partitions were read: up to these offsets, without them."""
        marks = {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}
        self._consumer.commit(marks, timeout_ms=_ms(timeout_seconds))

    def unreadable(self) -> TopicPartition | None:
        """
        In which partition the record is that L{poll} could not read; L{None} where it can't be told.

        After this, there must be no other poll: it would never end (it takes from an
        iterator that has ended already, until it gets something).
        """
        records = self._consumer._fetcher._next_partition_records
        return None if records is None else records.topic_partition

    def _raise_refusal(self) -> None:
        if self._manager is not None and self._manager.refusal is not None:
            raise self._manager.refusal

    def _configuration(self, context: ssl.SSLContext | None) -> dict[str, Any]:
        security = self._security
        token_file = security.sasl_oauth_token_file
        return {
            "kafka_client": self._make_client,
            "bootstrap_servers": list(self._servers),
            "client_id": self._client_id,
            "group_id": self._group,
            # An offset that is out of range is of a partition that lost its end, or its beginning.
            # What was heard before is told by its offset and its time.
            "auto_offset_reset": "earliest",
            "enable_auto_commit": False,
            # One transaction that hangs would hold up all that others send after it began, for up to 15
            # minutes (transaction.max.timeout.ms), and nobody would be told.
            "isolation_level": "read_uncommitted",
            "bootstrap_timeout_ms": _ms(self._bootstrap_seconds),
            "request_timeout_ms": _ms(self._request_seconds),
            "metadata_max_age_ms": _ms(self._metadata_seconds),
            "session_timeout_ms": _ms(SESSION_SECONDS),
            "reconnect_backoff_max_ms": _ms(self._reconnect_seconds),
            "metrics_enabled": False,
            "security_protocol": security.security_protocol,
            "ssl_context": context,
            "ssl_check_hostname": security.ssl_check_hostname,
            "sasl_mechanism": security.sasl_mechanism,
            "sasl_plain_username": security.sasl_plain_username,
            "sasl_plain_password": security.sasl_plain_password,
            "sasl_oauth_token_provider": None if token_file is None else TokenFile(token_file),
        }

    def _make_client(self, **configuration: Any) -> Any:
        net = NetworkSelector(**configuration)
        self._manager = Manager(net, **configuration)
        client = Client(net=net, manager=self._manager, **configuration)
        with self._lock:
            self._client = client
            is_aborted = self._is_aborted
        if is_aborted:
            raise Unreachable("it was broken off")
        return client

    def _look_for_topic(self) -> None:
        cluster = self._client.cluster
        cluster.set_topics([self._topic])
        for _ in range(ASKED_TIMES):
            # What asks for metadata by itself may wait for ever.
            answered = Event()
            cluster.request_update().add_both(lambda _, answered=answered: answered.set())
            if not answered.wait(self._request_seconds):
                raise kafka_errors.KafkaTimeoutError("no answer about the topic")
            if self._topic in cluster.unauthorized_topics:
                raise kafka_errors.TopicAuthorizationFailedError({self._topic})
            if cluster.available_partitions_for_topic(self._topic):
                return
        raise MissingTopic


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _tls_context(security: KafkaSecurity) -> ssl.SSLContext | None:
    """How to verify servers, and to show who we are; L{None} where there is no TLS."""
    if not security.security_protocol.endswith("SSL"):
        return None
    if security.ssl_cafile is None:
        context = ssl.create_default_context()
    else:
        authorities = b"".join(read_certificates(security.ssl_cafile, bytes))
        context = ssl.create_default_context(cadata=authorities)
        # As Python does since 3.13: trust each certificate in the file, not only self-signed ones.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = security.ssl_check_hostname
    if security.ssl_certfile is not None:
        # With no password it would ask for one, at the terminal.
        context.load_cert_chain(security.ssl_certfile, security.ssl_keyfile, password="")
    return context


def _reach_any(servers: Sequence[str], context: ssl.SSLContext | None) -> None:
    """
    Connect to the first server that can be connected to, and disconnect.

    @raise Unreachable: with the reason of the last, where there is none.
    """
    reason = "there is no server"
    for server in servers:
        host, _, port = server.rpartition(":")
        host = host.strip("[]")
        try:
            with socket.create_connection((host, int(port)), CONNECT_SECONDS) as plain:
                if context is not None:
                    context.wrap_socket(plain, server_hostname=host).close()
            return
        except ssl.SSLError as problem:
            words = getattr(problem, "verify_message", None) or getattr(problem, "reason", None)
            reason = f"{server} can't be connected to: TLS failed: {words or 'the connection was cut'}"
        except (OSError, UnicodeError) as problem:
            reason = f"{server} can't be connected to: {getattr(problem, 'strerror', None) or problem}"
    raise Unreachable(reason)
