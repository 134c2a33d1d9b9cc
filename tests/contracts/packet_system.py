"""What every packet system must do: one suite for ours in memory, and for libpcap on a real wire."""

from __future__ import annotations

import select
import time

from msgspec.structs import replace
from twisted.internet.defer import CancelledError

from pcapsvc.core.errors import CaptureUnavailable, RequestRejected
from peers.frames import udp_frame
from tests.contracts.dumpers import DumperContract


class PacketSystemContract(DumperContract):
    """What an L{IStandbyPacketSystem} owes, whichever it is."""

    async def test_packets_in_order(self) -> None:
        """Packets are handed over in the order in which they came, and each once."""
        handle = await self.open()
        frames = [udp_frame(number) for number in range(20)]
        self.send(*frames)
        self.assertEqual(self.read(handle, 20, most=7), frames)
        self.assertEqual(handle.read(10, lambda *_: self.fail("there was no more")), 0)

    async def test_list(self) -> None:
        """The interface is in the list of all, as it is now, until it is gone."""
        self.index = await self.system.find(self.interface)
        found = await self.listed()
        self.assertEqual((found.name, found.is_up, found.link_type), (self.interface, True, "ether"))
        self.take_down()
        self.assertFalse((await self.listed()).is_up)
        self.bring_up()
        name = self.rename()
        found = await self.listed()
        self.assertEqual((found.name, found.is_up), (name, True))

    async def test_list_without(self) -> None:
        """An interface that is gone is not in the list."""
        self.index = await self.system.find(self.interface)
        self.lose_interface()
        self.assertIsNone(await self.listed())

    async def test_check(self) -> None:
        """This process may capture."""
        await self.system.check()

    async def test_compile_filter(self) -> None:
        """A filter is compiled as it is for a handle, and nothing is opened."""
        handle = await self.open(bpf="udp port 9")
        for interface in (self.interface, None):
            program = await self.system.compile_filter(interface, snap_length=512, bpf="udp port 9")
            self.assertEqual(program.instructions, handle.program.instructions)

    async def test_compile_filter_in_vain(self) -> None:
        """A filter that can't be compiled is rejected, and an unknown interface can't be captured on."""
        for interface in (self.interface, None):
            compiling = self.system.compile_filter(interface, snap_length=512, bpf="udp and (")
            await self.assertFailure(compiling, RequestRejected)
        compiling = self.system.compile_filter("nosuch0", snap_length=512, bpf="udp")
        await self.assertFailure(compiling, CaptureUnavailable)

    async def test_at_most(self) -> None:
        """No more packets are handed over than were asked for; the others wait."""
        handle = await self.open()
        self.send(*[udp_frame(number) for number in range(5)])
        self.assertEqual(len(self.read(handle, 2)), 2)
        self.assertEqual(len(self.read(handle, 3)), 3)

    async def test_filter(self) -> None:
        """Only what passes the filter is handed over, and counted."""
        handle = await self.open(bpf="udp port 53")
        self.send(udp_frame(1, port=9), udp_frame(2, port=53), udp_frame(3, port=9), udp_frame(4, port=53))
        self.assertEqual(self.read(handle, 2), [udp_frame(2, port=53), udp_frame(4, port=53)])
        counts = handle.counts()
        assert counts is not None
        self.assertEqual((counts.received, counts.dropped), (2, 0))
        self.assertEqual(handle.counts(hardware=False), replace(counts, interface_dropped=None))

    async def test_bad_filter(self) -> None:
        """A filter that can't be compiled is the sender's fault, in libpcap's own words."""
        error = await self.rejected("tcp prot 80")
        self.assertEqual([problem.path for problem in error.problems], ["bpf"])
        self.assertIn("syntax error", str(error))

    async def test_no_such_interface(self) -> None:
        """An interface that doesn't exist is reported by its name."""
        error = await self.unavailable("nosuch0")
        self.assertEqual((error.interface, error.reason), ("nosuch0", "no such interface"))

    async def test_interface_lost(self) -> None:
        """What had arrived when the interface went away can still be read; then the loss is reported."""
        handle = await self.open()
        frames = [udp_frame(number) for number in range(3)]
        self.send(*frames)
        self.await_packets(handle)
        self.lose_interface()
        read: list[bytes] = []

        def read_on() -> None:
            for _ in range(100):
                handle.read(2, lambda _, packet: read.append(packet))

        self.assertRaises(CaptureUnavailable, read_on)
        self.assertEqual(read, frames)

    async def test_interface_down_briefly(self) -> None:
        """While its interface is down, a handle has no packets; after that it goes on."""
        handle = await self.open()
        self.send(udp_frame(1), udp_frame(2))
        self.await_packets(handle)
        self.take_down()
        self.assertEqual(self.read(handle, 2), [udp_frame(1), udp_frame(2)])
        for _ in range(5):
            self.assertEqual(handle.read(10, lambda *_: self.fail("it is down")), 0)
        self.bring_up()
        self.send(udp_frame(3))
        self.assertEqual(self.read(handle, 1), [udp_frame(3)])

    async def test_down_and_then_gone(self) -> None:
        """That an interface is gone shows also if it was down, and was read, before."""
        handle = await self.open()
        self.take_down()
        for _ in range(5):
            self.assertEqual(handle.read(10, lambda *_: self.fail("it is down")), 0)
        self.lose_interface()
        with self.assertRaises(CaptureUnavailable):
            for _ in range(5):
                handle.read(10, lambda *_: self.fail("it is gone"))

    async def test_renamed(self) -> None:
        """A handle stays with its interface, whatever that is called, and knows of it; the index stays."""
        handle = await self.open()
        index = await self.system.find(self.interface)
        self.assertTrue(handle.is_named)
        name = self.rename()
        self.assertFalse(handle.is_named)
        self.send(udp_frame(1))
        self.assertEqual(self.read(handle, 1), [udp_frame(1)])
        self.assertEqual([await self.system.find(one) for one in (name, self.interface)], [index, None])
        self.assertEqual((await self.unavailable()).reason, "no such interface")

    async def test_standby_on_an_interface_that_is_down(self) -> None:
        """A standby handle survives that its interface is down; arming it fails as opening does."""
        standby = await self.system.open_standby(self.interface, snap_length=60)
        self.addCleanup(standby.close)
        self.assertEqual(standby.index, await self.system.find(self.interface))
        self.take_down()
        standby.check()
        standby.check()
        error = await self.assertFailure(standby.arm(""), CaptureUnavailable)
        self.assertEqual(error.reason, "the interface is down")

    async def test_callback_fails(self) -> None:
        """What the callback raises ends the dispatch, and is raised; the packets behind it wait."""
        handle = await self.open()
        self.send(udp_frame(1), udp_frame(2))
        self.assertEqual(self.read(handle, 1), [udp_frame(1)])

        def refuse(header: object, data: bytes) -> None:
            raise ZeroDivisionError

        with self.assertRaises(ZeroDivisionError):
            while True:
                handle.read(10, refuse)
                select.select([handle], [], [], 2)

    async def test_standby(self) -> None:
        """
        A standby handle lets nothing pass, and the interface receives no more than before. Once it is
        armed it is like any other, for what arrives from then on.
        """
        standby = await self.system.open_standby(self.interface, snap_length=60)
        self.addCleanup(standby.close)
        self.assertFalse(self.is_promiscuous())
        self.send(udp_frame(1, port=53))
        time.sleep(0.05)
        standby.check()
        handle = await standby.arm("udp port 53")
        self.addCleanup(handle.close)
        standby.close()
        self.assertTrue(self.is_promiscuous())
        self.send(udp_frame(2, port=9), udp_frame(3, port=53))
        self.assertEqual(self.read(handle, 1), [udp_frame(3, port=53)[:60]])
        counts = handle.counts()
        assert counts is not None
        self.assertEqual(counts.received, 1)
        handle.close()
        self.assertFalse(self.is_promiscuous())

    async def test_standby_without_a_filter(self) -> None:
        """Armed without a filter, a handle lets everything pass, and goes on as any other."""
        standby = await self.system.open_standby(self.interface, snap_length=512)
        handle = await standby.arm("")
        self.addCleanup(handle.close)
        self.send(udp_frame(1), udp_frame(2, port=53))
        self.assertEqual(self.read(handle, 2), [udp_frame(1), udp_frame(2, port=53)])
        self.exclude(handle, "udp port 53")
        self.send(udp_frame(3, port=53), udp_frame(4))
        self.assertEqual(self.read(handle, 1), [udp_frame(4)])

    async def test_standby_refused(self) -> None:
        """That a filter can't be compiled is the sender's fault, too; that an interface is lost is not."""
        standby = await self.system.open_standby(self.interface, snap_length=60)
        await self.assertFailure(standby.arm("tcp prot 80"), RequestRejected)
        standby = await self.system.open_standby(self.interface, snap_length=60)
        self.lose_interface()
        await self.assertFailure(standby.arm(""), CaptureUnavailable)

    async def test_standby_lost(self) -> None:
        """That its interface is gone shows when a standby handle is checked."""
        standby = await self.system.open_standby(self.interface, snap_length=60)
        self.addCleanup(standby.close)
        self.lose_interface()
        self.assertRaises(CaptureUnavailable, standby.check)

    async def test_cancel(self) -> None:
        """An open that is cancelled leaves nothing."""
        opening = self.system.open(self.interface, snap_length=512, bpf="udp")
        if not opening.called:
            opening.cancel()
            await self.assertFailure(opening, CancelledError)
        else:
            (await opening).close()
        standby = await self.system.open_standby(self.interface, snap_length=512)
        arming = standby.arm("udp")
        if not arming.called:
            arming.cancel()
            await self.assertFailure(arming, CancelledError)
        else:
            (await arming).close()

    async def test_leave_out(self) -> None:
        """A handle goes on without what passes a filter, of what had arrived as well; then of another."""
        handle = await self.open(bpf="udp")
        self.send(udp_frame(1, port=53), udp_frame(2, port=9))
        self.await_packets(handle)
        self.exclude(handle, "udp port 53")
        self.send(udp_frame(3, port=53), udp_frame(4, port=9))
        self.assertEqual(self.read(handle, 2), [udp_frame(2, port=9), udp_frame(4, port=9)])
        self.assertEqual(handle.read(10, lambda *_: self.fail("there was no more")), 0)
        self.exclude(handle, "udp port 9")
        self.send(udp_frame(5, port=9), udp_frame(6, port=53))
        self.assertEqual(self.read(handle, 1), [udp_frame(6, port=53)])
        self.exclude(handle, "")
        self.send(udp_frame(7, port=9))
        self.assertEqual(self.read(handle, 1), [udp_frame(7, port=9)])

    async def test_leave_out_of_a_filter(self) -> None:
        """Of a handle with a filter, no more is handed over than before; of one without, all else is."""
        for bpf, wanted in (("udp port 53", [53]), ("", [7, 53])):
            handle = await self.open(bpf=bpf)
            self.exclude(handle, "udp port 9")
            self.send(udp_frame(1, port=7), udp_frame(2, port=9), udp_frame(3, port=53))
            ports = [int.from_bytes(data[36:38], "big") for data in self.read(handle, len(wanted))]
            self.assertEqual(ports, wanted)
            handle.close()

    async def test_leave_out_refused(self) -> None:
        """If the new exclusion is not a valid filter, the previous one remains in effect."""
        handle = await self.open()
        self.exclude(handle, "udp port 53")
        self.assertRaises(RequestRejected, self.exclude, handle, "tcp prot 80")
        self.send(udp_frame(1, port=53), udp_frame(2, port=9))
        self.assertEqual(self.read(handle, 1), [udp_frame(2, port=9)])

    async def test_leave_out_of_a_lost_interface(self) -> None:
        """That an interface went away is not the filter's fault; a filter that is none is, there as well."""
        handle = await self.open(bpf="udp")
        self.lose_interface()
        self.assertRaises(RequestRejected, self.exclude, handle, "tcp prot 80")

        def go_on() -> None:
            self.exclude(handle, "udp port 53")
            handle.read(1, lambda *_: None)

        error = self.assertRaises(CaptureUnavailable, go_on)
        self.assertEqual(error.interface, self.interface)

    async def test_close_twice(self) -> None:
        """A handle may be closed again."""
        handle = await self.open()
        handle.close()
        handle.close()
