"""Captures that begin with the past."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, execute
from twisted.python.failure import Failure

from pcapsvc.capture.capturer import Capturer
from pcapsvc.capture.histories import Histories
from pcapsvc.capture.past import NotWanted, Taken
from pcapsvc.core.errors import RequestRejected
from pcapsvc.core.history import MissingReason, look_back
from pcapsvc.core.pcap_file import read_file_header
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.request import CaptureRequest
from pcapsvc.core.session import CaptureLimits, StopReason
from pcapsvc.interfaces.capture import ICapture
from pcapsvc.testing_packets import MemoryInterface
from peers.frames import number_of, udp_frame
from tests.unit.logged import logged
from tests.unit.test_history_recorder import BOUNDS, EPOCH, RecorderCase

SNAP = 100


class CapturerCase(RecorderCase):
    """A capturer, one interface with a history, and one without."""

    def setUp(self) -> None:
        """The history is being recorded."""
        super().setUp()
        self.system.interfaces["mem1"] = MemoryInterface()
        self.system.filters["odd"] = lambda data: bool(number_of(data) % 2)
        self.run_in_thread: Callable[..., Deferred[Any]] = execute
        self.histories = Histories(
            self.reactor,
            self.system,
            {"mem0": BOUNDS},
            find=self.system.find,
            wall_clock=self.wall_clock,
            read_timeout_ms=10,
        )
        self.histories.startService()
        self.addCleanup(self.histories.stopService)
        self.capturer = Capturer(
            self.reactor,
            self.system,
            run_in_thread=lambda *work: self.run_in_thread(*work),
            histories=self.histories,
            hook=self.hook,
            wall_clock=self.wall_clock,
            read_timeout_ms=10,
        )

    def wall_clock(self) -> float:
        """The time."""
        return EPOCH + self.reactor.seconds()

    def deliver(self, *numbers: int) -> None:
        """Numbered frames arrive, now."""
        self.system.seconds = self.wall_clock()
        self.system.deliver("mem0", *[udp_frame(number) for number in numbers])

    def prepare(
        self,
        interface: str = "mem0",
        *,
        bpf: str = "",
        packets: int = 1000,
        size: int = 10**6,
        debug: bool = False,
        snap_length: int = SNAP,
        **past: bool,
    ) -> Deferred[ICapture]:
        """Prepare a capture that looks back 30 s."""
        plan = CapturePlan(
            node="sensor1",
            interface=interface,
            alias=None,
            bpf=bpf,
            snap_length=snap_length,
            limits=CaptureLimits(max_packets=packets, max_bytes=size, idle_seconds=2, duration_seconds=60),
            request=CaptureRequest(node="any", interface=(interface,), packetdebug=debug),
            options={},
            via="test",
            look_back=look_back(30, snap_length=snap_length, sent_at=None, now=self.wall_clock(), **past),
        )
        return self.capturer.prepare(plan)

    def result(self, preparing: Deferred[ICapture]) -> tuple[list[int], StopReason, ICapture]:
        """The numbers in the file of a capture, once it has ended, and why it has."""
        self.advance(0.1)
        capture = self.successResultOf(preparing)
        recording = capture.start()
        self.advance(3)
        made = self.successResultOf(recording)
        with made.content.open() as file:
            data = file.read()[24:]
        made.content.close()
        self.assertEqual(made.packets, len(data) // 116)
        numbers = [number_of(data[at + 16 : at + 116]) for at in range(0, len(data), 116)]
        return numbers, made.reason, capture


class CapturerTests(CapturerCase):
    """One capture."""

    def test_past_and_live(self) -> None:
        """What was recorded comes first, then what follows, and each packet once."""
        self.deliver(1, 2)
        self.advance(1)
        self.deliver(3)
        preparing = self.prepare()
        self.deliver(4)
        numbers, reason, capture = self.result(preparing)
        self.assertEqual((numbers, reason), ([1, 2, 3, 4], StopReason.IDLE))
        assert capture.past is not None
        self.assertEqual((capture.past.packets, capture.past.first), (3, EPOCH))

    def test_past_only(self) -> None:
        """
        What is asked for is the past alone, with what the kernel hands over late, and without what arrives
        after the request, however long its filter takes to compile.
        """
        opening: Deferred[None] = Deferred()
        self.system.opening = lambda: opening
        self.deliver(1)
        self.advance(1)
        preparing = self.prepare(bpf="odd", past_only=True)
        self.system.seconds -= 0.5
        self.system.deliver("mem0", udp_frame(3), udp_frame(4))
        self.advance(0.1)
        self.assertNoResult(preparing)
        self.deliver(5)
        self.advance(0.5)
        self.deliver(7)
        opening.callback(None)
        self.assertEqual(self.result(preparing)[:2], ([1, 3], StopReason.PAST))

    def test_no_history(self) -> None:
        """Without history, a capture is rejected, unless it can do without: then it has none of the past."""
        self.failureResultOf(self.prepare("mem1"), RequestRejected)
        numbers, reason, capture = self.result(self.prepare("mem1", is_optional=True))
        assert capture.past is not None
        self.assertEqual((numbers, reason), ([], StopReason.IDLE))
        self.assertEqual([each.reason for each in capture.past.missing], [MissingReason.NONE])
        _, reason, _ = self.result(self.prepare("mem1", is_optional=True, past_only=True))
        self.assertIs(reason, StopReason.PAST)

    def test_several(self) -> None:
        """Any number of captures read one history, each with its own filter."""
        self.deliver(1, 2, 3)
        first, second = self.prepare(), self.prepare(bpf="odd")
        self.deliver(4, 5)
        self.assertEqual(self.result(first)[0], [1, 2, 3, 4, 5])
        self.assertEqual(self.result(second)[0], [1, 3, 5])
        self.failureResultOf(self.prepare(bpf="nonsense"), RequestRejected)

    def test_limits_that_the_past_reaches(self) -> None:
        """A limit that the past reaches, exactly or not, ends the capture, and it is said that it did."""
        sent = list(range(10))
        self.deliver(*sent)
        for less in (0, 6):
            for kind, reason in (("packets", StopReason.PACKETS), ("size", StopReason.BYTES)):
                count = len(sent) - less
                preparing = self.prepare(**{kind: count if kind == "packets" else 24 + count * 116})
                self.deliver(99)
                self.assertEqual(self.result(preparing)[:2], (sent[-count:], reason))
                sent.append(99)

    def test_limits_after_the_past(self) -> None:
        """What the past leaves of the limits is for what follows."""
        self.deliver(*range(10))
        for limits in ({"packets": 12}, {"size": 24 + 12 * 116}):
            preparing = self.prepare(bpf="odd", **limits)
            self.deliver(*range(100, 130))
            numbers, reason, _ = self.result(preparing)
            self.assertEqual(numbers[:5], [1, 3, 5, 7, 9])
            self.assertEqual(len(numbers), 12)
            self.assertIs(reason, StopReason.PACKETS if "packets" in limits else StopReason.BYTES)
            self.reactor.advance(31)
            self.histories.keep_up()
            self.deliver(*range(10))

    def test_packets_are_logged(self) -> None:
        """Packets of the past are logged as well, but not in the thread."""
        self.deliver(1, 2)
        lines = logged(self, "pcapsvc.capture.decode")
        seen: list[int] = []

        def run(work: Callable[..., Any], *args: Any) -> Deferred[Any]:
            done = execute(work, *args)
            seen.append(len(lines()))
            return done

        self.run_in_thread = run
        preparing = self.prepare(debug=True)
        self.assertEqual(seen, [0, 0])
        self.deliver(3)
        self.assertEqual(self.result(preparing)[0], [1, 2, 3])
        self.assertEqual(len([line for line in lines() if "packet: UDP" in line]), 3)

    def in_the_thread(self, work_first: bool) -> Failure | Taken:
        """What a thread made of its work, if nobody waits for it any more, before it or after."""
        self.deliver(1)
        working: list[tuple[Callable[[], Any], Deferred[Any]]] = []

        def run(work: Callable[..., Any], *args: Any) -> Deferred[Any]:
            working.append((partial(work, *args), Deferred()))
            return working[-1][1]

        self.run_in_thread = run
        preparing = self.prepare()
        [(work, done)] = working
        results: list[Failure | Taken] = []

        def in_thread() -> None:
            try:
                results.append(work())
            except NotWanted:
                results.append(Failure())

        thread = threading.Thread(target=in_thread)
        if work_first:
            thread.start()
            thread.join()
        preparing.cancel()
        self.failureResultOf(preparing, CancelledError)
        if not work_first:
            thread.start()
            thread.join()
        [result] = results
        done.callback(result)
        return result

    def test_cancelled_before_the_thread(self) -> None:
        """What a thread is to work on is closed when the thread is done with it, which is soon."""
        result = self.in_the_thread(work_first=False)
        assert isinstance(result, Failure)
        self.assertIs(result.type, NotWanted)

    def test_cancelled_after_the_thread(self) -> None:
        """What a thread has made is closed, though nobody has waited for it."""
        result = self.in_the_thread(work_first=True)
        assert isinstance(result, Taken)
        self.assertEqual(result.packets, 1)

    def test_thread_fails(self) -> None:
        """If there is no memory for the past, nothing is left."""
        self.run_in_thread = lambda *_: execute(lambda: 1 / 0)
        self.failureResultOf(self.prepare(), ZeroDivisionError)

    def test_cancelled_while_it_waits(self) -> None:
        """Nothing is left if it is cancelled while the kernel hands over."""
        preparing = self.prepare(past_only=True)
        preparing.cancel()
        self.failureResultOf(preparing, CancelledError)

    def test_other_kind_meanwhile(self) -> None:
        """If another kind of interface comes back while it waits, it is filtered as that kind is."""
        opened: list[int] = []
        open_sieve = self.system.open_sieve

        def note(interface: str, *, link_type: int, **options: Any) -> Any:
            opened.append(link_type)
            if len(opened) == 1:
                self.system.lose("mem0")
                self.advance(0.5)
                self.system.interfaces["mem0"] = MemoryInterface(link_type=12)
                self.advance(1.5)
                self.deliver(1, 2)
            return open_sieve(interface, link_type=link_type, **options)

        self.patch(self.system, "open_sieve", note)
        self.assertEqual(self.result(self.prepare(bpf="odd"))[0], [1])
        self.assertEqual(opened, [1, 12])

    def test_keep_up(self) -> None:
        """In the middle of other work histories are read, but not more often than captures are."""
        pulls: list[None] = []
        self.patch(self.histories, "keep_up", lambda: pulls.append(None))
        for _ in range(2):
            self.reactor.rightNow += 0.02
            for _ in range(10):
                self.capturer.keep_up()
        self.assertEqual(len(pulls), 2)

    def test_hook_first(self) -> None:
        """What happens before each read happens before the first packet as well."""
        capture = self.successResultOf(self.prepare("mem1", is_optional=True))
        self.assertEqual([hook.reads for hook in self.hooks], [1])
        capture.discard()

    def test_keep_up_with_packets(self) -> None:
        """In the middle of other work, of all captures those are read for which packets have arrived."""
        captures = [
            self.successResultOf(self.prepare(interface, is_optional=True)) for interface in ("mem1", "mem0")
        ]
        found = []
        for interface in ("mem1", "mem0"):
            self.system.deliver(interface, udp_frame(1))
            self.reactor.rightNow += 0.02
            self.capturer.keep_up()
            found.append([capture.progress().packets for capture in captures])
        self.assertEqual(found, [[1, 0], [1, 1]])
        for capture in captures:
            capture.discard()


class CookedTests(CapturerCase):
    """On a cooked interface, at least 21 bytes of a packet are kept, however few are asked for."""

    def setUp(self) -> None:
        """Both interfaces are cooked; the history begins anew."""
        super().setUp()
        for interface in ("mem0", "mem1"):
            self.system.lose(interface)
            self.system.interfaces[interface] = MemoryInterface(link_type=113)
        self.advance(3)

    def test_snap_length(self) -> None:
        """The plan, the file and the limit of bytes go by what is kept."""
        for interface in ("mem0", "mem1"):
            preparing = self.prepare(interface, snap_length=1, size=1000, is_optional=True)
            self.advance(0.1)
            capture = self.successResultOf(preparing)
            self.assertEqual(capture.plan.snap_length, 21)
            recording = capture.start()
            self.system.deliver(interface, *[udp_frame(number) for number in range(50)])
            self.advance(0.1)
            made = self.successResultOf(recording)
            with made.content.open() as file:
                header, records = read_file_header(file.read(24)), file.read()
            made.content.close()
            self.assertIs(made.reason, StopReason.BYTES)
            self.assertEqual((header.snap_length, len(records)), (21, 27 * (16 + 21)))
