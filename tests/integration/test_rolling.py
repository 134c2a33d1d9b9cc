"""Captures that keep their newest packets only, on a real wire."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from twisted.trial import unittest

from peers.daemon import Daemon
from peers.frames import number_of, udp_frame
from peers.requirement import require_command
from peers.tcpdump import Packet, read_packets
from peers.wire import Wire
from tests.integration.traffic import PATIENT, Sender

SIZE = 10**6
# The packets of 128 bytes that fit, each with its header.
FITTING = (SIZE - 24) // (16 + 128)
# Longer than a machine may be too busy to send, or to ask.
_DURATION_SECONDS = 6
_AGE_SECONDS = 6


def seconds(packet: Packet) -> float:
    """When a packet arrived, in seconds since the Unix epoch."""
    return packet.seconds + packet.fraction / 1e6


class RollingCase(unittest.SynchronousTestCase):
    """A flight recorder of a wire with some 10,000 packets a second."""

    configuration = ""

    def setUp(self) -> None:
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.daemon = Daemon(PATIENT + self.configuration.format(interface=self.wire.interface))
        self.addCleanup(self.daemon.stop)
        self.daemon.start()

    def begin(self, **message: Any) -> str:
        """A rolling capture."""
        return self.daemon.capture(
            **{"interface": [self.wire.interface], "rolling": True, "bytes": SIZE, **message}
        )

    def send(self, count: int = 20_000, first: int = 0) -> threading.Thread:
        """Send numbered packets."""
        frames = [udp_frame(number) for number in range(first, first + count)]
        sender = threading.Thread(target=self.wire.send, args=(frames, 10_000.0))
        sender.start()
        self.addCleanup(sender.join)
        return sender

    def sender(self) -> Sender:
        """A sender that runs until the end of the test, unless it is stopped before."""
        sender = Sender(self.wire)
        self.addCleanup(sender.stop)
        return sender

    def progress(self, capture: str) -> dict[str, Any]:
        """The state of a capture."""
        status, state = self.daemon.request("GET", f"/captures/{capture}")
        self.assertEqual(status, 200)
        found: dict[str, Any] = state
        return found

    def captured(self, capture: str, packets: int) -> None:
        """Wait until so many packets were captured."""
        self.daemon.until(
            lambda: self.progress(capture)["rolling"]["captured"] >= packets or None, f"{packets} packets"
        )

    def post(self, **message: Any) -> tuple[int, Any]:
        """Send a message to the daemon."""
        return self.daemon.request(
            "POST", "/captures", json.dumps({"node": self.daemon.node, **message}).encode()
        )

    def check(self, packets: list[Packet], state: dict[str, Any], *, last: int, count: int) -> None:
        """These are the newest packets up to some number, and the result says so."""
        numbers = [number_of(packet.data) for packet in packets]
        self.assertEqual(numbers, list(range(last + 1 - count, last + 1)))
        rolling = state["rolling"]
        self.assertEqual(
            (state["packets"], state["bytes"], rolling["captured"], rolling["released"]),
            (count, 24 + 144 * count, last + 1, last + 1 - count),
        )
        self.assertEqual(rolling["captured_bytes"], 24 + 144 * (last + 1))
        first = datetime.fromisoformat(rolling["first"]).timestamp()
        self.assertAlmostEqual(first, seconds(packets[0]), places=5)

    def read(self, path: Path) -> list[Packet]:
        """The packets of a file, which tshark can read as well."""
        found = read_packets(path)
        tshark = require_command("tshark", "tshark")
        run = subprocess.run(
            [tshark, "-r", str(path), "-T", "fields", "-e", "frame.len"],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.assertEqual(run.stdout.split(), [str(packet.length) for packet in found])
        return found


class RollingTests(RollingCase):
    """Captures from now on."""

    def test_ended_by_hand(self) -> None:
        """It goes on, however many arrive, until it is deleted. Its file has the newest, to the packet."""
        capture = self.begin()
        self.send().join()
        self.captured(capture, 20_000)
        state = self.progress(capture)
        self.assertEqual((state["state"], state["packets"]), ("capturing", FITTING))
        self.assertEqual(state["rolling"]["released"], 20_000 - FITTING)
        self.assertEqual(state["limits"], {"bytes": SIZE, "duration": 3600})
        status, _ = self.daemon.request("DELETE", f"/captures/{capture}")
        self.assertEqual(status, 200)
        state = self.daemon.done(capture)
        self.assertEqual(state["reason"], "cancelled")
        self.assertGreaterEqual(state["received"], 20_000)
        self.check(self.read(self.daemon.file_of(capture)), state, last=19_999, count=FITTING)

    def test_stopped(self) -> None:
        """A message with C{stop} ends it, in the middle of a flood."""
        capture = self.begin(requestid="recorder")
        self.send()
        self.captured(capture, 12_000)
        status, answer = self.post(stop="recorder")
        self.assertEqual((status, [each["id"] for each in answer["captures"]]), (200, [capture]))
        state = self.daemon.done(capture)
        last = state["rolling"]["captured"] - 1
        self.check(read_packets(self.daemon.file_of(capture)), state, last=last, count=FITTING)

    def test_duration(self) -> None:
        """Its duration ends it."""
        capture = self.begin(duration=_DURATION_SECONDS)
        sender = self.sender()
        state = self.daemon.done(capture)
        sender.stop()
        self.assertEqual(state["reason"], "duration")
        last = state["rolling"]["captured"] - 1
        packets = read_packets(self.daemon.file_of(capture))
        self.check(packets, state, last=last, count=min(FITTING, last + 1))
        ends = datetime.fromisoformat(state["started"]).timestamp() + _DURATION_SECONDS
        self.assertLess(seconds(packets[-1]), ends + 0.15)
        self.assertGreater(sender.latest(last + 1), ends - 0.15)

    def test_shutdown(self) -> None:
        """A stop of the daemon delivers what it holds."""
        capture = self.begin()
        self.send().join()
        self.captured(capture, 20_000)
        self.daemon.signal(signal.SIGTERM)
        self.assertEqual(self.daemon.wait(), 0)
        packets = self.read(self.daemon.file_of(capture))
        self.assertEqual(
            [number_of(packet.data) for packet in packets], list(range(20_000 - FITTING, 20_000))
        )

    def test_age(self) -> None:
        """With C{before}, it has the packets of so many seconds, if they fit; without a history as well."""
        capture = self.begin(before=_AGE_SECONDS, bytes=10 * SIZE)
        sender = self.sender()
        # More than there are in so many seconds.
        self.captured(capture, 10_000 * (_AGE_SECONDS + 2))
        self.daemon.request("DELETE", f"/captures/{capture}")
        state = self.daemon.done(capture)
        sender.stop()
        packets = read_packets(self.daemon.file_of(capture))
        last = state["rolling"]["captured"] - 1
        self.check(packets, state, last=last, count=len(packets))
        ended = datetime.fromisoformat(state["ended"]).timestamp()
        self.assertGreaterEqual(seconds(packets[0]), ended - _AGE_SECONDS - 0.1)
        self.assertLessEqual(sender.earliest(last - len(packets)), ended - _AGE_SECONDS + 0.1)
        self.assertEqual([each["reason"] for each in state["history"]["missing"]], ["none"])

    def test_goes_down(self) -> None:
        """It goes on when its interface was down, and ends when that is gone, with what it holds."""
        capture = self.begin()
        self.send(8000).join()
        self.captured(capture, 8000)
        self.wire.down()
        time.sleep(0.3)
        self.wire.up()
        self.send(8000, first=8000).join()
        self.captured(capture, 16_000)
        self.wire.delete()
        state = self.daemon.done(capture)
        self.assertEqual(state["reason"], "device_lost")
        self.check(read_packets(self.daemon.file_of(capture)), state, last=15_999, count=FITTING)

    def fetch(self, capture: str, query: str = "") -> tuple[int, bytes]:
        """The packets of a capture."""
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=60)
        try:
            connection.request("GET", f"/captures/{capture}/pcap{query}")
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def test_fetched(self) -> None:
        """While it runs, what it holds can be fetched: whole packets, without a gap, up to the last one."""
        capture = self.begin()
        sender = self.send(30_000)
        self.captured(capture, 10_000)
        before = self.daemon.descriptors()
        path = Path(self.mktemp())
        ends = []
        for _ in range(5):
            least = self.progress(capture)["rolling"]["captured"]
            status, content = self.fetch(capture)
            self.assertEqual(status, 200)
            path.write_bytes(content)
            numbers = [number_of(packet.data) for packet in read_packets(path)]
            self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
            # What is released before it is copied is left out, which may be much on a busy machine.
            self.assertLessEqual(len(numbers), FITTING)
            self.assertGreaterEqual(numbers[-1], least - 1)
            ends.append(numbers[-1])
        self.assertEqual(ends, sorted(ends))
        sender.join()
        self.captured(capture, 30_000)
        path.write_bytes(self.fetch(capture)[1])
        self.assertEqual(
            [number_of(packet.data) for packet in self.read(path)], list(range(30_000 - FITTING, 30_000))
        )
        status, problem = self.fetch(capture, "?follow=1")
        self.assertEqual(status, 409, problem)
        self.daemon.until(
            lambda: self.daemon.descriptors() <= before or None, "the descriptors of copies to be closed"
        )

    def test_rejected(self) -> None:
        """What would end it otherwise is rejected, by field."""
        status, answer = self.post(
            interface=[self.wire.interface], rolling=True, packets=5, timeout=5, before=5, pastonly=True
        )
        self.assertEqual(status, 400)
        self.assertEqual({each["path"] for each in answer["problems"]}, {"packets", "timeout", "pastonly"})


class RollingWithHistoryTests(RollingCase):
    """Captures on an interface whose past is kept."""

    configuration = '[[interface]]\nname = "{interface}"\nhistory = 60\n'

    def setUp(self) -> None:
        super().setUp()
        self.daemon.until(lambda: self.history()["problem"] is None or None, "the history to begin")

    def test_age(self) -> None:
        """With C{before}, it begins with the past, which makes room in its turn."""
        self.send(5000).join()
        self.daemon.until(lambda: self.remembered() >= 5000 or None, "the history")
        capture = self.begin(before=30)
        state = self.progress(capture)
        self.assertEqual((state["packets"], state["rolling"]["captured"]), (5000, 5000))
        self.assertEqual((state["history"]["packets"], state["rolling"]["released"]), (5000, 0))
        self.send(1000, first=5000).join()
        self.captured(capture, 6000)
        status, _ = self.post(stop="nobody")
        self.assertEqual(status, 200)
        self.assertEqual(self.progress(capture)["packets"], 6000)
        self.send(4000, first=6000).join()
        self.captured(capture, 10_000)
        self.daemon.request("DELETE", f"/captures/{capture}")
        state = self.daemon.done(capture)
        self.check(self.read(self.daemon.file_of(capture)), state, last=9999, count=FITTING)

    def test_larger_past(self) -> None:
        """If the past has more than fits, the capture begins with the newest of it, and goes on."""
        self.send(10_000).join()
        self.daemon.until(lambda: self.remembered() >= 10_000 or None, "the history")
        capture = self.begin(before=30)
        state = self.progress(capture)
        self.assertEqual((state["state"], state["packets"]), ("capturing", FITTING))
        self.assertEqual(state["history"]["missing"][-1]["reason"], "limit")
        self.send(100, first=10_000).join()
        self.captured(capture, FITTING + 100)
        self.daemon.request("DELETE", f"/captures/{capture}")
        self.daemon.done(capture)
        packets = read_packets(self.daemon.file_of(capture))
        self.assertEqual(
            [number_of(packet.data) for packet in packets], list(range(10_100 - FITTING, 10_100))
        )

    def remembered(self) -> int:
        """How many packets of the wire are remembered."""
        packets: int = self.history()["packets"]
        return packets

    def history(self) -> dict[str, Any]:
        """What is remembered of the wire."""
        _, answer = self.daemon.request("GET", "/interfaces")
        [found] = [each for each in answer["interfaces"] if each["name"] == self.wire.interface]
        history: dict[str, Any] = found["history"]
        return history
