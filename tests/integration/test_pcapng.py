"""Captures that are delivered as pcapng files, as the tools that read them see them."""

from __future__ import annotations

import fcntl
import http.client
import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

from pcapsvc.delivery.compressor import MOST_HELD_BYTES
from peers.daemon import Daemon
from peers.frames import number_of, udp_frame
from peers.pcapng import PcapngFile, read_pcapng
from peers.requirement import require_command
from peers.tcpdump import Packet, capinfos_complaint, read_packets, tshark_fields
from tests.integration.look_back_case import LookBackCase

SIZES = (60, 61, 62, 63, 128, 300, 301, 1400)
_TIME = "frame.time_epoch"
_FIELDS = ("frame.number", _TIME, "frame.len", "frame.cap_len", "ip.src", "udp.dstport")
_KEEP_BYTES = 100_000_000
_RAW = 101
# What is not recent is too old. Both last longer than a machine may be too busy for what has to happen then.
_RECENT_SECONDS = 8
_DURATION_SECONDS = 6
# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x1, 0x1000


def output_of(program: str, package: str, *arguments: str) -> tuple[str, list[str]]:
    """What a program writes: its standard output, and the lines of the other one."""
    command = [require_command(program, package), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    # Wireshark's programs warn if they run as root.
    return done.stdout, [line for line in done.stderr.splitlines() if line and "Running as user" not in line]


class PcapngCase(LookBackCase):
    """A daemon that delivers pcapng files, and keeps the pcap files that it made them of."""

    digits = 6
    general = 'format = "pcapng"'

    def daemon(self) -> Daemon:
        """A daemon that remembers nothing."""
        daemon = Daemon(general=self.general, retain_bytes=_KEEP_BYTES)
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def send_sizes(self, count: int, port: int = 53) -> None:
        """Send packets of various sizes."""
        self.wire.send([udp_frame(at, size=SIZES[at % len(SIZES)], port=port) for at in range(count)])

    def files(self, daemon: Daemon, capture: str) -> tuple[Path, Path]:
        """What was delivered of a capture, and the pcap file that is fetched from the node."""
        path = daemon.file_of(capture)
        self.assertEqual(path.suffix, ".pcapng")
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
        self.addCleanup(connection.close)
        connection.request("GET", f"/captures/{capture}/pcap")
        fetched = Path(self.mktemp())
        fetched.write_bytes(connection.getresponse().read())
        return path, fetched

    def same(self, daemon: Daemon, capture: str) -> tuple[PcapngFile, list[Packet]]:
        """A file whose packets are those of the pcap file, and that no tool complains about."""
        path, fetched = self.files(daemon, capture)
        read, packets = read_pcapng(path.read_bytes()), read_packets(fetched)
        self.assertEqual(read.packets, packets)
        self.assertEqual(read.digits, self.digits)
        fields, complaint_of_tshark = tshark_fields(path, *_FIELDS)
        self.assertEqual((complaint_of_tshark, capinfos_complaint(path)), (None, None))
        listed, complaint = output_of("tcpdump", "tcpdump", "-n", "-r", str(path))
        self.assertEqual(len(listed.splitlines()), len(packets))
        self.assertEqual([line for line in complaint if not line.startswith("reading from file")], [])
        self.assertEqual((fields, None), tshark_fields(fetched, *_FIELDS))
        self.stamps = [line.split("\t")[_FIELDS.index(_TIME)] for line in fields.splitlines()]
        return read, packets

    def rolling(self, daemon: Daemon, capture: str, packets: int) -> None:
        """Wait until so many packets were captured."""

        def captured() -> bool | None:
            _, state = daemon.request("GET", f"/captures/{capture}")
            return state["rolling"]["captured"] >= packets or None

        daemon.until(captured, "the packets")


class ToolTests(PcapngCase):
    """What capinfos, tshark and tcpdump show."""

    def test_all(self) -> None:
        """They show the packets as in the pcap file, and all that the file says, and have no complaint."""
        daemon = self.daemon()
        capture = daemon.capture(
            interface=[self.wire.interface],
            bpf="udp port 53",
            snap=300,
            packets=3000,
            requestid="request-7",
            customer="Zoë & Söhne",
            alertid=655443,
            tags="blah,tagme",
        )
        self.send_sizes(500, port=9)
        self.send_sizes(3000)
        self.assertEqual(daemon.done(capture)["reason"], "packets")
        _, packets = self.same(daemon, capture)
        self.assertEqual(len(packets), 3000)
        shown, complaint = output_of("capinfos", "tshark", str(daemon.file_of(capture)))
        self.assertEqual(complaint, [])
        for words in (
            "pcapng",
            "Number of packets:   3",
            f"Capture oper-sys:    Linux {os.uname().release}",
            "Capture application: pcapsvc ",
            f"node: {daemon.node}",
            capture,
            f"Name = {self.wire.interface}",
            "Capture length = 300",
            "Filter string = udp port 53",
            "Number of stat entries = 1",
            "requestid: request-7",
            "alertid: 655443",
            "customer: Zoë & Söhne",
            "tags: blah,tagme",
            "reason: packets",
            "0 dropped by the kernel",
        ):
            self.assertIn(words, shown)

    def test_counters(self) -> None:
        """The statistics say what the events say."""
        daemon = self.daemon()
        capture = daemon.capture(interface=[self.wire.interface], packets=10)
        self.send_sizes(10)
        state = daemon.done(capture)
        read, _ = self.same(daemon, capture)
        assert read.statistics is not None
        counts = {
            code: int.from_bytes(value, "little") for code, value in read.statistics.items() if code > 3
        }
        expected = {4: state["received"], 6: state["received"], 7: state["dropped"], 8: 10}
        expected[5] = state["dropped"] + (state["interface_dropped"] or 0)
        self.assertEqual(counts, expected)

    def test_dropped(self) -> None:
        """Where Wireshark looks for what was dropped, there is what the kernel had no room for."""
        daemon = Daemon("[capture]\nbuffersize = 65536\n", general=self.general)
        self.addCleanup(daemon.stop)
        daemon.start()
        capture = daemon.capture(interface=[self.wire.interface], bpf="udp")
        daemon.signal(signal.SIGSTOP)
        for _ in range(20):
            self.wire.send([udp_frame(at, size=1400) for at in range(200)])
        daemon.signal(signal.SIGCONT)
        dropped = daemon.read(capture)["dropped"]
        self.assertGreater(dropped, 0)
        # The file's own blocks, and not the packets in it.
        blocks = ("-X", "read_format:MIME Files Format", "-V")
        shown, _ = output_of("tshark", "tshark", *blocks, "-r", str(daemon.file_of(capture)))
        self.assertIn(f"Number of Dropped Packets: {dropped}\n", shown)
        [section] = [line for line in shown.splitlines() if "Comment: node: " in line]
        self.assertIn(f"{dropped} dropped by the kernel", section)


class KindTests(PcapngCase):
    """Captures of each kind."""

    def test_any(self) -> None:
        """On all interfaces, with cooked headers."""
        daemon = self.daemon()
        capture = daemon.capture(interface=["any"], packets=10, bpf="udp port 5353 and host 192.0.2.1")
        self.send_sizes(10, port=5353)
        daemon.done(capture)
        self.assertEqual(self.same(daemon, capture)[0].link_type, 113)

    def test_loopback(self) -> None:
        """On the loopback interface."""
        daemon = self.daemon()
        capture = daemon.capture(interface=["lo"], packets=4, bpf=f"tcp port {daemon.port}")
        daemon.done(capture)
        self.assertEqual(self.same(daemon, capture)[0].link_type, 1)

    def test_tunnel(self) -> None:
        """On an interface without link-layer headers."""
        daemon = self.daemon()
        tunnel = f"{self.wire.interface[:-1]}t"
        with (
            open("/dev/net/tun", "r+b", buffering=0) as file,
            socket.socket(type=socket.SOCK_DGRAM) as sender,
        ):
            fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", tunnel.encode(), _IFF_TUN | _IFF_NO_PI))
            subprocess.run([require_command("ip", "iproute2"), "link", "set", tunnel, "up"], check=True)
            capture = daemon.capture(interface=[tunnel], packets=9, bpf="udp port 5353")
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, tunnel.encode())
            for size in range(9):
                sender.sendto(bytes(size), ("192.0.2.1", 5353))
            daemon.done(capture)
        self.assertEqual(self.same(daemon, capture)[0].link_type, _RAW)

    def test_rolling(self) -> None:
        """The newest packets, from a file whose beginning was released."""
        daemon = self.daemon()
        capture = daemon.capture(interface=[self.wire.interface], rolling=True, bytes=500_000)
        # As many at once as the ring holds, however late they are read.
        for captured in range(1000, 8001, 1000):
            self.send_sizes(1000)
            self.rolling(daemon, capture, captured)
        status, _ = daemon.request("DELETE", f"/captures/{capture}")
        self.assertEqual(status, 200)
        daemon.done(capture)
        read, packets = self.same(daemon, capture)
        self.assertLess(len(packets), 8000)
        self.assertIn(b"reason: cancelled", read.interface[1])

    def test_look_back(self) -> None:
        """What is remembered, and what follows."""
        daemon = self.start("history = 60", general=self.general, retain_bytes=_KEEP_BYTES)
        self.send(*range(100))
        self.remembered(daemon, 100)
        capture = self.capture(daemon, packets=200)
        self.send(*range(100, 200))
        daemon.done(capture)
        self.assertEqual(len(self.same(daemon, capture)[1]), 200)

    def test_large(self) -> None:
        """A file that is too large to be kept in memory, and is made while it is read."""
        daemon = self.daemon()
        capture = daemon.capture(interface=[self.wire.interface], packets=15_000, snap=1400)
        frames = [udp_frame(at, size=1390 + at % 11) for at in range(1000)]
        daemon.send(self.wire, frames * 15, capture)
        daemon.done(capture)
        self.assertEqual(len(self.same(daemon, capture)[1]), 15_000)
        self.assertGreater(daemon.file_of(capture).stat().st_size, MOST_HELD_BYTES)

    def test_nothing(self) -> None:
        """A capture without a packet is not delivered."""
        daemon = self.daemon()
        capture = daemon.capture(interface=[self.wire.interface], duration=1)
        state = daemon.done(capture)
        self.assertEqual((state["packets"], state["deliveries"]), (0, []))
        self.assertEqual(list(daemon.captures.iterdir()), [])

    def test_nothing_left(self) -> None:
        """After many captures, all files and their memory are closed."""
        daemon = Daemon(general=self.general)
        self.addCleanup(daemon.stop)
        daemon.start()
        for _ in range(5):
            capture: Any = daemon.capture(interface=[self.wire.interface], packets=100)
            self.send_sizes(100)
            daemon.done(capture)
        daemon.until(lambda: self.is_all_closed(daemon) or None, "files to be closed")

    def is_all_closed(self, daemon: Daemon) -> bool:
        """Whether a daemon has no files in memory."""
        return not any("memfd:pcapsvc" in one for one in daemon.descriptors())


class NanosecondTests(PcapngCase):
    """Time stamps in nanoseconds."""

    digits = 9
    general = 'format = "pcapng"\nnanoseconds = true'

    def same(self, daemon: Daemon, capture: str) -> tuple[PcapngFile, list[Packet]]:
        """The same; and the time stamps are those of the kernel, in both files."""
        read, packets = super().same(daemon, capture)
        _, fetched = self.files(daemon, capture)
        self.assertEqual(struct.unpack_from("=I", fetched.read_bytes()), (0xA1B23C4D,))
        self.assertGreater(sum(packet.fraction % 1000 != 0 for packet in packets), len(packets) // 2)
        now = time.time()
        for packet in packets:
            self.assertTrue(now - 300 < packet.seconds + packet.fraction / 1e9 < now, packet)
        self.assertEqual(self.stamps, [f"{packet.seconds}.{packet.fraction:09d}" for packet in packets])
        return read, packets

    def test_same_but_for_the_time(self) -> None:
        """But for its time stamps, a capture is the same as in microseconds."""
        precise = self.daemon()
        other = Daemon(general='format = "pcapng"', node="node-2", retain_bytes=_KEEP_BYTES)
        self.addCleanup(other.stop)
        other.start()
        captures = [
            daemon.capture(interface=[self.wire.interface], bpf="udp port 53", packets=2000, snap=300)
            for daemon in (precise, other)
        ]
        self.send_sizes(2000)
        for daemon, capture in zip((precise, other), captures, strict=True):
            daemon.done(capture)
        _, packets = self.same(precise, captures[0])
        _, fetched = self.files(other, captures[1])
        self.assertEqual(
            [(packet.length, packet.data) for packet in packets],
            [(packet.length, packet.data) for packet in read_packets(fetched)],
        )
        self.assertEqual(self.files(precise, captures[0])[1].stat().st_size, fetched.stat().st_size)

    def test_any(self) -> None:
        """On all interfaces."""
        daemon = self.daemon()
        capture = daemon.capture(interface=["any"], packets=50, bpf="udp port 5353 and host 192.0.2.1")
        self.send_sizes(50, port=5353)
        daemon.done(capture)
        self.same(daemon, capture)

    def test_look_back(self) -> None:
        """The past and what follows have no gap between them, and a part of the past can be asked for."""
        daemon = self.start("history = 60", general=self.general, retain_bytes=_KEEP_BYTES)
        self.send(*range(100), port=53)
        self.send(*range(100), port=9)
        self.remembered(daemon, 200)
        # Through a filter, and cut.
        capture = self.capture(daemon, packets=200, bpf="udp port 53", snap=60)
        self.send(*range(100, 200), port=53)
        daemon.done(capture)
        _, packets = self.same(daemon, capture)
        self.assertEqual([number_of(packet.data) for packet in packets], list(range(200)))
        stamps = [(packet.seconds, packet.fraction) for packet in packets]
        self.assertEqual(stamps, sorted(stamps))
        # Longer than it takes to ask for what comes then, on a busy machine.
        time.sleep(_RECENT_SECONDS + 0.5)
        self.send(*range(200, 210), port=53)
        self.remembered(daemon, 310)
        capture = self.capture(daemon, before=_RECENT_SECONDS, pastonly=True)
        daemon.done(capture)
        _, packets = self.same(daemon, capture)
        self.assertEqual([number_of(packet.data) for packet in packets], list(range(200, 210)))

    def test_rolling(self) -> None:
        """What is older than a rolling capture keeps packets is not in its file."""
        daemon = self.daemon()
        capture = daemon.capture(interface=[self.wire.interface], rolling=True, before=_RECENT_SECONDS)
        self.send(*range(50))
        time.sleep(_RECENT_SECONDS + 0.5)
        self.send(*range(50, 100))
        self.rolling(daemon, capture, 100)
        self.assertEqual(daemon.request("DELETE", f"/captures/{capture}")[0], 200)
        daemon.done(capture)
        _, packets = self.same(daemon, capture)
        self.assertEqual([number_of(packet.data) for packet in packets], list(range(50, 100)))

    def test_time_limit(self) -> None:
        """What arrived after a time limit is left out, though it is read at the same time."""
        daemon = self.daemon()
        capture = daemon.capture(interface=[self.wire.interface], duration=_DURATION_SECONDS)
        self.send(1, 2, 3)
        daemon.until(lambda: self.packets(daemon, capture) == 3 or None, "three packets")
        daemon.signal(signal.SIGSTOP)
        try:
            time.sleep(_DURATION_SECONDS + 0.5)
            self.send(4)
        finally:
            daemon.signal(signal.SIGCONT)
        state = daemon.done(capture)
        self.assertEqual((state["reason"], state["packets"]), ("duration", 3))
        self.same(daemon, capture)

    def packets(self, daemon: Daemon, capture: str) -> int:
        """How many packets a capture has."""
        _, state = daemon.request("GET", f"/captures/{capture}")
        found: int = state["packets"]
        return found

    def test_followed(self) -> None:
        """What is streamed while a capture runs is the file that it becomes."""
        daemon = self.daemon()
        capture = daemon.capture(interface=[self.wire.interface], packets=2000)
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
        self.addCleanup(connection.close)
        connection.request("GET", f"/captures/{capture}/pcap?follow=1")
        answer = connection.getresponse()
        self.send_sizes(1000)
        followed = answer.read(1000)
        self.send_sizes(1000)
        followed += answer.read()
        daemon.done(capture)
        self.assertEqual(followed, self.files(daemon, capture)[1].read_bytes())
        self.same(daemon, capture)

    def test_logged(self) -> None:
        """Packets that are looked at one by one are written as well as others."""
        daemon = self.daemon()
        capture = daemon.capture(interface=[self.wire.interface], packets=20, packetdebug=True)
        self.send(*range(20))
        daemon.done(capture)
        self.same(daemon, capture)
        daemon.logged("192.0.2.1")
