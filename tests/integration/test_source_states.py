"""Every source with a real peer, against the suite that it passes with a fake one."""

from __future__ import annotations

import atexit
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from twisted.internet import reactor, task, threads
from twisted.trial import unittest

from pcapsvc.net.kafka.security import KafkaSecurity
from pcapsvc.net.outages import Backoff
from pcapsvc.sources.http.source import HTTPSource, http_endpoint
from pcapsvc.sources.kafka.connection import Connection
from pcapsvc.sources.kafka.source import KafkaSource
from pcapsvc.sources.redis.source import RedisSource
from pcapsvc.sources.sqs.source import SQSSource
from pcapsvc.testing import MemorySink
from peers.kafka import shared_broker
from peers.redis import RedisServer
from peers.sqs import SQSServer, shared_server
from tests.contracts.request_source import PeerContract, RequestSourceContract

shared_peer = "Kafka broker that is killed"

#: A process dies with the thread that started it: not one of the reactor's, which end with each test.
_starter = ThreadPoolExecutor(1)


class RealPeerContract(PeerContract):
    """
    A source with a peer that is a process.

    @ivar peer: the process.
    """

    timeout = 120
    peer: Any

    def use(self: Any, peer: Any) -> None:
        """Use a peer that other tests use, too; one of them may have killed it."""
        self.peer = peer
        if not peer.is_running:
            self.start_again()
        # Each test has a topic or a queue of its own.
        self.topic = self.id().rpartition(".")[2] + type(self).__name__

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true."""
        while not condition():
            await task.deferLater(reactor, 0.02)

    async def connect(self) -> None:
        """It connects by itself."""
        await self.until(lambda: self.source.state().connected)

    async def die(self) -> None:
        """The peer is killed."""
        self.end_peer()
        await self.until(lambda: self.source.state().problem)

    async def come_back(self) -> None:
        """The peer is started again."""
        starting = _starter.submit(self.start_again)
        await self.until(starting.done)
        starting.result()
        await self.connect()

    def end_peer(self) -> None:
        """Kill the peer."""
        self.peer.kill()

    def start_again(self) -> None:
        """Start the peer that was killed."""
        self.peer.start()


@cache
def _redis() -> RedisServer:
    """The server of all tests with Redis. It ends with this process."""
    server = RedisServer(password="s3cret")
    atexit.register(server.stop)
    return server


class RedisSourceTests(RealPeerContract, unittest.TestCase):
    """Redis."""

    def setUp(self) -> None:
        self.use(_redis())
        self.source = RedisSource(
            reactor,
            MemorySink(),
            host=self.peer.host,
            port=self.peer.port,
            channel="capture",
            password="s3cret",
            retry_seconds=(0.05, 0.2),
            wall_clock=lambda: self.wall,
        )

    def end_peer(self) -> None:
        """End the server."""
        self.peer.end()


class KafkaSourceTests(RealPeerContract, unittest.TestCase):
    """Kafka."""

    is_shared = False

    def setUp(self) -> None:
        self.use(shared_broker())
        self.peer.create_topic(self.topic)
        self.source = self.make_source()

    def make_source(self) -> KafkaSource:
        """A source that isn't started."""

        def connect() -> Connection:
            return Connection(
                [self.peer.server],
                self.topic,
                group=self.topic if self.is_shared else None,
                client_id="test",
                security=KafkaSecurity(),
                metadata_seconds=1.0,
            )

        return KafkaSource(
            reactor,
            MemorySink(),
            servers=[self.peer.server],
            topic=self.topic,
            group=self.topic if self.is_shared else None,
            connect=connect,
            backoff=Backoff(0.05, 0.2),
            wall_clock=lambda: self.wall,
        )


class SharingKafkaSourceTests(KafkaSourceTests):
    """Kafka, with a group."""

    is_shared = True

    async def test_others_have_all_partitions(self) -> None:
        """A node to which the group has assigned no partition says so, until the other node leaves."""
        other = self.make_source()
        self.source.startService()
        await self.connect()
        other.startService()
        words = f"group {self.topic!r} has assigned no partition to this node"
        sources = [self.source, other]
        await self.until(lambda: {each.state().problem for each in sources} == {None, words})
        [idle] = [each for each in sources if each.state().problem == words]
        [busy] = [each for each in sources if each is not idle]
        await busy.stopService()
        await self.until(lambda: idle.state().connected)
        await idle.stopService()


class SQSSourceTests(RealPeerContract, unittest.TestCase):
    """SQS."""

    def setUp(self) -> None:
        self.use(shared_server(durable=True))
        self.source = SQSSource(
            reactor,
            MemorySink(),
            url=self.peer.create_queue(self.topic),
            region=SQSServer.region,
            access_id="AKIAEXAMPLE",
            access_key="s3cret/key",
            wait_seconds=1,
            retry_seconds=(0.05, 0.2),
            wall_clock=lambda: self.wall,
        )

    async def connect(self) -> None:
        """It connects by itself. The server takes a while to store the queue on disk."""
        await super().connect()
        await task.deferLater(reactor, 1.5)

    def start_again(self) -> None:
        """Start the server with the data on disk."""
        self.peer.restart()


class HTTPSourceTests(RequestSourceContract, unittest.TestCase):
    """HTTP."""

    timeout = 120

    def setUp(self) -> None:
        self.source = HTTPSource(
            reactor,
            http_endpoint(reactor, "tcp:0:interface=127.0.0.1"),
            MemorySink(),
            wall_clock=lambda: self.wall,
        )

    async def connect(self) -> None:
        """A client can connect."""
        address: Any = await self.source.listening
        endpoint = f"http://127.0.0.1:{address.port}/captures/none"
        self.assertEqual(await threads.deferToThread(_status, endpoint), 404)


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
