"""
What C{pcapctl capture -w - | tshark -r -} makes of a busy interface.

 - 50,000 packets of 128 bytes a second for 30 s: how many arrive at tshark, in which order, and how much CPU
   time each of the three programs needs.
 - The same with a tshark that is stopped (SIGSTOP) until the end of it: how much memory the daemon, pcapctl
   and the kernel need more, and what arrives once it goes on.
 - Single packets: how long after the wire they are at the output of pcapctl.
 - A reader that goes on after the node no longer has the capture: what pcapctl reports.

tshark prints the payloads, which begin with the number of the packet, so that every loss and every packet out
of order shows.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import usage
from benchmarks.table import print_table, print_target, tell
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.requirement import require_command
from peers.wire import Wire

RATE = 50_000
SECONDS = 30
FIRST_SECONDS = 0.3

_SIZE = 128
_SINGLE = 20
_GENERATOR = Path(__file__).with_name("generator.py")
_PCAPCTL = [sys.executable, "-m", "pcapsvc.client"]
_PATIENCE_SECONDS = 300.0
_HEADER_BYTES = 24
_NUMBER_DIGITS = 16
# What pcapctl needs of a socket's buffer in the kernel: ss(8).
_QUEUE = re.compile(r"^ESTAB +(?P<received>\d+) +(?P<sent>\d+) ", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class _Streamed:
    """
    What came of a load.

    @ivar gaps: how often a packet was not the one after the last.
    @ivar cpu: microseconds of CPU time per packet, of the daemon, pcapctl and tshark.
    @ivar grown: by how many bytes the daemon, pcapctl and the buffers of connections grew until the end of
        the load, without the capture itself.
    """

    sent: int
    captured: int
    arrived: int
    gaps: int
    status: int
    cpu: tuple[float, float, float]
    grown: tuple[int, int, int]


class _Numbers(threading.Thread):
    """Counts what tshark prints."""

    def __init__(self, tshark: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self._tshark = tshark
        self.arrived = self.gaps = 0

    def run(self) -> None:
        """Read to the end."""
        assert self._tshark.stdout is not None
        for line in self._tshark.stdout:
            self.gaps += int(line[:_NUMBER_DIGITS], 16) != self.arrived
            self.arrived += 1


class _Bench:
    """A daemon with a wire."""

    def __init__(self, stack: ExitStack, packets: int) -> None:
        self.wire = Wire()
        stack.callback(self.wire.stop)
        self.wire.start()
        size = packets * (_SIZE + 16) + _HEADER_BYTES
        self.daemon = Daemon(general=f"maxpackets = {packets}\nmaxbytes = {2 * size}\nmaxmemory = {4 * size}")
        stack.callback(self.daemon.stop)
        self.daemon.start()

    def pcapctl(self, *words: str) -> subprocess.Popen[bytes]:
        """Start pcapctl."""
        via = ("--via", f"http://127.0.0.1:{self.daemon.port}", "-i", self.wire.interface)
        return subprocess.Popen(
            [*_PCAPCTL, "capture", *via, *words, "-w", "-", "udp"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )

    def send(self, packets: int) -> int:
        """Send packets at the rate. How many were sent."""
        words = ["--packets", str(packets), "--size", str(_SIZE), "--rate", str(RATE), "--seconds", "120"]
        inside = ["ip", "netns", "exec", self.wire.namespace]
        done = subprocess.run(
            [*inside, sys.executable, str(_GENERATOR), self.wire.far, *words], check=True, capture_output=True
        )
        return int(json.loads(done.stdout)["sent"])

    def state(self) -> dict[str, object]:
        """That of the newest capture."""
        state: dict[str, object] = self.daemon.request("GET", "/captures")[1]["captures"][0]
        return state

    def waiting_bytes(self) -> int:
        """What is in the kernel's buffers of connections to the daemon."""
        shown = subprocess.run(
            ["ss", "-tn", f"sport = :{self.daemon.port} or dport = :{self.daemon.port}"],
            check=True,
            capture_output=True,
            text=True,
        )
        return sum(int(found[1]) + int(found[2]) for found in _QUEUE.finditer(shown.stdout))


def _wait_for_start(bench: _Bench) -> None:
    bench.daemon.until(
        lambda: bench.daemon.request("GET", "/captures?state=capturing")[1]["captures"] or None, "a capture"
    )


def _stream(bench: _Bench, packets: int, *, stalls: bool) -> _Streamed:
    """Stream a load into tshark."""
    client = bench.pcapctl("-c", str(packets))
    tshark = subprocess.Popen(
        [require_command("tshark", "tshark"), *"-n -r - -T fields -e udp.payload".split()],
        stdin=client.stdout,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert client.stdout is not None
    client.stdout.close()
    numbers = _Numbers(tshark)
    numbers.start()
    _wait_for_start(bench)
    pids = (bench.daemon.pid, client.pid)
    before = [usage.memory(pid)[0] for pid in pids]
    cpu_before = usage.cpu_seconds(bench.daemon.pid)
    if stalls:
        tshark.send_signal(signal.SIGSTOP)
    sent = bench.send(packets)
    grown = [usage.memory(pid)[0] - size for pid, size in zip(pids, before, strict=True)]
    grown.append(bench.waiting_bytes())
    tshark.send_signal(signal.SIGCONT)
    state = bench.daemon.done(str(bench.state()["id"]))
    cpus = [usage.cpu_seconds(bench.daemon.pid) - cpu_before]
    status, client_cpu = _end(client)
    numbers.join(_PATIENCE_SECONDS)
    cpus += [client_cpu, _end(tshark)[1]]
    return _Streamed(
        sent=sent,
        captured=int(state["packets"]),
        arrived=numbers.arrived,
        gaps=numbers.gaps,
        status=status,
        cpu=(cpus[0] / sent * 1e6, cpus[1] / sent * 1e6, cpus[2] / sent * 1e6),
        grown=(grown[0], grown[1], grown[2]),
    )


def _end(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait until a process has ended. Its exit status, and its CPU time in seconds."""
    _, status, spent = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, spent.ru_utime + spent.ru_stime


def _latencies(bench: _Bench) -> list[float]:
    """How long single packets take from the wire to the output of pcapctl, in seconds."""
    client = bench.pcapctl("-c", str(_SINGLE))
    assert client.stdout is not None
    output = client.stdout.fileno()
    _read(output, _HEADER_BYTES)
    took = []
    for number in range(_SINGLE):
        time.sleep(0.05)
        began = time.monotonic()
        bench.wire.send([udp_frame(number, _SIZE)])
        _read(output, 16)
        took.append(time.monotonic() - began)
        _read(output, _SIZE)
    _end(client)
    return took


def _read(descriptor: int, count: int) -> None:
    while count:
        data = os.read(descriptor, count)
        if not data:
            raise RuntimeError("pcapctl has ended")
        count -= len(data)


def _missed(bench: _Bench, packets: int) -> str:
    """What pcapctl reports if its reader goes on after the node has no longer the capture."""
    client = bench.pcapctl("-c", str(packets))
    _wait_for_start(bench)
    bench.send(packets)
    capture_id = str(bench.state()["id"])
    bench.daemon.done(capture_id)
    bench.daemon.file_of(capture_id).unlink()
    # Until the node has disconnected the reader.
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while bench.waiting_bytes() and time.monotonic() < deadline:
        time.sleep(1.0)
    _, errors = client.communicate()
    return f"status {client.returncode}: {errors.decode().splitlines()[-1]}"


def run(seconds: int | None = None) -> None:
    """
    Measure, and print the results.

    @param seconds: how long packets are sent; L{None} is 30.
    """
    packets = RATE * (seconds or SECONDS)
    rows, lost = [], 0
    with ExitStack() as stack:
        bench = _Bench(stack, packets)
        for name, stalls in (("reads", False), ("stalls until the end", True)):
            tell(f"streaming: tshark {name}")
            done = _stream(bench, packets, stalls=stalls)
            lost += done.sent - done.arrived + done.gaps
            rows.append(
                [
                    name,
                    *(f"{number:,}" for number in (done.sent, done.captured, done.arrived, done.gaps)),
                    *(f"{each:.2f}" for each in done.cpu),
                    *(f"{each / 1e6:.1f}" for each in done.grown),
                    str(done.status),
                ]
            )
        tell("streaming: single packets")
        took = _latencies(bench)
        tell("streaming: what is missed")
        missed = _missed(bench, packets // 5)
    tell("")
    print_table(
        f"Packets streamed into tshark: {_SIZE} B, {RATE:,}/s, load average {os.getloadavg()[0]:.1f}",
        (
            *("tshark", "sent", "captured", "arrived", "gaps"),
            *("daemon µs/packet", "pcapctl", "tshark"),
            *("daemon MB more", "pcapctl", "in sockets", "status"),
        ),
        rows,
    )
    print_target("no loss", f"{lost} packets lost or out of order", lost == 0)
    print_target(
        f"a packet arrives within {FIRST_SECONDS * 1e3:.0f} ms",
        f"median {median(took) * 1e3:.0f} ms, slowest {max(took) * 1e3:.0f} ms of {len(took)}",
        max(took) <= FIRST_SECONDS,
    )
    print(f"A reader that goes on too late: {missed}", flush=True)
