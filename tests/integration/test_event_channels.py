"""Events on each channel, through the real broker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor, task
from twisted.internet.threads import deferToThread
from twisted.trial import unittest

from pcapsvc.core.event import CaptureDone, CaptureFailed, CaptureProgress, Event, Payload, RequestBusy
from pcapsvc.core.labels import Labels
from pcapsvc.interfaces.reports import IPublisher
from pcapsvc.net.kafka.security import KafkaSecurity
from pcapsvc.net.outages import Backoff
from pcapsvc.reports import channel
from pcapsvc.reports.channel import EventChannel
from pcapsvc.reports.kafka import publisher as kafka_publisher
from pcapsvc.reports.kafka.publisher import KafkaPublisher
from pcapsvc.reports.redis.publisher import RedisPublisher
from pcapsvc.reports.sqs.publisher import SqsPublisher
from pcapsvc.testing import event_factory
from pcapsvc.threads import Threads
from peers.kafka import shared_broker
from peers.redis import RedisServer
from peers.sqs import shared_server
from tests.integration.event_listeners import RedisListener, read_queue, read_topic
from tests.unit.event_schema import problems
from tests.unit.logged import logged

shared_peer = "Kafka broker"

LABELS = Labels(via="http", requestid="r-1", tags="a,\u00e9,<script>,\uffff", interface="lo")
PATIENCE_SECONDS = 180.0


class ChannelSuite:
    """What every channel must do."""

    timeout = 600
    limit = 1000

    def setUp(self) -> None:
        """A channel to the broker that has started."""
        self.events = event_factory(wall_clock=time.time)
        self.sent: list[Event] = []
        self.messages = logged(self)
        self.threads = Threads(reactor, most=8)
        self.threads.startService()
        self.addCleanup(self.threads.stopService)
        self.prepare()
        self.channel = self.make()
        self.addCleanup(self.stop)
        self.channel.startService()

    def prepare(self) -> None:
        """Start the broker, and create what is needed there."""
        raise NotImplementedError

    def publisher(self) -> IPublisher:
        """A publisher to the broker."""
        raise NotImplementedError

    async def received(self) -> list[bytes]:
        """The events that have arrived since this was called last, or all of them, in order."""
        raise NotImplementedError

    def in_order(self, events: list[bytes]) -> list[bytes]:
        """These events, as far as the broker keeps their order."""
        return events

    def make(self, publisher: IPublisher | None = None) -> EventChannel:
        """A channel."""
        return EventChannel(
            reactor,
            publisher or self.publisher(),
            self.events,
            name="test",
            limit=self.limit,
            wall_clock=time.time,
            backoff=Backoff(0.05, 0.2),
        )

    async def stop(self) -> None:
        """Stop the channel, if it runs."""
        if self.channel.running:
            await self.channel.stopService()

    def report(self, data: Payload, subject: str | None = "abc") -> None:
        """Report an event."""
        self.sent.append(self.events.event(data, LABELS, subject))
        self.channel.report(self.sent[-1])

    async def until(self, condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until a condition is true."""
        until = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), until, self.messages()[-5:])
            await task.deferLater(reactor, 0.02)

    async def published(self) -> None:
        """Wait until nothing waits any more."""
        await self.until(lambda: not self.channel.waiting)

    async def test_each_event(self) -> None:
        """What arrives is the JSON of each event, once, in order, and valid."""
        self.report(RequestBusy(reason="many"), None)
        for number in range(250):
            self.report(CaptureProgress(packets=number, bytes=number, seconds=1.5))
        self.report(CaptureFailed(problem="x" * 20_000))
        self.report(CaptureDone())
        await self.published()
        arrived = await self.received()
        self.assertEqual(self.in_order(arrived), self.in_order([event.json for event in self.sent]))
        for document in map(json.loads, arrived):
            self.assertEqual(problems(document), [])
        self.assertEqual((self.channel.dropped, self.channel.state().connected), (0, True))

    async def test_stop(self) -> None:
        """A stop publishes what is left."""
        # The broker may be busy with something else.
        self.patch(channel, "DRAIN_SECONDS", 60.0)
        await self.until(lambda: self.channel.running)
        for _ in range(30):
            self.report(CaptureDone())
        began = time.monotonic()
        await self.channel.stopService()
        self.assertLess(time.monotonic() - began, 30.0)
        self.assertEqual((len(await self.received()), self.channel.dropped), (30, 0))

    async def test_too_long(self) -> None:
        """An event that the broker never accepts is dropped, and told; the others arrive."""
        self.report(CaptureDone())
        self.report(CaptureFailed(problem="x" * 2_000_000))
        self.report(CaptureDone())
        await self.published()
        await self.until(lambda: self.channel.dropped == 1 and not self.channel.waiting)
        await self.until(lambda: any("1 were dropped" in message for message in self.messages()))
        await self.published()
        types = sorted(json.loads(event)["type"] for event in await self.received())
        self.assertEqual(types, ["pcapsvc.capture.done"] * 2 + ["pcapsvc.reports.dropped"])


class RedisTests(ChannelSuite, unittest.TestCase):
    """A channel of Redis."""

    def prepare(self) -> None:
        """A server with a password."""
        self.server = RedisServer(password="hunter2 \u00e9")
        self.addCleanup(self.server.stop)
        self.server.start()
        self.listener = RedisListener(self.server)
        self.addCleanup(lambda: self.listener.stop())

    def publisher(self, password: str | None = "hunter2 \u00e9", **more: Any) -> IPublisher:
        """A publisher."""
        return RedisPublisher(
            reactor,
            host=more.pop("host", self.server.host),
            port=self.server.port,
            channel="capture-events",
            password=password,
            **more,
        )

    async def received(self) -> list[bytes]:
        """What the subscriber received."""
        await self.until(lambda: len(self.listener.raw) >= len(self.sent))
        return self.listener.raw

    async def test_too_long(self) -> None:
        """An event of any length that there can be is accepted."""
        self.report(CaptureFailed(problem="x" * 2_000_000))
        self.report(CaptureDone())
        self.assertEqual(len(await self.received()), 2)

    async def test_refused(self) -> None:
        """A wrong password, and a missing permission, are told in our own words, without the password."""
        for publisher, words in (
            (self.publisher("wrong"), "AUTH was refused (wrong user name or password)"),
            (self.publisher(None), "PUBLISH was refused (the server requires a password"),
        ):
            await self.stop()
            self.channel = self.make(publisher)
            self.channel.startService()
            self.report(CaptureDone())
            await self.until(lambda words=words: words in (self.channel.state().problem or ""))
        self.assertFalse([text for text in self.messages() if "hunter2" in text or "'wrong'" in text])

    async def test_permission(self) -> None:
        """A missing permission is known before there is an event, and no subscriber notices."""
        await self.stop()
        rules = [
            "on",
            ">hunter22",
            "resetchannels",
            "&capture-events",
            "-@all",
            "+auth",
            "+multi",
            "+discard",
        ]
        await deferToThread(self.server.command, "ACL", "SETUSER", "sender", *rules)
        self.channel = self.make(self.publisher("hunter22", username="sender"))
        self.channel.startService()
        await self.until(lambda: "PUBLISH was refused" in (self.channel.state().problem or ""))
        await deferToThread(self.server.command, "ACL", "SETUSER", "sender", "+publish")
        await self.until(lambda: self.channel.state().connected)
        self.assertEqual(self.listener.raw, [])

    async def test_no_transactions(self) -> None:
        """A user that may do nothing but publish does, and is connected from then on."""
        await self.stop()
        rules = ["on", ">hunter22", "resetchannels", "&capture-events", "-@all", "+auth", "+publish"]
        await deferToThread(self.server.command, "ACL", "SETUSER", "sender", *rules)
        self.channel = self.make(self.publisher("hunter22", username="sender"))
        self.channel.startService()
        self.report(CaptureDone())
        self.assertEqual(len(await self.received()), 1)
        await self.until(lambda: self.channel.state().connected)

    async def test_tls(self) -> None:
        """A connection with TLS is verified."""
        await self.stop()
        self.server = RedisServer(tls=True)
        self.addCleanup(self.server.stop)
        self.server.start()
        ca_file = str(self.server.ca_file)
        for options, words in (
            ({"host": "localhost"}, "TLS failed"),
            ({"host": "localhost", "ca_file": ca_file}, None),
        ):
            self.channel = self.make(self.publisher(None, tls=True, **options))
            self.channel.startService()
            if words is None:
                await self.until(lambda: self.channel.state().connected)
            else:
                await self.until(lambda words=words: words in (self.channel.state().problem or ""))
            await self.channel.stopService()


class KafkaTests(ChannelSuite, unittest.TestCase):
    """A topic of Kafka."""

    def prepare(self) -> None:
        """A topic with three partitions, on the shared broker."""
        self.broker = shared_broker()
        self.topic = f"events-{self.id().rpartition('.')[2]}"
        self.broker.create_topic(self.topic, 3)

    def publisher(self, topic: str | None = None, **security: Any) -> IPublisher:
        """A publisher."""
        chosen = self.broker.security(**security) if security else KafkaSecurity()
        return KafkaPublisher(
            reactor,
            servers=[self.broker.secure_server if security else self.broker.server],
            topic=topic or self.topic,
            client_id="test",
            security=chosen,
            run_in_thread=self.threads.run,
        )

    async def received(self) -> list[bytes]:
        """The values of the topic: those of the request first, as it has another partition."""
        records = await deferToThread(read_topic, self.broker, self.topic)
        self.assertEqual({key for key, _ in records} - {None}, {b"abc"})
        return [value for _, value in sorted(records, key=lambda record: record[0] is not None)]

    async def test_each_event(self) -> None:
        """Likewise, if the broker answers in time, for which a busy machine may take long."""
        await self.stop()
        self.patch(kafka_publisher, "REQUEST_SECONDS", 100.0)
        self.patch(kafka_publisher, "DELIVERY_SECONDS", 200.0)
        self.channel = self.make()
        self.channel.startService()
        await super().test_each_event()

    async def test_reading(self) -> None:
        """Reading a topic ends: if there is none, and with what was read if there isn't more in time."""
        missing = deferToThread(read_topic, self.broker, "no-such-topic")
        self.assertIn("no-such-topic", str(await self.assertFailure(missing, AssertionError)))
        self.report(CaptureDone())
        await self.published()
        late = deferToThread(read_topic, self.broker, self.topic, patience_seconds=0)
        self.assertIn("[]", str(await self.assertFailure(late, AssertionError)))

    async def test_missing_topic(self) -> None:
        """A topic that doesn't exist is not created, but told."""
        await self.stop()
        self.channel = self.make(self.publisher("nosuch-events"))
        self.channel.startService()
        await self.until(lambda: "does not exist" in (self.channel.state().problem or ""))
        self.assertNotIn("nosuch-events", await deferToThread(self.broker.topics))
        await deferToThread(self.broker.create_topic, "nosuch-events")
        await self.until(lambda: self.channel.state().connected)

    async def test_permission(self) -> None:
        """A missing permission is known before there is an event."""
        await self.stop()
        await deferToThread(self.broker.allow, self.topic, "READ")
        self.channel = self.make(self.publisher(sasl_mechanism="PLAIN"))
        self.channel.startService()
        await self.until(lambda: "no permission to write to topic" in (self.channel.state().problem or ""))
        self.assertFalse(self.channel.state().connected)
        await deferToThread(self.broker.allow, self.topic, "WRITE")
        await self.until(lambda: self.channel.state().connected)
        self.report(CaptureDone())
        await self.published()
        self.assertEqual(len(await self.received()), 1)

    async def test_login(self) -> None:
        """It logs in over TLS; a wrong password is told, but not shown."""
        await self.stop()
        self.channel = self.make(self.publisher(sasl_plain_password="hunter3"))
        self.channel.startService()
        await self.until(lambda: "authentication failed" in (self.channel.state().problem or ""))
        await self.channel.stopService()
        self.channel = self.make(self.publisher(sasl_mechanism="PLAIN"))
        self.channel.startService()
        self.report(CaptureDone())
        await self.published()
        self.assertEqual(len(await self.received()), 1)
        self.assertFalse([text for text in self.messages() if "hunter3" in text])


class QueueSuite(ChannelSuite):
    """What a channel to a queue of SQS must do, whichever it is."""

    attributes: dict[str, str] = {}

    def prepare(self) -> None:
        """A queue on the shared server."""
        self.server = shared_server()
        name = "-".join(self.id().split(".")[-2:])
        self.url = self.server.create_queue(
            name + (".fifo" if self.attributes else ""), VisibilityTimeout="600", **self.attributes
        )

    def publisher(self, url: str | None = None) -> IPublisher:
        """A publisher."""
        return SqsPublisher(
            reactor,
            url=url or self.url,
            region=self.server.region,
            access_id="a",
            access_key="b",
            run_in_thread=self.threads.run,
        )

    async def received(self) -> list[bytes]:
        """What was in the queue."""
        self.found = await deferToThread(read_queue, self.server, self.url)
        return [message["Body"].encode() for message in self.found]


class SqsTests(QueueSuite, unittest.TestCase):
    """A standard queue of SQS."""

    def in_order(self, events: list[bytes]) -> list[bytes]:
        """In any order: the queue keeps none."""
        return sorted(events)

    async def test_missing_queue(self) -> None:
        """A queue that doesn't exist is told, and used once it does."""
        await self.stop()
        self.channel = self.make(self.publisher(self.url + "x"))
        self.channel.startService()
        self.report(CaptureDone())
        await self.until(lambda: "the server answered" in (self.channel.state().problem or ""))
        self.url = await deferToThread(self.server.create_queue, self.url.rpartition("/")[2] + "x")
        await self.published()
        self.assertEqual(len(await self.received()), 1)


class FifoTests(QueueSuite, unittest.TestCase):
    """A FIFO queue of SQS."""

    attributes = {"FifoQueue": "true"}

    def in_order(self, events: list[bytes]) -> list[bytes]:
        """Those of the capture; those of the request may be anywhere."""
        return sorted(events, key=lambda event: b'"subject"' in event)

    async def test_groups(self) -> None:
        """A capture is a group; an event that is sent again is delivered once."""
        self.report(CaptureDone(), "abc")
        self.report(CaptureDone(), "def")
        self.report(RequestBusy(reason="many"), None)
        for event in self.sent[:2]:
            self.channel.report(event)
        await self.published()
        await self.received()
        groups = sorted(message["Attributes"]["MessageGroupId"] for message in self.found)
        self.assertEqual(groups, sorted(["abc", "def", self.sent[2].id]))
