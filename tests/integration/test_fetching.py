"""Packets over HTTP: a daemon, a capture on a real interface, and the clients that people use."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from twisted.trial import unittest

from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.requirement import require_command
from peers.tcpdump import read_packets
from peers.wire import Wire


class FetchingTests(unittest.SynchronousTestCase):
    """A daemon, and a wire that it captures on."""

    def setUp(self) -> None:
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()

    def start(self, configuration: str = "", *, removed: bool = False, **options: Any) -> Daemon:
        """A daemon, perhaps one whose local directory was removed."""
        daemon = Daemon(configuration, **options)
        self.addCleanup(daemon.stop)
        if removed:
            daemon.captures.rmdir()
        daemon.start()
        self.url = f"http://127.0.0.1:{daemon.port}"
        return daemon

    def begin(self, daemon: Daemon, **message: Any) -> str:
        """A capture of what is sent to port 9."""
        defaults = {"interface": [self.wire.interface], "bpf": "udp port 9", "packets": 1000}
        return daemon.capture(**{**defaults, **message})

    def send(self, *numbers: int) -> None:
        """Send packets over the wire."""
        self.wire.send([udp_frame(number) for number in numbers])

    def curl(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """What curl gets."""
        program = require_command("curl", "curl")
        return subprocess.run(
            [program, "-sS", "--max-time", "60", *arguments], capture_output=True, check=False, timeout=60
        )

    def packets_in(self, path: Path) -> int:
        """The number of packets that tshark finds in a file, which must be whole."""
        program = require_command("tshark", "tshark")
        run = subprocess.run(
            [program, "-r", str(path), "-T", "fields", "-e", "frame.number"],
            capture_output=True,
            check=True,
            timeout=60,
        )
        return len(run.stdout.split())

    def wait_for(self, daemon: Daemon, capture: str, packets: int) -> None:
        """Wait until a capture has this number of packets."""
        until = time.monotonic() + 60
        while daemon.request("GET", f"/captures/{capture}")[1]["packets"] < packets:
            self.assertLess(time.monotonic(), until)
            time.sleep(0.02)

    def test_follow(self) -> None:
        """A client that reads along has a packet within 0.3 s, and the file that was delivered in the end."""
        daemon = self.start()
        capture = self.begin(daemon, packets=8)
        client = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
        self.addCleanup(client.close)
        client.request("GET", f"/captures/{capture}/pcap?follow=1")
        answer = client.getresponse()
        received = answer.read(24)
        took = []
        for number in range(8):
            time.sleep(0.15)
            began = time.monotonic()
            self.send(number)
            received += answer.read(16 + len(udp_frame(number)))
            took.append(time.monotonic() - began)
        # On a busy machine, some take longer.
        self.assertLess(median(took), 0.3, took)
        received += answer.read()
        state = daemon.done(capture)
        [delivery] = state["deliveries"]
        self.assertEqual(received, Path(delivery["location"]).read_bytes())
        self.assertEqual(state["packets"], 8)

    # It measures tenths of a second.
    test_follow.needs_machine_alone = True  # type: ignore[attr-defined]

    def test_curl_and_tshark(self) -> None:
        """What curl gets during a capture, while it ends, and after it, tshark can read."""
        daemon = self.start()
        capture = self.begin(daemon)
        self.send(*range(50))
        self.wait_for(daemon, capture, 50)
        running, followed, part = (self.directory / name for name in ("running", "followed", "part"))
        url = f"{self.url}/captures/{capture}/pcap"
        self.curl("-o", str(running), url)
        self.assertEqual(self.packets_in(running), 50)
        following = threading.Thread(target=self.curl, args=("-N", "-o", str(followed), f"{url}?follow=1"))
        following.start()
        self.send(*range(50, 100))
        self.wait_for(daemon, capture, 100)
        status, state = daemon.request("DELETE", f"/captures/{capture}")
        self.assertEqual((status, state["reason"]), (200, "cancelled"))
        following.join()
        self.assertEqual(self.packets_in(followed), 100)
        saved = self.curl("-OJ", "--output-dir", str(self.directory), "-w", "%{filename_effective}", url)
        self.assertEqual(Path(saved.stdout.decode()).name, state["file"])
        whole = (self.directory / state["file"]).read_bytes()
        self.assertEqual(whole, followed.read_bytes())
        size = running.stat().st_size
        self.curl("-r", f"{size}-", "-o", str(part), url)
        self.assertEqual(running.read_bytes() + part.read_bytes(), whole)
        self.curl("-C", "-", "-o", str(running), url)
        self.assertEqual(running.read_bytes(), whole)

    def test_from_everywhere(self) -> None:
        """A file is read from memory, and without that from the local directory; a deleted one is gone."""
        for retain, answered in ((0, 410), (1, 410), (1 << 20, 200)):
            daemon = self.start(retain_bytes=retain)
            capture = self.begin(daemon, packets=5)
            self.send(*range(5))
            state = daemon.done(capture)
            [delivery] = state["deliveries"]
            path = Path(delivery["location"])
            self.assertEqual(self.curl(f"{self.url}/captures/{capture}/pcap").stdout, path.read_bytes())
            path.unlink()
            code = self.curl("-o", "/dev/null", "-w", "%{http_code}", f"{self.url}/captures/{capture}/pcap")
            self.assertEqual(int(code.stdout), answered)
            self.assertEqual([each for each in daemon.descriptors() if str(path) in each], [])

    def test_removed(self) -> None:
        """A capture that was removed from the local directory is gone, as the node knows."""
        daemon = self.start("[local]\nmaxsize = 1", retain_bytes=1)
        captures = []
        for number in range(2):
            captures.append(self.begin(daemon, packets=1))
            self.send(number)
            daemon.done(captures[-1])
        daemon.logged("removed the capture")
        self.assertFalse(daemon.request("GET", f"/captures/{captures[0]}")[1]["pcap"])
        for capture, answered in zip(captures, (410, 200), strict=True):
            code = self.curl("-o", "/dev/null", "-w", "%{http_code}", f"{self.url}/captures/{capture}/pcap")
            self.assertEqual(int(code.stdout), answered)

    def test_from_the_spool(self) -> None:
        """What waits in the spool can be fetched, also after a restart."""
        spool = self.directory / "spool"
        spool.mkdir(mode=0o700)
        configuration = f"[delivery]\nspooldir = {json.dumps(str(spool))}\nattempts = 1"
        daemon = self.start(configuration, removed=True)
        capture = self.begin(daemon, packets=5)
        self.send(*range(5))
        state = daemon.done(capture)
        self.assertEqual([each["state"] for each in state["deliveries"]], ["spooled"])
        self.assertTrue(state["pcap"])
        [manifest] = spool.glob("*/manifest.json")
        expected = manifest.with_name("capture.pcap").read_bytes()
        self.assertEqual(self.curl(f"{self.url}/captures/{capture}/pcap").stdout, expected)
        daemon.stop()
        self.start(configuration, removed=True)
        answer = self.curl("-i", f"{self.url}/captures/{capture}/pcap").stdout
        head, _, body = answer.partition(b"\r\n\r\n")
        self.assertEqual(body, expected)
        self.assertIn(state["file"].encode(), head)
        self.assertEqual(len(read_packets(manifest.with_name("capture.pcap"))), 5)

    def test_stop(self) -> None:
        """A stop ends streams soon, and curl reports that the file is not whole."""
        daemon = self.start()
        capture = self.begin(daemon)
        results: list[subprocess.CompletedProcess[bytes]] = []
        url = f"{self.url}/captures/{capture}/pcap?follow=1"
        file, size = self.directory / "followed", 24 + 16 + len(udp_frame(1))
        following = threading.Thread(target=lambda: results.append(self.curl("-N", "-o", str(file), url)))
        following.start()
        self.send(1)
        daemon.until(lambda: (file.exists() and file.stat().st_size == size) or None, "the packet")
        began = time.monotonic()
        daemon.signal(15)
        following.join()
        # Otherwise it would end with the time for a stop, after 20 s.
        self.assertLess(time.monotonic() - began, 10)
        self.assertEqual(daemon.wait(), 0)
        self.assertNotEqual(results[0].returncode, 0)
        self.assertEqual(file.stat().st_size, size)

    def test_slow_readers(self) -> None:
        """Clients that don't read cost the daemon neither memory nor descriptors, and the capture nothing."""
        daemon = self.start(general="maxpackets = 1000000")
        capture = self.begin(daemon, packets=100_000)
        clients = []
        for _ in range(20):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.addCleanup(client.close)
            client.connect(("127.0.0.1", daemon.port))
            client.sendall(
                f"GET /captures/{capture}/pcap?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            clients.append(client)
        before = self.memory(daemon)
        daemon.send(self.wire, [udp_frame(number, size=1000) for number in range(60_000)], capture)
        self.wait_for(daemon, capture, 60_000)
        state = daemon.request("GET", f"/captures/{capture}")[1]
        self.assertEqual((state["packets"], state["dropped"]), (60_000, 0))
        # The rest of it is the capture itself, which is shared memory, and does not count as anonymous.
        self.assertLess(self.memory(daemon) - before, 16 << 20)
        for client in clients:
            client.close()
        time.sleep(0.5)
        self.assertEqual(daemon.request("DELETE", f"/captures/{capture}")[0], 200)
        daemon.done(capture)

    def memory(self, daemon: Daemon) -> int:
        """The anonymous memory of a daemon, in bytes."""
        for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon")
