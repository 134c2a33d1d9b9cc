"""The whole flow, on packets in memory: what becomes of a message, and of nothing else."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import struct
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.capture.capturer import Capturer
from pcapsvc.captures import Captures
from pcapsvc.core.admission import Admission
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.event import (
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureStarted,
    CaptureStopped,
    DeliveryFailed,
    Event,
    RequestAccepted,
    RequestBusy,
    RequestRejected,
)
from pcapsvc.core.message import Message
from pcapsvc.core.plan import NodeView
from pcapsvc.core.recording import PacketCounts
from pcapsvc.core.result import Accepted, Busy, NotForThisNode, Rejected, Verdict
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.core.session import StopReason
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.delivery.outboxes import Outboxes
from pcapsvc.encoders.pcap.encoder import PcapEncoder
from pcapsvc.interfaces.delivery import IEncoder
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.judge import Judge
from pcapsvc.pipeline import Pipeline
from pcapsvc.reports.fan_out import FanOutReporter
from pcapsvc.reports.log import LogReporter
from pcapsvc.testing import MemoryDestination, MemoryPacketSystem, MemoryReporter, event_factory, run_now
from peers.frames import udp_frame
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


class Faulty(MemoryReporter):
    """A reporter that breaks its promise."""

    def report(self, event: Event) -> None:
        """Raise."""
        super().report(event)
        raise ZeroDivisionError("a reporter's own fault")


class PipelineCase(unittest.SynchronousTestCase):
    """A pipeline on two interfaces, with two destinations, that leaves nothing open."""

    max_captures = 4
    max_memory = 10**9
    reporters: tuple[IReporter, ...] = ()
    options: dict[str, Any] = {}
    capturer_options: dict[str, Any] = {}
    encoder: IEncoder = PcapEncoder()

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
        admission = Admission(max_captures=self.max_captures, max_memory_bytes=self.max_memory)
        self.pipeline = Pipeline(
            judge=Judge(
                self.node(),
                admission=admission,
                **self.options,
            ),
            capturer=Capturer(
                self.reactor,
                self.system,
                run_in_thread=run_now,
                wall_clock=lambda: 1_700_000_000.0,
                read_timeout_ms=10,
                **self.capturer_options,
            ),
            encoder=self.encoder,
            delivery=Outboxes(
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
            ),
            reporter=everyone,
            events=self.event_factory,
            captures=self.captures,
            admission=admission,
        )
        self.pipeline.startService()
        self.addCleanup(self.assert_nothing_left)

    def _line(self, event: Any) -> None:
        if event.get("log_namespace", "").startswith("pcapsvc."):
            self.lines.append((event["log_level"], formatEvent(event)))

    def node(self) -> NodeView:
        """The node."""
        return NodeView(
            name="sensor1",
            bounds=dataclasses.replace(BOUNDS, aliases=frozenset({"both"})),
            default_timeout_seconds=10,
            snap_length=500,
            interfaces_by_alias={"both": ("mem0", "mem1")},
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


class JudgingTests(PipelineCase):
    """What a message is answered."""

    max_memory = 2000

    def test_for_others(self) -> None:
        """A message for other nodes is nobody's business here, were all else in it wrong."""
        for body in (
            b'{"node": "other"}',
            b'{"nodere": "^other$", "packets": -1, "bfp": 5, "interface": 7}',
            b'{"node": "other", "bpf": "host foo.example", "nodere": 5}',
            b'{"node": "other", "node": "another", "x": [[[{}]]]}',
            b'{"no\\u0064e": "other"}',
            b'{"node": "other", "interface": ["mem0"], "bytes": 100000000000}',
        ):
            self.assertEqual(self.judge(Message(source="test", body=body)), NotForThisNode(), body)
        self.successResultOf(self.stop())
        self.assertEqual(self.judge(Message(source="test", body=b'{"node": "other"}')), NotForThisNode())
        self.assertEqual((self.reporter.events, self.lines), ([], []))

    def test_no_requests(self) -> None:
        """What is no request at all is rejected and reported, and never raises."""
        bodies = [b"", b"[]", b"\xff", b"[" * 60_000, b'{"x":' * 10_000, b" " * 70_000, b'{"nodere": "("}']
        for body in bodies:
            verdict = self.judge(Message(source="test", body=body))
            assert isinstance(verdict, Rejected)
            self.assertTrue(verdict.problems)
            self.assertEqual(self.reporter.data[-1], RequestRejected(problems=verdict.problems))
        self.assertEqual(len(self.reporter.events), len(bodies))

    def test_all_problems(self) -> None:
        """A rejection has all problems, and each is a line of the log."""
        verdict = self.submit(interface=["mem0"], packets=0, snap="x")
        assert isinstance(verdict, Rejected)
        self.assertEqual([problem.path for problem in verdict.problems], ["packets", "snap"])
        self.assertEqual([level for level, _ in self.lines], [LogLevel.warn] * 2)

    def test_long_expression(self) -> None:
        """An expression that is too long is one problem, told among the others."""
        body = json.dumps({"nodere": "s" * 1025, "interface": ["mem0"], "packets": 0}).encode()
        verdict = self.judge(Message(source="test", body=body))
        assert isinstance(verdict, Rejected)
        self.assertEqual(
            [(problem.path, problem.rule) for problem in verdict.problems],
            [
                ("nodere", "must be a regular expression on one line of up to 1024 characters"),
                ("packets", "must be a whole number, 1 or more"),
            ],
        )

    def test_bad_filter(self) -> None:
        """A filter that can't be compiled starts nothing."""
        verdict = self.submit(interface=["mem0", "mem1"], bpf="tcp prot 80")
        assert isinstance(verdict, Rejected)
        self.assertEqual([problem.path for problem in verdict.problems], ["bpf"])
        self.assertEqual(self.events(CaptureStarted), [])

    def test_bad_filter_on_the_second(self) -> None:
        """Nor does one that can be compiled for the first interface, and not for the second."""
        opened = self.system.open

        def picky(interface: str, *, snap_length: int, bpf: str) -> Any:
            return opened(interface, snap_length=snap_length, bpf="" if interface == "mem0" else bpf)

        self.system.open = picky  # type: ignore[method-assign]
        verdict = self.submit(alias=["both"], bpf="wlan type mgt", bytes=100)
        self.assertIsInstance(verdict, Rejected)
        self.assertEqual(self.events(CaptureStarted), [])
        self.assertEqual(self.system.open_handles, 0)

    def test_fault_while_opening(self) -> None:
        """A fault of ours on the second interface closes the first, and costs that request alone."""
        opened = self.system.open

        def faulty(interface: str, *, snap_length: int, bpf: str) -> Any:
            if interface == "mem1":
                raise ZeroDivisionError
            return opened(interface, snap_length=snap_length, bpf=bpf)

        self.system.open = faulty  # type: ignore[method-assign]
        verdict = self.submit(alias=["both"], bytes=100)
        assert isinstance(verdict, Rejected)
        self.assertIn("internal error", verdict.problems[0].rule)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.system.open_handles, 0)
        self.begin(bytes=100)
        self.successResultOf(self.stop())

    def test_one_interface_missing(self) -> None:
        """An interface that can't be captured on is told, and the others go on."""
        verdict = self.submit(interface=["nosuch0", "mem1"], bytes=100)
        assert isinstance(verdict, Accepted)
        self.assertEqual([capture.interface for capture in verdict.captures], ["mem1"])
        self.assertEqual(
            [(problem.path, problem.value, problem.rule) for problem in verdict.problems],
            [("interface", "'nosuch0'", "no such interface")],
        )
        self.successResultOf(self.stop())

    def test_all_interfaces_missing(self) -> None:
        """Where none can be captured on, the request is rejected with all of them."""
        self.system.interfaces["mem0"].problem = "the interface is down"
        verdict = self.submit(interface=["nosuch0", "mem0"], bytes=100)
        assert isinstance(verdict, Rejected)
        self.assertEqual(
            [problem.rule for problem in verdict.problems], ["no such interface", "the interface is down"]
        )

    def test_new_interface(self) -> None:
        """Interfaces are looked up as a request comes."""
        self.assertIsInstance(self.submit(interface=["new0"], bytes=100), Rejected)
        self.system.interfaces["new0"] = type(self.system.interfaces["mem0"])()
        self.assertIsInstance(self.submit(interface=["new0"], bytes=100), Accepted)
        self.successResultOf(self.stop())

    def test_no_memory_to_begin(self) -> None:
        """Where there is no memory for a capture, the node is busy, and nothing is left open."""

        def no_memory(path: str, **_: int) -> Any:
            raise OSError(12, "Cannot allocate memory")

        self.system.open_dumper = no_memory  # type: ignore[method-assign]
        verdict = self.submit(interface=["mem0"], bytes=100)
        assert isinstance(verdict, Busy)
        self.assertIn("there is no room for a capture: [Errno 12]", verdict.reason)

    def test_busy_by_memory(self) -> None:
        """What all captures may grow to is bounded, from their start until their last delivery."""
        self.one.answer = Deferred
        first = self.begin(bytes=1500, packets=1, snap=1460)
        refused = self.submit(interface=["mem0"], bytes=501)
        assert isinstance(refused, Busy)
        self.assertIn("exceed the limit of 2000", refused.reason)
        self.assertEqual(self.events(RequestBusy)[-1].reason, refused.reason)
        self.assertIsInstance(self.submit(alias=["both"], bytes=251), Busy)
        self.arrive(b"x" * 60)
        self.assertEqual(self.state(first)["state"], "delivering")
        self.assertIsInstance(self.submit(interface=["mem0"], bytes=1901), Busy)
        self.begin(bytes=1900)
        self.stop().cancel()

    def test_stopping(self) -> None:
        """While the daemon stops, requests for this node are put off."""
        self.successResultOf(self.stop())
        self.assertEqual(self.submit(interface=["mem0"], bytes=100), Busy(reason="the daemon is stopping"))


class LoggingRequestsTests(PipelineCase):
    """Requests in the log."""

    def test_one(self) -> None:
        """A request is logged where it asks for it, and not otherwise."""
        self.begin(customer="ACME")
        self.assertEqual([line for _, line in self.lines if "ACME" in line], [])
        self.begin(customer="ACME", logrequest=True)
        self.assertEqual(len([line for _, line in self.lines if "ACME" in line]), 1)
        self.successResultOf(self.stop())


class LoggingAllRequestsTests(PipelineCase):
    """By the node's setting."""

    options = {"log_requests": True, "ignore_unknown": True}

    def test_all(self) -> None:
        """Each request for this node is logged, and unknown keys may be passed over."""
        self.begin(customer="ACME", bfp="x")
        self.assertEqual(self.submit(node="other", customer="ACME"), NotForThisNode())
        self.assertEqual(len([line for _, line in self.lines if "ACME" in line]), 1)
        self.successResultOf(self.stop())


class CapturingTests(PipelineCase):
    """From the first packet to the last delivery."""

    def test_whole(self) -> None:
        """A capture goes to every destination, and all that becomes of it is told in its order."""
        capture_id = self.begin(packets=2, customer="ACME")
        frames = [udp_frame(1), udp_frame(2)]
        self.assertEqual(self.state(capture_id)["state"], "capturing")
        self.arrive(*frames, udp_frame(3))
        name = f"sensor1-mem0-1700000000-{capture_id}.pcap"
        for destination in (self.one, self.two):
            self.assertEqual(packets_in(destination.files[name]), frames)
            self.assertEqual(
                destination.artifacts[0].tags, "customer:ACME,node:sensor1,interface:mem0,snaplength:500"
            )
        self.assertEqual(
            [type(data) for data in self.reporter.data],
            [
                RequestAccepted,
                CaptureStarted,
                CaptureStopped,
                CaptureDelivered,
                CaptureDelivered,
                CaptureDone,
            ],
        )
        [stopped] = self.events(CaptureStopped)
        self.assertEqual((stopped.reason, stopped.packets), (StopReason.PACKETS, 2))
        self.assertEqual(stopped.counts, PacketCounts(received=3, dropped=0, interface_dropped=0))
        self.assertEqual(self.state(capture_id)["state"], "done")
        self.assertEqual({line.split(":")[0] for _, line in self.lines}, {capture_id})

    def test_bytes(self) -> None:
        """The packet that brings the file to the limit is the last."""
        self.begin(bytes=24 + 2 * 76)
        self.arrive(*[bytes([number]) * 60 for number in range(5)])
        [stopped] = self.events(CaptureStopped)
        self.assertEqual((stopped.reason, stopped.packets), (StopReason.BYTES, 2))
        self.assertEqual(len(next(iter(self.one.files.values()))), 24 + 2 * 76)

    def test_one_byte(self) -> None:
        """A limit below the file's own header takes one packet, and is not met by none."""
        self.begin(bytes=1)
        self.turn()
        self.assertEqual(self.events(CaptureStopped), [])
        self.arrive(b"x" * 60, b"y" * 60)
        [stopped] = self.events(CaptureStopped)
        self.assertEqual((stopped.reason, stopped.packets), (StopReason.BYTES, 1))

    def test_counted_tail(self) -> None:
        """A file of two parts, one counted and one not, is one file, in order."""
        frames = [udp_frame(number, size=100) for number in range(300)]
        limit = 24 + 200 * 116
        self.begin(bytes=limit)
        for at in range(0, 300, 7):
            self.arrive(*frames[at : at + 7])
        file = next(iter(self.one.files.values()))
        self.assertEqual(len(file), limit)
        self.assertEqual(packets_in(file), frames[:200])

    def test_idle(self) -> None:
        """The idle time moves with the packets, and those that came by its end are in the file."""
        self.begin(timeout=5)
        self.reactor.advance(4)
        self.arrive(udp_frame(1))
        self.reactor.advance(4.9)
        self.assertEqual(self.events(CaptureStopped), [])
        self.system.deliver("mem0", udp_frame(2))
        self.reactor.advance(0.1)
        self.hand_over()
        self.assertEqual(self.events(CaptureStopped), [])
        self.reactor.advance(4.9)
        self.assertEqual(self.events(CaptureStopped), [])
        self.hand_over()
        [stopped] = self.events(CaptureStopped)
        self.assertEqual((stopped.reason, stopped.packets), (StopReason.IDLE, 2))

    def test_duration(self) -> None:
        """The duration ends a busy capture, with all that had arrived, within a tenth of a second."""
        self.begin(timeout=5, duration=12)
        for number in range(12):
            self.arrive(udp_frame(number))
            self.reactor.advance(1)
        self.system.deliver("mem0", udp_frame(12))
        self.assertEqual(self.events(CaptureStopped), [])
        self.hand_over()
        [stopped] = self.events(CaptureStopped)
        self.assertEqual((stopped.reason, stopped.packets), (StopReason.DURATION, 13))

    def test_limit_at_the_deadline(self) -> None:
        """Where the last read meets a limit, that is the reason, and there is no second end."""
        self.begin(duration=2, packets=1)
        self.system.deliver("mem0", udp_frame(1), udp_frame(2))
        self.reactor.advance(3)
        self.assertEqual([event.reason for event in self.events(CaptureStopped)], [StopReason.PACKETS])

    def test_no_packet(self) -> None:
        """A capture without a packet is delivered nowhere, and is done."""
        capture_id = self.begin(timeout=2)
        self.reactor.advance(3)
        self.assertEqual((self.one.artifacts, self.two.artifacts), ([], []))
        self.assertEqual(
            [type(data) for data in self.reporter.data],
            [RequestAccepted, CaptureStarted, CaptureStopped, CaptureDone],
        )
        self.assertEqual(self.state(capture_id)["deliveries"], [])

    def test_flood(self) -> None:
        """A flood keeps the reactor for a bounded number of packets, and loses none."""
        capture_id = self.begin(packets=50_000)
        self.system.deliver("mem0", *[b"x" * 20] * 10_000)
        self.turn()
        self.assertTrue(0 < self.state(capture_id)["packets"] <= 8192)
        self.successResultOf(self.stop())
        self.assertEqual(self.events(CaptureStopped)[0].packets, 10_000)

    def test_device_lost(self) -> None:
        """An interface that goes away ends its capture alone, with what there is."""
        self.begin()
        self.begin(interface=["mem1"])
        self.arrive(udp_frame(1))
        self.system.deliver("mem0", udp_frame(2))
        self.system.lose("mem0")
        self.turn()
        self.turn()
        self.hand_over()
        [stopped] = self.events(CaptureStopped)
        self.assertEqual((stopped.reason, stopped.packets), (StopReason.DEVICE_LOST, 2))
        self.assertIsNone(stopped.counts)
        self.assertEqual(self.system.open_handles, 1)
        self.successResultOf(self.stop())

    def test_connection_lost(self) -> None:
        """So it does if the reactor finds an error on the socket, with what can still be read."""
        self.begin()
        self.system.deliver("mem0", udp_frame(1))
        self.system.lose("mem0")
        [port] = self.reactor.getReaders()
        self.reactor.removeReader(port)
        port.connectionLost(None)
        self.reactor.advance(0.02)
        self.turn()
        self.hand_over()
        [stopped] = self.events(CaptureStopped)
        self.assertEqual((stopped.reason, stopped.packets), (StopReason.DEVICE_LOST, 1))

    def test_memory_while_capturing(self) -> None:
        """Where memory runs out in the middle, that capture fails, is told to, and holds nothing."""
        capture_id = self.begin(bytes=24 + 40 * 116, snap=100)
        self.arrive(*[b"x" * 100] * 20)

        def no_memory(path: str, **_: int) -> Any:
            raise OSError(12, "Cannot allocate memory")

        self.system.open_dumper = no_memory  # type: ignore[method-assign]
        self.arrive(*[b"x" * 100] * 15)
        self.arrive(*[b"x" * 100] * 15)
        [failed] = self.events(CaptureFailed)
        self.assertIn("Cannot allocate memory", failed.problem)
        self.assertEqual(self.state(capture_id)["state"], "failed")
        self.assertEqual(self.one.artifacts, [])

    def test_fault_while_capturing(self) -> None:
        """A fault of ours fails that capture, is told and logged with its id, and touches no other."""
        capture_id = self.begin()
        self.begin(interface=["mem1"], packets=1)
        [handle] = self.system.interfaces["mem0"].handles

        def faulty(count: int, callback: object) -> int:
            raise ZeroDivisionError

        handle.read = faulty  # type: ignore[method-assign]
        self.arrive(udp_frame(1))
        self.arrive(udp_frame(1), interface="mem1")
        self.assertEqual(
            [event.subject for event in self.reporter.events if event.type == CaptureFailed.type],
            [capture_id],
        )
        self.assertEqual(self.state(capture_id)["state"], "failed")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(
            len([line for level, line in self.lines if level is LogLevel.critical and capture_id in line]), 1
        )
        self.assertEqual(len(self.one.files), 1)


class BusyTests(PipelineCase):
    """So many captures at once."""

    max_captures = 2

    def test_captures(self) -> None:
        """More captures than may run are refused together: half a request is none."""
        self.begin()
        refused = self.submit(alias=["both"])
        assert isinstance(refused, Busy)
        self.assertIn("exceed the limit of 2", refused.reason)
        self.assertEqual(self.system.open_handles, 1)
        self.begin(packets=1)
        self.assertIsInstance(self.submit(interface=["mem1"]), Busy)
        self.arrive(udp_frame(1))
        self.begin()
        self.successResultOf(self.stop())

    def test_refused_ones_leave_room(self) -> None:
        """Requests that came to nothing take no room."""
        for _ in range(5):
            self.submit(interface=["nosuch0"])
            self.submit(interface=["mem0"], bpf="tcp prot 80")
        self.assertIsInstance(self.submit(alias=["both"]), Accepted)
        self.successResultOf(self.stop())


class DeliveringTests(PipelineCase):
    """Each destination stands alone."""

    def test_one_fails(self) -> None:
        """One that fails stops no other, and tells why."""
        self.one.answer = lambda: fail(DestinationError("the disk is full", retryable=False))
        capture_id = self.begin(packets=1)
        self.arrive(udp_frame(1))
        self.assertEqual(len(self.two.files), 1)
        self.assertEqual(
            [(event.destination, event.problem) for event in self.events(DeliveryFailed)],
            [("one", "the disk is full")],
        )
        self.assertEqual(
            [delivery["state"] for delivery in self.state(capture_id)["deliveries"]], ["failed", "delivered"]
        )

    def test_one_raises(self) -> None:
        """So does one that raises, or answers with a fault; those are logged."""

        def raising() -> Deferred[Any]:
            raise ZeroDivisionError

        for answer in (raising, lambda: fail(ZeroDivisionError())):
            self.one.answer = answer
            self.begin(packets=1)
            self.arrive(udp_frame(1))
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((len(self.two.files), len(self.events(DeliveryFailed))), (2, 2))

    def test_one_hangs(self) -> None:
        """One that hangs keeps no other waiting, and the content stays open for it, and no longer."""
        hanging: Deferred[None] = Deferred()
        self.one.answer = lambda: hanging
        capture_id = self.begin(packets=1)
        self.arrive(udp_frame(1))
        self.assertEqual(len(self.two.files), 1)
        self.assertEqual(self.events(CaptureDone), [])
        self.assertEqual(self.state(capture_id)["state"], "delivering")
        held = descriptors()
        hanging.callback(None)
        self.assertEqual(descriptors(), held - 1)
        self.assertEqual(self.one.files, self.two.files)
        self.assertEqual(len(self.events(CaptureDone)), 1)


class FaultyReporterTests(PipelineCase):
    """A reporter that raises."""

    reporters = (Faulty(),)

    def test_faulty_reporter(self) -> None:
        """It changes nothing of what is done, or told to others."""
        self.assertIsInstance(self.submit(interface=["nosuch0"]), Rejected)
        self.begin(packets=1)
        self.arrive(udp_frame(1))
        self.assertEqual(len(self.one.files), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), len(self.reporter.events))


class FaultyDeliveryTests(PipelineCase):
    """A delivery that raises, which none does."""

    def test_told_with_the_id(self) -> None:
        """The capture's lines bear its id to the last, and nothing of it is left."""

        def fail(artifact: object, let_go: object) -> Deferred[None]:
            raise ZeroDivisionError

        self.pipeline._delivery.deliver = fail  # type: ignore[method-assign]
        capture_id = self.begin(packets=1)
        self.arrive(udp_frame(1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        faults = [line for level, line in self.lines if level is LogLevel.critical]
        self.assertEqual(faults, [f"{capture_id}: internal error"])


class StoppingTests(PipelineCase):
    """The end of all."""

    def test_nothing_runs(self) -> None:
        """Where nothing runs, it stops at once."""
        self.successResultOf(self.stop())

    def test_keeps_what_there_is(self) -> None:
        """What runs is ended, with all that has arrived, and delivered before the stop is over."""
        hanging: Deferred[None] = Deferred()
        self.one.answer = lambda: hanging
        self.begin()
        self.arrive(udp_frame(1))
        self.system.deliver("mem0", udp_frame(2))
        stopping = self.stop()
        [stopped] = self.events(CaptureStopped)
        self.assertEqual((stopped.reason, stopped.packets), (StopReason.SHUTDOWN, 2))
        self.assertEqual(len(self.two.files), 1)
        self.assertNoResult(stopping)
        hanging.callback(None)
        self.successResultOf(stopping)
        self.assertEqual(packets_in(next(iter(self.one.files.values()))), [udp_frame(1), udp_frame(2)])

    def test_cancel(self) -> None:
        """A stop that is cancelled gives up the deliveries that hang, and tells it; then it has stopped."""
        self.one.answer = Deferred
        self.begin()
        self.arrive(udp_frame(1))
        stopping = self.stop()
        stopping.cancel()
        self.successResultOf(stopping)
        self.assertEqual(
            [(event.destination, event.problem) for event in self.events(DeliveryFailed)],
            [("one", "cancelled")],
        )
        self.assertEqual(len(self.events(CaptureDone)), 1)

    def test_cancel_while_settling(self) -> None:
        """So it does with a capture that still waits for what the kernel holds back."""
        self.begin()
        self.arrive(udp_frame(1))
        stopping = self.pipeline.stopService()
        self.assertNoResult(stopping)
        stopping.cancel()
        self.successResultOf(stopping)
        self.assertEqual([event.problem for event in self.events(CaptureFailed)], ["given up"])

    def test_start_again(self) -> None:
        """After a stop it can be started again."""
        self.successResultOf(self.stop())
        self.pipeline.startService()
        self.begin(packets=1)
        self.arrive(udp_frame(1))
        self.assertEqual(len(self.one.files), 1)


class PacketDebugTests(PipelineCase):
    """Packets in the log."""

    def test_hostile_packet(self) -> None:
        """A packet that can't be decoded is a line of the log, and in the file as any other."""
        capture_id = self.begin(packets=2, packetdebug=True)
        self.arrive(udp_frame(1), b"\x00")
        lines = [line for _, line in self.lines if ": packet: " in line]
        self.assertEqual(len(lines), 2)
        self.assertTrue(all(line.startswith(capture_id) for line in lines))
        self.assertIn("UDP 192.0.2.1:40000 > 198.51.100.1:9", lines[0])
        self.assertIn("can't be decoded", lines[1])
        self.assertEqual(packets_in(next(iter(self.one.files.values()))), [udp_frame(1), b"\x00"])

    def test_not_asked_for(self) -> None:
        """No packet is logged that nobody asked for."""
        self.begin(packets=1)
        self.arrive(udp_frame(1))
        self.assertEqual([line for _, line in self.lines if ": packet: " in line], [])


class PanicTests(PipelineCase):
    """Where a packet that can't be decoded is to fail its capture."""

    capturer_options = {"packet_debug": True, "panic": True}

    def test_panic(self) -> None:
        """It fails its capture, and no other."""
        capture_id = self.begin()
        self.begin(interface=["mem1"], packets=1)
        self.arrive(b"\x00")
        self.arrive(udp_frame(1), interface="mem1")
        [failed] = self.events(CaptureFailed)
        self.assertEqual(self.state(capture_id)["problem"], failed.problem)
        self.assertIn("can't be decoded", failed.problem)
        self.assertEqual(len(self.one.files), 1)
