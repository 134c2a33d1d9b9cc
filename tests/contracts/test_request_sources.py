"""Every source with a fake peer, against the suite that it passes with a real one."""

from __future__ import annotations

from twisted.internet import defer, error
from twisted.internet.task import Clock
from twisted.trial import unittest

from pcapsvc.core.result import Accepted
from pcapsvc.net.kafka.security import Unreachable
from pcapsvc.net.outages import Backoff
from pcapsvc.sources.http.source import HTTPSource
from pcapsvc.sources.kafka.source import KafkaSource
from pcapsvc.sources.redis.source import RedisSource
from pcapsvc.sources.sqs.source import SQSSource
from pcapsvc.testing import MemorySink, MemorySource
from tests.contracts.request_source import PeerContract, RequestSourceContract
from tests.unit import http_case, redis_case
from tests.unit.sqs_case import URL, FakeClient, FakeThread, refusal, unreachable
from tests.unit.test_kafka_reader import ZERO, Broker
from tests.unit.test_kafka_source import Thread

LONG_SECONDS = 30


class MemorySourceTests(PeerContract, unittest.TestCase):
    """Our fake."""

    def setUp(self) -> None:
        self.source = MemorySource(MemorySink(), wall_clock=lambda: self.wall)

    async def connect(self) -> None:
        """It connects when the test says so."""
        self.source.connect()

    come_back = connect

    async def die(self) -> None:
        """It loses the connection when the test says so."""
        self.source.lose("the peer\nhas died")

    async def test_receives(self) -> None:
        """What it receives is submitted by its name."""
        sink = MemorySink()
        source = MemorySource(sink, name="probe")
        self.assertEqual(await source.receive(b"x", sent_at=5.0), Accepted(captures=()))
        self.assertEqual((sink.submitted, sink.sent_at), ([("probe", b"x")], [5.0]))


class RedisSourceTests(PeerContract, unittest.TestCase):
    """Redis."""

    def setUp(self) -> None:
        self.clock, self.endpoint = Clock(), redis_case.FakeEndpoint()
        self.source = RedisSource(
            self.clock,
            MemorySink(),
            host="redis.example",
            port=6379,
            channel="capture",
            password="s3cret",
            make_endpoint=lambda: self.endpoint,
            wall_clock=lambda: self.wall,
        )

    async def connect(self) -> None:
        """It is connected only when Redis has confirmed the subscription."""
        self.transport = self.endpoint.succeed()
        self.transport.say(b"+OK\r\n")
        self.assertFalse(self.source.state().connected)
        self.transport.say(redis_case.SUBSCRIBED)

    async def die(self) -> None:
        """The server answers no PING, and refuses the next login in words that repeat the password."""
        self.transport.lose(error.ConnectionLost())
        self.assertIn("not subscribed to channel 'capture'", self.source.state().problem)
        self.clock.advance(LONG_SECONDS)
        self.endpoint.succeed().say(b"-ERR s3cret is wrong\r\n")

    async def come_back(self) -> None:
        """It connects again after a pause."""
        self.clock.advance(LONG_SECONDS)
        await self.connect()


class KafkaSourceTests(PeerContract, unittest.TestCase):
    """Kafka, without a group."""

    group: str | None = None

    def setUp(self) -> None:
        self.clock, self.thread, self.broker = Clock(), Thread(), Broker()
        self.source = KafkaSource(
            self.clock,
            MemorySink(),
            servers=("a.example:9092",),
            topic="capture",
            group=self.group,
            connect=self.broker.connect,
            backoff=Backoff(),
            run_in_thread=self.thread.run,
            wall_clock=lambda: self.wall,
        )

    async def connect(self) -> None:
        """It is connected when a poll has worked."""
        self.thread.turn()

    async def die(self) -> None:
        """A connection is lost, and then none can be made."""
        self.broker.lost = "no connection to a.example:9092"
        self.thread.turn()
        self.assertTrue(self.source.state().connected)
        self.thread.turn()
        self.assertEqual(self.source.state().problem, self.broker.lost)
        self.broker.batches.append(Unreachable("s3cret"))
        self.broker.problem = Unreachable("can't connect")
        self.thread.turn()
        self.clock.advance(LONG_SECONDS)
        self.thread.turn()

    async def come_back(self) -> None:
        """A new connection is made."""
        self.broker.lost = self.broker.problem = None
        self.clock.advance(LONG_SECONDS)
        self.thread.turn()

    async def stop(self) -> None:
        """A stop, while a read is waiting in the thread."""
        stopping = self.source.stopService()
        while self.thread.waiting:
            self.thread.turn()
        await stopping


class SharingKafkaSourceTests(KafkaSourceTests):
    """Kafka, with a group."""

    group = "sharing"

    async def test_others_have_all_partitions(self) -> None:
        """While the group has assigned no partition to it, it isn't connected: no message can reach it."""
        self.source.startService()
        await self.connect()
        lost = self.passes(1)
        self.broker.assigned_elsewhere = {ZERO}
        self.thread.turn()
        self.is_now(since=lost, problem="group 'sharing' has assigned no partition to this node")
        self.broker.assigned_elsewhere = set()
        given = self.passes(1)
        self.thread.turn()
        self.is_now(connected=True, since=given)
        await self.stop()


class SQSSourceTests(PeerContract, unittest.TestCase):
    """SQS."""

    def setUp(self) -> None:
        self.clock, self.thread, self.client = Clock(), FakeThread(), FakeClient()
        self.source = SQSSource(
            self.clock,
            MemorySink(),
            url=URL,
            access_id="AKIAEXAMPLE",
            access_key="s3cret/key",
            run_in_thread=self.thread.run,
            make_client=lambda: self.client,
            wall_clock=lambda: self.wall,
        )

    async def connect(self) -> None:
        """It is connected when a poll has worked."""
        self.thread.step()

    async def die(self) -> None:
        """The service can't be reached, and then refuses in words that repeat the secret."""
        self.client.messages += [unreachable(), refusal("SignatureDoesNotMatch", "s3cret/key\nis wrong")]
        self.thread.step()
        self.clock.advance(LONG_SECONDS)
        self.thread.step()

    async def come_back(self) -> None:
        """The next poll works."""
        self.clock.advance(LONG_SECONDS)
        self.thread.step()

    async def stop(self) -> None:
        """A stop."""
        stopping = self.source.stopService()
        while self.thread.work:
            self.thread.step()
        await stopping


class HTTPSourceTests(RequestSourceContract, unittest.TestCase):
    """HTTP, which has no peer."""

    def setUp(self) -> None:
        self.endpoint = http_case.FakeEndpoint()
        self.endpoint.answer = self.opening = defer.Deferred()
        self.source = HTTPSource(
            Clock(),
            self.endpoint,
            MemorySink(),
            endpoint_name="tcp:8480",
            wall_clock=lambda: self.wall,
        )

    async def connect(self) -> None:
        """It is connected when it listens."""
        self.opening.callback(self.endpoint.port)

    async def test_that_cannot_listen(self) -> None:
        """If it can't listen, and that shows late, it says why."""
        began = self.passes(1)
        self.source.startService()
        self.passes(1)
        self.opening.errback(OSError("no such\naddress"))
        self.is_now(since=began, problem="can't listen on tcp:8480: no such address")
        await self.stop()
        self.is_now(since=began)
