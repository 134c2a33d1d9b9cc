"""
What the benchmarks of captures compare: a capture of the daemon, and C{tcpdump -w}.

Both have the same snap length, the same ring size and no filter, and both write into memory: the daemon
delivers to a directory on the file system that tcpdump writes to. Otherwise both have their defaults: the
kernel hands packets to the daemon after 10 ms, and to tcpdump after a second.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import usage
from peers.daemon import Daemon
from peers.process import OwnProcess
from peers.requirement import require_command
from peers.wire import Wire

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
    @ivar seconds: how long they are sent at the rate.
    """

    size: int
    rate: int | None
    snap_length: int
    seconds: float = 4.0

    @property
    def bytes_in_file(self) -> int:
        """The size of a packet in a pcap file, including its header."""
        return 16 + min(self.size, self.snap_length)

    @property
    def packets(self) -> int:
        """The maximum number of packets to send."""
        most = min(_MOST_BYTES, _available_bytes() // _SHARE_OF_MEMORY) // self.bytes_in_file
        return min(most, _MOST_PACKETS if self.rate is None else int(self.rate * self.seconds))

    def __str__(self) -> str:
        rate = "full speed" if self.rate is None else f"{self.rate:,}/s"
        return f"{self.size:,} B, {rate}, snap {self.snap_length}"


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

    @property
    def cpu(self) -> float:
        """Microseconds of CPU time per packet."""
        return _each(self.cpu_seconds, self.packets)

    @property
    def delivered_cpu(self) -> float:
        """Microseconds per packet, including the delivery."""
        return _each(self.delivered_cpu_seconds, self.packets)


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


class DaemonCapture:
    """A capture of the daemon."""

    def __init__(self, daemon: Daemon, interface: str, load: Load, packets: int) -> None:
        self._daemon = daemon
        self._load = load
        usage.reset_peak(daemon.pid)
        # The idle time ends it if packets are lost, or fewer are sent.
        self._id = daemon.capture(interface=[interface], packets=packets, snap=load.snap_length, timeout=2)
        self._armed = usage.cpu_seconds(daemon.pid)

    def finish(self) -> Found:
        """Wait until it is delivered."""
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


def start_tcpdump(
    stack: ExitStack, interface: str, *, snap_length: int, ring_bytes: int
) -> tuple[OwnProcess, Path]:
    """Start C{tcpdump -w}, and wait until it captures. Return its process, and the path of its file."""
    process = OwnProcess("tcpdump")
    stack.callback(process.clean_up)
    path = process.directory / "tcpdump.pcap"
    process.start(
        [
            *(require_command("tcpdump", "tcpdump"), "-i", interface, "-n", "-Z", "root"),
            *("-B", str(ring_bytes // 1024), "-s", str(snap_length), "-w", str(path)),
        ],
        lambda: "listening on" in process.log,
    )
    return process, path


def end_tcpdump(process: OwnProcess) -> float:
    """End it, so that its file is complete. Return its CPU time, in seconds."""
    process.signal(signal.SIGINT)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return usage.cpu_seconds(process.pid)


class TcpdumpCapture:
    """tcpdump."""

    def __init__(self, stack: ExitStack, interface: str, load: Load) -> None:
        self._load = load
        self._process, self._path = start_tcpdump(
            stack, interface, snap_length=load.snap_length, ring_bytes=_RING_BYTES
        )
        self._armed = usage.cpu_seconds(self._process.pid)

    def finish(self) -> Found:
        """Wait until it has read everything, and end it."""
        # When it is stopped it drops what is in the ring. So wait until it has read everything.
        size, since = -1, 0.0

        def quiet() -> bool:
            nonlocal size, since
            if (now := self._path.stat().st_size) != size:
                size, since = now, time.monotonic()
            return time.monotonic() - since > _QUIET_SECONDS

        _wait(quiet, "tcpdump's last packet", 0.05)
        memory = usage.memory(self._process.pid)[1]
        spent = end_tcpdump(self._process) - self._armed
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


class Bench:
    """
    The wire, the daemon, and the generator.

    @param configuration: more of the daemon's, whose last section is C{[capture]}.
    @param general: more keys of C{[general]}.
    @param wrapper: a prefix of the daemon's command.
    """

    def __init__(
        self, stack: ExitStack, configuration: str = "", *, general: str = "", wrapper: Sequence[str] = ()
    ) -> None:
        self.wire = Wire()
        stack.callback(self.wire.stop)
        self.wire.start()
        self.daemon = Daemon(
            f"[capture]\nbuffersize = {_RING_BYTES}\n{configuration}",
            general=f"maxpackets = 1000000000\nmaxbytes = {4 * _MOST_BYTES}\nmaxmemory = {8 * _MOST_BYTES}\n"
            + general,
        )
        stack.callback(self.daemon.stop)
        self.daemon.start(*wrapper)

    def send(self, load: Load, packets: int) -> tuple[int, float]:
        """Send from the far end. Return how many packets were sent, and how many a second."""
        sent = subprocess.run(
            [
                *(require_command("ip", "iproute2"), "netns", "exec", self.wire.namespace),
                *(sys.executable, str(_GENERATOR), self.wire.far, "--size", str(load.size)),
                *("--packets", str(packets), "--seconds", str(load.seconds + 1)),
                *(() if load.rate is None else ("--rate", str(load.rate))),
            ],
            stdout=subprocess.PIPE,
            check=True,
            timeout=_PATIENCE_SECONDS,
        )
        told = json.loads(sent.stdout)
        return int(told["sent"]), float(told["rate"])

    def beside(self, load: Load) -> Round:
        """Measure both at the same time."""
        packets = load.packets
        with ExitStack() as stack:
            theirs = TcpdumpCapture(stack, self.wire.interface, load)
            ours = DaemonCapture(self.daemon, self.wire.interface, load, packets)
            sent, rate = self.send(load, packets)
            return Round(sent=(sent, sent), rate=rate, ours=ours.finish(), theirs=theirs.finish())
