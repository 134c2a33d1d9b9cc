"""Handles that wait for a capture."""

from __future__ import annotations

import errno

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial import unittest

from pcapsvc.core.errors import CaptureUnavailable, Problem, RequestRejected
from pcapsvc.interfaces.capture import IPacketHandle, IStandbyHandle
from pcapsvc.packets.standby import CHECK_SECONDS, REPLACE_SECONDS, StandbySystem
from pcapsvc.testing_packets import MemoryPacketSystem


class Failing(MemoryPacketSystem):
    """
    A packet system that fails now and then.

    @ivar errors: what opening the next standby handles fails with, one after the other.
    """

    def __init__(self, *interfaces: str) -> None:
        super().__init__(*interfaces)
        self.errors: list[Exception] = []

    def open_standby(self, interface: str, *, snap_length: int) -> Deferred[IStandbyHandle]:
        """Fail, or open a handle."""
        if self.errors:
            return fail(self.errors.pop(0))
        return super().open_standby(interface, snap_length=snap_length)


class StandbySystemTests(unittest.SynchronousTestCase):
    """L{StandbySystem}, on interfaces in memory."""

    def setUp(self) -> None:
        """A handle waits on one of two interfaces."""
        self.memory = Failing("mem0", "mem1")
        self.memory.filters["udp"] = lambda data: data.startswith(b"udp")
        self.clock = Clock()
        self.standby = StandbySystem(self.clock, self.memory, interfaces=["mem0"], snap_length=512)
        self.standby.startService()

    def tearDown(self) -> None:
        """Nothing is left open, or waiting."""
        self.standby.stopService()
        self.doCleanups()
        self.assertEqual(self.memory.open_handles, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def open(self, interface: str, *, snap_length: int = 512, bpf: str = "udp") -> IPacketHandle:
        """A handle."""
        return self.successResultOf(self.standby.open(interface, snap_length=snap_length, bpf=bpf))

    def read(self, interface: str, *, snap_length: int = 512, bpf: str = "udp") -> list[bytes]:
        """What a capture gets of two packets that come after it was opened, and of one that came before."""
        self.memory.deliver(interface, b"udp early")
        handle = self.open(interface, snap_length=snap_length, bpf=bpf)
        self.addCleanup(handle.close)
        self.memory.deliver(interface, b"tcp", b"udp late")
        data: list[bytes] = []
        handle.read(10, lambda _, packet: data.append(packet))
        handle.close()
        return data

    def test_waiting_handle_is_used(self) -> None:
        """A capture gets the handle that waits, with its own filter, and nothing that came before it."""
        (waiting,) = self.memory.interfaces["mem0"].handles
        handle = self.open("mem0")
        self.assertIs(handle, waiting)
        handle.close()
        self.clock.advance(CHECK_SECONDS)
        self.assertEqual(self.read("mem0"), [b"udp late"])

    def test_replaced(self) -> None:
        """A handle that was used is replaced soon, and until then each capture opens its own."""
        self.read("mem0")
        self.assertEqual(self.memory.open_handles, 0)
        self.assertEqual(self.read("mem0"), [b"udp late"])
        self.clock.advance(REPLACE_SECONDS)
        self.assertEqual(self.memory.open_handles, 1)

    def test_one_at_a_time(self) -> None:
        """
        Handles are opened one after the other; a request is served in between, and its handle replaced soon.
        """
        self.standby.stopService()
        self.standby = StandbySystem(self.clock, self.memory, interfaces=["mem0", "mem1"], snap_length=512)
        opening: list[Deferred[None]] = []

        def slow() -> Deferred[None]:
            opening.append(Deferred())
            return opening[-1]

        self.memory.opening = slow
        self.standby.startService()
        self.assertEqual(len(opening), 1)
        opening[0].callback(None)
        self.assertEqual((self.memory.open_handles, len(opening)), (1, 2))
        self.memory.opening = lambda: succeed(None)
        self.open("mem0").close()
        opening[1].callback(None)
        self.clock.advance(REPLACE_SECONDS)
        self.assertEqual(self.memory.open_handles, 2)

    def test_stop_while_opening(self) -> None:
        """A stop leaves nothing of what is being opened, and no timer."""
        self.read("mem0")
        self.memory.opening = Deferred
        self.clock.advance(REPLACE_SECONDS)
        self.standby.stopService()
        self.assertEqual((self.memory.open_handles, self.clock.getDelayedCalls()), (0, []))

    def test_cancel(self) -> None:
        """A request that is given up while its handle is armed leaves nothing."""
        self.memory.opening = Deferred
        opening = self.standby.open("mem0", snap_length=512, bpf="udp")
        opening.cancel()
        self.failureResultOf(opening, CancelledError)
        self.assertEqual(self.memory.open_handles, 0)

    def test_others_open_their_own(self) -> None:
        """Another interface, or another snap length, leaves the handle waiting."""
        self.assertEqual(self.read("mem1"), [b"udp late"])
        self.assertEqual(self.read("mem0", snap_length=5), [b"udp l"])
        self.assertEqual(self.memory.open_handles, 1)

    def test_bad_filter(self) -> None:
        """A filter that is refused costs the handle, and no more."""
        self.failureResultOf(self.standby.open("mem0", snap_length=512, bpf="tcp prot"), RequestRejected)
        self.assertEqual(self.memory.open_handles, 0)
        self.clock.advance(CHECK_SECONDS)
        self.assertEqual(self.memory.open_handles, 1)

    def test_interface_comes_back(self) -> None:
        """A handle whose interface went away is given up, and a new one waits when it is back."""
        interface = self.memory.interfaces["mem0"]
        self.memory.lose("mem0")
        self.failureResultOf(self.standby.open("mem0", snap_length=512, bpf=""), CaptureUnavailable)
        self.clock.advance(REPLACE_SECONDS)
        self.assertEqual(interface.handles, [])
        interface.problem = None
        self.memory.interfaces["mem0"] = interface
        self.clock.advance(CHECK_SECONDS)
        self.assertEqual(len(interface.handles), 1)

    def test_renamed(self) -> None:
        """
        A request is for the interface that has the name now: the handle on the one that had it before serves
        requests for the new name of that one.
        """
        [waiting] = self.memory.interfaces["mem0"].handles
        self.memory.rename("mem0", "mem2")
        self.memory.rename("mem1", "mem0")
        self.assertEqual(self.read("mem0"), [b"udp late"])
        self.assertFalse(waiting.closed)
        handle = self.open("mem2")
        self.assertIs(handle, waiting)
        handle.close()

    def test_not_looked_for(self) -> None:
        """As long as it can't be found out which interface has a name, the handle is kept."""
        [waiting] = self.memory.interfaces["mem0"].handles
        self.patch(self.memory, "find", lambda name: fail(OSError(24, "Too many open files")))
        self.clock.advance(CHECK_SECONDS)
        self.clock.advance(CHECK_SECONDS)
        self.assertFalse(waiting.closed)
        self.failureResultOf(self.standby.open("mem0", snap_length=512, bpf=""), OSError)

    def test_no_longer_there(self) -> None:
        """A request for a name that no interface has any more is refused, whatever waits."""
        self.memory.rename("mem0", "mem2")
        self.failureResultOf(self.standby.open("mem0", snap_length=512, bpf=""), CaptureUnavailable)
        self.clock.advance(REPLACE_SECONDS)
        self.assertEqual(self.memory.open_handles, 0)

    def test_renamed_while_waiting(self) -> None:
        """A handle waits on the interface that has the configured name."""
        self.memory.rename("mem0", "mem2")
        self.memory.rename("mem1", "mem0")
        self.clock.advance(CHECK_SECONDS)
        self.assertEqual(len(self.memory.interfaces["mem0"].handles), 1)
        self.assertEqual(self.memory.interfaces["mem2"].handles, [])

    def test_down(self) -> None:
        """A handle waits while its interface is down; a request is refused."""
        [waiting] = self.memory.interfaces["mem0"].handles
        self.memory.down("mem0")
        self.clock.advance(CHECK_SECONDS)
        self.assertFalse(waiting.closed)
        self.failureResultOf(self.standby.open("mem0", snap_length=512, bpf=""), CaptureUnavailable)
        self.memory.up("mem0")
        self.assertEqual(self.read("mem0"), [b"udp late"])

    def test_interface_lost_while_waiting(self) -> None:
        """A handle is looked after while nobody asks for it."""
        interface = self.memory.interfaces["mem0"]
        self.memory.lose("mem0")
        self.clock.advance(CHECK_SECONDS)
        self.assertEqual(interface.handles, [])

    def test_failed(self) -> None:
        """Whatever keeps a handle from being opened, captures open their own, and it is tried again."""
        self.read("mem0")
        for error in (
            OSError(errno.EMFILE, "Too many open files"),
            RequestRejected([Problem(path="bpf", rule="libpcap says: no")]),
            ZeroDivisionError("a fault"),
        ):
            self.memory.errors = [error]
            self.clock.advance(CHECK_SECONDS)
            self.assertEqual((self.memory.errors, self.memory.open_handles), ([], 0))
            self.assertEqual(self.read("mem0"), [b"udp late"])
        # What may be is no fault.
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.clock.advance(CHECK_SECONDS)
        self.assertEqual(self.memory.open_handles, 1)

    def test_failed_while_waiting(self) -> None:
        """A handle that fails in whichever way is given up, and replaced."""
        [waiting] = self.memory.interfaces["mem0"].handles

        def faulty(count: int, sink: object) -> int:
            raise ZeroDivisionError

        waiting.read = faulty  # type: ignore[method-assign]
        self.clock.advance(CHECK_SECONDS)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(waiting.closed)
        self.assertEqual(self.memory.open_handles, 1)
