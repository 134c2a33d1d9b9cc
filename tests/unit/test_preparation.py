"""The whole flow, while captures are being prepared: opening and compiling take their time."""

from __future__ import annotations

import json
import sys
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred

from pcapsvc.core.errors import CaptureForbidden
from pcapsvc.core.event import (
    CaptureStarted,
    CaptureStopped,
    Event,
    RequestAccepted,
    RequestBusy,
    RequestRejected,
)
from pcapsvc.core.filter import FilterRejected
from pcapsvc.core.message import Message
from pcapsvc.core.rate import RequestRate
from pcapsvc.core.result import Accepted, Busy, NotForThisNode, Rejected, Verdict
from pcapsvc.judge import MOST_PENDING
from pcapsvc.pipeline import Intake, Pipeline
from pcapsvc.preparation import AT_ONCE
from pcapsvc.testing_packets import MemoryInterface
from peers.frames import udp_frame
from tests.unit.pipeline_case import PipelineCase


class PreparationCase(PipelineCase):
    """Interfaces that are opened when the test says so."""

    def setUp(self) -> None:
        """Hold what is being opened."""
        super().setUp()
        self.opening: list[Deferred[None]] = []

        def hold() -> Deferred[None]:
            self.opening.append(Deferred())
            return self.opening[-1]

        self.system.opening = hold

    def ask(self, source: str = "test", **fields: Any) -> Deferred[Verdict]:
        """Submit a request."""
        body = json.dumps({"node": "sensor1", "interface": ["mem0"], **fields}).encode()
        return self.pipeline.submit(Message(source=source, body=body))


class PreparationTests(PreparationCase):
    """One request, or two."""

    max_captures = 2

    def test_verdict_comes_later(self) -> None:
        """The verdict fires once all captures of a request are prepared, and is reported then."""
        verdict = self.ask(interface=["mem0", "mem1"])
        self.assertNoResult(verdict)
        self.opening[1].callback(None)
        self.assertNoResult(verdict)
        self.assertEqual(self.reporter.events, [])
        self.opening[0].callback(None)
        accepted = self.successResultOf(verdict)
        assert isinstance(accepted, Accepted)
        self.assertEqual([one.interface for one in accepted.captures], ["mem0", "mem1"])
        self.assertEqual(len(self.events(RequestAccepted)), 1)
        self.successResultOf(self.stop())

    def test_no_waiting(self) -> None:
        """What needs no waiting has fired when it is submitted, though others wait."""
        self.ask(interface=["mem0", "mem1"])
        for fields, kind in (
            ({"node": "other"}, NotForThisNode),
            ({"packets": -1}, Rejected),
            ({}, Busy),
        ):
            self.assertIsInstance(self.successResultOf(self.ask(**fields)), kind)
        self.successResultOf(self.stop())

    def test_packets_while_others_are_prepared(self) -> None:
        """A capture that is prepared reads its packets, though others of the request are not."""
        verdict = self.ask(interface=["mem0", "mem1"], packets=1000)
        self.opening[0].callback(None)
        for number in range(20):
            self.arrive(*[udp_frame(number)] * 4)
        [handle] = self.system.interfaces["mem0"].handles
        read: list[bytes] = []
        handle.read(100, lambda _, data: read.append(data))
        self.assertEqual(read, [])
        self.opening[1].callback(None)
        accepted = self.successResultOf(verdict)
        assert isinstance(accepted, Accepted)
        self.assertEqual(self.state(accepted.captures[0].capture_id)["packets"], 80)
        self.successResultOf(self.stop())

    def test_packets_while_there_are_many_requests(self) -> None:
        """Captures are read between requests, however many of them arrive in one turn of the reactor."""
        verdict = self.ask(interface=["mem0"], packets=1000)
        self.opening[0].callback(None)
        accepted = self.successResultOf(verdict)
        assert isinstance(accepted, Accepted)
        self.system.deliver("mem0", udp_frame(1), udp_frame(2))
        self.reactor.rightNow += 0.02
        self.ask(node="other")
        self.assertEqual(self.state(accepted.captures[0].capture_id)["packets"], 2)
        self.successResultOf(self.stop())

    def test_reserved_before(self) -> None:
        """Two requests that are prepared at the same time don't take the same room."""
        first, second = self.ask(), self.ask()
        third = self.successResultOf(self.ask())
        assert isinstance(third, Busy)
        self.assertEqual(third.reason, "too many captures: 2 running, 1 more requested, and the limit is 2")
        for opening in self.opening:
            opening.callback(None)
        for verdict in (first, second):
            self.assertIsInstance(self.successResultOf(verdict), Accepted)
        self.assertIsInstance(self.successResultOf(self.ask()), Busy)
        self.successResultOf(self.stop())

    def test_room_is_given_back(self) -> None:
        """However the preparation fails, its room is for others."""
        outcomes: list[Any] = [
            (FilterRejected("udp", "libpcap says: no"), Rejected),
            (OSError(24, "Too many open files"), Busy),
            (CaptureForbidden("mem0", "no permission"), Rejected),
            (ZeroDivisionError(), Rejected),
        ]
        for error, kind in outcomes:
            self.opening.clear()
            verdict = self.ask(interface=["mem0", "mem1"])
            self.opening[1].errback(error)
            if error.__class__ is ZeroDivisionError:
                self.opening[0].callback(None)
            self.assertIsInstance(self.successResultOf(verdict), kind)
            self.assertEqual(self.system.open_handles, 0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.opening.clear()
        self.ask(interface=["mem0", "mem1"])
        self.assertEqual(len(self.opening), 2)
        self.successResultOf(self.stop())

    def test_rejected_by_one(self) -> None:
        """A filter that one interface refuses starts none, and nothing waits for the others."""
        verdict = self.ask(interface=["mem0", "mem1"])
        self.opening[0].callback(None)
        self.assertEqual(self.system.open_handles, 1)
        self.opening[1].errback(FilterRejected("udp", "libpcap says: no VLAN support"))
        rejected = self.successResultOf(verdict)
        assert isinstance(rejected, Rejected)
        self.assertEqual([problem.path for problem in rejected.problems], ["bpf"])
        self.assertEqual(self.system.open_handles, 0)
        self.assertEqual(len(self.events(RequestRejected)), 1)

    def test_cancel(self) -> None:
        """A verdict that is cancelled is busy, and leaves nothing; the other request goes on."""
        first, second = self.ask(), self.ask()
        first.cancel()
        self.assertIsInstance(self.successResultOf(first), Busy)
        self.opening[1].callback(None)
        self.assertIsInstance(self.successResultOf(second), Accepted)
        self.assertEqual(len(self.events(RequestBusy)), 1)
        self.successResultOf(self.stop())

    def test_stop(self) -> None:
        """A stop gives up what is being prepared, says so to the sources, and leaves nothing."""
        verdict = self.ask(interface=["mem0", "mem1"])
        self.opening[0].callback(None)
        self.successResultOf(self.stop())
        self.assertEqual(self.successResultOf(verdict), Busy(reason="the daemon is stopping"))
        self.assertEqual(self.system.open_handles, 0)

    def test_stop_of_the_sources(self) -> None:
        """When the sources stop, what they wait for is answered; captures that run go on."""
        first = self.ask()
        self.opening[0].callback(None)
        self.assertIsInstance(self.successResultOf(first), Accepted)
        second = self.ask(interface=["mem1"])
        Intake(self.pipeline).stopService()
        for verdict in (second, self.ask()):
            self.assertEqual(self.successResultOf(verdict), Busy(reason="the daemon is stopping"))
        self.assertEqual(self.events(CaptureStopped), [])
        self.assertEqual(self.system.open_handles, 1)
        self.successResultOf(self.stop())

    def test_stacks(self) -> None:
        """
        Nothing of one request runs within the preparation of another, not even if both wait for the same.
        """
        both: Deferred[None] = Deferred()

        def wait_for_both() -> Deferred[None]:
            mine: Deferred[None] = Deferred()
            both.addCallback(mine.callback)
            return mine

        self.system.opening = wait_for_both
        depths: list[int] = []
        report = self.reporter.report

        def watch(event: Event) -> None:
            depths.append(preparations())
            report(event)

        self.reporter.report = watch  # type: ignore[method-assign]
        verdicts = [self.ask("a"), self.ask("b")]
        for verdict in verdicts:
            verdict.addCallback(lambda result: depths.append(preparations() + 1) or result)
        both.callback(None)
        for verdict in verdicts:
            self.assertIsInstance(self.successResultOf(verdict), Accepted)
        self.assertEqual(set(depths), {1})
        self.successResultOf(self.stop())


def preparations() -> int:
    """How many requests are being prepared in this call stack."""
    frame: FrameType | None = sys._getframe()
    found = 0
    while frame is not None:
        found += frame.f_code is Pipeline._begin.__code__
        frame = frame.f_back
    return found


class PlainWordsTests(PreparationCase):
    """Requests that say in plain words which packets they want."""

    max_captures = 3

    def test_plain_words(self) -> None:
        """
        The filter of a request is what its fields mean together, and its answer says so. What libpcap says
        about it is said about the field that it is from, or about the filter if there are several. No filter
        is shown as the value of a field in plain words.
        """
        for fields, bpf, path, value in (
            ({"port": 9}, "port 9", "port", None),
            ({"port": 9, "bpf": "udp"}, "port 9 and (udp)", "filter", '"port 9 and (udp)"'),
            ({"bpf": "udp"}, "udp", "bpf", '"udp"'),
        ):
            asked = self.ask(**fields)
            self.opening.pop().errback(FilterRejected(bpf, "libpcap says: no"))
            verdict = self.successResultOf(asked)
            assert isinstance(verdict, Rejected)
            [problem] = verdict.problems
            self.assertEqual((problem.path, problem.value, problem.rule), (path, value, "libpcap says: no"))
            self.system.filters[bpf] = lambda data: True
            asked = self.ask(**fields)
            self.opening.pop().callback(None)
            accepted = self.successResultOf(asked)
            assert isinstance(accepted, Accepted)
            self.assertEqual(accepted.filter, bpf)
            self.assertEqual(self.events(CaptureStarted)[-1].bpf, bpf)
        self.successResultOf(self.stop())


class ManyInterfacesTests(PreparationCase):
    """One request, for many interfaces."""

    max_captures = 100

    def test_at_once(self) -> None:
        """A limited number is opened at a time."""
        names = [f"new{number}" for number in range(AT_ONCE + 2)]
        for name in names:
            self.system.interfaces[name] = MemoryInterface()
        verdict = self.ask(interface=names)
        self.assertEqual(len(self.opening), AT_ONCE)
        self.opening[2].callback(None)
        self.assertEqual(len(self.opening), AT_ONCE + 1)
        for opening in self.opening:
            if not opening.called:
                opening.callback(None)
        self.opening[-1].callback(None) if not self.opening[-1].called else None
        accepted = self.successResultOf(verdict)
        assert isinstance(accepted, Accepted)
        self.assertEqual([one.interface for one in accepted.captures], names)
        self.successResultOf(self.stop())


class PendingTests(PreparationCase):
    """Many requests at once."""

    max_captures = 1000
    max_memory = 10**12

    def test_bounded(self) -> None:
        """Each source has a limited number of requests in preparation; others have limits of their own."""
        for _ in range(MOST_PENDING):
            self.assertNoResult(self.ask(bytes=1000))
        busy = self.successResultOf(self.ask(bytes=1000))
        self.assertEqual(busy, Busy(reason=f"{MOST_PENDING} requests from test are being prepared"))
        self.assertNoResult(self.ask("another", bytes=1000))
        self.opening[0].callback(None)
        self.assertNoResult(self.ask(bytes=1000))
        self.successResultOf(self.stop())


class CostTests(PreparationCase):
    """Two requests a second, of filters that keep other processes busy."""

    def setUp(self) -> None:
        """A clock of its own."""
        self.seconds = 100.0
        self.options = {"rate": RequestRate(2), "now": lambda: self.seconds}
        super().setUp()

    def test_waiting_is_free(self) -> None:
        """That a request had to wait costs its sender nothing."""
        verdict = self.ask()
        self.seconds += 30
        self.opening[0].callback(None)
        self.assertIsInstance(self.successResultOf(verdict), Accepted)
        self.assertNoResult(self.ask())
        self.successResultOf(self.stop())

    def test_compiling_is_not(self) -> None:
        """
        A filter that takes long to compile costs its sender, whether it is rejected or not; and no other.
        """
        verdict = self.ask("one")
        self.opening[0].errback(FilterRejected("x", "did not compile within 5 s", compile_seconds=5))
        self.assertIsInstance(self.successResultOf(verdict), Rejected)
        self.seconds += 5
        busy = self.successResultOf(self.ask("one"))
        self.assertEqual(busy, Busy(reason="the requests from one take too much time"))
        self.assertNoResult(self.ask("two"))
        self.seconds += 20
        self.assertNoResult(self.ask("one"))
        self.successResultOf(self.stop())
