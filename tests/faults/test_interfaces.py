"""Interfaces go down, come up, go away and come back: what was captured is kept, and captures go on."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.frames import number_of, udp_frame
from peers.requirement import require_command
from peers.tcpdump import Tcpdump, read_packets
from peers.wire import Wire
from tests.faults.test_links import possessions
from tests.integration.test_all_sources import until

# `any` has what else there is on this host, another run of these tests as well.
_PORT = 10_000 + os.getpid() % 50_000
_FILTER = f"udp port {_PORT} and host 192.0.2.1"
_PIPES_OF_A_PROCESS = 3
# What waits for a packet in vain, or for an interface to go.
_LONG_SECONDS = 30


class InterfaceTests(SynchronousTestCase):
    """
    The daemon in its own process, and a wire that comes and goes.

    @cvar configuration: of the daemon, with a place for the interface's name.
    @cvar waiting: how many handles wait.
    """

    configuration = ""
    waiting = 0

    def setUp(self) -> None:
        """A wire, and a daemon that has captured on it: all its threads have begun."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.daemon = Daemon(self.configuration.format(self.wire.interface))
        self.addCleanup(self.daemon.stop)
        self.daemon.start()
        until(self.is_ready, "handles that wait")
        self.before = possessions(self.daemon)
        self.assert_captures()
        until(self.is_ready, "the first capture to be over, and its handle replaced")
        self.before = possessions(self.daemon)
        self.addCleanup(self.assert_as_before)

    def is_ready(self) -> bool | None:
        """Whether it has the socket of HTTP and the handles, for a while: libpcap opens others briefly."""
        for _ in range(5):
            if possessions(self.daemon)["socket"] != 1 + self.waiting:
                return None
            time.sleep(0.05)
        return True

    def is_at_rest(self) -> bool | None:
        """Whether the daemon has the descriptors that it had before, by their kinds."""
        now = possessions(self.daemon)
        # The process that compiles filters is started for the first, and ends when it has been idle.
        return now == {**self.before, "thread": now["thread"], "pipe": now["pipe"]} or None

    def assert_as_before(self) -> None:
        """In the end it has those descriptors, and hardly more threads."""
        until(self.is_at_rest, f"the descriptors to be {self.before}, not {possessions(self.daemon)}")
        self.assertLessEqual(possessions(self.daemon)["pipe"], self.before["pipe"] + _PIPES_OF_A_PROCESS)
        # Handles that are closed at the same time have a thread each, which is kept for the next ones.
        self.assertLessEqual(possessions(self.daemon)["thread"], self.before["thread"] + 4)
        self.assertNotIn("Traceback", self.daemon.log)

    def begin(self, first: int, *, interface: str | None = None, **limits: int) -> str:
        """A capture that goes on, and has its first packets."""
        limits = {"timeout": _LONG_SECONDS, **limits}
        capture = self.daemon.capture(interface=[interface or self.wire.interface], bpf=_FILTER, **limits)
        self.send(capture, range(first))
        return capture

    def send(self, capture: str, numbers: Iterable[int]) -> None:
        """Send packets, the last of all so far, and wait until a capture that goes on has them all."""
        frames = [udp_frame(number, port=_PORT) for number in numbers]
        self.wire.send(frames)

        def has_them() -> bool | None:
            _, state = self.daemon.request("GET", f"/captures/{capture}")
            return state["packets"] == number_of(frames[-1]) + 1 or None

        # The kernel drops what is on its way if the interface disappears.
        until(has_them, "the packets to arrive")

    def assert_ended(self, capture: str, reason: str, numbers: list[int]) -> None:
        """A capture ends so, with these packets, and is delivered."""
        state = self.daemon.done(capture)
        self.assertEqual((state["reason"], state["packets"]), (reason, len(numbers)), state)
        found = [number_of(packet.data[-128:]) for packet in read_packets(self.daemon.file_of(capture))]
        self.assertEqual(found, numbers)

    def cpu_seconds(self) -> float:
        """The processor time that the daemon has used (proc(5), stat)."""
        fields = Path(f"/proc/{self.daemon.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def assert_captures(self) -> None:
        """A capture on the interface has what is sent."""
        capture = self.daemon.capture(interface=[self.wire.interface], bpf=_FILTER, packets=3)
        self.wire.send([udp_frame(number, port=_PORT) for number in range(3)])
        self.assert_ended(capture, "packets", [0, 1, 2])

    def assert_refused(self, rule: str) -> None:
        """A request for the interface is answered so."""
        body: dict[str, Any] = {"node": "any", "interface": [self.wire.interface]}
        status, answer = self.daemon.request("POST", "/captures", json.dumps(body).encode())
        self.assertEqual((status, [one["rule"] for one in answer["problems"]]), (400, [rule]))

    def test_down(self) -> None:
        """A capture waits while its interface is down, as tcpdump does, and has what comes afterwards."""
        tcpdump = Tcpdump(self.wire.interface, filter=_FILTER)
        self.addCleanup(tcpdump.stop)
        tcpdump.start()
        capture = self.begin(5, packets=10)
        self.wire.down()
        self.assert_refused("the interface is down")
        self.wire.up()
        self.send(capture, range(5, 10))
        self.assert_ended(capture, "packets", list(range(10)))
        tcpdump.wait_for(10)
        self.assertEqual([number_of(packet.data) for packet in tcpdump.finish()], list(range(10)))
        self.assert_captures()
        self.wire.down()
        self.wire.up()
        self.assert_captures()

    def test_down_until_a_limit(self) -> None:
        """The limits of a capture hold while its interface is down, and it takes hardly any time to wait."""
        # Long enough for a busy machine to send the first packets in.
        capture = self.begin(4, timeout=5)
        self.wire.down()
        # To ask after the capture would take time, too.
        before = self.cpu_seconds()
        time.sleep(1.5)
        self.assertLess(self.cpu_seconds() - before, 0.5)
        self.assert_ended(capture, "idle", [0, 1, 2, 3])
        self.wire.up()
        self.assert_captures()

    def test_down_and_deleted(self) -> None:
        """The kernel doesn't report that an interface that was down already is gone; the capture ends."""
        capture = self.begin(4)
        self.wire.down()
        time.sleep(0.5)
        self.wire.delete()
        self.assert_ended(capture, "device_lost", [0, 1, 2, 3])
        self.wire.make()
        self.assert_captures()

    def test_renamed(self) -> None:
        """
        A capture stays on its wire when the interface is renamed. A request for the old name is refused; once
        another interface has that name, it is for that one.
        """
        other = Wire()
        self.addCleanup(other.stop)
        other.start()
        name, moved = self.wire.interface, f"{self.wire.interface[:-1]}m"
        capture = self.begin(2, packets=4)
        self.rename(self.wire, moved)
        self.wire.interface = name
        self.assert_refused("no such interface")
        self.wire.interface = moved
        self.rename(other, name)
        new = self.daemon.capture(interface=[name], bpf=_FILTER, packets=2)
        self.send(capture, [2])
        other.send([udp_frame(number, port=_PORT) for number in (7, 8)])
        self.send(capture, [3])
        self.assert_ended(new, "packets", [7, 8])
        self.assert_ended(capture, "packets", [0, 1, 2, 3])
        other.delete()
        self.rename(self.wire, name)
        self.assert_captures()

    def test_alternative_name(self) -> None:
        """A capture by an alternative name is called as it was asked for, and is on the interface."""
        name = f"{self.wire.interface}-{'x' * 50}"
        words = ["link", "property", "add", "dev", self.wire.interface, "altname", name]
        subprocess.run([require_command("ip", "iproute2"), *words], check=True, timeout=20)
        capture = self.begin(2, interface=name, packets=3)
        self.send(capture, [2])
        self.assert_ended(capture, "packets", [0, 1, 2])
        self.assertTrue(self.daemon.file_of(capture).name.startswith(f"{self.daemon.node}-{name[:60]}-"))

    def rename(self, wire: Wire, name: str) -> None:
        """Rename the near end of a wire."""
        ip = require_command("ip", "iproute2")
        for words in (["down"], ["name", name]):
            subprocess.run([ip, "link", "set", wire.interface, *words], check=True, timeout=20)
        wire.interface = name
        wire.up()

    def test_deleted(self) -> None:
        """Gone within a capture, for a while."""
        capture = self.begin(5)
        self.wire.delete()
        self.assert_ended(capture, "device_lost", [0, 1, 2, 3, 4])
        self.assert_refused("no such interface")
        self.wire.make()
        self.assert_captures()

    def test_replaced(self) -> None:
        """Another one of the same name, within a capture and between two: the next is on the new one."""
        capture = self.begin(5)
        self.replace()
        self.assert_ended(capture, "device_lost", [0, 1, 2, 3, 4])
        self.assert_captures()
        self.replace()
        self.assert_captures()

    def test_any(self) -> None:
        """A capture on all interfaces goes on, whichever of them come and go, and has the packets of all."""
        capture = self.begin(2, interface="any", packets=4)
        self.wire.down()
        self.wire.up()
        self.send(capture, [2])
        self.replace()
        self.send(capture, [3])
        self.assert_ended(capture, "packets", [0, 1, 2, 3])
        self.assert_captures()

    def replace(self) -> None:
        """Delete the interface, and make another one of its name."""
        self.wire.delete()
        self.wire.make()


class WaitingTests(InterfaceTests):
    """The same with a handle on standby."""

    configuration = '[capture]\nstandby = ["{}"]\n'
    waiting = 1


class WaitingOnAnyTests(InterfaceTests):
    """The same where handles wait on the interface, on all of them, and on one that there isn't."""

    configuration = '[capture]\nstandby = ["{}", "any", "nosuch0"]\n'
    waiting = 2
