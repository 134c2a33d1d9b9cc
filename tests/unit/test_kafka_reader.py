"""Reading a Kafka topic, with a fake connection."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from twisted.trial import unittest

from pcapsvc.core.age import CLOCK_SKEW_SECONDS
from pcapsvc.net.kafka.problems import MissingTopic
from pcapsvc.net.kafka.security import Unreachable
from pcapsvc.sources.kafka.reader import RECONNECT_SECONDS, LongGone, NewTopic, Reader

BEGAN = 1_700_000_000.0

ZERO, ONE = TopicPartition("capture", 0), TopicPartition("capture", 1)


@dataclass
class Record:
    """A record of the topic."""

    offset: int
    value: bytes | None = b"{}"
    timestamp: int | None = int(BEGAN * 1000)


class Broker:
    """
    The brokers' state, and how they behave.

    @ivar ends: the offset of the next record, by partition; without any, there is no topic.
    @ivar leaderless: the partitions among them that have no leader.
    @ivar by_time: the offset to start at for a time, by partition.
    @ivar batches: what each poll returns; an exception is raised.
    @ivar skipped: how many batches each poll skipped, the last poll first.
    @ivar problem: why no connection can be opened; L{None} if one can.
    @ivar assigned_elsewhere: the partitions that other nodes of the group have.
    @ivar revoked: the partitions that the group has taken away and that the reader has not asked about.
    @ivar polls: for how long, and for how many records, each poll asked.
    @ivar calls: the requests that change something, in order.
    """

    def __init__(self) -> None:
        self.ends: dict[TopicPartition, int] = {ZERO: 10}
        self.leaderless: set[TopicPartition] = set()
        self.by_time: dict[TopicPartition, int] = {}
        self.batches: deque[Any] = deque()
        self.problem: Exception | None = None
        self.commit_problem: Exception | None = None
        self.lost: str | None = None
        self.topic_id: object = "id-1"
        self.has_commits = True
        self.stuck: TopicPartition | None = None
        self.skipped: list[int] = []
        self.assigned_elsewhere: set[TopicPartition] = set()
        self.revoked: set[TopicPartition] = set()
        self.polls: list[tuple[float, int]] = []
        self.calls: list[Any] = []
        self.connections: list[FakeConnection] = []

    def connect(self) -> Any:
        """Make a connection that isn't open."""
        self.connections.append(FakeConnection(self))
        return self.connections[-1]

    @property
    def open_connections(self) -> int:
        """How many connections are not closed."""
        return sum(not connection.is_closed for connection in self.connections)


class FakeConnection:
    """A L{pcapsvc.sources.kafka.connection.Connection}."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._is_subscribed = False
        self.is_closed = False
        self.aborted = threading.Event()

    def open(self) -> None:
        if self._broker.problem is not None:
            raise self._broker.problem

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.aborted.set()

    def topic_id(self) -> object:
        return self._broker.topic_id

    def partitions(self) -> frozenset[TopicPartition]:
        if not self._broker.ends:
            raise MissingTopic
        return frozenset(self._broker.ends) - self._broker.leaderless

    def all_partitions(self) -> frozenset[TopicPartition]:
        return frozenset(self._broker.ends)

    def assignment(self) -> frozenset[TopicPartition]:
        if self._is_subscribed:
            return frozenset(self._broker.ends) - self._broker.assigned_elsewhere
        return self._assigned

    def lost(self) -> str | None:
        return self._broker.lost

    def assign(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._assigned = frozenset(offsets)
        self._broker.calls.append(("assign", dict(offsets)))

    def subscribe(self) -> None:
        self._is_subscribed = True
        self._broker.calls.append("subscribe")

    def revoked(self) -> frozenset[TopicPartition]:
        revoked = frozenset(self._broker.revoked)
        self._broker.revoked.clear()
        return revoked

    def poll(self, timeout_seconds: float, most: int) -> Any:
        self._broker.polls.append((timeout_seconds, most))
        batch = self._broker.batches.popleft() if self._broker.batches else {}
        if isinstance(batch, Exception):
            raise batch
        return batch

    def end_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return {each: self._broker.ends[each] for each in partitions}

    def offsets_at(self, partitions: Collection[TopicPartition], sent_at: float) -> dict[TopicPartition, int]:
        self._broker.calls.append(("at", sent_at))
        return {each: self._broker.by_time[each] for each in partitions if each in self._broker.by_time}

    def has_commits(self, partitions: Collection[TopicPartition]) -> bool:
        return self._broker.has_commits

    def commit(self, offsets: Mapping[TopicPartition, int], timeout_seconds: float) -> None:
        if self._broker.commit_problem is not None:
            raise self._broker.commit_problem
        self._broker.calls.append(("commit", dict(offsets)))

    def skipped(self) -> int:
        return self._broker.skipped.pop() if self._broker.skipped else 0

    def unreadable(self) -> TopicPartition | None:
        return self._broker.stuck


class ReaderTestCase(unittest.SynchronousTestCase):
    """What tests of the reader share."""

    is_shared = False

    def setUp(self) -> None:
        self.broker = Broker()
        self.now = BEGAN
        self.pauses: list[float] = []
        self.reader = Reader(
            self.broker.connect,
            is_shared=self.is_shared,
            wall_clock=lambda: self.now,
            seconds=lambda: self.now,
            pause=self.pauses.append,
        )

    def bodies(self, *batches: Any) -> list[bytes]:
        """The bodies that the next reads return, one read for each batch."""
        self.broker.batches.extend(batches)
        return [message.body for _ in batches for message in self.reader.read().messages]


class ReaderTests(ReaderTestCase):
    """Without a group, every message is read, from the first contact on."""

    def test_newest(self) -> None:
        """It starts at the newest offset of each partition."""
        self.broker.ends = {ZERO: 10, ONE: 20}
        self.reader.read()
        self.assertEqual([("assign", {ZERO: 10, ONE: 20})], self.broker.calls)

    def test_few_at_once(self) -> None:
        """Few messages are read at once: it takes a while to accept or refuse each."""
        self.reader.read()
        self.assertTrue(all(0 < most < 30 for _, most in self.broker.polls), self.broker.polls)

    def test_messages(self) -> None:
        """A message is the value of a record, with its time. The key is ignored."""
        self.broker.batches.append(
            {
                ZERO: [
                    Record(10, b"one", 1_700_000_000_250),
                    Record(11, None, None),
                    Record(12, b"", -1),
                    Record(13, b"", 0),
                ]
            }
        )
        messages = self.reader.read().messages
        self.assertEqual([b"one", b"", b"", b""], [message.body for message in messages])
        # -1 is none, and 0 is 1970.
        self.assertEqual([1_700_000_000.25, None, None, 0.0], [message.sent_at for message in messages])

    def test_after_a_failure_nothing_is_newest(self) -> None:
        """If the first attempt failed, it starts with what was sent since then, less the clock skew."""
        self.broker.ends = {ZERO: 10, ONE: 20}
        self.broker.by_time = {ZERO: 7}
        self.broker.problem = Unreachable("down")
        self.assertRaises(Unreachable, self.reader.read)
        self.broker.problem = None
        self.now += 30
        self.reader.read()
        at = BEGAN - CLOCK_SKEW_SECONDS
        self.assertEqual([("at", at), ("assign", {ZERO: 7, ONE: 20})], self.broker.calls)

    def test_later_partitions(self) -> None:
        """A partition that is added later is read from its beginning, whatever the time stamps in it."""
        self.reader.read()
        self.broker.ends = {ZERO: 12, ONE: 3}
        self.broker.by_time = {ONE: 2}
        self.bodies({ZERO: [Record(10), Record(11)]}, {})
        self.assertEqual([("assign", {ZERO: 10}), ("assign", {ZERO: 10, ONE: 0})], self.broker.calls)

    def test_a_partition_that_had_no_leader(self) -> None:
        """A partition that had no leader at first is read from what was sent since the first contact."""
        self.broker.ends, self.broker.by_time = {ZERO: 10, ONE: 20}, {ONE: 18}
        self.broker.leaderless = {ONE}
        self.reader.read()
        self.broker.leaderless = set()
        self.now += 30
        self.reader.read()
        at = BEGAN - CLOCK_SKEW_SECONDS
        self.assertEqual(
            [("assign", {ZERO: 10}), ("at", at), ("assign", {ZERO: 10, ONE: 18})], self.broker.calls
        )

    def test_a_partition_that_loses_its_leader(self) -> None:
        """A partition that regains its leader after a long time is read on from its position."""
        self.broker.ends = {ZERO: 10, ONE: 20}
        self.bodies({ONE: [Record(20), Record(21)]})
        self.broker.leaderless, self.broker.lost = {ONE}, "partition 1 has no leader"
        self.reader.read()
        self.now += RECONNECT_SECONDS + 1
        self.assertRaises(LongGone, self.reader.read)
        self.broker.lost = None
        self.reader.read()
        self.broker.leaderless = set()
        self.reader.read()
        self.assertEqual([("assign", {ZERO: 10}), ("assign", {ZERO: 10, ONE: 22})], self.broker.calls[1:])

    def test_goes_on(self) -> None:
        """After a failure it continues from its position, on a new connection."""
        self.bodies({ZERO: [Record(10), Record(11)]})
        self.broker.batches.append(kafka_errors.UnknownError("gone"))
        self.assertRaises(kafka_errors.UnknownError, self.reader.read)
        self.assertEqual(0, self.broker.open_connections)
        self.broker.ends = {ZERO: 50}
        self.assertEqual([b"later"], self.bodies({ZERO: [Record(12, b"later")]}))
        self.assertEqual(("assign", {ZERO: 12}), self.broker.calls[-1])
        self.assertEqual(2, len(self.broker.connections))

    def test_nothing_twice(self) -> None:
        """A record that was read is skipped if it comes again."""
        batch = {ZERO: [Record(10, b"one"), Record(11, b"two")]}
        again = {ZERO: [Record(11, b"two"), Record(12, b"three")]}
        self.assertEqual([b"one", b"two", b"three"], self.bodies(batch, again))

    def test_a_partition_that_lost_its_end(self) -> None:
        """If brokers have lost the end of a partition, its new records are read, and no old one again."""
        second = int(BEGAN * 1000) + 1000
        self.bodies({ZERO: [Record(10, b"a"), Record(11, b"b"), Record(12, b"c")]})
        kept, new = Record(10, b"a"), Record(11, b"new", second)
        self.assertEqual(
            [b"new", b"newer"], self.bodies({ZERO: [kept, new]}, {ZERO: [Record(12, b"newer", second)]})
        )

    def test_a_record_from_the_future(self) -> None:
        """A time stamp in the future hides no new record of a partition that lost its end."""
        self.bodies({ZERO: [Record(10, b"a"), Record(11, b"b", int(BEGAN * 1000) + 10**12)]})
        self.now += 60
        new = Record(11, b"new", int(self.now * 1000))
        self.assertEqual([b"new"], self.bodies({ZERO: [Record(10, b"a"), new]}))

    def test_nothing_from_the_future_twice(self) -> None:
        """A record that has a time stamp in the future is skipped if it comes again."""
        future = Record(10, b"a", int(BEGAN * 1000) + 10**12)
        self.assertEqual([b"a"], self.bodies({ZERO: [future]}, {ZERO: [future]}))

    def test_a_topic_created_again(self) -> None:
        """A topic of the same name, created again, is read from its beginning."""
        self.bodies({ZERO: [Record(10)]})
        self.broker.topic_id = "id-2"
        self.broker.ends, self.broker.by_time = {ZERO: 2}, {ZERO: 1}
        self.assertRaises(NewTopic, self.reader.read)
        self.assertEqual([b"first"], self.bodies({ZERO: [Record(0, b"first")]}))
        self.assertEqual(("assign", {ZERO: 0}), self.broker.calls[-1])

    def test_brokers_of_several_versions(self) -> None:
        """If a broker doesn't know topic ids, the topic counts as the same."""
        self.reader.read()
        for self.broker.topic_id in (None, "id-1"):
            self.broker.batches.append(kafka_errors.UnknownError("gone"))
            self.assertRaises(kafka_errors.UnknownError, self.reader.read)
            self.reader.read()
        self.assertEqual([("assign", {ZERO: 10})] * 3, self.broker.calls)

    def test_a_topic_that_goes_away(self) -> None:
        """A topic that vanishes is a problem; if it comes back unchanged, it is read on."""
        self.bodies({ZERO: [Record(10)]})
        ends, self.broker.ends = self.broker.ends, {}
        self.assertRaises(MissingTopic, self.reader.read)
        self.broker.ends = ends
        self.reader.read()
        self.assertEqual(("assign", {ZERO: 11}), self.broker.calls[-1])

    def test_lost(self) -> None:
        """A missing connection is reported by the second read: at the first it may be connecting."""
        self.broker.lost = "no connection to a:1"
        heard = [self.reader.read() for _ in range(3)]
        self.assertEqual([False] * 3, [each.is_connected for each in heard])
        self.assertEqual([None, self.broker.lost, self.broker.lost], [each.lost for each in heard])
        self.broker.lost = None
        self.assertTrue(self.reader.read().is_connected)

    def test_no_leader(self) -> None:
        """A partition without a leader is reported, whatever messages another partition has."""
        self.broker.ends, self.broker.leaderless = {ZERO: 10, ONE: 20}, {ONE}
        heard = [self.reader.read() for _ in range(2)]
        words = "partition 1 of topic 'capture' has no leader"
        self.assertEqual([None, words], [each.lost for each in heard])
        self.broker.batches.append({ZERO: [Record(10)]})
        self.assertFalse(self.reader.read().is_connected)
        self.broker.leaderless = set()
        self.broker.batches.append({ZERO: [Record(11)]})
        self.assertTrue(self.reader.read().is_connected)
        self.assertEqual(("assign", {ZERO: 11, ONE: 20}), self.broker.calls[-1])

    def test_no_leader_beside_a_busy_one(self) -> None:
        """So it is if another partition always has messages, none of which is lost."""
        self.broker.ends, self.broker.leaderless = {ZERO: 10, ONE: 20}, {ONE}
        self.broker.batches.extend({ZERO: [Record(number)]} for number in range(10, 14))
        heard = [self.reader.read() for _ in range(3)]
        self.now += RECONNECT_SECONDS + 1
        heard.append(self.reader.read())
        words = "partition 1 of topic 'capture' has no leader"
        self.assertEqual([None, words, words, words], [each.lost for each in heard])
        self.assertEqual([(False, 1)] * 4, [(each.is_connected, len(each.messages)) for each in heard])

    def test_what_goes_on_by_itself(self) -> None:
        """An error that the client recovers from closes no connection, and is reported if it comes twice."""
        gone = kafka_errors.KafkaConnectionError("hunter2")
        self.broker.batches.extend([gone, gone, {}])
        heard = [self.reader.read() for _ in range(3)]
        words = "the brokers are not working properly (KafkaConnectionError)"
        self.assertEqual([None, words, None], [each.lost for each in heard])
        self.assertEqual([False, False, True], [each.is_connected for each in heard])
        self.assertEqual(2, len(self.pauses))
        self.assertEqual(1, self.broker.open_connections)

    def test_lost_for_long(self) -> None:
        """After a minute without a connection, a new one is made."""
        self.broker.lost = "no connection to a:1"
        self.reader.read()
        self.now += RECONNECT_SECONDS + 1
        self.assertRaises(LongGone, self.reader.read)
        self.assertEqual(0, self.broker.open_connections)
        self.assertEqual(None, self.reader.read().lost)

    def test_skipped(self) -> None:
        """Batches that the connection skipped are reported once."""
        self.broker.skipped = [0, 2]
        self.assertEqual("skipped 2 batches that decompress to too much", self.reader.read().gap)
        self.assertEqual(None, self.reader.read().gap)

    def test_what_cannot_be_read(self) -> None:
        """Unreadable records are skipped and reported; the next ones are read."""
        for problem in (
            kafka_errors.UnsupportedCodecError("no zstd"),
            kafka_errors.CorruptRecordError("crc"),
        ):
            self.broker.ends[ZERO] += 5
            self.broker.stuck = ZERO
            self.broker.batches.append(problem)
            heard = self.reader.read()
            self.assertIn("partition 0 contains unreadable records", str(heard.gap))
            self.assertIn(f"skipped to offset {self.broker.ends[ZERO]}", str(heard.gap))
            # Another poll of this consumer would never return.
            self.assertEqual(0, self.broker.open_connections)
            self.reader.read()
            self.assertEqual(("assign", {ZERO: self.broker.ends[ZERO]}), self.broker.calls[-1])

    def test_what_cannot_be_read_and_nobody_knows_where(self) -> None:
        """If the partition is unknown, this is a failure like any other."""
        self.broker.batches.append(kafka_errors.CorruptRecordError("crc"))
        self.assertRaises(kafka_errors.CorruptRecordError, self.reader.read)
        self.assertEqual(0, self.broker.open_connections)

    def test_each_failed_attempt_is_closed(self) -> None:
        """A failed attempt leaves nothing behind."""
        self.broker.problem = kafka_errors.KafkaTimeoutError("no answer")
        for _ in range(3):
            self.assertRaises(kafka_errors.KafkaTimeoutError, self.reader.read)
        self.assertEqual(3, len(self.broker.connections))
        self.assertEqual(0, self.broker.open_connections)

    def test_stop_before_it_opens(self) -> None:
        """Once stopped, it opens no connection."""
        self.reader.stop()
        self.assertRaises(Unreachable, self.reader.read)
        self.assertEqual([], self.broker.connections)

    def test_stop_while_it_opens(self) -> None:
        """A stop aborts a connection that is being opened."""
        connection = FakeConnection(self.broker)
        self.reader = Reader(
            lambda: connection,  # type: ignore[arg-type,return-value]
            is_shared=False,
            wall_clock=lambda: self.now,
        )
        connection.open = self.reader.stop  # type: ignore[method-assign]
        self.reader.read()
        self.assertTrue(connection.aborted.wait(60))

    def test_stop_of_an_open_one(self) -> None:
        """A stop doesn't abort an open connection: that is closed in order."""
        self.reader.read()
        self.reader.stop()
        self.assertFalse(self.broker.connections[0].aborted.is_set())
        self.reader.close()
        self.reader.close()
        self.assertEqual(0, self.broker.open_connections)
