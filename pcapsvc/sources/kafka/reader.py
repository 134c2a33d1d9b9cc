"""Keeps the position in a topic across all connections to its brokers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from threading import Lock, Thread

import msgspec
from kafka import TopicPartition
from kafka import errors as kafka_errors

from pcapsvc.core.age import CLOCK_SKEW_SECONDS
from pcapsvc.net.kafka.security import Unreachable
from pcapsvc.sources.kafka.connection import Connection, Record
from pcapsvc.sources.kafka.undecided import Undecided

#: How long a poll waits for messages. A stop waits for the poll.
POLL_SECONDS = 0.5

#: How many messages are submitted in one turn of the reactor. One for this node takes it up to 0.4 ms, until
#: it is accepted or refused.
POLL_RECORDS = 20

#: In a group, how many verdicts may be awaited. Until there are fewer, nothing more is read: the pipeline
#: prepares up to 128 requests of a source (L{pcapsvc.judge.MOST_PENDING}), and one that is answered as busy
#: is lost to the group.
MOST_UNDECIDED = 100

#: How long a poll waits while verdicts are awaited: they are committed after it.
SHORT_POLL_SECONDS = 0.05

#: After so long without a broker, a new connection is made: its name may resolve to another address by now.
RECONNECT_SECONDS = 60.0

#: How long a commit may delay the next poll, and the close.
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
    """The topic was deleted and created again."""


class LongGone(Exception):
    """There was no connection for so long that a new one must be made. The message says to what."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """
    The content of a record of the topic.

    @ivar partition: where it is; likewise C{offset}.
    @ivar sent_at: in seconds since the Unix epoch, by the record's time stamp; L{None} if it has none.
    """

    body: bytes
    sent_at: float | None
    partition: TopicPartition
    offset: int


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """
    The result of a read.

    @ivar is_connected: whether every partition could be read.
    @ivar is_assigned: whether this node has partitions. In a group, others may have them all.
    @ivar lost: which connection is missing, in words; L{None} if none is, or it isn't known yet.
    @ivar gap: what had to be skipped, in words; L{None} if nothing was.
    """

    messages: tuple[Message, ...]
    is_connected: bool = True
    is_assigned: bool = True
    lost: str | None = None
    gap: str | None = None


class _Place(msgspec.Struct, frozen=True, kw_only=True):
    """
    The position in a partition.

    @ivar offset: of the next record.
    @ivar timestamp: the latest of those that were read and were not in the future, in milliseconds since the
        Unix epoch; -1 if there was none.
    """

    offset: int
    timestamp: int = -1


class Reader:
    """
    Reads a topic. L{read} and L{close} block, and are called in one thread.

    In a group, of each partition that this node has, the offset of its first undecided message is committed,
    or, if all are decided, its position. So what isn't decided when this node ends or loses the partition is
    delivered again. If a partition comes back, undecided messages before the offset from which it is read
    then don't count: other nodes have committed them, and the commit must not go back.

    @param connect: makes a connection that isn't open yet.
    @param is_shared: whether the nodes of a consumer group share the messages.
    @param wall_clock: returns the time in seconds since the Unix epoch.
    @param seconds: returns a monotonic time in seconds.
    @param pause: sleeps for some seconds.

    @ivar undecided: the messages whose verdicts are awaited. A message must be in it before the next L{read}
        begins, or counts as decided then.
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
        # The partitions that existed at the first contact. Whatever is in others is newer.
        self._old: frozenset[TopicPartition] | None = None
        self._places: dict[TopicPartition, _Place] = {}
        self.undecided = Undecided()
        # In a group: the offsets after the last read. What it returned counts as submitted once the next
        # read begins. Then the offsets after what was submitted, the first ones that were read since the
        # partition was assigned, and those that were committed last.
        self._returned: dict[TopicPartition, int] = {}
        self._submitted: dict[TopicPartition, int] = {}
        self._first: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        # The wall-clock time of the first contact, or of the first attempt that failed.
        self._since: float | None = None
        self._lost_since: float | None = None

    def read(self) -> Batch:
        """
        Commit what is decided of what previous reads returned, then read.

        @raise Exception: if it can't go on. The next call makes a new connection.
        """
        self._submitted |= self._returned
        self._returned = {}
        try:
            return self._read(self._connection if self._connection and self._is_open else self._open())
        except Exception:
            if self._since is None:
                self._since = self._wall_clock()
            self.close()
            raise

    def close(self) -> None:
        """
        Commit what is decided, and disconnect. A second call does nothing.

        What the last read returned isn't committed: a stop drops it, and it is delivered again.
        """
        connection = self._connection
        if connection is None:
            return
        try:
            if self._is_open:
                self._commit(connection, LAST_COMMIT_SECONDS)
        except Exception:  # noqa: BLE001 - the brokers may be gone; what isn't committed is delivered again
            pass
        finally:
            self._is_open = False
            self._connection = None
            self._lost_since = None
            # What wasn't committed is delivered again, here or to another node, and skipped here.
            self._forget(frozenset((*self._submitted, *self._first)))
            connection.close()

    def stop(self) -> None:
        """From any thread: open no more connections, and abort one that is being opened. Returns at once."""
        with self._lock:
            self._is_stopped = True
        if not self._is_open:
            self.abort()

    def abort(self) -> None:
        """From any thread: close the connection, which ends what is blocked in it. Returns at once."""
        connection = self._connection
        if connection is not None:
            # If no thread can be started, what is blocked ends by its own time-out.
            with suppress(RuntimeError):
                Thread(target=connection.abort, daemon=True, name="pcapsvc-kafka-abort").start()

    def _open(self) -> Connection:
        with self._lock:
            if self._is_stopped:
                raise Unreachable("the source is stopped")
            self._connection = connection = self._connect()
        connection.open()
        partitions = connection.partitions()
        if self._is_another_topic(connection):
            self._places.clear()
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

    def _read(self, connection: Connection) -> Batch:
        self._forget(connection.revoked())
        self._commit(connection, COMMIT_SECONDS)
        partitions = connection.partitions()
        if self._is_another_topic(connection):
            raise NewTopic
        if not self._is_shared and not partitions <= connection.assignment():
            self._assign(connection, partitions)
        trouble = None
        try:
            polled = self._poll(connection)
        except kafka_errors.RetriableError as problem:
            # The client recovers by itself, and stays in its group. A new connection would cost more.
            polled, trouble = {}, f"the brokers are not working properly ({type(problem).__name__})"
            self._pause(POLL_SECONDS)
        except _UNREADABLE as problem:
            gap = self._skip(connection, problem)
            self.close()
            return Batch(messages=(), is_connected=False, gap=gap)
        self._forget(connection.revoked())
        messages = tuple(
            message for partition, records in polled.items() for message in self._unseen(partition, records)
        )
        skipped = connection.skipped()
        too_much = f"skipped {skipped} batches that decompress to too much" if skipped else None
        # There may be messages of some partitions while others are lost.
        lost = self._lost(connection, partitions) or trouble
        if lost is None:
            self._lost_since = None
            return Batch(messages=messages, is_assigned=bool(connection.assignment()), gap=too_much)
        if self._lost_since is None:
            # It may be connecting right now: the next read will show.
            self._lost_since = self._seconds()
            return Batch(messages=messages, is_connected=False, gap=too_much)
        if not messages and self._seconds() - self._lost_since > RECONNECT_SECONDS:
            raise LongGone(lost)
        return Batch(messages=messages, is_connected=False, lost=lost, gap=too_much)

    def _poll(self, connection: Connection) -> Mapping[TopicPartition, Sequence[Record]]:
        if not self._is_shared:
            return connection.poll(POLL_SECONDS, POLL_RECORDS)
        undecided = len(self.undecided)
        room = max(0, MOST_UNDECIDED - undecided)
        return connection.poll(SHORT_POLL_SECONDS if undecided else POLL_SECONDS, min(POLL_RECORDS, room))

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        """Commit nothing of these partitions until they are read again."""
        for partition in partitions:
            for offsets in (self._returned, self._submitted, self._first, self._committed):
                offsets.pop(partition, None)

    def _lost(self, connection: Connection, partitions: frozenset[TopicPartition]) -> str | None:
        """What can't be read now, in words; L{None} if everything can."""
        if not self._is_shared:
            # After a reconnection, these are not even assigned.
            for partition in sorted(connection.all_partitions() - partitions):
                return f"partition {partition.partition} of topic {partition.topic!r} has no leader"
        return connection.lost()

    def _unseen(self, partition: TopicPartition, records: Iterable[Record]) -> Iterable[Message]:
        """
        The messages among some records of a partition that were not submitted before.

        An offset comes twice if it couldn't be committed. It also does if brokers have lost the end of a
        partition, but then the new record is later than any that was submitted. A time stamp in the future
        isn't compared: no new record would be later.
        """
        place = self._places.get(partition, _Place(offset=0))
        latest = (self._wall_clock() + CLOCK_SKEW_SECONDS) * 1000
        for record in records:
            if self._is_shared:
                self._first[partition] = min(record.offset, self._first.get(partition, record.offset))
            timestamp = -1 if record.timestamp is None else record.timestamp
            known = timestamp if timestamp <= latest else -1
            if record.offset < place.offset and known <= place.timestamp:
                continue
            place = _Place(offset=record.offset + 1, timestamp=max(known, place.timestamp))
            yield Message(
                body=record.value or b"",
                sent_at=timestamp / 1000 if timestamp >= 0 else None,
                partition=partition,
                offset=record.offset,
            )
        self._places[partition] = place
        if self._is_shared:
            self._returned[partition] = place.offset

    def _is_another_topic(self, connection: Connection) -> bool:
        # The brokers of a cluster may have different versions, not all of which know topic ids.
        topic_id = connection.topic_id()
        return None not in (topic_id, self._topic_id) and topic_id != self._topic_id

    def _assign(self, connection: Connection, partitions: frozenset[TopicPartition]) -> None:
        """Read every partition from its position. A new one gets a position first, see L{_starts}."""
        self._places |= self._starts(connection, partitions - self._places.keys())
        connection.assign({partition: self._places[partition].offset for partition in partitions})

    def _join(self, connection: Connection, partitions: frozenset[TopicPartition]) -> None:
        """Join the consumer group. If it is a new one, commit its first positions before."""
        if not connection.has_commits(partitions):
            starts = self._starts(connection, partitions)
            try:
                connection.commit({each: place.offset for each, place in starts.items()}, COMMIT_SECONDS)
            except _OTHERS_HAVE_IT:
                pass  # Another node was faster.
        connection.subscribe()

    def _starts(
        self, connection: Connection, partitions: frozenset[TopicPartition]
    ) -> dict[TopicPartition, _Place]:
        """
        Where to start: at the first contact, with the next record; later, with what was sent since then, or
        since the first attempt to connect. A partition that was added later is read from its beginning.
        """
        old = partitions & (self._old or frozenset())
        # If its first record has a higher offset, the client starts there.
        offsets = dict.fromkeys(partitions - old, 0)
        if old:
            offsets |= connection.end_offsets(old)
            if self._since is not None:
                # The time stamps are by the senders' clocks.
                offsets |= connection.offsets_at(old, self._since - CLOCK_SKEW_SECONDS)
        if self._since is None:
            self._since = self._wall_clock()
        return {partition: _Place(offset=offset) for partition, offset in offsets.items()}

    def _commit(self, connection: Connection, timeout_seconds: float) -> None:
        offsets = self._committable(connection)
        if not offsets:
            return
        try:
            connection.commit(offsets, timeout_seconds)
        except _OTHERS_HAVE_IT:
            pass  # The group was rebalanced. What is delivered here again is skipped.
        except kafka_errors.RetriableError:
            return
        self._committed |= offsets

    def _committable(self, connection: Connection) -> dict[TopicPartition, int]:
        """The offsets that may be committed, and haven't been, of the partitions that this node has."""
        offsets: dict[TopicPartition, int] = {}
        for partition in self._submitted.keys() & connection.assignment():
            first = self._first.get(partition, 0)
            undecided = self.undecided.first(partition, first)
            offset = self._submitted[partition] if undecided is None else undecided
            if offset != self._committed.get(partition, first):
                offsets[partition] = offset
        return offsets

    def _skip(self, connection: Connection, problem: Exception) -> str:
        """Continue after what can't be read, rather than stop reading the partition."""
        partition = connection.unreadable()
        if partition is None:
            raise problem
        end = connection.end_offsets({partition})[partition]
        before = self._places.get(partition, _Place(offset=0))
        self._places[partition] = _Place(offset=end, timestamp=before.timestamp)
        if self._is_shared:
            self._submitted[partition] = end
        number = partition.partition
        return f"partition {number} contains unreadable records ({problem}); skipped to offset {end}"
