"""A thousand captures, and destinations that fail at random."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.capture.capturer import Capturer
from pcapsvc.core.admission import Admission
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.plan import NodeView
from pcapsvc.core.result import Accepted, CaptureDelivered, CaptureDone, DeliveryFailed
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.delivery import Delivery
from pcapsvc.delivery.folder import SpoolFolder
from pcapsvc.delivery.lane import Lane
from pcapsvc.delivery.redelivery import Redelivery
from pcapsvc.delivery.spool import Spool
from pcapsvc.pipeline import Pipeline
from pcapsvc.reports.everyone import Everyone
from pcapsvc.testing import MemoryDestination, MemoryPacketSystem, MemoryReporter, run_now
from tests.core.test_request import BOUNDS
from tests.faults.house import possessions
from tests.peers.frames import udp_frame
from tests.rooms.test_pipeline import packets_in

CAPTURES = 1000
FAILING = 0.3
# Of those that fail, so many have arrived.
ARRIVED = 0.2


class ManyTests(SynchronousTestCase):
    """From the first packet to the last delivery, on packets in memory and a spool on the disk."""

    def setUp(self) -> None:
        """Build it."""
        self.seed = random.SystemRandom().randrange(2**32)
        self.chance = random.Random(self.seed)
        self.before = possessions()
        self.path = Path(self.mktemp()).absolute()
        self.path.mkdir()
        self.reactor = MemoryReactorClock()
        self.system = MemoryPacketSystem("mem0")
        self.reporter = MemoryReporter()
        everyone = Everyone([self.reporter])
        self.destinations = [self.destination(name) for name in ("one", "two")]
        lanes = [Lane(self.reactor, one, at_once=4, timeout_seconds=300) for one in self.destinations]
        self.spool = Spool(
            self.reactor,
            SpoolFolder(str(self.path)),
            run_now,
            reporter=everyone,
            max_bytes=1 << 30,
            max_age_seconds=86400,
            retry_seconds=60,
            wall_clock=self.wall_clock,
        )
        self.redelivery = Redelivery(
            self.reactor,
            self.spool,
            lanes,
            interval_seconds=60,
            reporter=everyone,
            wall_clock=self.wall_clock,
            chance=self.chance.random,
        )
        self.delivery = Delivery(
            self.reactor,
            lanes,
            policy=RetryPolicy(attempts=3, first_delay_seconds=1, max_delay_seconds=60),
            reporter=everyone,
            spool=self.spool,
            wall_clock=self.wall_clock,
            chance=self.chance.random,
        )
        self.pipeline = Pipeline(
            NodeView(name="sensor1", bounds=BOUNDS, default_timeout_seconds=10, snap_length=500),
            capturer=Capturer(self.reactor, self.system, wall_clock=self.wall_clock, read_timeout_ms=10),
            delivery=self.delivery,
            reporter=everyone,
            admission=Admission(max_captures=1, max_memory_bytes=10**9),
            wall_clock=self.wall_clock,
        )
        for part in (self.spool, self.delivery, self.redelivery, self.pipeline):
            part.startService()

    def wall_clock(self) -> float:
        """The time of day."""
        return 1_700_000_000.0 + self.reactor.seconds()

    def destination(self, name: str) -> MemoryDestination:
        """A destination that fails at random, sometimes after it has what it was given."""
        destination = MemoryDestination(name)

        def answer() -> Deferred[Any]:
            if self.chance.random() >= FAILING:
                return succeed(None)
            if self.chance.random() < ARRIVED:
                artifact = destination.artifacts[-1]
                with artifact.content.open() as file:
                    destination.files[artifact.name] = file.read()
            return fail(DestinationError("reset", retryable=True))

        destination.answer = answer
        return destination

    def test_thousand(self) -> None:
        """All are delivered to both, each told once, and nothing is left in the spool, or open."""
        sent: dict[str, bytes] = {}
        for number in range(CAPTURES):
            verdict = self.pipeline.submit(
                "test", b'{"node": "sensor1", "interface": ["mem0"], "packets": 1}'
            )
            assert isinstance(verdict, Accepted), verdict
            frame = udp_frame(number)
            sent[verdict.captures[0].capture_id] = frame
            self.system.deliver("mem0", frame)
            for reader in list(self.reactor.getReaders()):
                reader.doRead()
            self.reactor.advance(0.05)
        self.reactor.pump([1] * 20)
        self.assertEqual(len([one for one in self.reporter.events if isinstance(one, CaptureDone)]), CAPTURES)
        failed = [one for one in self.reporter.events if isinstance(one, DeliveryFailed)]
        self.assertGreater(len(failed), 10, self.seed)
        self.assertTrue(all(one.spooled for one in failed))
        self.reactor.pump([30] * 400)
        delivered = Counter(
            (one.capture_id, one.receipt.destination)
            for one in self.reporter.events
            if isinstance(one, CaptureDelivered)
        )
        self.assertEqual(
            delivered, Counter({(id, name): 1 for id in sent for name in ("one", "two")}), self.seed
        )
        for destination in self.destinations:
            found = {
                name.removesuffix(".pcap").rpartition("-")[2]: packets_in(file)
                for name, file in destination.files.items()
            }
            self.assertEqual(found, {id: [frame] for id, frame in sent.items()}, self.seed)
        attempts = sum(len(destination.artifacts) for destination in self.destinations)
        self.assertGreater(attempts, 2 * CAPTURES * 1.2)
        self.assertEqual((self.spool.entries, self.spool.size), (0, 0))
        self.assertEqual([path.name for path in self.path.iterdir()], ["lock"])
        for part in (self.pipeline, self.redelivery, self.delivery, self.spool):
            self.successResultOf(part.stopService())
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(possessions() - self.before, Counter())
