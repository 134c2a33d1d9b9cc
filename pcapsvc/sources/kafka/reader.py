"""Where in a topic we are, through all connections to its brokers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Lock, Thread

from kafka import TopicPartition
from kafka import errors as kafka_errors

from pcapsvc.core.age import CLOCK_SKEW_SECONDS
from pcapsvc.sources.kafka.connection import Connection, Record, Unreachable

#: How long a poll waits for messages. A stop waits for it.
POLL_SECONDS = 0.5

#: Messages that are submitted in one turn of the reactor, at most.
POLL_RECORDS = 100

#: After so long without a broker, everything begins anew: its name may mean another address by now.
ANEW_SECONDS = 60.0

#: How long a commit may hold up the next poll; and one when all is closed.
COMMIT_SECONDS = 2.0
LAST_COMMIT_SECONDS = 0.5

_OTHERS_HAVE_IT = (
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.UnknownMemberIdError,
)
_UNREADABLE = (kafka_errors.CorruptRecordError, kafka_errors.UnsupportedCodecError)


class NewTopic(Exception):
    """The topic was deleted, and created anew."""


class LongGone(Exception):
    """There was no connection for so long that everything is to begin anew; its words say to what."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """
    What a record of the topic says.

    @ivar sent_at: in seconds since the Unix epoch, by the record's time stamp; L{None} where it has none.
    """

    body: bytes
    sent_at: float | None


@dataclass(frozen=True, kw_only=True)
class Heard:
    """
    What a read brought.

    @ivar is_connected: whether every partition could be read.
    @ivar lost: what there is no connection to, in words; L{None} where there is one, or
        it isn't known yet.
    @ivar gap: what had to be passed over, in words; L{None} where nothing had to.
    """

    messages: tuple[Message, ...]
    is_connected: bool = True
    lost: str | None = None
    gap: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Place:
    """
    How far a partition was read.

    @ivar offset: of the next record.
    @ivar timestamp: the latest of those that were read, in milliseconds since the Unix
        epoch; -1 where there was none.
    """

    offset: int
    timestamp: int = -1


class Reader:
    """
    Reads a topic. L{read} and L{close} block, and are called in one thread.

    @param connect: makes a connection that isn't open yet.
    @param is_shared: whether the nodes of a group share the messages.
    @param wall_clock: the time in seconds since the Unix epoch.
    @param seconds: a clock that only goes forward, in seconds.
    @param pause: waits for so many seconds.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        is_shared: bool,
        wall_clock: Callable[[], float],
        seconds: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._connect = connect
        self._is_shared = is_shared
        self._wall_clock = wall_clock
        self._seconds = seconds
        self._pause = pause
        self._lock = Lock()
        self._is_stopped = False
        self._connection: Connection | None = None
        self._is_open = False
        self._topic_id: object = None
        # The partitions that were there at the first contact. Whatever is in others came after us.
        self._old: frozenset[TopicPartition] | None = None
        self._places: dict[TopicPartition, _Place] = {}
        # What the last read brought: it is submitted when the next one begins, and no sooner.
        self._brought: dict[TopicPartition, int] = {}
        self._uncommitted: dict[TopicPartition, int] = {}
        # When we began, by the wall clock: at the first contact, or the first attempt that failed.
        self._since: float | None = None
        self._lost_since: float | None = None

    def read(self) -> Heard:
        """
        Read what there is; but first commit what the read before this one brought.

        @raise Exception: where it can't go on. The next call begins with a new connection.
        """
        self._uncommitted |= self._brought
        self._brought = {}
        try:
            return self._read(self._connection if self._connection and self._is_open else self._open())
        except Exception:
            if self._since is None:
                self._since = self._wall_clock()
            self.close()
            raise

    def close(self) -> None:
        """
        Commit what was read, and disconnect. A second call does nothing.

        What the last read brought isn't committed: at a stop it is dropped, and comes again.
        """
        connection = self._connection
        if connection is None:
            return
        try:
            if self._is_open:
                self._commit(connection, LAST_COMMIT_SECONDS)
        except Exception:  # noqa: BLE001 - the brokers are gone, maybe; what isn't committed comes again
            pass
        finally:
            self._is_open = False
            self._connection = None
            self._lost_since = None
            connection.close()

    def stop(self) -> None:
        """From any thread: open nothing more, and break off what is being opened. Returns at once."""
        with self._lock:
            self._is_stopped = True
        if not self._is_open:
            self.abort()

    def abort(self) -> None:
        """From any thread: cut the connection, and with it whatever blocks in it. Returns at once."""
        connection = self._connection
        if connection is not None:
            Thread(target=connection.abort, daemon=True, name="pcapsvc-kafka-abort").start()

    def _open(self) -> Connection:
        with self._lock:
            if self._is_stopped:
                raise Unreachable("it is stopped")
            self._connection = connection = self._connect()
        connection.open()
        partitions = connection.partitions()
        if self._is_another_topic(connection):
            self._places.clear()
            self._uncommitted.clear()
            self._old = frozenset()
        if self._old is None:
            self._old = connection.all_partitions()
        self._topic_id = connection.topic_id() or self._topic_id
        if self._is_shared:
            self._join(connection, partitions)
        else:
            self._assign(connection, partitions)
        self._is_open = True
        return connection

    def _read(self, connection: Connection) -> Heard:
        self._commit(connection, COMMIT_SECONDS)
        partitions = connection.partitions()
        if self._is_another_topic(connection):
            raise NewTopic
        if not self._is_shared and not partitions <= connection.assignment():
            self._assign(connection, partitions)
        trouble = None
        try:
            polled = connection.poll(POLL_SECONDS, POLL_RECORDS)
        except kafka_errors.RetriableError as problem:
            # It goes on by itself, and is still a member of its group: to begin anew would cost more.
            polled, trouble = {}, f"the brokers don't do their work ({type(problem).__name__})"
            self._pause(POLL_SECONDS)
        except _UNREADABLE as problem:
            gap = self._pass_over(connection, problem)
            self.close()
            return Heard(messages=(), is_connected=False, gap=gap)
        messages = tuple(
            message for partition, records in polled.items() for message in self._unheard(partition, records)
        )
        # Messages are of some partitions, where others may be lost all the same.
        lost = self._lost(connection, partitions) or trouble
        if lost is None:
            self._lost_since = None
            return Heard(messages=messages)
        if self._lost_since is None:
            # It may be about to connect just now: the next read tells.
            self._lost_since = self._seconds()
            return Heard(messages=messages, is_connected=False)
        if not messages and self._seconds() - self._lost_since > ANEW_SECONDS:
            raise LongGone(lost)
        return Heard(messages=messages, is_connected=False, lost=lost)

    def _lost(self, connection: Connection, partitions: frozenset[TopicPartition]) -> str | None:
        """What can't be read now, in words; L{None} where there is nothing."""
        if not self._is_shared:
            # After a reconnection these are not even assigned.
            for partition in sorted(connection.all_partitions() - partitions):
                return f"partition {partition.partition} of topic {partition.topic!r} has no leader"
        return connection.lost()

    def _unheard(self, partition: TopicPartition, records: Iterable[Record]) -> Iterable[Message]:
        """
        The messages among some records of a partition that were not heard before.

        An offset comes twice where it couldn't be committed; and also where brokers
        lost the end of a partition, but its new record is later than any that was heard.
        """
        place = self._places.get(partition, _Place(offset=0))
        for record in records:
            timestamp = -1 if record.timestamp is None else record.timestamp
            if record.offset < place.offset and timestamp <= place.timestamp:
                continue
            place = _Place(offset=record.offset + 1, timestamp=max(timestamp, place.timestamp))
            yield Message(body=record.value or b"", sent_at=timestamp / 1000 if timestamp >= 0 else None)
        self._places[partition] = place
        if self._is_shared:
            self._brought[partition] = place.offset

    def _is_another_topic(self, connection: Connection) -> bool:
        # Brokers of one cluster may be of several versions, and not all of them say which topic it is.
        topic_id = connection.topic_id()
        return None not in (topic_id, self._topic_id) and topic_id != self._topic_id

    def _assign(self, connection: Connection, partitions: frozenset[TopicPartition]) -> None:
        """Read every partition, from where we are; one that we don't know, from where it begins for us."""
        self._places |= self._beginnings(connection, partitions - self._places.keys())
        connection.assign({partition: self._places[partition].offset for partition in partitions})

    def _join(self, connection: Connection, partitions: frozenset[TopicPartition]) -> None:
        """Join the group. Where it is a new one, commit first where it begins."""
        if not connection.has_commits(partitions):
            beginnings = self._beginnings(connection, partitions)
            try:
                connection.commit({each: place.offset for each, place in beginnings.items()}, COMMIT_SECONDS)
            except _OTHERS_HAVE_IT:
                pass  # Another node was faster.
        connection.subscribe()

    def _beginnings(
        self, connection: Connection, partitions: frozenset[TopicPartition]
    ) -> dict[TopicPartition, _Place]:
        """
        Where to begin: at the first contact with what comes next, and ever after with
        what was sent since then, or since we first tried. A partition that came later
        is read from its beginning.
        """
        old = partitions & (self._old or frozenset())
        # Where its records begin later than that, so does the client.
        offsets = dict.fromkeys(partitions - old, 0)
        if old:
            offsets |= connection.end_offsets(old)
            if self._since is not None:
                # It is the sender's clock that tells.
                offsets |= connection.offsets_at(old, self._since - CLOCK_SKEW_SECONDS)
        if self._since is None:
            self._since = self._wall_clock()
        return {partition: _Place(offset=offset) for partition, offset in offsets.items()}

    def _commit(self, connection: Connection, timeout_seconds: float) -> None:
        if not self._uncommitted:
            return
        try:
            connection.commit(self._uncommitted, timeout_seconds)
        except _OTHERS_HAVE_IT:
            pass  # The group was divided anew. What comes here again is passed over.
        except kafka_errors.RetriableError:
            return
        self._uncommitted.clear()

    def _pass_over(self, connection: Connection, problem: Exception) -> str:
        """Go on behind what can't be read here, rather than be deaf to all that follows."""
        partition = connection.unreadable()
        if partition is None:
            raise problem
        end = connection.end_offsets({partition})[partition]
        before = self._places.get(partition, _Place(offset=0))
        self._places[partition] = _Place(offset=end, timestamp=before.timestamp)
        if self._is_shared:
            self._uncommitted[partition] = end
        number = partition.partition
        return f"partition {number} has what can't be read ({problem}), and is passed over up to offset {end}"
