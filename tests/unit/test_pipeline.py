"""The whole flow, on packets in memory: what becomes of a message, and of nothing else."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import LogLevel

from pcapsvc.core.errors import DestinationError
from pcapsvc.core.event import (
    CaptureDone,
    CaptureStarted,
    DeliveryFailed,
    Event,
    RequestBusy,
    RequestRejected,
)
from pcapsvc.core.message import Message
from pcapsvc.core.result import Accepted, Busy, NotForThisNode, Rejected
from pcapsvc.testing import MemoryReporter
from peers.frames import udp_frame
from tests.unit.pipeline_case import PipelineCase, descriptors


class Faulty(MemoryReporter):
    """A reporter that breaks its promise."""

    def report(self, event: Event) -> None:
        """Raise."""
        super().report(event)
        raise ZeroDivisionError("a reporter's own fault")


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
        """A rejection has all problems, and so has its line of the log."""
        verdict = self.submit(interface=["mem0"], packets=0, snap="x")
        assert isinstance(verdict, Rejected)
        self.assertEqual([problem.path for problem in verdict.problems], ["packets", "snap"])
        [(level, line)] = self.lines
        self.assertIs(level, LogLevel.warn)
        for problem in verdict.problems:
            self.assertIn(str(problem), line)

    def test_long_expression(self) -> None:
        """An expression that is too long is one problem, reported with the others."""
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
        """An interface that can't be captured on is reported, and the others go on."""
        verdict = self.submit(interface=["nosuch0", "mem1"], bytes=100)
        assert isinstance(verdict, Accepted)
        self.assertEqual([capture.interface for capture in verdict.captures], ["mem1"])
        self.assertEqual(
            [(problem.path, problem.value, problem.rule) for problem in verdict.problems],
            [("interface", '"nosuch0"', "no such interface")],
        )
        self.successResultOf(self.stop())

    def test_all_interfaces_missing(self) -> None:
        """If no interface can be captured on, the request is rejected, and each of them is named."""
        self.system.interfaces["mem0"].problem = "the interface is down"
        verdict = self.submit(interface=["nosuch0", "mem0"], bytes=100)
        assert isinstance(verdict, Rejected)
        self.assertEqual(
            [problem.rule for problem in verdict.problems], ["no such interface", "the interface is down"]
        )

    def test_alias_as_interface(self) -> None:
        """An alias in place of an interface is recognized."""
        verdict = self.submit(interface=["both"], bytes=100)
        assert isinstance(verdict, Rejected)
        (problem,) = verdict.problems
        self.assertEqual(problem.rule, "no such interface; it is an alias: give it as 'alias'")

    def test_new_interface(self) -> None:
        """Interfaces are looked up as a request comes."""
        self.assertIsInstance(self.submit(interface=["new0"], bytes=100), Rejected)
        self.system.interfaces["new0"] = type(self.system.interfaces["mem0"])()
        self.assertIsInstance(self.submit(interface=["new0"], bytes=100), Accepted)
        self.successResultOf(self.stop())

    def test_no_memory_to_begin(self) -> None:
        """If there is no memory for a capture, the node is busy, and nothing is left open."""

        def no_memory(path: str, **_: int) -> Any:
            raise OSError(12, "Cannot allocate memory")

        self.system.open_dumper = no_memory  # type: ignore[method-assign]
        verdict = self.submit(interface=["mem0"], bytes=100)
        assert isinstance(verdict, Busy)
        self.assertIn("there is no room for a capture: [Errno 12]", verdict.reason)

    def test_no_memory_for_python(self) -> None:
        """Likewise if Python itself has no memory for what a capture needs."""

        def no_memory(path: str, **_: int) -> Any:
            raise MemoryError

        self.system.open_dumper = no_memory  # type: ignore[method-assign]
        verdict = self.submit(interface=["mem0"], bytes=100)
        self.assertEqual(verdict, Busy(reason="there is no memory for a capture"))

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
        """A request is logged if it asks for that, and not otherwise."""
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


class BusyTests(PipelineCase):
    """So many captures at once."""

    max_captures = 2

    def test_captures(self) -> None:
        """More captures than may run are refused together: half a request is none."""
        self.begin()
        refused = self.submit(alias=["both"])
        assert isinstance(refused, Busy)
        self.assertIn("the limit is 2", refused.reason)
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
        """It changes nothing of what is done, or reported to others."""
        self.assertIsInstance(self.submit(interface=["nosuch0"]), Rejected)
        self.begin(packets=1)
        self.arrive(udp_frame(1))
        self.assertEqual(len(self.one.files), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), len(self.reporter.events))


class FaultyDeliveryTests(PipelineCase):
    """A delivery that raises, which none does."""

    def test_logged_with_the_id(self) -> None:
        """The capture's lines bear its id to the last, and nothing of it is left."""

        def fail(artifact: object, on_released: object) -> Deferred[None]:
            raise ZeroDivisionError

        self.delivery.deliver = fail  # type: ignore[method-assign]
        capture_id = self.begin(packets=1)
        self.arrive(udp_frame(1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        faults = [line for level, line in self.lines if level is LogLevel.critical]
        self.assertEqual(faults, [f"{capture_id}: internal error"])
