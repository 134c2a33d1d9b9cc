"""Events to Kafka, without a broker."""

from __future__ import annotations

from typing import Any

from kafka import errors as kafka_errors
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.report_queue import Report
from pcapsvc.net.kafka.security import KafkaSecurity
from pcapsvc.reports.kafka import publisher
from pcapsvc.reports.kafka.publisher import Producer


class FakeProducer:
    """
    The library's producer.

    @ivar sent: what it was given.
    @ivar fails_at: the place from which on it waits for the topic in vain.
    """

    def __init__(self, **configuration: Any) -> None:
        self.sent: list[bytes] = []
        self.fails_at: int | None = None

    def send(self, topic: str, value: bytes, key: bytes | None) -> Any:
        self.sent.append(value)
        if self.fails_at is not None and len(self.sent) > self.fails_at:
            raise kafka_errors.KafkaTimeoutError("no metadata")
        return _Confirmed()

    def close(self, timeout: float) -> None:
        """Nothing is open."""


class _Confirmed:
    def get(self, timeout: float) -> None:
        """It has arrived."""


class _Maker:
    def look_for_topic(self, topic: str, request_seconds: float, *, to_write: bool = False) -> None:
        """It is there."""

    def raise_refusal(self) -> None:
        """Nothing was refused."""

    def abort(self) -> None:
        """Nothing is open."""


class ProducerTests(SynchronousTestCase):
    """L{Producer}."""

    def setUp(self) -> None:
        self.fake = FakeProducer()
        self.patch(publisher, "KafkaProducer", lambda **_: self.fake)
        self.patch(publisher, "ClientMaker", _Maker)
        self.patch(publisher, "reach_any", lambda servers, context: None)
        self.producer = Producer(["h:1"], "events", client_id="c", security=KafkaSecurity())
        self.producer.open()
        self.addCleanup(self.producer.close)
        self.reports = [
            Report(event_id=str(n), subject=None, is_progress=False, json=b"%d" % n) for n in range(20)
        ]

    def test_all(self) -> None:
        """Each event is sent, and has arrived once the broker has confirmed it."""
        published = self.producer.send(self.reports)
        self.assertEqual((list(published.arrived), list(published.refused)), (self.reports, []))

    def test_topic_is_gone(self) -> None:
        """One that waits in vain is the last: the others would wait as long, each after the other."""
        self.fake.fails_at = 0
        self.assertRaises(kafka_errors.KafkaTimeoutError, self.producer.send, self.reports)
        self.assertEqual(self.fake.sent, [b"0"])

    def test_topic_goes(self) -> None:
        """Those before it have arrived."""
        self.fake.fails_at = 3
        self.assertEqual(list(self.producer.send(self.reports).arrived), self.reports[:3])
        self.assertEqual(len(self.fake.sent), 4)
