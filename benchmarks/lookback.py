"""
The past of an interface: what it costs to record it all the time, beside C{tcpdump -C -W}, and how long it
takes to get it out.

Both record the same packets at the same time. tcpdump's files rotate in memory, and occupy as much as ours.
The CPU time of ours is the whole daemon's.

Then the last 1.5 million packets are requested over HTTP, which is what 300,000 packets a second are in 5 s:
all of them, and those that pass a filter, one of a hundred. The answer comes when the past is in the file of
the capture, and that is the time. At last the same is done while packets arrive at the same rate, and another
capture is running.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import usage
from benchmarks.held import Held
from benchmarks.table import print_table, print_target, tell
from peers.daemon import Daemon
from peers.process import OwnProcess
from peers.requirement import require_command
from peers.wire import Wire

ROUNDS = 3
RECORD_SECONDS = 20
CPU_RATIO = 0.5
MEMORY_SHARE = 0.05
ALL_SECONDS = 0.6
FILTERED_SECONDS = 0.4
HELD_SECONDS = 0.02

_RATE = 300_000
_SIZE = 128
_RECORD = 16 + _SIZE
_NUMBER_AT = 16 + 14 + 20 + 8
_PACKETS = 1_500_000
_SNAP = 512
_RING_BYTES = 8 << 20
_HISTORY_BYTES = 512 << 20
# tcpdump counts in millions of bytes.
_FILES, _FILE_MEGABYTES = 8, 67
_EACH = 100
_FILTER = f"udp[12:4] % {_EACH} = 0"
# How often each is extracted, per round.
_TIMES = 3
_PATIENCE_SECONDS = 60.0
_GENERATOR = Path(__file__).with_name("generator.py")
_WATCHED = Path(__file__).with_name("held.py")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """
    What recording cost, ours and tcpdump's.

    @ivar sent: how many packets were sent.
    @ivar rate: how many a second.
    @ivar lost: how many of them were lost.
    @ivar cpu: microseconds of CPU time per packet.
    """

    sent: int
    rate: float
    lost: tuple[int, int]
    cpu: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """
    What it took to extract the past.

    @ivar packets: how many packets there were.
    @ivar seconds: from the request to its answer.
    @ivar is_whole: whether they are the packets that they should be.
    """

    packets: int
    seconds: float
    is_whole: bool


@dataclass(frozen=True, kw_only=True)
class Busy:
    """
    What happened while the past was extracted, as packets arrived and were captured.

    @ivar held: the longest time that the reactor was held up, in seconds; C{held_at_rest} is the same
        before.
    @ivar dropped: how many packets were dropped, and by which.
    """

    extracted: Extracted
    held_at_rest: float
    held: float
    lost_by_capture: int
    lost_by_history: int


def run(rounds: int | None = None) -> None:
    """Measure, and print the results."""
    with ExitStack() as stack:
        bench = _Bench(stack)
        recorded, whole, filtered, busy = [], [], [], []
        memory = 0
        for number in range(rounds or ROUNDS):
            tell(f"lookback: round {number + 1}, recording")
            recorded.append(bench.record())
            memory = max(memory, bench.memory())
            for _ in range(_TIMES):
                tell(f"lookback: round {number + 1}, extracting")
                whole.append(bench.extract(""))
                filtered.append(bench.extract(_FILTER))
            for bpf in ("", _FILTER):
                tell(f"lookback: round {number + 1}, extracting while packets arrive")
                busy.append((bpf, bench.busy(bpf)))
    tell("")
    _print_tables(recorded, whole, filtered, busy)
    _print_targets(recorded, whole, filtered, [one for _, one in busy], memory)


class _Bench:
    """The wire, and the daemon that records it."""

    def __init__(self, stack: ExitStack) -> None:
        self.wire = Wire()
        stack.callback(self.wire.stop)
        self.wire.start()
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.held = Held(directory / "held")
        self.daemon = Daemon(
            f"[capture]\nbuffersize = {_RING_BYTES}\n"
            f'[[interface]]\nname = "{self.wire.interface}"\nhistory = 600\nhistorysize = {_HISTORY_BYTES}\n'
            f"historysnap = {_SNAP}\n",
            general=f"maxpackets = 1000000000\nmaxbytes = {2 << 30}\nmaxmemory = {8 << 30}",
        )
        stack.callback(self.daemon.stop)
        self.daemon.start(sys.executable, str(_WATCHED), str(directory / "held"))
        self.daemon.until(lambda: self.history()["problem"] is None or None, "the history")
        self.at_rest = self._resident()

    def history(self) -> dict[str, Any]:
        """What the daemon says of it."""
        _, answer = self.daemon.request("GET", "/interfaces")
        [found] = [each for each in answer["interfaces"] if each["name"] == self.wire.interface]
        history: dict[str, Any] = found["history"]
        return history

    def _resident(self) -> int:
        return usage.memory(self.daemon.pid)[0] + usage.memory_files(self.daemon.pid)

    def memory(self) -> int:
        """How much more memory the daemon has than without packets, in bytes."""
        return self._resident() - self.at_rest

    def _send(self, seconds: float) -> dict[str, Any]:
        sent = subprocess.run(
            [
                *(require_command("ip", "iproute2"), "netns", "exec", self.wire.namespace),
                *(sys.executable, str(_GENERATOR), self.wire.far, "--size", str(_SIZE)),
                *("--packets", str(int(_RATE * seconds)), "--rate", str(_RATE)),
                *("--seconds", str(seconds + 5)),
            ],
            stdout=subprocess.PIPE,
            check=True,
            timeout=seconds + _PATIENCE_SECONDS,
        )
        told: dict[str, Any] = json.loads(sent.stdout)
        return told

    def record(self) -> Recorded:
        """Record for a while, beside tcpdump."""
        with ExitStack() as stack:
            theirs = OwnProcess("tcpdump")
            stack.callback(theirs.clean_up)
            theirs.start(
                [
                    *(require_command("tcpdump", "tcpdump"), "-i", self.wire.interface, "-n", "-Z", "root"),
                    *("-B", str(_RING_BYTES // 1024), "-s", str(_SNAP)),
                    *("-C", str(_FILE_MEGABYTES), "-W", str(_FILES)),
                    *("-w", str(theirs.directory / "tcpdump.pcap")),
                ],
                lambda: "listening on" in theirs.log,
            )
            pids = self.daemon.pid, theirs.pid
            dropped = self.history()["dropped"]
            began = [usage.cpu_seconds(pid) for pid in pids]
            told = self._send(RECORD_SECONDS)
            # tcpdump gets the last packets a second late.
            time.sleep(1.5)
            spent = [usage.cpu_seconds(pid) - cpu for pid, cpu in zip(pids, began, strict=True)]
            theirs.signal(signal.SIGINT)
            theirs.wait(_PATIENCE_SECONDS)
            found = re.search(r"(\d+) packets? captured", theirs.log)
            captured = int(found[1]) if found else 0
        sent = int(told["sent"])
        return Recorded(
            sent=sent,
            rate=float(told["rate"]),
            lost=(self.history()["dropped"] - dropped, sent - captured),
            cpu=(spent[0] / sent * 1e6, spent[1] / sent * 1e6),
        )

    def extract(self, bpf: str) -> Extracted:
        """Extract the newest packets."""
        packets = _PACKETS // _EACH if bpf else _PACKETS
        body = {
            "node": self.daemon.node,
            "interface": [self.wire.interface],
            "before": 600,
            "pastonly": True,
            "packets": packets,
            "bytes": 2 << 30,
            "bpf": bpf,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=_PATIENCE_SECONDS)
        connection.connect()
        began = time.monotonic()
        connection.request("POST", "/captures", json.dumps(body).encode())
        answer = connection.getresponse()
        words = json.loads(answer.read())
        seconds = time.monotonic() - began
        connection.close()
        if answer.status != 202:
            raise RuntimeError(f"a request was rejected: {words}")
        capture = words["captures"][0]["id"]
        self.daemon.done(capture)
        path = self.daemon.file_of(capture)
        content = path.read_bytes()
        path.unlink()
        numbers = _numbers(content)
        return Extracted(
            packets=len(numbers),
            seconds=seconds,
            is_whole=len(numbers) == packets and _are_in_steps(numbers, _EACH if bpf else 1),
        )

    def busy(self, bpf: str) -> Busy:
        """Extract the newest packets while others arrive, and are captured."""
        told: dict[str, Any] = {}
        sender = threading.Thread(target=lambda: told.update(self._send(10)))
        capture = self.daemon.capture(interface=[self.wire.interface], packets=10 * _RATE * 2, timeout=2)
        dropped = self.history()["dropped"]
        sender.start()
        try:
            time.sleep(6)
            self.held.begin()
            time.sleep(1)
            at_rest = self.held.end()
            self.held.begin()
            extracted = self.extract(bpf)
            held = self.held.end()
        finally:
            sender.join()
        state = self.daemon.done(capture)
        path = self.daemon.file_of(capture)
        numbers = _numbers(path.read_bytes())
        path.unlink()
        if len(numbers) != state["packets"]:
            raise RuntimeError(
                f"{len(numbers)} packets are in the file, but {state['packets']} were reported"
            )
        return Busy(
            extracted=extracted,
            held_at_rest=at_rest,
            held=held,
            lost_by_capture=told["sent"] - len(numbers),
            lost_by_history=self.history()["dropped"] - dropped,
        )


def _numbers(content: bytes) -> array[int]:
    """The numbers of the packets in a file."""
    count = (len(content) - 24) // _RECORD
    joined = bytearray(4 * count)
    for at in range(4):
        # From the least significant byte on: the array is little endian, as all that this runs on.
        joined[at::4] = content[24 + _NUMBER_AT + 7 - at :: _RECORD]
    return array("I", bytes(joined))


def _are_in_steps(numbers: array[int], step: int) -> bool:
    return bool(numbers) and numbers == array("I", range(numbers[0], numbers[0] + step * len(numbers), step))


def _print_tables(
    recorded: list[Recorded],
    whole: list[Extracted],
    filtered: list[Extracted],
    busy: list[tuple[str, Busy]],
) -> None:
    print_table(
        f"Recording {_SIZE} B at {_RATE:,}/s for {RECORD_SECONDS} s,"
        f" beside tcpdump -C {_FILE_MEGABYTES} -W {_FILES}",
        ("round", "sent/s", "lost", "tcpdump lost", "CPU µs/packet", "tcpdump", "ratio"),
        [
            [
                *(str(number + 1), f"{one.rate:,.0f}"),
                *(f"{lost / one.sent:.3%}" if lost else "0" for lost in one.lost),
                *(f"{cpu:.3f}" for cpu in one.cpu),
                f"{one.cpu[0] / one.cpu[1]:.2f}",
            ]
            for number, one in enumerate(recorded)
        ],
    )
    print_table(
        f"Extracting {_PACKETS:,} packets",
        (
            "what",
            "packets",
            "seconds",
            "fastest",
            "slowest",
            "held up ms",
            "before",
            "capture lost",
            "history lost",
        ),
        [
            _row("all", whole, []),
            _row(f"one of {_EACH}", filtered, []),
            *(
                _row(f"{words}, while packets arrive", [one.extracted for one in found], found)
                for words, found in (
                    ("all", [one for bpf, one in busy if not bpf]),
                    (f"one of {_EACH}", [one for bpf, one in busy if bpf]),
                )
            ),
        ],
    )


def _print_targets(
    recorded: list[Recorded],
    whole: list[Extracted],
    filtered: list[Extracted],
    busy: list[Busy],
    memory: int,
) -> None:
    lost = sum(one.lost[0] for one in recorded)
    theirs = sum(one.lost[1] for one in recorded)
    print_target("no loss", f"{lost} packets; tcpdump lost {theirs}", lost == 0)
    ratio = median(one.cpu[0] / one.cpu[1] for one in recorded)
    print_target(f"CPU per packet at most {CPU_RATIO} × tcpdump's", f"{ratio:.2f}", ratio <= CPU_RATIO)
    share = memory / _HISTORY_BYTES - 1
    print_target(
        f"memory within {MEMORY_SHARE:.0%} of historysize",
        f"{memory / 2**20:.1f} MiB for {_HISTORY_BYTES / 2**20:.0f} MiB, {share:+.1%}",
        abs(share) <= MEMORY_SHARE,
    )
    for words, found, most in (("all", whole, ALL_SECONDS), ("filtered", filtered, FILTERED_SECONDS)):
        seconds = median(one.seconds for one in found)
        print_target(f"{words} extracted within {most:g} s", f"{seconds:.2f} s", seconds <= most)
    held = max(one.held for one in busy)
    print_target(
        f"the reactor is never held up for more than {HELD_SECONDS * 1e3:.0f} ms",
        f"{held * 1e3:.0f} ms",
        held <= HELD_SECONDS,
    )
    lost = sum(one.lost_by_capture for one in busy)
    print_target("no loss in running captures", f"{lost} packets", lost == 0)
    wrong = sum(not one.is_whole for one in [*whole, *filtered, *(one.extracted for one in busy)])
    print_target("every file has exactly its packets", f"{wrong} have not", wrong == 0)


def _row(what: str, found: list[Extracted], busy: list[Busy]) -> list[str]:
    seconds = [one.seconds for one in found]
    cells = [what, f"{median(one.packets for one in found):,.0f}"]
    cells += [f"{value:.2f}" for value in (median(seconds), min(seconds), max(seconds))]
    if not busy:
        return [*cells, "", "", "", ""]
    return [
        *cells,
        *(
            f"{max(each) * 1e3:.0f}"
            for each in zip(*((one.held, one.held_at_rest) for one in busy), strict=True)
        ),
        f"{sum(one.lost_by_capture for one in busy):,}",
        f"{sum(one.lost_by_history for one in busy):,}",
    ]
