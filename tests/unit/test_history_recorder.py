"""Recording an interface all the time, on a clock of our own."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.trial import unittest

from pcapsvc.capture.histories import Histories
from pcapsvc.capture.history import HistoryRecorder
from pcapsvc.core.errors import CaptureUnavailable
from pcapsvc.core.filter import FilterRejected
from pcapsvc.core.history import HistoryBounds, MissingReason, look_back
from pcapsvc.interfaces.capture import IPacketHandle
from pcapsvc.testing_packets import MemoryInterface, MemoryPacketSystem, MemorySieve
from tests.unit.logged import logged

EPOCH = 1_700_000_000.0
HAND_OVER = 0.018
BOUNDS = HistoryBounds(seconds=60, size_bytes=4 << 20, snap_length=100)


class _Hook:
    """What happens before each read."""

    def __init__(self) -> None:
        self.reads = 0
        self.closed = 0

    def before_read(self, handle: IPacketHandle) -> None:
        self.reads += 1

    def close(self) -> None:
        self.closed += 1


class RecorderCase(unittest.SynchronousTestCase):
    """An interface that is recorded."""

    before_seconds: float = 10**5
    snap_length = 100
    sieve: MemorySieve | None = None

    def setUp(self) -> None:
        """An interface, and a reactor; in the end nothing is left."""
        self.before = len(os.listdir("/proc/self/fd"))
        self.reactor = MemoryReactorClock()
        self.epoch = EPOCH
        self.system = MemoryPacketSystem("mem0")
        self.hooks: list[_Hook] = []
        self.recorder = self.make()
        self.addCleanup(self.assert_nothing_left)

    def make(self, bounds: HistoryBounds = BOUNDS) -> HistoryRecorder:
        """A recorder that has not begun."""
        return HistoryRecorder(
            self.reactor,
            self.system,
            "mem0",
            bounds,
            find=self.system.find,
            hook=self.hook,
            wall_clock=self.wall_clock,
            hand_over_seconds=HAND_OVER,
        )

    def wall_clock(self) -> float:
        """The time, by a clock that may be set."""
        return self.epoch + self.reactor.seconds()

    def hook(self, interface: str) -> _Hook:
        """A hook for the next handle."""
        self.hooks.append(_Hook())
        return self.hooks[-1]

    def assert_nothing_left(self) -> None:
        """Whenever it is stopped: no handle, no descriptor, no reader, no timer, no hook that is open."""
        self.recorder.stop()
        self.assertEqual(self.system.open_handles, 0)
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual([hook.closed for hook in self.hooks], [1] * len(self.hooks))
        self.assertEqual(len(os.listdir("/proc/self/fd")), self.before)

    def advance(self, seconds: float) -> None:
        """Time passes; the reactor reads what is readable."""
        for _ in range(round(seconds / 0.01)):
            self.reactor.advance(0.01)
            self.turn()

    def turn(self) -> None:
        """A turn of the reactor."""
        for reader in list(self.reactor.getReaders()):
            reader.doRead()

    def arrive(self, *numbers: int) -> None:
        """Numbered packets arrive, now."""
        self.system.seconds = self.wall_clock()
        self.system.deliver("mem0", *[number.to_bytes(60, "big") for number in numbers])

    def kept(self) -> list[int]:
        """The numbers of the packets that are remembered."""
        reader = self.recorder.attach(self.sieve, 100, "")
        now = self.wall_clock()
        wanted = look_back(self.before_seconds, snap_length=self.snap_length, sent_at=None, now=now)
        take, self.report = self.recorder.look_back(reader, wanted, max_packets=10**9, max_bytes=10**9)
        self.taken = take()
        reader.close()
        data = b"".join(bytes(records) for _, records in self.taken.parts)
        return [int.from_bytes(data[at + 16 : at + 76], "big") for at in range(0, len(data), 76)]

    def missing(self) -> dict[MissingReason, float | None]:
        """What is missing of the past."""
        self.kept()
        return {each.reason: each.seconds for each in self.report(self.taken).missing}


class HistoryRecorderTests(RecorderCase):
    """One recorder."""

    def test_hook_first(self) -> None:
        """What happens before each read happens before the first packet as well."""
        self.recorder.start()
        self.assertGreater(self.hooks[0].reads, 0)

    def test_records(self) -> None:
        """Packets are read when they arrive; if there were some, the next ones gather for a moment."""
        self.recorder.start()
        self.arrive(1)
        self.turn()
        self.assertEqual(self.kept(), [1])
        self.assertEqual(self.reactor.getReaders(), [])
        self.arrive(2)
        self.turn()
        self.reactor.advance(0.021)
        self.assertEqual(self.kept(), [1, 2])
        self.reactor.advance(0.021)
        self.assertEqual(self.reactor.getReaders(), [self.recorder])
        state = self.recorder.state()
        self.assertEqual((state.packets, state.bytes, state.problem), (2, 152, None))
        self.assertGreater(self.hooks[0].reads, 0)

    def test_expires(self) -> None:
        """Packets are forgotten when they are too old, though none arrive."""
        self.recorder.start()
        self.arrive(1)
        self.advance(59)
        self.assertEqual(self.kept(), [1])
        self.advance(3)
        self.assertEqual((self.kept(), self.recorder.state().packets), ([], 0))
        self.assertEqual(self.recorder.state().seconds, 60)

    def test_can_not_be_opened(self) -> None:
        """It is tried again and again, and logged once: when it fails, and when it works."""
        del self.system.interfaces["mem0"]
        lines = logged(self)
        self.recorder.start()
        self.advance(5)
        self.assertEqual(self.recorder.state().problem, "no such interface")
        self.assertRaises(CaptureUnavailable, self.recorder.attach, None, 100, "")
        self.system.interfaces["mem0"] = MemoryInterface()
        self.advance(1.1)
        self.assertIsNone(self.recorder.state().problem)
        self.assertEqual(
            lines(),
            [
                "the history of mem0 is not being recorded: no such interface",
                "the history of mem0 is being recorded again",
            ],
        )

    def test_filter_rejected(self) -> None:
        """That its filter can't be used is reported by the name that the filter has in the configuration."""
        self.system.opening = lambda: fail(FilterRejected("udp and (", "syntax error"))
        self.recorder.start()
        self.assertEqual(self.recorder.state().problem, 'historyfilter = "udp and (": syntax error')

    def test_stopped_while_it_is_opened(self) -> None:
        """Nothing is left if it is stopped then."""
        self.system.opening = Deferred
        self.recorder.start()
        self.assertEqual(self.recorder.state().problem, "it has not begun")

    def test_down(self) -> None:
        """While its interface is down nothing is recorded, and it is known for how long."""
        self.recorder.start()
        self.arrive(1)
        self.advance(2)
        self.system.down("mem0")
        self.advance(3)
        self.assertEqual(self.recorder.state().problem, "the interface is down")
        self.system.up("mem0")
        self.advance(1)
        self.arrive(2)
        self.advance(1)
        self.assertIsNone(self.recorder.state().problem)
        self.assertEqual(self.kept(), [1, 2])
        down = self.missing()[MissingReason.DOWN]
        assert down is not None
        # It is looked for four times a second.
        self.assertTrue(2.7 < down < 3.3, down)

    def test_comes_back(self) -> None:
        """What was recorded stays when its interface goes and comes back with another index."""
        self.recorder.start()
        self.arrive(1)
        self.advance(1)
        reader = self.recorder.attach(None, 100, "")
        self.arrive(2)
        self.system.lose("mem0")
        self.advance(1)
        read: list[bytes] = []
        self.assertEqual(reader.read(5, lambda _, data: read.append(data)), 1)
        self.assertRaises(CaptureUnavailable, reader.read, 5, lambda *_: None)
        reader.close()
        self.assertIsNone(self.recorder.index)
        self.system.interfaces["mem0"] = MemoryInterface()
        self.advance(2)
        self.arrive(3)
        self.advance(1)
        self.assertEqual(self.recorder.index, self.system.interfaces["mem0"].index)
        self.assertEqual(self.kept(), [1, 2, 3])
        self.assertIn(MissingReason.DOWN, self.missing())

    def test_comes_back_often(self) -> None:
        """However often its interface goes and comes, nothing is forgotten for that."""
        self.recorder.start()
        for number in range(20):
            self.arrive(number)
            self.advance(0.1)
            self.system.lose("mem0")
            self.advance(0.1)
            self.system.interfaces["mem0"] = MemoryInterface()
            self.advance(1.1)
        self.assertEqual(self.kept(), list(range(20)))

    def test_cut(self) -> None:
        """It is reported if the history keeps fewer bytes of a packet than the request needs."""
        self.recorder.start()
        self.advance(1)
        self.before_seconds = 0.5
        self.assertEqual(self.missing(), {})
        self.system.filters["far"] = lambda data: False
        self.sieve = MemorySieve(self.system.compile("far"), 100)
        self.assertEqual(self.missing(), {})
        self.patch(MemorySieve, "looks_beyond", True)
        self.assertEqual(self.missing(), {MissingReason.SNAP: None})
        self.sieve = None
        self.snap_length = 101
        self.assertEqual(self.missing(), {MissingReason.SNAP: None})

    def test_down_too_often(self) -> None:
        """However often it was down, it is known for how long, or a little more."""
        self.recorder = self.make(HistoryBounds(seconds=10_000, size_bytes=4 << 20, snap_length=100))
        self.recorder.start()
        self.reactor.advance(0.25)
        for number in range(300):
            self.system.down("mem0")
            self.reactor.advance(0.25)
            self.system.up("mem0")
            # Most of them are far apart.
            self.reactor.advance(0.25)
            self.reactor.pump([0.25] * (2 if number % 3 else 8))
        down = self.missing()[MissingReason.DOWN]
        assert down is not None
        self.assertTrue(75 <= down < 120, down)

    def test_clock_set_back(self) -> None:
        """What is missing, how far back it reaches, and what a request gets, is the same as before."""
        self.assert_same_if_set(-3600)

    def test_clock_set_forward(self) -> None:
        """Likewise."""
        self.assert_same_if_set(3600)

    def assert_same_if_set(self, step: float) -> None:
        """Set the clock by some seconds: packets are no older for it."""
        self.before_seconds = 8
        self.recorder = self.make(HistoryBounds(seconds=60, size_bytes=4 << 20, snap_length=1 << 18))
        self.recorder.start()
        # The memory is full: some are overwritten.
        for number in range(9):
            self.system.seconds = self.wall_clock()
            self.system.deliver("mem0", *[number.to_bytes(1 << 18, "big")] * 2)
            self.advance(1)
        before = self.recorder.state()
        self.assertTrue(4 < before.seconds < 8, before.seconds)
        self.system.down("mem0")
        self.advance(1)
        self.system.up("mem0")
        self.advance(1)
        missing = self.missing()
        self.assertEqual(set(missing), {MissingReason.SIZE, MissingReason.DOWN})
        packets = self.taken.packets
        self.assertTrue(packets)
        self.epoch += step
        self.assertEqual(
            {reason: round(seconds or 0, 1) for reason, seconds in self.missing().items()},
            {reason: round(seconds or 0, 1) for reason, seconds in missing.items()},
        )
        self.assertEqual(self.taken.packets, packets)
        self.assertEqual(round(self.recorder.state().seconds, 1), round(before.seconds + 2, 1))
        # What arrives from here on has other time stamps, and follows in the same file.
        self.arrive(77)
        self.advance(1)
        self.before_seconds = 9
        self.kept()
        self.assertEqual(self.taken.packets, packets + 1)

    def test_other_kind(self) -> None:
        """If an interface of another link type comes back, what was recorded is forgotten."""
        self.recorder.start()
        self.arrive(1)
        self.advance(1)
        self.system.lose("mem0")
        self.advance(1)
        self.system.interfaces["mem0"] = MemoryInterface(link_type=12)
        self.advance(2)
        self.arrive(2)
        self.advance(1)
        self.assertEqual((self.kept(), self.recorder.link_type), ([2], 12))

    def test_renamed(self) -> None:
        """
        From the moment at which an interface is renamed, it is not recorded any more; another one with its
        name is.
        """
        self.recorder.start()
        self.arrive(1)
        self.advance(1)
        self.system.rename("mem0", "mem1")
        self.system.interfaces["mem0"] = MemoryInterface()
        self.system.deliver("mem1", (8).to_bytes(60, "big"))
        self.advance(0.1)
        self.assertEqual(self.recorder.state().problem, "the interface was renamed")
        self.advance(2)
        self.system.deliver("mem1", (9).to_bytes(60, "big"))
        self.arrive(2)
        self.advance(1)
        self.assertEqual(self.kept(), [1, 2])
        self.assert_missing_down(1.0)

    def test_renamed_in_silence(self) -> None:
        """If nothing arrives, it is noticed soon. What may be missing by then is known to be."""
        self.recorder.start()
        self.arrive(1)
        self.advance(10)
        self.reactor.pump([0.01] * 10)
        self.system.rename("mem0", "mem1")
        self.system.interfaces["mem0"] = MemoryInterface()
        self.reactor.pump([0.01] * 30)
        self.assertEqual(self.recorder.state().problem, "the interface was renamed")
        self.advance(1.2)
        self.arrive(2)
        self.advance(1)
        self.assertEqual(self.kept(), [1, 2])
        self.assert_missing_down(1.1)

    def test_other_name_moved(self) -> None:
        """
        That an alternative name is now that of another interface shows only when it is looked up. Everything
        since the time before may be missing.
        """
        self.recorder.start()
        self.system.interfaces["mem0"].handles[0].is_named = None
        self.arrive(1)
        self.advance(12)
        self.system.interfaces["other"] = self.system.interfaces["mem0"]
        self.system.interfaces["mem0"] = MemoryInterface()
        self.advance(10)
        self.arrive(2)
        self.advance(1)
        self.assertEqual(self.kept(), [1, 2])
        self.assert_missing_down(6.0)

    def assert_missing_down(self, seconds: float) -> None:
        """It was not recorded for this long."""
        down = self.missing()[MissingReason.DOWN]
        assert down is not None
        self.assertTrue(seconds <= down < seconds + 0.3, down)

    def test_not_looked_for(self) -> None:
        """If it can't be found out which interface has the name, the one that is open is recorded."""
        self.recorder = HistoryRecorder(
            self.reactor,
            self.system,
            "mem0",
            BOUNDS,
            find=lambda name: fail(OSError(24, "Too many open files")),
            hand_over_seconds=HAND_OVER,
        )
        messages = logged(self)
        self.recorder.start()
        handles = [*self.system.interfaces["mem0"].handles]
        self.advance(60)
        self.assertEqual((self.system.interfaces["mem0"].handles, len(handles)), (handles, 1))
        self.assertEqual((self.recorder.state().problem, messages()), (None, []))

    def test_read_fails(self) -> None:
        """Whatever goes wrong in a read, recording begins anew, and no packet that was read is lost."""
        self.recorder.start()
        errors = [OSError(12, "Cannot allocate memory"), ZeroDivisionError()]
        for number, error in enumerate(errors):
            self.advance(0.1)
            [handle] = self.system.interfaces["mem0"].handles
            self.patch(handle, "read", self.failing(handle.read, error))
            self.arrive(number)
            self.advance(0.1)
            self.assertIsNotNone(self.recorder.state().problem)
            self.advance(1.2)
            self.assertIsNone(self.recorder.state().problem)
        self.assertEqual(self.kept(), [0, 1])
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))

    def failing(self, read: Callable[..., int], error: Exception) -> Callable[..., int]:
        """Read, and fail then."""

        def read_and_fail(count: int, sink: Any) -> int:
            read(count, sink)
            raise error

        return read_and_fail

    def test_stopped_at_any_moment(self) -> None:
        """Readers of a recorder that is stopped are lost; nothing is left, whatever it was doing."""
        for moment in range(30):
            recorder = self.recorder = self.make()
            self.system.interfaces.setdefault("mem0", MemoryInterface())
            recorder.start()
            self.arrive(*range(100))
            self.advance(0.02)
            reader = recorder.attach(None, 100, "")
            if moment % 3:
                self.system.lose("mem0")
            self.advance(moment * 0.05)
            self.assert_nothing_left_but(reader)

    def assert_nothing_left_but(self, reader: Any) -> None:
        """Nothing but a reader, which is closed then."""
        self.recorder.stop()
        with self.assertRaises(CaptureUnavailable):
            while reader.read(1000, lambda *_: None):
                pass
        reader.close()
        self.assert_nothing_left()


class HistoriesTests(RecorderCase):
    """All of them."""

    def test_find(self) -> None:
        """A history is found by every name of its interface, and by the configured one if that is gone."""
        names = {"mem0": 1, "alternative": 1, "other": 2}
        histories = Histories(
            self.reactor,
            self.system,
            {"mem0": BOUNDS},
            find=lambda name: succeed(names.get(name)),
            wall_clock=lambda: EPOCH,
            read_timeout_ms=10,
        )
        self.system.interfaces["mem0"].index = 1
        histories.startService()
        [found] = [self.successResultOf(histories.find(name)) for name in ("mem0",)]
        assert found is not None
        self.assertIs(self.successResultOf(histories.find("alternative")), found)
        self.assertIsNone(self.successResultOf(histories.find("other")))
        names.clear()
        self.system.lose("mem0")
        self.assertIs(self.successResultOf(histories.find("mem0")), found)
        self.assertIsNone(self.successResultOf(histories.find("alternative")))
        self.assertEqual([state.interface for state in histories.states()], ["mem0"])
        histories.keep_up()
        histories.stopService()
