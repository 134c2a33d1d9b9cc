"""The whole flow, on packets in memory."""

from __future__ import annotations

import gc
import json
import os
import struct
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.capture.capturer import Capturer
from pcapsvc.capture_files import CaptureFiles
from pcapsvc.captures import Captures
from pcapsvc.core.admission import Admission
from pcapsvc.core.compression import CompressionChoice
from pcapsvc.core.message import Message
from pcapsvc.core.plan import NodeView
from pcapsvc.core.result import Accepted, Verdict
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.compressor import Compressor
from pcapsvc.delivery.forms import Forms
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.delivery.outboxes import Outboxes
from pcapsvc.encoders.pcap.encoder import PcapEncoder
from pcapsvc.interfaces.delivery import IEncoder
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.judge import Judge
from pcapsvc.pipeline import Pipeline
from pcapsvc.reports.fan_out import FanOutReporter
from pcapsvc.reports.log import LogReporter
from pcapsvc.testing import MemoryDestination, event_factory, run_now
from pcapsvc.testing_packets import MemoryPacketSystem
from tests.core.test_request import BOUNDS
from tests.unit.event_schema import checked_reporter

# So long after a limit of time, or an end from outside, a capture has what the kernel held back, and is over.
HAND_OVER = 0.1


def descriptors() -> int:
    """How many descriptors are open."""
    return len(os.listdir("/proc/self/fd"))


def packets_in(file: bytes) -> list[bytes]:
    """The data of each packet of a pcap file."""
    found, at = [], 24
    while at < len(file):
        kept = struct.unpack_from("=I", file, at + 8)[0]
        found.append(file[at + 16 : at + 16 + kept])
        at += 16 + kept
    return found


class PipelineCase(unittest.SynchronousTestCase):
    """A pipeline on two interfaces, with two destinations, that leaves nothing open."""

    max_captures = 4
    max_memory = 10**9
    retain_bytes = 0
    reporters: tuple[IReporter, ...] = ()
    options: dict[str, Any] = {}
    compressions: Mapping[str, CompressionChoice] = {}
    run_in_thread: RunInThread = staticmethod(run_now)
    capturer_options: dict[str, Any] = {}
    encoder: IEncoder = PcapEncoder()
    capturer_class = Capturer

    def setUp(self) -> None:
        """Build it."""
        self.lines: list[tuple[LogLevel, str]] = []
        globalLogPublisher.addObserver(self._line)
        self.addCleanup(globalLogPublisher.removeObserver, self._line)
        gc.collect()  # what other tests left behind would go while this one counts
        self.before = descriptors()
        self.reactor = MemoryReactorClock()
        self.system = MemoryPacketSystem("mem0", "mem1")
        self.one, self.two = MemoryDestination("one"), MemoryDestination("two")
        self.reporter, self.event_factory = checked_reporter(self), event_factory()
        self.captures = Captures(["one", "two"])
        everyone = FanOutReporter([*self.reporters, LogReporter(self.reactor), self.captures, self.reporter])
        self.files = CaptureFiles(self.reactor, self.retain_bytes)
        self.addCleanup(self.assert_nothing_left)
        self.files.startService()
        self.addCleanup(self.files.stopService)
        admission = Admission(
            max_captures=self.max_captures, max_memory_bytes=self.max_memory, spare=self.files
        )
        self.delivery = self._build_delivery(everyone, admission)
        self.pipeline = Pipeline(
            judge=Judge(
                self.node(),
                admission=admission,
                **self.options,
            ),
            capturer=self.capturer_class(
                self.reactor,
                self.system,
                run_in_thread=run_now,
                wall_clock=lambda: 1_700_000_000.0,
                read_timeout_ms=10,
                **self.capturer_options,
            ),
            encoders={self.encoder.name: self.encoder},
            delivery=self.delivery,
            reporter=everyone,
            events=self.event_factory,
            captures=self.captures,
            files=self.files,
            admission=admission,
        )
        self.pipeline.startService()

    def _build_delivery(self, everyone: IReporter, admission: Admission) -> Forms:
        outboxes = Outboxes(
            [
                Outbox(
                    self.reactor,
                    destination,
                    slots=4,
                    timeout_seconds=None,
                    policy=RetryPolicy(attempts=1, first_delay_seconds=1, max_delay_seconds=1),
                    spool_interval_seconds=60,
                    reporter=everyone,
                    events=self.event_factory,
                )
                for destination in (self.one, self.two)
            ]
        )
        return Forms(
            outboxes,
            Compressor(self.run_in_thread, admission),
            everyone,
            self.event_factory,
        )

    def _line(self, event: Any) -> None:
        if event.get("log_namespace", "").startswith("pcapsvc."):
            self.lines.append((event["log_level"], formatEvent(event)))

    def node(self) -> NodeView:
        """The node."""
        return NodeView(
            name="sensor1",
            bounds=replace(BOUNDS, aliases=frozenset({"both"})),
            default_timeout_seconds=10,
            snap_length=500,
            interfaces_by_alias={"both": ("mem0", "mem1")},
            format=self.encoder.name,
            compressions=self.compressions,
        )

    def assert_nothing_left(self) -> None:
        """No handle, no descriptor, no reader and no timer is left."""
        self.assertEqual(self.system.open_handles, 0)
        self.assertEqual(descriptors(), self.before)
        self.assertEqual(self.reactor.getReaders(), [])
        self.reactor.advance(1)  # refusals that were too many to tell are counted within a second
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def judge(self, message: Message) -> Verdict:
        """The verdict on a message."""
        return self.successResultOf(self.pipeline.submit(message))

    def submit(self, **fields: Any) -> Verdict:
        """Submit a message with these fields."""
        return self.judge(Message(source="test", body=json.dumps({"node": "sensor1", **fields}).encode()))

    def begin(self, **fields: Any) -> str:
        """Begin one capture, and answer its id."""
        verdict = self.submit(**{"interface": ["mem0"], **fields})
        assert isinstance(verdict, Accepted), verdict
        return verdict.captures[0].capture_id

    def arrive(self, *packets: bytes, interface: str = "mem0") -> None:
        """Packets arrive, and the reactor sees them."""
        self.system.deliver(interface, *packets)
        self.turn()

    def turn(self) -> None:
        """A turn of the reactor."""
        for reader in list(self.reactor.getReaders()):
            reader.doRead()

    def events(self, *kinds: type) -> list[Any]:
        """The payloads of the events of these kinds."""
        return [data for data in self.reporter.data if isinstance(data, kinds)]

    def state(self, capture_id: str) -> dict[str, Any]:
        """The state of a capture."""
        found = self.captures.get(capture_id)
        assert found is not None
        return dict(found)

    def hand_over(self) -> None:
        """The time passes in which the kernel hands over what it holds back."""
        self.reactor.pump([HAND_OVER / 10] * 10)

    def stop(self) -> Deferred[None]:
        """Stop the pipeline, and give it the time that it takes."""
        stopping = self.pipeline.stopService()
        self.hand_over()
        return stopping
