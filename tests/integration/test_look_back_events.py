"""What happened before a request: on quiet interfaces, and on several at once."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from bisect import bisect_left
from datetime import datetime
from typing import Any

from peers.frames import number_of, udp_frame
from peers.tcpdump import read_packets
from peers.wire import Wire
from tests.integration.look_back_case import LookBackCase
from tests.integration.traffic import generate

# Long enough to begin to send in, on a busy machine.
_LIVE_SECONDS = 10
# How exact limits of time are.
_EXACT_SECONDS = 0.1


class QuietTests(LookBackCase):
    """An interface on which hardly anything arrives, beside one that is busy."""

    def test_quiet_beside_busy(self) -> None:
        """It is remembered for as long, and forgotten as soon."""
        busy = Wire()
        self.addCleanup(busy.stop)
        busy.start()
        seconds = 2
        more = f'[[interface]]\nname = "{busy.interface}"\nhistory = {seconds}\n'
        daemon = self.start(f"history = {seconds}", more=more, general="maxpackets = 10000000")
        sending = threading.Thread(
            target=lambda: generate(busy, 20_000 * 2 * seconds, rate=20_000),
        )
        sending.start()
        self.addCleanup(sending.join)
        began = time.monotonic()
        # Twice as long as it is remembered.
        for number in range(4 * seconds):
            time.sleep(max(0.0, began + number / 2 - time.monotonic()))
            self.send(number)
        asked = time.time()
        captures = {
            wire: daemon.capture(interface=[wire.interface], before=60, pastonly=True)
            for wire in (self.wire, busy)
        }
        answered = time.time()
        states = {wire: daemon.done(capture) for wire, capture in captures.items()}
        for state in states.values():
            self.assertEqual("past", state["reason"])
        quiet = read_packets(daemon.file_of(captures[self.wire]))
        numbers = [number_of(packet.data) for packet in quiet]
        self.assertEqual(numbers, list(range(numbers[0], 4 * seconds)))
        crowd = read_packets(daemon.file_of(captures[busy]))
        found = [number_of(packet.data) for packet in crowd]
        # On a busy machine, the kernel's ring may have been full; then it is reported.
        missing = {each["reason"]: each["packets"] for each in states[busy]["history"]["missing"]}
        gaps = [(one, next_one) for one, next_one in itertools.pairwise(found) if next_one != one + 1]
        left_out = found[-1] - found[0] + 1 - len(found)
        self.assertTrue(all(one < next_one for one, next_one in gaps), gaps[:10])
        self.assertLessEqual(left_out, missing.get("drops") or 0, gaps[:10])
        for packets, pause in ((quiet, 0.5), (crowd, 0.1)):
            first = packets[0].seconds + packets[0].fraction / 1e6
            self.assertGreaterEqual(first, asked - seconds)
            # The packet before that one is too old, if it was sent when it should.
            self.assertLess(first, answered - seconds + 2 * pause)

    # It measures time, and sends more than a busy machine may have time for.
    test_quiet_beside_busy.needs_machine_alone = True  # type: ignore[attr-defined]

    def test_ten_a_minute(self) -> None:
        """Packets of which there are ten a minute are released in time, and not before."""
        seconds = 20
        daemon = self.start(f"history = {seconds}")
        sent = []
        for number in range(4):
            began = time.time()
            self.send(number)
            sent.append((began, time.time()))
            time.sleep(6)
        asked = time.time()
        capture = self.past(daemon)
        answered = time.time()
        # The first one is 24 s old, the next one 18, or more if the machine is busy.
        young = [number for number, (began, _) in enumerate(sent) if answered - began < seconds]
        not_old = [number for number, (_, ended) in enumerate(sent) if asked - ended < seconds]
        self.assertNotIn(0, not_old)
        numbers = self.numbers(daemon.file_of(capture))
        self.assertEqual(numbers, list(range(numbers[0], 4)))
        self.assertLessEqual(set(young), set(numbers))
        self.assertLessEqual(set(numbers), set(not_old))
        daemon.until(lambda: self.history(daemon)["packets"] <= 3 or None, "the first one to be released")


class SeveralTests(LookBackCase):
    """Requests that look back on more than one interface."""

    def test_several_interfaces(self) -> None:
        """Each has a file of its own, which begins with its own past; then it goes on."""
        wires = [self.wire, *(self.another() for _ in range(2))]
        more = "".join(f'[[interface]]\nname = "{wire.interface}"\nhistory = 60\n' for wire in wires[1:])
        daemon = self.start(more=more)
        for at, wire in enumerate(wires):
            wire.send([udp_frame(number) for number in range(1000 * at, 1000 * at + 500)])
            # What the kernel hands over later than the request arrives belongs to what follows.
            self.remembered(daemon, 500, interface=wire.interface)
        body = {"node": daemon.node, "interface": [wire.interface for wire in wires], "before": 30}
        message = json.dumps({**body, "packets": 700}).encode()
        status, answer = daemon.request("POST", "/captures", message)
        self.assertEqual(status, 202, answer)
        for at, wire in enumerate(wires):
            wire.send([udp_frame(number) for number in range(1000 * at + 500, 1000 * at + 700)])
        self.assertEqual(3, len(answer["captures"]))
        for capture in answer["captures"]:
            state = daemon.done(capture["id"])
            at = [wire.interface for wire in wires].index(state["interface"])
            expected = list(range(1000 * at, 1000 * at + 700))
            self.assertEqual(self.numbers(daemon.file_of(capture["id"])), expected)
            self.assertEqual((state["reason"], state["history"]["packets"]), ("packets", 500))

    def another(self) -> Wire:
        """Another wire."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        return wire

    def test_any(self) -> None:
        """The past of all interfaces, in one file of its link type."""
        other = self.another()
        # What else there is on all interfaces may be more than fits into a ring, or into a history.
        bpf = "udp dst port 4711"
        daemon = self.start(more=f'[[interface]]\nname = "any"\nhistory = 60\nhistoryfilter = "{bpf}"\n')
        for number in range(100):
            (self.wire, other)[number % 2].send([udp_frame(number, port=4711)])
        capture = daemon.capture(interface=["any"], before=30, pastonly=True, bpf=bpf)
        daemon.done(capture)
        content = daemon.file_of(capture).read_bytes()
        # DLT_LINUX_SLL: a header of 16 bytes, where Ethernet's has 14.
        self.assertEqual(content[20:24], (113).to_bytes(4, "little"))
        packets = read_packets(daemon.file_of(capture))
        self.assertEqual([number_of(packet.data[2:]) for packet in packets], list(range(100)))
        # On the interface itself, they are Ethernet's, and only its own.
        own = self.past(daemon)
        self.assertEqual(self.numbers(daemon.file_of(own)), list(range(0, 100, 2)))


class StopTests(LookBackCase):
    """The daemon is stopped while the past is extracted."""

    def test_stop(self) -> None:
        """It stops in time, without an error; a capture that it has begun is delivered."""
        daemon = self.start(
            f"history = 600\nhistorysize = {512 << 20}",
            general=f"maxpackets = 100000000\nmaxbytes = {512 << 20}\nmaxmemory = {8 << 30}",
        )
        sent = generate(self.wire, 2_000_000, rate=None)

        def kept_if_all() -> int | None:
            history = self.history(daemon)
            return history["packets"] if history["packets"] + history["dropped"] >= sent else None

        kept = daemon.until(kept_if_all, "the last packet")
        message: dict[str, Any] = {"node": daemon.node, "interface": [self.wire.interface], "before": 600}
        answers: list[tuple[int, Any]] = []

        def ask(bpf: str) -> None:
            try:
                body = json.dumps({**message, "pastonly": True, "bpf": bpf}).encode()
                answers.append(daemon.request("POST", "/captures", body))
            except OSError:
                # The daemon has closed the connection.
                pass

        asking = [threading.Thread(target=ask, args=(bpf,)) for bpf in ("", "udp", "udp[12:4] % 3 = 0")]
        for one in asking:
            one.start()
        time.sleep(0.3)
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        self.assertLess(time.monotonic() - began, 15)
        for one in asking:
            one.join()
        for words in ("#error", "#critical", "Traceback"):
            self.assertNotIn(words, daemon.log)
        # Whatever was begun is whole.
        for path in daemon.captures.glob("*.pcap"):
            size, rest = divmod(path.stat().st_size - 24, 16 + 128)
            self.assertEqual(rest, 0)
            self.assertIn(size, (kept, len(range(0, kept, 3))))


class LateTests(LookBackCase):
    """The daemon has no processor for a while, and packets wait in the ring."""

    def test_late(self) -> None:
        """What arrived before a request, or within a limit of time, is in the file, however late."""
        count = 250_000
        daemon = self.start(
            f"history = 600\nhistorysize = {256 << 20}\nhistorysnap = 128",
            more=f"[capture]\nbuffersize = {256 << 20}\nreadtimeout = 40\n",
            general=f"maxpackets = 100000000\nmaxbytes = {256 << 20}\nmaxmemory = {4 << 30}",
        )
        # So few that what is read at once has hardly any.
        bpf = "udp[12:4] % 5000 = 7"
        live = [self.capture(daemon, duration=_LIVE_SECONDS, bpf=each) for each in ("", bpf)]
        started = [daemon.request("GET", f"/captures/{capture}")[1]["started"] for capture in live]
        ends = [datetime.fromisoformat(each).timestamp() + _LIVE_SECONDS for each in started]
        daemon.signal(signal.SIGSTOP)
        answers: list[str] = []
        try:
            self.assertEqual(generate(self.wire, count, rate=None), count)
            asking = threading.Thread(target=lambda: answers.append(self.past(daemon)))
            asking.start()
            # Until the captures' time is over. What comes then is too late for all of them.
            time.sleep(max(0.0, max(ends) + 1 - time.time()))
            self.send(*range(count, count + 10))
        finally:
            daemon.signal(signal.SIGCONT)
        asking.join()
        self.assertEqual(self.history(daemon)["dropped"], 0)
        past = read_packets(daemon.file_of(answers[0]))
        self.assertEqual([number_of(packet.data) for packet in past], list(range(count + 10)))
        times = [packet.seconds + packet.fraction / 1e6 for packet in past]
        for capture, end, first, step in zip(live, ends, (0, 7), (1, 5000), strict=True):
            self.assertEqual(daemon.done(capture)["reason"], "duration")
            # On a busy machine, the last ones may have been sent too late.
            in_time, not_late = (
                bisect_left(times, end + exact) for exact in (-_EXACT_SECONDS, _EXACT_SECONDS)
            )
            self.assertGreater(in_time, 0)
            numbers = self.numbers(daemon.file_of(capture))
            self.assertEqual(numbers, list(range(count + 10))[first::step][: len(numbers)])
            self.assertGreaterEqual(len(numbers), len(range(first, in_time, step)))
            self.assertLessEqual(len(numbers), len(range(first, not_late, step)))
