"""Many captures, and destinations that fail at random: in memory, and on the wire."""

from __future__ import annotations

import random
import socket
import ssl
import time
from collections import Counter
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.capture.capturer import Capturer
from pcapsvc.capture_files import CaptureFiles
from pcapsvc.captures import Captures
from pcapsvc.core.admission import Admission
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.event import CaptureDelivered, CaptureDone, DeliveryFailed, DeliverySpooled, EventFactory
from pcapsvc.core.message import Message
from pcapsvc.core.plan import NodeView
from pcapsvc.core.result import Accepted
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.folder import SpoolFolder
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.delivery.outboxes import Outboxes
from pcapsvc.delivery.rounds import Rounds
from pcapsvc.delivery.spool import Spool
from pcapsvc.encoders.pcap.encoder import PcapEncoder
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.judge import Judge
from pcapsvc.pipeline import Pipeline
from pcapsvc.reports.fan_out import FanOutReporter
from pcapsvc.testing import MemoryDestination, MemoryReporter, event_factory, run_now
from pcapsvc.testing_packets import MemoryPacketSystem
from peers.cloudshark import CloudSharkServer
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.process import free_port
from peers.s3 import S3Server
from peers.wire import Wire
from tests.chance import SEED, VARIABLE, chance
from tests.core.test_request import BOUNDS
from tests.faults.house import possessions
from tests.faults.proxy import Fault, FaultyProxy, answer
from tests.unit.pipeline_case import packets_in

CAPTURES = 1000
FAILING = 0.3
# The share of failed deliveries whose capture has arrived all the same.
ARRIVED = 0.2

# Of their 400 uploads, some 120 first attempts fail: 40 for each kind of fault.
REAL_CAPTURES = 200
# On a busy machine there is not the time for all. So many are needed, as each kind of fault is to happen.
FEWEST_CAPTURES = 150
AT_ONCE = 10
REAL_SECONDS = 30.0
#: How long they may take to arrive.
PATIENCE_SECONDS = 240.0
# Before anything of the body is read, when it is there, and when it has been passed on.
FAULTS = (
    Fault(answer=answer(503, "SlowDown")),
    Fault(body_bytes=0),
    Fault(forgetful=True),
)


class ManyTests(SynchronousTestCase):
    """From the first packet to the last delivery, on packets in memory and a spool on the disk."""

    def setUp(self) -> None:
        """Build it."""
        self.seed = f"{VARIABLE}={SEED}"
        self.chance = chance(self.id())
        self.before = possessions()
        self.path = Path(self.mktemp()).absolute()
        self.path.mkdir()
        self.reactor = MemoryReactorClock()
        self.system = MemoryPacketSystem("mem0")
        self.reporter = MemoryReporter()
        captures = Captures(["one", "two"])
        everyone = FanOutReporter([self.reporter, captures])
        events = event_factory(wall_clock=self.wall_clock)
        self.destinations = [self.destination(name) for name in ("one", "two")]
        self.spool = Spool(
            self.reactor,
            SpoolFolder(str(self.path)),
            run_in_thread=run_now,
            reporter=everyone,
            events=events,
            max_bytes=1 << 30,
            max_age_seconds=86400,
            wall_clock=self.wall_clock,
        )
        admission = Admission(max_captures=1, max_memory_bytes=10**9)
        self.outboxes = [self.outbox(each, everyone, events) for each in self.destinations]
        self.rounds = Rounds(self.reactor, self.spool, self.outboxes, interval_seconds=60)
        self.pipeline = Pipeline(
            judge=Judge(
                NodeView(name="sensor1", bounds=BOUNDS, default_timeout_seconds=10, snap_length=500),
                admission=admission,
                wall_clock=self.wall_clock,
            ),
            capturer=Capturer(
                self.reactor,
                self.system,
                run_in_thread=run_now,
                wall_clock=self.wall_clock,
                read_timeout_ms=10,
            ),
            encoders={"pcap": PcapEncoder()},
            delivery=Outboxes(self.outboxes),
            reporter=everyone,
            events=events,
            captures=captures,
            files=CaptureFiles(self.reactor, 0),
            admission=admission,
            wall_clock=self.wall_clock,
        )
        for part in (self.spool, *self.outboxes, self.rounds, self.pipeline):
            part.startService()

    def outbox(self, destination: MemoryDestination, reporter: IReporter, events: EventFactory) -> Outbox:
        """The outbox for a destination."""
        return Outbox(
            self.reactor,
            destination,
            slots=4,
            timeout_seconds=300,
            policy=RetryPolicy(attempts=3, first_delay_seconds=1, max_delay_seconds=60),
            spool_interval_seconds=60,
            reporter=reporter,
            events=events,
            spool=self.spool,
            wall_clock=self.wall_clock,
            chance=self.chance.random,
        )

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
            verdict = self.successResultOf(
                self.pipeline.submit(
                    Message(source="test", body=b'{"node": "sensor1", "interface": ["mem0"], "packets": 1}')
                )
            )
            assert isinstance(verdict, Accepted), verdict
            frame = udp_frame(number)
            sent[verdict.captures[0].capture_id] = frame
            self.system.deliver("mem0", frame)
            for reader in list(self.reactor.getReaders()):
                reader.doRead()
            self.reactor.advance(0.05)
        self.reactor.pump([1] * 20)
        self.assertEqual(len([one for one in self.reporter.data if isinstance(one, CaptureDone)]), CAPTURES)
        failed = [one for one in self.reporter.data if isinstance(one, DeliveryFailed)]
        spooled = [one for one in self.reporter.data if isinstance(one, DeliverySpooled)]
        self.assertGreater(len(spooled), 10, self.seed)
        self.assertEqual(failed, [], self.seed)
        self.reactor.pump([30] * 400)
        delivered = Counter(
            (one.subject, one.data.destination)
            for one in self.reporter.events
            if isinstance(one.data, CaptureDelivered)
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
        for part in (self.pipeline, self.rounds, *self.outboxes, self.spool):
            self.successResultOf(part.stopService())
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(possessions() - self.before, Counter())


class RandomProxy(FaultyProxy):
    """
    A proxy that fails at random.

    @ivar forgotten: how many requests were passed on, though nobody heard the answer.
    @ivar failed: how many failed in any way.
    """

    def __init__(self, port: int, chance: random.Random, authority: Path | None = None) -> None:
        """
        @param authority: speak TLS to the server, which this one vouches for.
        """
        self._chance = chance
        self.forgotten = self.failed = 0
        self._context_behind = ssl.create_default_context(cafile=str(authority)) if authority else None
        super().__init__(port, at=free_port())

    @property
    def fault(self) -> Fault | None:  # type: ignore[override]
        """What becomes of the next request."""
        if self._chance.random() >= FAILING:
            return None
        fault = self._chance.choice(FAULTS)
        self.failed += 1
        self.forgotten += fault.forgetful
        return fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        """It chooses by itself."""

    def _pass_on(self, lines: list[bytes], body: bytes) -> bytes:
        if self._context_behind is None:
            return super()._pass_on(lines, body)
        with (
            socket.create_connection(("127.0.0.1", self._behind), timeout=30) as plain,
            self._context_behind.wrap_socket(plain, server_hostname="localhost") as server,
        ):
            server.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
            return b"".join(iter(lambda: server.recv(65536), b""))


class ManyOnTheWireTests(SynchronousTestCase):
    """The daemon in its own process, real packets, and real servers behind proxies that fail."""

    timeout = 600

    def setUp(self) -> None:
        """A wire, the servers, and a daemon."""
        self.seed = f"{VARIABLE}={SEED}"
        own = chance(self.id())
        self.wire, self.cloudshark, self.s3 = Wire(), CloudSharkServer(), S3Server()
        for peer in (self.wire, self.cloudshark, self.s3):
            self.addCleanup(peer.stop)
            peer.start()
        self.before_cloudshark = RandomProxy(self.cloudshark.port, own, self.cloudshark.ca_file)
        self.before_s3 = RandomProxy(int(self.s3.endpoint.rpartition(":")[2]), own)
        for proxy in (self.before_cloudshark, self.before_s3):
            proxy.start()
            self.addCleanup(proxy.stop)
        self.spool = Path(self.mktemp()).absolute()
        self.spool.mkdir()
        self.daemon = Daemon(
            f'[delivery]\nspooldir = "{self.spool}"\nattempts = 2\nmaxdelay = 1\nretryinterval = 1\n'
            '[cloudshark]\nupload = true\nscheme = "http"\nhost = "127.0.0.1"\n'
            f'port = {self.before_cloudshark.port}\ntoken = "{self.cloudshark.token}"\n'
            f'[s3]\nupload = true\nendpoint = "http://127.0.0.1:{self.before_s3.port}"\n'
            f'accessid = "{self.s3.access_key}"\naccesskey = "{self.s3.secret_key}"\n'
            f'bucket = "{self.s3.bucket}"\nregion = "{self.s3.region}"\n'
            f'[capture]\nstandby = ["{self.wire.interface}"]\n'
        )
        self.addCleanup(self.daemon.stop)
        self.daemon.start()

    def test_on_the_wire(self) -> None:
        """
        Each capture arrives everywhere, byte for byte, and once, whether or not anybody heard the
        answer. None is left in the spool.
        """
        captures: list[str] = []
        deadline = time.monotonic() + REAL_SECONDS
        while len(captures) < FEWEST_CAPTURES or (
            len(captures) < REAL_CAPTURES and time.monotonic() < deadline
        ):
            some = [self.daemon.capture(interface=[self.wire.interface], packets=1) for _ in range(AT_ONCE)]
            self.wire.send([udp_frame(len(captures))])
            for capture in some:
                self.daemon.logged(f"{capture}: delivered to local")
            captures += some
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and len(self.delivered()) < 3 * len(captures):
            time.sleep(0.1)
        once = Counter((capture, to) for capture in captures for to in ("local", "cloudshark", "s3"))
        self.assertEqual(self.delivered(), once, f"{self.seed} {self.daemon.log}")
        # What is delivered is removed soon afterwards.
        self.daemon.until(
            lambda: [path.name for path in self.spool.iterdir()] == ["lock"] or None,
            f"{self.seed}: the spool",
        )

        files = {path.name: path.read_bytes() for path in self.daemon.captures.iterdir()}
        self.assertEqual(sorted(name[-17:-5] for name in files), sorted(captures), self.seed)
        keys = self.s3.keys()
        in_s3 = {key.rpartition("/")[2]: self.s3.get(key)[0] for key in keys}
        self.assertEqual(in_s3, files, self.seed)
        uploads = [(one.filename, one.data) for one in self.cloudshark.uploads()]
        self.assertEqual(sorted(uploads), sorted(files.items()), self.seed)
        self.assertGreater(self.before_cloudshark.forgotten, 0, self.seed)
        for proxy in (self.before_cloudshark, self.before_s3):
            self.assertGreater(proxy.failed, len(captures) * FAILING / 2, self.seed)

    def delivered(self) -> Counter[tuple[str, str]]:
        """Which captures were delivered, where to, and how often that was told."""
        words = [line.partition("] ")[2].split() for line in self.daemon.log.splitlines()]
        return Counter((one[0][:-1], one[3][:-1]) for one in words if one[1:3] == ["delivered", "to"])
