"""The files and the live packets of pcapctl, with real daemons."""

from __future__ import annotations

import os
import select
import struct
import subprocess
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.frames import number_of, udp_frame
from peers.requirement import require_command
from peers.tcpdump import read_packets
from peers.wire import Wire
from tests.integration.pcapctl_case import Running, pcapctl
from tests.integration.test_pcapctl import Traffic

_HEADER_BYTES = 24


class FilesTestCase(SynchronousTestCase):
    """Two daemons on one wire."""

    timeout = 200

    def setUp(self) -> None:
        """Start them."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.nodes = [Daemon(node=f"web-{number}", retain_bytes=1 << 24) for number in (1, 2)]
        for node in self.nodes:
            self.addCleanup(node.stop)
            node.start()
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()

    def options(self, *words: str, nodes: int = 2) -> list[str]:
        """The options of a request to the first nodes."""
        via = [word for node in self.nodes[:nodes] for word in ("--via", f"http://127.0.0.1:{node.port}")]
        return ["capture", *via, "-i", self.wire.interface, *words]


class SavedTests(FilesTestCase):
    """C{-w FILE}."""

    def setUp(self) -> None:
        """With traffic."""
        super().setUp()
        traffic = Traffic(self.wire)
        self.addCleanup(traffic.stop)

    def test_each(self) -> None:
        """Each capture is saved, as it was delivered."""
        ended = pcapctl(*self.options("-c", "30", "-w", str(self.directory / "%n-%i.pcap"), "udp"))
        self.assertEqual((ended.status, ended.errors), (0, ""), ended)
        names = [f"{node.node}-{self.wire.interface}.pcap" for node in self.nodes]
        self.assertEqual(sorted(os.listdir(self.directory)), names)
        for node, name in zip(self.nodes, names, strict=True):
            (delivered,) = node.captures.iterdir()
            self.assertEqual((self.directory / name).read_bytes(), delivered.read_bytes())

    def test_terminated(self) -> None:
        """If pcapctl is terminated, it leaves no unfinished files behind."""
        running = Running(*self.options("--duration", "60", "-w", str(self.directory / "%n.pcap"), "udp"))
        running.line_with(" capturing ")
        self.assertEqual(len(list(self.directory.iterdir())), 1)
        running.terminate()
        self.assertEqual((running.end().status, list(self.directory.iterdir())), (143, []))

    def test_merged(self) -> None:
        """All captures become one file, in the order of time, which tcpdump can read."""
        path = self.directory / "all.pcap"
        ended = pcapctl(*self.options("-c", "40", "--merge", "-w", str(path), "udp"), is_cold=True)
        self.assertEqual((ended.status, ended.errors), (0, ""), ended)
        self.assertEqual(os.listdir(self.directory), ["all.pcap"])
        packets = read_packets(path)
        self.assertEqual(len(packets), 80)
        parts = [packet for node in self.nodes for packet in read_packets(next(node.captures.iterdir()))]
        self.assertEqual(
            sorted(number_of(packet.data) for packet in packets), sorted(number_of(p.data) for p in parts)
        )
        shown = subprocess.run(
            [require_command("tcpdump", "tcpdump"), "-tt", "-nr", str(path)], check=True, capture_output=True
        )
        stamps = [line.split()[0] for line in shown.stdout.decode().splitlines()]
        self.assertEqual((len(stamps), stamps), (80, sorted(stamps)))

    def test_link_types(self) -> None:
        """Captures of different link types can't be merged: they are kept, and the error says where."""
        path = self.directory / "all.pcap"
        words = ("-i", "any", "-c", "10", "--merge", "-w", str(path), "udp")
        ended = pcapctl(*self.options(*words, nodes=1))
        self.assertEqual(ended.status, 1, ended)
        self.assertRegex(ended.errors, r"link type of .* is \d+, and that of .* is \d+")
        (kept,) = self.directory.iterdir()
        self.assertIn(f"The captures are in {kept}", ended.errors)
        self.assertEqual(len(list(kept.iterdir())), 2)


class LiveTests(FilesTestCase):
    """C{-w -}."""

    def read(self, running: Running, count: int, seconds: float = 60.0) -> bytes:
        """Read this many bytes of what it writes."""
        data, until = b"", time.monotonic() + seconds
        while len(data) < count:
            ready, _, _ = select.select([running.output], [], [], max(0.0, until - time.monotonic()))
            self.assertTrue(ready, f"{len(data)} of {count} bytes in {seconds} s")
            read = os.read(running.output.fileno(), count - len(data))
            self.assertTrue(read, "it has ended")
            data += read
        return data

    def test_latency(self) -> None:
        """A packet reaches the reader within 300 ms of the wire."""
        running = Running(*self.options("-w", "-", "--duration", "60", "udp", nodes=1))
        self.read(running, _HEADER_BYTES)
        took = []
        for number in range(8):
            began = time.monotonic()
            self.wire.send([udp_frame(number)])
            self.read(running, 16)
            took.append(time.monotonic() - began)
            self.assertEqual(number_of(self.read(running, 128)), number)
        # The machine may be busy with other things: then most of them take longer.
        self.assertLess(min(took), 0.3, took)
        (state,) = self.nodes[0].request("GET", "/captures")[1]["captures"]
        self.nodes[0].request("DELETE", f"/captures/{state['id']}")
        ended = running.end()
        self.assertEqual((ended.status, ended.lines), (0, []), ended)

    def test_tshark(self) -> None:
        """tshark reads the packets from a pipe, without a loss and in their order."""
        tshark = require_command("tshark", "tshark")
        count = 3000
        running = Running(*self.options("-w", "-", "-c", str(count), "udp", nodes=1), is_cold=True)
        node = self.nodes[0]
        [state] = node.until(lambda: node.request("GET", "/captures")[1]["captures"] or None, "a capture")
        words = [tshark, *"-n -r - -T fields -e udp.payload".split()]
        with subprocess.Popen(words, stdin=running.output, stdout=subprocess.PIPE) as reader:
            node.send(self.wire, [udp_frame(number) for number in range(count)], state["id"])
            shown = reader.communicate(timeout=100)[0].split()
        self.assertEqual([int(payload[:16], 16) for payload in shown], [*range(count)])
        self.assertEqual(running.end().status, 0)

    def test_stalled(self) -> None:
        """A reader that stalls costs the capture nothing, and gets everything when it reads on."""
        size, count = 1200, 4000
        running = Running(*self.options("-w", "-", "-c", str(count), "-s", "2000", "udp", nodes=1))
        self.read(running, _HEADER_BYTES)
        (state,) = self.nodes[0].request("GET", "/captures")[1]["captures"]
        self.nodes[0].send(self.wire, [udp_frame(number, size) for number in range(count)], state["id"])
        state = self.nodes[0].done(state["id"])
        self.assertEqual((state["packets"], state["dropped"], state["reason"]), (count, 0, "packets"))
        data = self.read(running, state["bytes"] - _HEADER_BYTES)
        numbers = [number_of(data[at + 16 : at + 16 + size]) for at in range(0, len(data), 16 + size)]
        self.assertEqual(numbers, [*range(count)])
        self.assertEqual(struct.unpack_from("<I", data, 8)[0], size)
        self.assertEqual(running.end().status, 0)

    def test_reader_ends(self) -> None:
        """When its reader ends, so does the capture, as with tcpdump; and it is delivered."""
        running = Running(*self.options("-w", "-", "--duration", "60", "udp", nodes=1))
        self.read(running, _HEADER_BYTES)
        running.output.close()
        traffic = Traffic(self.wire)
        self.addCleanup(traffic.stop)
        (state,) = self.nodes[0].request("GET", "/captures")[1]["captures"]
        self.assertEqual(self.nodes[0].done(state["id"])["reason"], "cancelled")

    def test_usage(self) -> None:
        """Only one capture can be shown live."""
        for nodes, words in (
            (2, ["-w", "-"]),
            (1, ["-w", "-", "-i", "lo"]),
            (1, ["-w", "-", "--json"]),
            (1, ["-w", "-", "--rolling"]),
            (1, ["--merge"]),
        ):
            ended = pcapctl(*self.options(*words, nodes=nodes))
            self.assertEqual((ended.status, ended.lines), (2, []), words)
