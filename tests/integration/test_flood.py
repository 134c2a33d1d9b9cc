"""Ten thousand requests at once, and a capture that is running."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.frames import number_of, udp_frame
from peers.redis import RedisServer
from peers.tcpdump import read_packets
from peers.wire import Wire
from tests.integration.traffic import PATIENT

# Packets are lost if the daemon is not scheduled for long enough.
needs_machine_alone = True

_REQUESTS = 10_000
_FRAMES = 6_000
_MEBIBYTE = 1 << 20


def _resident_bytes(pid: int) -> int:
    """The memory that a process holds now (proc(5))."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line]
    return int(line.split()[1]) * 1024


def _refused(log: str) -> int:
    """How many refused requests a log reports."""
    return log.count("request from redis refused")


def _counted(log: str) -> int:
    """How many refused requests a log counts, instead of reporting each."""
    return sum(int(count) for count in re.findall(r"(\d+) more requests from redis refused", log))


class FloodTests(SynchronousTestCase):
    """One publication of Redis' own script is ten thousand messages in a moment."""

    def test_flood(self) -> None:
        """Memory and descriptors are as before, and a capture that runs has every packet."""
        wire, redis = Wire(), RedisServer()
        for peer in (wire, redis):
            self.addCleanup(peer.stop)
            peer.start()
        daemon = Daemon(
            f'[redis]\nlisten = true\nhost = "127.0.0.1"\nport = {redis.port}\n{PATIENT}',
            general="maxcaptures = 8\nmaxrequestrate = 100",
        )
        self.addCleanup(daemon.stop)
        daemon.start()
        daemon.logged("subscribed")
        request = {"node": "any", "interface": [wire.interface], "bytes": 10_000}
        flood = json.dumps({**request, "duration": 1, "bpf": "udp port 53"})
        script = "for i = 1, ARGV[2] do redis.call('PUBLISH', 'capture', ARGV[1]) end return 1"

        def deluge(count: int) -> None:
            redis.command("EVAL", script, "0", flood, str(count))

        deluge(200)  # what is kept for ever, such as the last states that can be asked for, is there then
        daemon.logged("more requests from redis refused")
        self._until_idle(daemon)
        memory, opened = _resident_bytes(daemon.pid), daemon.descriptors()
        message = {**request, "bpf": "udp port 9", "bytes": 1_000_000, "packets": _FRAMES, "snap": 128}
        # On a busy machine, some of those requests may come yet.
        capture = daemon.until(lambda: self._begun(daemon, json.dumps(message)), "room for a capture")
        frames = [udp_frame(number) for number in range(_FRAMES)]
        sender = threading.Thread(target=wire.send, args=(frames, 2_000))
        sender.start()
        deluge(_REQUESTS)
        sender.join()
        state = daemon.done(capture)
        self.assertEqual((state["reason"], state["packets"], state["dropped"]), ("packets", _FRAMES, 0))
        found = [number_of(packet.data) for packet in read_packets(daemon.file_of(capture))]
        self.assertEqual(found, list(range(_FRAMES)))
        self._until_idle(daemon)
        # They come after captures, and may take a while.
        most = _REQUESTS // 2
        daemon.until(lambda: _refused(daemon.log) + _counted(daemon.log) > most or None, "most of them")
        refused = _refused(daemon.log)
        self.assertLess(refused, _REQUESTS // 10)
        daemon.until(lambda: daemon.descriptors() <= opened or None, f"the descriptors to be {opened}")
        self.assertLess(_resident_bytes(daemon.pid) - memory, 8 * _MEBIBYTE)

    def test_costly_requests(self) -> None:
        """Filters that take long to compile cost a capture that runs no packet, and their source its turn."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        daemon = Daemon(PATIENT, general="maxrequestrate = 100\nmaxfilter = 1000")
        self.addCleanup(daemon.stop)
        daemon.start()
        capture = daemon.capture(interface=[wire.interface], bpf="udp port 9", packets=_FRAMES, snap=128)
        frames = [udp_frame(number) for number in range(_FRAMES)]
        sender = threading.Thread(target=wire.send, args=(frames, 4_000))
        sender.start()
        request = {"node": "any", "interface": [wire.interface], "duration": 1, "bytes": 1000}
        # How many it takes depends on the processor. Each is another filter: a known one costs nothing.
        for first in range(60):
            ports = range(first + 1, first + 119)
            bpf = f"port {first}" + "".join(f"||{port}" for port in ports)
            status, answer = daemon.request("POST", "/captures", json.dumps({**request, "bpf": bpf}).encode())
            # On a busy machine, one may take longer than a filter may, which is another reason.
            self.assertIn(status, (202, 400, 503), answer)
            if status == 503 and "the filter compiler failed" not in answer["detail"]:
                break
        self.assertEqual(status, 503)
        self.assertRegex(answer["detail"], "the requests from http take too much time|more than 100 requests")
        sender.join()
        state = daemon.done(capture)
        self.assertEqual((state["reason"], state["packets"], state["dropped"]), ("packets", _FRAMES, 0))

    def _begun(self, daemon: Daemon, message: str) -> str | None:
        """The capture that a request begins; L{None} if there are too many."""
        status, answer = daemon.request("POST", "/captures", message.encode())
        self.assertIn(status, (202, 503), answer)
        return answer["captures"][0]["id"] if status == 202 else None

    def _until_idle(self, daemon: Daemon) -> None:
        """Wait until no capture runs any more."""
        until = time.monotonic() + 200
        while daemon.log.count(": capturing on") > daemon.log.count(": stopped, as"):
            self.assertLess(time.monotonic(), until)
            time.sleep(0.1)
        time.sleep(0.5)
