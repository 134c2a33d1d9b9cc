"""Reading a Kafka topic in a consumer group, with a fake connection."""

from __future__ import annotations

from kafka import TopicPartition
from kafka import errors as kafka_errors

from pcapsvc.sources.kafka.reader import (
    MOST_UNDECIDED,
    POLL_RECORDS,
    POLL_SECONDS,
    SHORT_POLL_SECONDS,
    NewTopic,
)
from tests.unit.test_kafka_reader import ONE, ZERO, ReaderTestCase, Record


class SharedReaderTests(ReaderTestCase):
    """With a group, submitted messages are committed."""

    is_shared = True

    def commits(self) -> list[dict[TopicPartition, int]]:
        """The committed offsets."""
        return [call[1] for call in self.broker.calls if call[0] == "commit"]

    def test_joins(self) -> None:
        """A group that has read before continues from its offsets."""
        self.reader.read()
        self.assertEqual(["subscribe"], self.broker.calls)

    def test_a_new_group(self) -> None:
        """A new group starts at the newest offset, which is committed before anything is read."""
        self.broker.has_commits = False
        self.reader.read()
        self.assertEqual([("commit", {ZERO: 10}), "subscribe"], self.broker.calls)

    def test_a_topic_created_again(self) -> None:
        """A group reads a topic that was created again from its beginning."""
        self.reader.read()
        self.broker.topic_id, self.broker.has_commits = "id-2", False
        self.broker.ends, self.broker.by_time = {ZERO: 2}, {ZERO: 1}
        self.assertRaises(NewTopic, self.reader.read)
        self.reader.read()
        self.assertEqual(["subscribe", ("commit", {ZERO: 0}), "subscribe"], self.broker.calls)

    def test_a_new_group_that_another_node_began(self) -> None:
        """If another node was faster to commit that, its offsets count."""
        self.broker.has_commits = False
        self.broker.commit_problem = kafka_errors.UnknownMemberIdError("joined already")
        self.reader.read()
        self.assertEqual(["subscribe"], self.broker.calls)

    def test_committed_after_it_was_submitted(self) -> None:
        """What a read returned is committed by the next one, once it was submitted; and only once."""
        self.bodies({ZERO: [Record(10), Record(11)]})
        self.assertEqual([], self.commits())
        self.bodies({}, {})
        self.assertEqual([{ZERO: 12}], self.commits())

    def test_committed_at_the_end(self) -> None:
        """What was submitted, and could not be committed before, is committed at the close."""
        self.broker.commit_problem = kafka_errors.KafkaTimeoutError("away")
        self.bodies({ZERO: [Record(10)]}, {})
        self.broker.commit_problem = None
        self.reader.close()
        self.assertEqual([{ZERO: 11}], self.commits())

    def test_not_committed_before_it_was_submitted(self) -> None:
        """What the last read returned isn't committed at the close: it may not have been submitted."""
        self.bodies({ZERO: [Record(10)]}, {ZERO: [Record(11)]})
        self.reader.close()
        self.assertEqual([{ZERO: 11}], self.commits())

    def test_brokers_that_are_away(self) -> None:
        """What can't be committed now is committed later; reading goes on."""
        self.bodies({ZERO: [Record(10)]})
        self.broker.commit_problem = kafka_errors.KafkaTimeoutError("away")
        self.assertEqual([b"two"], self.bodies({ZERO: [Record(11, b"two")]}))
        self.broker.commit_problem = None
        self.bodies({})
        self.assertEqual([{ZERO: 12}], self.commits())

    def test_a_rebalanced_group(self) -> None:
        """What other nodes have now isn't committed; what comes here again is skipped."""
        self.bodies({ZERO: [Record(10, b"one")]})
        self.broker.commit_problem = kafka_errors.CommitFailedError()
        self.bodies({})
        self.broker.commit_problem = None
        self.assertEqual([b"two"], self.bodies({ZERO: [Record(10, b"one"), Record(11, b"two")]}))
        self.bodies({})
        self.assertEqual([{ZERO: 12}], self.commits())

    def test_no_right_to_commit(self) -> None:
        """A commit without permission is a failure."""
        self.bodies({ZERO: [Record(10)]})
        self.broker.commit_problem = kafka_errors.GroupAuthorizationFailedError("g")
        self.assertRaises(kafka_errors.GroupAuthorizationFailedError, self.reader.read)

    def test_undecided(self) -> None:
        """Of each partition, only what precedes the first message without a verdict is committed."""
        self.broker.ends = {ZERO: 10, ONE: 20}
        self.bodies({ZERO: [Record(10), Record(11), Record(12)], ONE: [Record(20)]})
        undecided = self.reader.undecided
        for offset in (11, 12):
            undecided.add(ZERO, offset)
        self.bodies({}, {})
        self.assertEqual([{ZERO: 11, ONE: 21}], self.commits())
        undecided.remove(ZERO, 12)
        self.bodies({}, {ZERO: [Record(13)]}, {})
        self.assertEqual(1, len(self.commits()))
        undecided.remove(ZERO, 11)
        self.bodies({}, {})
        self.assertEqual([{ZERO: 14}], self.commits()[1:])

    def test_undecided_first(self) -> None:
        """If the first message has no verdict, nothing is committed, not even at the close."""
        self.bodies({ZERO: [Record(10), Record(11)]})
        self.reader.undecided.add(ZERO, 10)
        self.bodies({})
        self.reader.close()
        self.assertEqual([], self.commits())

    def test_decided_at_the_close(self) -> None:
        """What was decided since the last commit is committed at the close."""
        self.bodies({ZERO: [Record(10), Record(11)]})
        self.reader.undecided.add(ZERO, 10)
        self.bodies({})
        self.reader.undecided.remove(ZERO, 10)
        self.reader.close()
        self.assertEqual([{ZERO: 12}], self.commits())

    def test_what_others_have(self) -> None:
        """A partition that other nodes have isn't committed: they may have committed more."""
        for revoked in (set(), {ZERO}):
            self.bodies({ZERO: [Record(10), Record(11)]})
            self.reader.undecided.add(ZERO, 10)
            self.bodies({})
            self.broker.assigned_elsewhere = {ZERO}
            # The client may have lost it, and not said so yet.
            self.broker.revoked = revoked
            self.reader.undecided.remove(ZERO, 10)
            self.bodies({})
            self.reader.close()
            self.assertEqual([], self.commits())
            self.broker.assigned_elsewhere = set()

    def test_comes_back_later(self) -> None:
        """If others have read on in a partition that comes back, the commit goes on from there."""
        self.bodies({ZERO: [Record(10), Record(11)]})
        self.reader.undecided.add(ZERO, 10)
        self.bodies({})
        # Gone, and back within one poll.
        self.broker.revoked = {ZERO}
        self.bodies({ZERO: [Record(20)]}, {})
        self.assertEqual([{ZERO: 21}], self.commits())
        self.reader.undecided.remove(ZERO, 10)
        self.bodies({})
        self.assertEqual([{ZERO: 21}], self.commits())

    def test_comes_back_unchanged(self) -> None:
        """If nobody has read on, messages that come again are skipped, and those without a verdict count."""
        self.bodies({ZERO: [Record(10), Record(11), Record(12)]})
        self.reader.undecided.add(ZERO, 11)
        self.bodies({})
        self.broker.revoked = {ZERO}
        again = {ZERO: [Record(11), Record(12), Record(13, b"new")]}
        self.assertEqual([b"new"], self.bodies(again))
        self.bodies({})
        self.assertEqual([{ZERO: 11}], self.commits())
        self.reader.undecided.remove(ZERO, 11)
        self.bodies({})
        self.assertEqual([{ZERO: 11}, {ZERO: 14}], self.commits())

    def test_another_connection(self) -> None:
        """On a new connection, nothing is committed of a partition until it is read again."""
        self.bodies({ZERO: [Record(10), Record(11)]})
        self.reader.undecided.add(ZERO, 10)
        self.broker.batches.append(kafka_errors.UnknownError("gone"))
        self.assertRaises(kafka_errors.UnknownError, self.reader.read)
        self.reader.undecided.remove(ZERO, 10)
        self.bodies({}, {})
        self.assertEqual([], self.commits())
        self.assertEqual([], self.bodies({ZERO: [Record(10), Record(11)]}, {}))
        self.assertEqual([{ZERO: 12}], self.commits())

    def test_bound(self) -> None:
        """No more is read than verdicts may be awaited; the node stays in its group meanwhile."""
        self.reader.read()
        for offset in range(MOST_UNDECIDED):
            self.reader.undecided.add(ZERO, offset)
        self.reader.read()
        self.reader.undecided.remove(ZERO, 5)
        self.reader.read()
        expected = [(POLL_SECONDS, POLL_RECORDS), (SHORT_POLL_SECONDS, 0), (SHORT_POLL_SECONDS, 1)]
        self.assertEqual(expected, self.broker.polls)

    def test_what_cannot_be_read(self) -> None:
        """What is skipped is committed, too: otherwise it would come again."""
        self.broker.stuck = ZERO
        self.broker.batches.append(kafka_errors.UnsupportedCodecError("no zstd"))
        self.reader.read()
        self.assertEqual([{ZERO: 10}], self.commits())
