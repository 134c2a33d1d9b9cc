"""What a packet system must do while packets arrive all the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

from pcapsvc.core.filter import NOTHING
from pcapsvc.packets import handle as handle_module
from pcapsvc.packets.kernel_filter import attach
from peers.frames import number_of, udp_frame
from peers.wire import Wire
from tests.contracts.packet_system import PacketSystemContract
from tests.contracts.packet_wire import read_all


class BusyInterfaceContract(PacketSystemContract):
    """
    What an L{IStandbyPacketSystem} owes, on an interface that is busy.

    @cvar native: whether filters are set as programs, not as text.
    """

    native: bool

    @contextmanager
    def busy(self, frame: bytes, wire: Wire | None = None) -> Iterator[None]:
        """Send one frame again and again, meanwhile, on the wire of the test or on another one."""
        send_frames = self.send if wire is None else lambda *frames: wire.send(frames)
        ended = threading.Event()

        def send() -> None:
            while not ended.is_set():
                send_frames(*[frame] * 50)

        thread = threading.Thread(target=send, name="busy")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    async def test_direction_on_a_busy_interface(self) -> None:
        """Nothing that such a filter doesn't let pass gets into a capture, whatever arrives as it is set."""
        with self.busy(udp_frame(1)):
            for _ in range(5):
                handle = await self.open(bpf="inbound and udp port 53")
                time.sleep(0.05)
                self.assertEqual(handle.read(1000, lambda *_: None), 0)
                handle.close()

    async def test_counts_on_a_busy_interface(self) -> None:
        """Every packet that is handed over is counted, also those that came while the filter was set."""
        # As text, libpcap applies a direction to what is in the ring, where it doesn't know it.
        directions = ("inbound and udp port 53",) if self.native else ()
        for bpf in ("udp port 53", "", *directions) * 3:
            with self.busy(udp_frame(1, port=53)):
                handle = await self.open(bpf=bpf)
            read = read_all(handle, lambda *_: None)
            counts = handle.counts()
            assert counts is not None
            self.assertEqual((counts.received, counts.dropped), (read, 0), bpf)
            handle.close()

    async def test_nothing_missing_at_the_start(self) -> None:
        """What arrives while a handle is opened, before no packet passes any more, is in no capture."""

        def attach_late(descriptor: int, instructions: bytes) -> None:
            is_first = instructions == NOTHING.instructions
            if is_first:
                self.send(udp_frame(1, port=5399))
            attach(descriptor, instructions)
            if is_first:
                self.send(udp_frame(2, port=5399))

        bpf = "udp port 5399"
        cases = [(self.interface, bpf), ("any", bpf)]
        if self.native:
            cases.append((self.interface, f"inbound and {bpf}"))
        # The first time a filter is compiled; the second time it is known.
        for interface, text in cases * 2:
            with patch.object(handle_module, "attach", attach_late):
                handle = await self.system.open(interface, snap_length=512, bpf=text)
            self.send(*[udp_frame(number, port=5399) for number in range(3, 103)])
            start = 2 if interface == "any" else 0
            found = [number_of(data[start:]) for data in self.read(handle, 100)]
            left = handle.read(1, lambda *_: None)
            self.assertEqual((found, left), (list(range(3, 103)), 0), (interface, text))
            handle.close()

    async def test_clock_set_back_at_the_start(self) -> None:
        """If the clock is set back before the first packet arrives, no packet seems to be an old one."""
        ahead = SimpleNamespace(time=lambda: time.time() + 0.5)
        for is_standby in (False, True):
            # What came on another interface before a handle was bound to its own may be taken for an old one.
            for _ in range(20):
                with patch.object(handle_module, "time", ahead):
                    if is_standby:
                        standby = await self.system.open_standby(self.interface, snap_length=512)
                        handle = await standby.arm("udp port 53")
                    else:
                        handle = await self.open(bpf="udp port 53")
                self.addCleanup(handle.close)
                self.send(*[udp_frame(number, port=53) for number in range(5)])
                found = [number_of(data) for data in self.read(handle, 5)]
                if found == list(range(5)):
                    break
            self.assertEqual(found, list(range(5)), is_standby)

    async def test_standby_opened_on_a_busy_interface(self) -> None:
        """What arrives while a standby handle is opened is in no capture, however soon it is used."""
        for _ in range(5):
            with self.busy(udp_frame(99, port=53)):
                standby = await self.system.open_standby(self.interface, snap_length=512)
            handle = await standby.arm("udp port 53")
            self.addCleanup(handle.close)
            self.send(*[udp_frame(number, port=53) for number in range(5)])
            self.assertEqual([number_of(data) for data in self.read(handle, 5)], list(range(5)))
            counts = handle.counts()
            assert counts is not None
            self.assertEqual(counts.received, 5)

    async def test_opened_while_another_interface_is_busy(self) -> None:
        """What came on another interface before the handle was bound to its own costs a capture nothing."""
        other = Wire()
        self.addCleanup(other.stop)
        other.start()
        directions = ("inbound and udp port 53",) if self.native else ()
        with self.busy(udp_frame(99, port=53), other):
            for bpf in ("udp port 53", *directions) * 3:
                standby = await self.system.open_standby(self.interface, snap_length=512)
                for handle in (await self.open(bpf=bpf), await standby.arm(bpf)):
                    self.addCleanup(handle.close)
                    self.send(*[udp_frame(number, port=53) for number in range(5)])
                    found = [number_of(data) for data in self.read(handle, 5)]
                    self.assertEqual(found, list(range(5)), bpf)
                    handle.close()
