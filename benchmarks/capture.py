"""
The capture engine compared with C{tcpdump -w}: loss, CPU time per packet, and memory.

Both have the same snap length, the same ring size and no filter, and both write into memory: the daemon
delivers to a directory on the file system that tcpdump writes to. Otherwise both have their defaults: the
kernel hands packets to the daemon after 10 ms, and to tcpdump after a second.

Each load is measured in two ways, and each figure is the median of the rounds:

 - I{beside}: both capture the same packets at the same time. On two CPUs they share the one that the
   generator leaves. So this is the harder way, and the one in which losses can be compared.
 - I{alone}: one after the other, each with a CPU to itself. They take turns at going first.

CPU time begins when a capture is armed. Ours ends when its file is complete; I{delivered} adds the copy into
the directory. tcpdump's ends with its process. What the kernel does when a packet arrives counts for the
generator in both cases.

Memory is the peak resident size plus the size of the memory file, minus the size of the capture.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import usage
from benchmarks.table import print_table, print_target, tell
from peers.daemon import Daemon
from peers.process import OwnProcess
from peers.requirement import require_command
from peers.wire import Wire

ROUNDS = 3
CPU_RATIO = 2.5
MEMORY_BYTES = 60_000_000

_SECONDS = 4.0
_MOST_PACKETS = 4_000_000
# A capture is in memory up to three times: ours, the delivered copy, and tcpdump's.
_MOST_BYTES = 1 << 30
_SHARE_OF_MEMORY = 8
_RING_BYTES = 8 << 20
_PATIENCE_SECONDS = 60.0
# Longer than the kernel holds packets back from tcpdump.
_QUIET_SECONDS = 1.5
_GENERATOR = Path(__file__).with_name("generator.py")


@dataclass(frozen=True, kw_only=True)
class Load:
    """
    Packets to capture.

    @ivar size: the size of each packet, in bytes.
    @ivar rate: packets a second; L{None} is as fast as possible.
    """

    size: int
    rate: int | None
    snap_length: int

    @property
    def bytes_in_file(self) -> int:
        """The size of a packet in a pcap file, including its header."""
        return 16 + min(self.size, self.snap_length)

    @property
    def packets(self) -> int:
        """The maximum number of packets to send."""
        most = min(_MOST_BYTES, _available_bytes() // _SHARE_OF_MEMORY) // self.bytes_in_file
        return min(most, _MOST_PACKETS if self.rate is None else int(self.rate * _SECONDS))

    def __str__(self) -> str:
        rate = "full speed" if self.rate is None else f"{self.rate:,}/s"
        return f"{self.size:,} B, {rate}, snap {self.snap_length}"


LOADS = (
    Load(size=128, rate=300_000, snap_length=512),
    Load(size=128, rate=None, snap_length=512),
    Load(size=1400, rate=300_000, snap_length=512),
    Load(size=1400, rate=None, snap_length=512),
    Load(size=1400, rate=300_000, snap_length=65535),
    Load(size=128, rate=300_000, snap_length=262144),
    Load(size=1400, rate=300_000, snap_length=262144),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """
    The result of one capture.

    @ivar packets: how many packets are in the file.
    @ivar dropped: how many packets the kernel reports as dropped.
    @ivar cpu_seconds: CPU time until the file is complete.
    @ivar delivered_cpu_seconds: CPU time until it is delivered.
    @ivar extra_bytes: the peak memory, without the capture's size.
    """

    packets: int
    dropped: int
    cpu_seconds: float
    delivered_cpu_seconds: float
    extra_bytes: int


@dataclass(frozen=True, kw_only=True)
class Round:
    """One load, measured once in one way: the packets sent to each, their rate, and both results."""

    sent: tuple[int, int]
    rate: float
    ours: Found
    theirs: Found

    @property
    def lost(self) -> tuple[int, int]:
        """The packets lost by us, and by tcpdump."""
        return self.sent[0] - self.ours.packets, self.sent[1] - self.theirs.packets

    @property
    def cpu(self) -> tuple[float, float, float]:
        """Microseconds per packet: ours, ours including the delivery, and tcpdump's."""
        return (
            _each(self.ours.cpu_seconds, self.ours.packets),
            _each(self.ours.delivered_cpu_seconds, self.ours.packets),
            _each(self.theirs.cpu_seconds, self.theirs.packets),
        )


def _each(seconds: float, packets: int) -> float:
    return seconds / packets * 1e6 if packets else float("nan")


def _available_bytes() -> int:
    words = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(words[1]) * 1024 if words else _MOST_BYTES


def _wait(look: Callable[[], bool], what: str, pause_seconds: float) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not look():
        if time.monotonic() > deadline:
            raise RuntimeError(f"timed out waiting for {what}")
        time.sleep(pause_seconds)


def _packets_in(path: Path, load: Load) -> int:
    """The number of packets in a file, from its size: all packets have the same."""
    packets, rest = divmod(path.stat().st_size - 24, load.bytes_in_file)
    if rest:
        raise RuntimeError(f"{path.name} ends within a packet")
    return packets


class _Ours:
    """A capture of the daemon."""

    def __init__(self, daemon: Daemon, interface: str, load: Load, packets: int) -> None:
        self._daemon = daemon
        self._load = load
        usage.reset_peak(daemon.pid)
        # The idle time ends it if packets are lost, or fewer are sent.
        self._id = daemon.capture(interface=[interface], packets=packets, snap=load.snap_length, timeout=2)
        self._armed = usage.cpu_seconds(daemon.pid)

    def finish(self) -> Found:
        taken = 0

        def stopped() -> bool:
            nonlocal taken
            taken = max(taken, usage.memory_files(self._daemon.pid))
            return f"{self._id}: stopped, as" in self._daemon.log

        _wait(stopped, "the capture's end", 0.002)
        captured = usage.cpu_seconds(self._daemon.pid) - self._armed
        _wait(lambda: f"{self._id}: delivered" in self._daemon.log, "the delivery", 0.002)
        delivered = usage.cpu_seconds(self._daemon.pid) - self._armed
        state = self._daemon.done(self._id)
        path = self._daemon.file_of(self._id)
        packets = _packets_in(path, self._load)
        path.unlink()
        if packets != state["packets"]:
            raise RuntimeError(f"{packets} packets are in the file, but {state['packets']} were reported")
        return Found(
            packets=packets,
            dropped=state["dropped"] + (state.get("interface_dropped") or 0),
            cpu_seconds=captured,
            delivered_cpu_seconds=delivered,
            extra_bytes=usage.memory(self._daemon.pid)[1] + taken - state["bytes"],
        )


class _Theirs:
    """tcpdump."""

    def __init__(self, stack: ExitStack, interface: str, load: Load) -> None:
        self._load = load
        self._process = OwnProcess("tcpdump")
        stack.callback(self._process.clean_up)
        self._path = self._process.directory / "tcpdump.pcap"
        self._process.start(
            [
                *(require_command("tcpdump", "tcpdump"), "-i", interface, "-n", "-Z", "root"),
                *("-B", str(_RING_BYTES // 1024), "-s", str(load.snap_length), "-w", str(self._path)),
            ],
            lambda: "listening on" in self._process.log,
        )
        self._armed = usage.cpu_seconds(self._process.pid)

    def finish(self) -> Found:
        # When it is stopped it drops what is in the ring. So wait until it has read everything.
        size, since = -1, 0.0

        def quiet() -> bool:
            nonlocal size, since
            if (now := self._path.stat().st_size) != size:
                size, since = now, time.monotonic()
            return time.monotonic() - since > _QUIET_SECONDS

        _wait(quiet, "tcpdump's last packet", 0.05)
        pid = self._process.pid
        memory = usage.memory(pid)[1]
        self._process.signal(signal.SIGINT)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        spent = usage.cpu_seconds(pid) - self._armed
        packets = _packets_in(self._path, self._load)
        dropped = sum(int(count) for count in re.findall(r"(\d+) packets? dropped", self._process.log))
        self._process.clean_up()
        return Found(
            packets=packets,
            dropped=dropped,
            cpu_seconds=spent,
            delivered_cpu_seconds=spent,
            extra_bytes=memory,
        )


class _Bench:
    """The wire, the daemon, and the generator."""

    def __init__(self, stack: ExitStack) -> None:
        self.wire = Wire()
        stack.callback(self.wire.stop)
        self.wire.start()
        self.daemon = Daemon(
            f"[capture]\nbuffersize = {_RING_BYTES}\n",
            general=f"maxpackets = 1000000000\nmaxbytes = {4 * _MOST_BYTES}\nmaxmemory = {8 * _MOST_BYTES}",
        )
        stack.callback(self.daemon.stop)
        self.daemon.start()

    def send(self, load: Load, packets: int) -> tuple[int, float]:
        """Send from the far end. Return how many packets were sent, and how many a second."""
        sent = subprocess.run(
            [
                *(require_command("ip", "iproute2"), "netns", "exec", self.wire.namespace),
                *(sys.executable, str(_GENERATOR), self.wire.far, "--size", str(load.size)),
                *("--packets", str(packets), "--seconds", str(_SECONDS + 1)),
                *(() if load.rate is None else ("--rate", str(load.rate))),
            ],
            stdout=subprocess.PIPE,
            check=True,
            timeout=_PATIENCE_SECONDS,
        )
        told = json.loads(sent.stdout)
        return int(told["sent"]), float(told["rate"])

    def beside(self, load: Load, _: int) -> Round:
        """Measure both at the same time."""
        packets = load.packets
        with ExitStack() as stack:
            theirs = _Theirs(stack, self.wire.interface, load)
            ours = _Ours(self.daemon, self.wire.interface, load, packets)
            sent, rate = self.send(load, packets)
            return Round(sent=(sent, sent), rate=rate, ours=ours.finish(), theirs=theirs.finish())

    def alone(self, load: Load, number: int) -> Round:
        """Measure one after the other; the order changes from round to round."""
        packets = load.packets
        sent, rates = [0, 0], [0.0, 0.0]
        found: list[Found | None] = [None, None]
        for who in (0, 1) if number % 2 == 0 else (1, 0):
            with ExitStack() as stack:
                one = (
                    _Ours(self.daemon, self.wire.interface, load, packets)
                    if who == 0
                    else _Theirs(stack, self.wire.interface, load)
                )
                sent[who], rates[who] = self.send(load, packets)
                found[who] = one.finish()
        ours, theirs = found
        assert ours is not None and theirs is not None
        return Round(sent=(sent[0], sent[1]), rate=min(rates), ours=ours, theirs=theirs)


def run(rounds: int | None = None) -> None:
    """Measure, and print the results."""
    rows, all_rounds, ratios = [], [], []
    with ExitStack() as stack:
        bench = _Bench(stack)
        at_rest = usage.memory(bench.daemon.pid)[0]
        for load in LOADS:
            for way, measure in (("beside", bench.beside), ("alone", bench.alone)):
                done = []
                for number in range(rounds or ROUNDS):
                    tell(f"capture: {load}, {way}, round {number + 1}")
                    done.append(measure(load, number))
                all_rounds += done
                ratios.append(median(one.cpu[0] / one.cpu[2] for one in done))
                rows.append([str(load), way, *_figures(done, ratios[-1], at_rest)])
    tell("")
    print_table(
        "The capture engine compared with tcpdump -w",
        (
            *("traffic", "way", "sent/s", "lost", "tcpdump lost"),
            *("CPU µs/packet", "delivered", "tcpdump", "ratio", "memory MB", "over rest"),
        ),
        rows,
    )
    fair = [one for one in all_rounds if one.lost[1] == 0]
    worse = sum(one.lost[0] > 0 for one in fair)
    print_target(
        "no loss if tcpdump has none",
        f"loss in {worse} of the {len(fair)} runs in which tcpdump lost nothing",
        worse == 0,
    )
    print_target(
        f"CPU per packet at most {CPU_RATIO} × tcpdump's",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        max(ratios) <= CPU_RATIO,
    )
    most = max(one.ours.extra_bytes for one in all_rounds)
    print_target(
        f"at most {MEMORY_BYTES / 1e6:.0f} MB over the capture's size",
        f"{most / 1e6:.1f} MB in all, {(most - at_rest) / 1e6:.1f} MB over the size at rest",
        most <= MEMORY_BYTES,
    )


def _figures(rounds: list[Round], ratio: float, at_rest: int) -> list[str]:
    lost = [sum(one.lost[who] for one in rounds) / sum(one.sent[who] for one in rounds) for who in (0, 1)]
    extra = max(one.ours.extra_bytes for one in rounds)
    return [
        f"{median(one.rate for one in rounds):,.0f}",
        *("0" if share == 0 else f"{share:.3%}" for share in lost),
        *(f"{median(one.cpu[at] for one in rounds):.3f}" for at in (0, 1, 2)),
        f"{ratio:.2f}",
        f"{extra / 1e6:.1f}",
        f"{(extra - at_rest) / 1e6:+.1f}",
    ]
