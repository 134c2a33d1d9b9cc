"""The Kafka source in a consumer group, and a real broker, while verdicts are slow."""

from __future__ import annotations

import time

from kafka.coordinator.consumer import ConsumerCoordinator
from twisted.internet import defer, threads

from pcapsvc.core.result import Accepted, Busy, Verdict
from pcapsvc.net.kafka.security import KafkaSecurity
from pcapsvc.sources.kafka.connection import Connection
from pcapsvc.sources.kafka.reader import MOST_UNDECIDED
from tests.integration.kafka_case import KafkaTestCase

shared_peer = "Kafka broker"

ACCEPTED = Accepted(captures=())


class ShortPollTests(KafkaTestCase):
    """Polls that are shorter than it takes to join the group, as on a busy machine."""

    def connection(self) -> Connection:
        """A member of the group, which is not open yet."""
        connection = Connection(
            [self.broker.server], self.topic, group=self.topic, client_id="test", security=KafkaSecurity()
        )
        self.addCleanup(threads.deferToThread, connection.close)
        return connection

    async def test_joins(self) -> None:
        """The node joins all the same: an attempt that has ended between two polls is not begun again."""
        self.broker.create_topic(self.topic, 2)
        connection = self.connection()

        def join() -> None:
            connection.open()
            connection.subscribe()
            until = time.monotonic() + 180
            while len(connection.assignment()) < 2:
                self.assertLess(time.monotonic(), until)
                connection.poll(0.001, 1)
                time.sleep(0.3)

        await threads.deferToThread(join)

    async def test_goes_on_with_what_it_began(self) -> None:
        """If the reason to join again is gone before that has ended, the node still reads afterwards."""
        self.broker.create_topic(self.topic, 1)
        reasons: list[bool] = []
        need_rejoin = ConsumerCoordinator.need_rejoin
        self.patch(
            ConsumerCoordinator,
            "need_rejoin",
            lambda this: need_rejoin(this) or bool(reasons and reasons.pop()),
        )
        connection = self.connection()

        def read() -> None:
            connection.open()
            connection.subscribe()
            until = time.monotonic() + 180
            while not connection.assignment():
                self.assertLess(time.monotonic(), until)
                connection.poll(0.5, 1)
            # A poll looks twice whether there is one.
            reasons.extend([True, True])
            connection.poll(0.001, 1)
            self.broker.produce(self.topic, [b"after"])
            while not connection.poll(0.5, 1):
                self.assertLess(time.monotonic(), until)

        await threads.deferToThread(read)


class SlowVerdictTests(KafkaTestCase):
    """Reading goes on, and nothing is committed before its verdict."""

    async def committed(self) -> dict[int, int]:
        """What the group has committed."""
        found: dict[int, int] = await threads.deferToThread(self.broker.committed, self.topic, self.topic)
        return found

    async def commits(self, **expected: int) -> None:
        """Wait until the group has committed these offsets."""
        offsets = {int(partition[1:]): offset for partition, offset in expected.items()}
        while await self.committed() != offsets:
            await self.sleep(0.1)

    async def test_reads_on(self) -> None:
        """
        While a verdict is awaited, for longer than a broker waits for a sign of life, later messages are
        submitted; what is committed ends before the first message without a verdict.
        """
        self.broker.create_topic(self.topic, 2)
        _, sink = await self.listen(group=self.topic)
        verdicts = sink.hold()
        await self.produce(b"one", partition=0)
        await self.until(lambda: len(verdicts) == 1)
        await self.produce(b"two", partition=0)
        await self.produce(b"three", partition=1)
        # The first one still has no verdict, and gets none before them.
        await self.until(lambda: len(verdicts) == 3)
        for verdict in verdicts[1:]:
            verdict.callback(ACCEPTED)
        await self.commits(_0=0, _1=1)
        # SESSION_SECONDS is 15 s.
        await self.sleep(17)
        await self.produce(b"four", partition=0)
        await self.until(lambda: len(verdicts) == 4)
        verdicts[3].callback(ACCEPTED)
        await self.sleep(1)
        self.assertEqual(await self.committed(), {0: 0, 1: 1})
        verdicts[0].callback(ACCEPTED)
        await self.commits(_0=3, _1=1)
        self.assertEqual(len(sink.submitted), 4)

    async def test_stop(self) -> None:
        """What has no verdict at a stop, or was refused because of it, reaches the next node of the group."""
        self.broker.create_topic(self.topic, 1)
        source, sink = await self.listen(group=self.topic)
        verdicts = sink.hold()
        await self.produce(b"one", b"two", b"three", b"four")
        await self.until(lambda: len(verdicts) == 4)
        verdicts[0].callback(ACCEPTED)
        verdicts[2].callback(ACCEPTED)
        stopping = source.stopService()
        verdicts[1].callback(Busy(reason="the daemon is stopping"))
        await stopping
        self.assertEqual(await self.committed(), {0: 1})
        _, other = await self.listen(group=self.topic)
        await self.until(lambda: len(other.submitted) == 3)
        self.assertEqual(self.bodies(other), [b"two", b"three", b"four"])

    async def test_another_node_joins(self) -> None:
        """
        When another node gets a partition while a verdict is awaited, it gets the message as well. What that
        node has committed is not taken back.
        """
        self.broker.create_topic(self.topic, 2)
        source, sink = await self.listen(group=self.topic)
        verdicts = sink.hold()
        for partition in (0, 1):
            await self.produce(b"slow in %d" % partition, partition=partition)
        await self.until(lambda: len(verdicts) == 2)
        _, other = await self.listen(group=self.topic)
        await self.until(lambda: other.submitted)
        [moved] = self.bodies(other)
        partition = int(moved[-1:])
        await self.produce(b"later", partition=partition)
        await self.until(lambda: b"later" in self.bodies(other))
        expected = {partition: 2, 1 - partition: 0}
        while (await self.committed()).get(partition) != 2:
            await self.sleep(0.1)
        for verdict in verdicts:
            verdict.callback(ACCEPTED)
        expected[1 - partition] = 1
        while await self.committed() != expected:
            await self.sleep(0.1)
        await self.stop(source)
        self.assertEqual(await self.committed(), expected)
        self.assertEqual(sorted(self.bodies(sink)), [b"slow in 0", b"slow in 1"])

    async def test_bound(self) -> None:
        """No more messages are read than verdicts may be awaited; as verdicts fire, all others are."""
        self.broker.create_topic(self.topic, 1)
        _, sink = await self.listen(group=self.topic)
        verdicts: list[defer.Deferred[Verdict]] = sink.hold()
        count = 3 * MOST_UNDECIDED
        await self.produce(*(b"%d" % number for number in range(count)))
        await self.until(lambda: len(verdicts) == MOST_UNDECIDED)
        await self.sleep(1)
        self.assertEqual(len(verdicts), MOST_UNDECIDED)
        for number in range(count):
            await self.until(lambda number=number: len(verdicts) > number)  # type: ignore[misc]
            self.assertLessEqual(len(verdicts), number + MOST_UNDECIDED)
            verdicts[number].callback(ACCEPTED)
        await self.commits(_0=count)
        self.assertEqual(self.bodies(sink), [b"%d" % number for number in range(count)])
