"""Captures get their share of the reactor, whatever else there is to do."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from pcapsvc.capture.capturer import Capturer
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.request import CaptureRequest
from pcapsvc.core.session import CaptureLimits
from pcapsvc.packets.filter_compiler import FilterCompiler
from pcapsvc.packets.handle import libpcap_path
from pcapsvc.packets.pcapy_system import PcapySystem
from pcapsvc.threads import Threads
from peers.daemon import Daemon
from peers.requirement import require_command
from peers.wire import Wire

reactor: Any = global_reactor

# Packets are lost if the daemon is not scheduled for long enough.
needs_machine_alone = True

_GENERATOR = Path(__file__).parents[2] / "benchmarks" / "generator.py"
_RATE = 100_000
_PACKETS = 300_000


def generate(wire: Wire) -> None:
    """Send all packets."""
    words = [require_command("ip", "iproute2"), "netns", "exec", wire.namespace, sys.executable]
    words += [str(_GENERATOR), wire.far, "--packets", str(_PACKETS), "--rate", str(_RATE)]
    subprocess.run(words, check=True, capture_output=True, timeout=60)


class LongTurnTests(TestCase):
    """A capture of this process, on the default ring."""

    async def test_long_turns(self) -> None:
        """
        What arrives during a long turn of the reactor is read in the next one: at 100,000 packets a second,
        none are lost if each turn lasts 0.1 s.
        """
        wire, threads = Wire(), Threads(reactor)
        self.addCleanup(wire.stop)
        wire.start()
        compiler = FilterCompiler(reactor, libpcap_path())
        system = PcapySystem(
            compiler=compiler,
            run_in_thread=threads.run,
            buffer_size_bytes=8 << 20,
            read_timeout_ms=10,
            promiscuous=True,
        )
        capturer = Capturer(
            reactor, system, run_in_thread=threads.run, wall_clock=time.time, read_timeout_ms=10
        )
        for service in (threads, compiler, system):
            service.startService()
            self.addCleanup(service.stopService)
        limits = CaptureLimits(max_packets=2 * _PACKETS, max_bytes=10**9, idle_seconds=2, duration_seconds=60)
        plan = CapturePlan(
            node="sensor1",
            interface=wire.interface,
            alias=None,
            bpf="udp",
            snap_length=128,
            limits=limits,
            request=CaptureRequest(node="any", interface=(wire.interface,)),
            options={},
            via="test",
        )
        capture = await capturer.prepare(plan)
        recording = capture.start()
        sending = threads.run(generate, wire)
        while not sending.called:
            time.sleep(0.1)
            await deferLater(reactor, 0)
        await sending
        made = await recording
        made.content.close()
        assert made.counts is not None
        self.assertEqual((made.packets, made.counts.dropped), (_PACKETS, 0))


class CapturesFirstTests(SynchronousTestCase):
    """A daemon with the default ring, and a capture at 100,000 packets a second."""

    def setUp(self) -> None:
        """A wire, and a daemon that captures on it."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.daemon = Daemon(general=f"maxpackets = {2 * _PACKETS}")
        self.addCleanup(self.daemon.stop)
        self.daemon.start()
        self.ended = threading.Event()

    def assert_none_lost(self, connections: int, body: bytes, expected: int) -> None:
        """A capture has every packet, while some connections post requests all the time."""
        capture = self.daemon.capture(interface=[self.wire.interface], bpf="udp", timeout=2, snap=128)
        answers: list[int] = []

        def post() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=30)
            while not self.ended.is_set():
                connection.request("POST", "/captures", body)
                answer = connection.getresponse()
                answer.read()
                answers.append(answer.status)
            connection.close()

        threads = [threading.Thread(target=post) for _ in range(connections)]
        for thread in threads:
            thread.start()
        try:
            generate(self.wire)
        finally:
            self.ended.set()
            for thread in threads:
                thread.join()
        state = self.daemon.done(capture)
        self.assertEqual((state["packets"], state["dropped"]), (_PACKETS, 0), f"{len(answers)} answers")
        self.assertEqual(set(answers), {expected})
        self.assertGreater(len(answers), 100)

    def test_large_bodies(self) -> None:
        """Sixteen connections post bodies of 60 KB."""
        body = json.dumps({"node": "any", "interface": [f"if{number}" for number in range(6000)]}).encode()
        self.assert_none_lost(16, body[:60_000], 400)

    def test_refused_requests(self) -> None:
        """Sixteen connections post requests that are refused."""
        self.assert_none_lost(16, json.dumps({"node": "any", "interface": ["lo"], "nosuch": 1}).encode(), 400)
