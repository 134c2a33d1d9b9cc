"""The whole flow, on packets in memory: what becomes of the captures of a request."""

from __future__ import annotations

import itertools

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel

from pcapsvc.core.event import (
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureStarted,
    CaptureStopped,
    DeliveryFailed,
    RequestAccepted,
)
from pcapsvc.core.recording import PacketCounts
from pcapsvc.core.session import StopReason
from pcapsvc.testing_packets import MemoryDumper
from peers.frames import udp_frame
from tests.unit.pipeline_case import PipelineCase, packets_in


class CapturingTests(PipelineCase):
    """From the first packet to the last delivery."""

    def test_whole(self) -> None:
        """A capture goes to every destination, and all that becomes of it is reported in order."""
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
        """The packet with which the file reaches the limit is the last one."""
        self.begin(bytes=24 + 2 * 76)
        self.arrive(*[bytes([number]) * 60 for number in range(5)])
        [stopped] = self.events(CaptureStopped)
        self.assertEqual((stopped.reason, stopped.packets), (StopReason.BYTES, 2))
        self.assertEqual(len(next(iter(self.one.files.values()))), 24 + 2 * 76)

    def test_one_byte(self) -> None:
        """A limit below the size of the file header is reached by the first packet, not before."""
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
        """If the last read reaches a limit, that is the reason, and the capture ends once."""
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
        """A flood keeps the reactor for a bounded time, and loses no packet."""
        capture_id = self.begin(packets=50_000)
        self.system.deliver("mem0", *[b"x" * 20] * 10_000)
        # Reading takes time: each look at the clock finds it 30 ms later.
        now, looks = self.reactor.seconds(), itertools.count()
        self.patch(self.reactor, "seconds", lambda: now + 0.03 * next(looks))
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
        """If memory runs out within a capture, it fails, is reported, and holds nothing."""
        capture_id = self.begin(bytes=24 + 40 * 116, snap=100)
        self.arrive(*[b"x" * 100] * 20)

        def no_memory(dumper: MemoryDumper) -> int:
            raise OSError(12, "Cannot allocate memory")

        self.patch(MemoryDumper, "size", no_memory)
        self.arrive(b"x" * 100)
        [failed] = self.events(CaptureFailed)
        self.assertIn("Cannot allocate memory", failed.problem)
        self.assertEqual(self.state(capture_id)["state"], "failed")
        self.assertEqual(self.one.artifacts, [])

    def test_fault_while_capturing(self) -> None:
        """An internal error fails that capture, is reported and logged with its id, and affects no other."""
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


class StoppingTests(PipelineCase):
    """The end of all."""

    def test_nothing_runs(self) -> None:
        """If nothing runs, it stops at once."""
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
            [("one", "the daemon stopped")],
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
    """The option by which a packet that can't be decoded fails its capture."""

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
