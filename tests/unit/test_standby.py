"""Handles that wait for a capture."""

from __future__ import annotations

import errno

from twisted.internet.task import Clock
from twisted.trial import unittest

from pcapsvc.core.errors import CaptureUnavailable, Problem, RequestRejected
from pcapsvc.interfaces.capture import IPacketHandle
from pcapsvc.packets.standby import CARE_SECONDS, REPLACE_SECONDS, StandbySystem
from pcapsvc.testing import MemoryPacketSystem


class Failing(MemoryPacketSystem):
    """
    A packet system that fails now and then.

    @ivar errors: what the next handles that are to wait raise instead, one after the other.
    """

    def __init__(self, *interfaces: str) -> None:
        super().__init__(*interfaces)
        self.errors: list[Exception] = []

    def wait(self, interface: str, *, snap_length: int) -> IPacketHandle:
        """Fail, or open a handle."""
        if self.errors:
            raise self.errors.pop(0)
        return super().wait(interface, snap_length=snap_length)


class StandbySystemTests(unittest.SynchronousTestCase):
    """L{StandbySystem}, on interfaces in memory."""

    def setUp(self) -> None:
        """A handle waits on one of two interfaces."""
        self.memory = Failing("mem0", "mem1")
        self.memory.filters["greater 2000000000"] = lambda data: len(data) >= 2_000_000_000
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

    def read(self, interface: str, *, snap_length: int = 512, bpf: str = "udp") -> list[bytes]:
        """What a capture gets of two packets that come after it was opened, and of one that came before."""
        self.memory.deliver(interface, b"udp early")
        handle = self.standby.open(interface, snap_length=snap_length, bpf=bpf)
        self.addCleanup(handle.close)
        self.memory.deliver(interface, b"tcp", b"udp late")
        data: list[bytes] = []
        handle.dispatch(10, lambda _, packet: data.append(packet))
        handle.close()
        return data

    def test_waiting_handle_is_used(self) -> None:
        """A capture gets the handle that waits, with its own filter, and nothing that came before it."""
        (waiting,) = self.memory.interfaces["mem0"].handles
        handle = self.standby.open("mem0", snap_length=512, bpf="udp")
        self.assertIs(handle, waiting)
        handle.close()
        self.clock.advance(CARE_SECONDS)
        self.assertEqual(self.read("mem0"), [b"udp late"])

    def test_replaced(self) -> None:
        """A handle that was used is replaced soon, and until then each capture opens its own."""
        self.read("mem0")
        self.assertEqual(self.memory.open_handles, 0)
        self.assertEqual(self.read("mem0"), [b"udp late"])
        self.clock.advance(REPLACE_SECONDS)
        self.assertEqual(self.memory.open_handles, 1)

    def test_one_in_a_turn(self) -> None:
        """Many handles are opened one after the other, with room for all else between them."""
        standby = StandbySystem(self.clock, self.memory, interfaces=["mem0", "mem1"], snap_length=512)
        before = self.memory.open_handles
        standby.startService()
        self.addCleanup(standby.stopService)
        self.assertEqual(self.memory.open_handles, before + 1)
        self.clock.advance(0)
        self.assertEqual(self.memory.open_handles, before + 2)

    def test_others_open_their_own(self) -> None:
        """Another interface, or another snap length, leaves the handle waiting."""
        self.assertEqual(self.read("mem1"), [b"udp late"])
        self.assertEqual(self.read("mem0", snap_length=5), [b"udp l"])
        self.assertEqual(self.memory.open_handles, 1)

    def test_bad_filter(self) -> None:
        """A filter that is refused costs the handle, and no more."""
        self.assertRaises(RequestRejected, self.standby.open, "mem0", snap_length=512, bpf="tcp prot")
        self.assertEqual(self.memory.open_handles, 0)
        self.clock.advance(CARE_SECONDS)
        self.assertEqual(self.memory.open_handles, 1)

    def test_interface_comes_back(self) -> None:
        """A handle whose interface went away is given up, and a new one waits when it is back."""
        interface = self.memory.interfaces["mem0"]
        self.memory.lose("mem0")
        self.assertRaises(CaptureUnavailable, self.standby.open, "mem0", snap_length=512, bpf="")
        self.assertEqual(interface.handles, [])
        self.clock.advance(CARE_SECONDS)
        interface.problem = None
        self.memory.interfaces["mem0"] = interface
        self.clock.advance(CARE_SECONDS)
        self.assertEqual(len(interface.handles), 1)

    def test_interface_lost_while_waiting(self) -> None:
        """A handle is looked after while nobody asks for it."""
        interface = self.memory.interfaces["mem0"]
        self.memory.lose("mem0")
        self.clock.advance(CARE_SECONDS)
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
            self.clock.advance(CARE_SECONDS)
            self.assertEqual((self.memory.errors, self.memory.open_handles), ([], 0))
            self.assertEqual(self.read("mem0"), [b"udp late"])
        # What may be is no fault.
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.clock.advance(CARE_SECONDS)
        self.assertEqual(self.memory.open_handles, 1)

    def test_failed_while_waiting(self) -> None:
        """A handle that fails in whichever way is given up, and replaced."""
        [waiting] = self.memory.interfaces["mem0"].handles

        def fail(count: int, callback: object) -> int:
            raise ZeroDivisionError

        waiting.dispatch = fail  # type: ignore[method-assign]
        self.clock.advance(CARE_SECONDS)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(waiting.closed)
        self.clock.advance(CARE_SECONDS)
        self.assertEqual(self.memory.open_handles, 1)

    def test_request_while_opening(self) -> None:
        """A handle is asked for while another is being opened: there is no timer then to be moved."""
        standby = StandbySystem(self.clock, self.memory, interfaces=["mem0", "mem1"], snap_length=512)
        standby.startService()
        self.clock.advance(0)
        handle = self.memory.interfaces["mem1"].handles[0]
        handle.lost = True

        def ask(interface: str, *, snap_length: int) -> IPacketHandle:
            standby.open("mem0", snap_length=512, bpf="udp").close()
            raise CaptureUnavailable(interface, "the interface is down")

        self.memory.wait = ask  # type: ignore[method-assign]
        self.clock.advance(CARE_SECONDS)
        standby.stopService()
