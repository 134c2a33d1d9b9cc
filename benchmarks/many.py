"""
Many captures at once: what 32 of them cost beside 32 tcpdumps, and how soon all are armed.

The captures are on one interface, with the same traffic for each. Ours and tcpdump's are measured one after
the other, and take turns at going first. CPU time and memory are those of the whole daemon and of all
tcpdumps together; of memory that processes share, each counts its part (C{Pss} of proc(5)), and the files
that were captured don't count. A daemon that runs but captures nothing counts, too.

Requests are sent over HTTP, on connections that exist already, and all at once. The answer comes when
packets are kept. One request by itself is measured in the same way.

The client is one thread, which sends what was made before and reads the first line of each answer: clients
are other hosts, and their CPU time is not the daemon's. For the same reason, the daemon has had time to
accept the connections.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import usage
from benchmarks.engines import end_tcpdump, start_tcpdump
from benchmarks.table import print_table, print_target, tell
from peers.daemon import Daemon
from peers.requirement import require_command
from peers.wire import Wire

ROUNDS = 9
CAPTURES = 32
CPU_RATIO = 1.2
ARMED_RATIO = 4.0

_PACKETS = 100_000
_RATE = 100_000
_SIZE = 128
_FILE_BYTES = 24 + _PACKETS * (16 + _SIZE)
_RING_BYTES = 8 << 20
_SINGLE_REQUESTS = 9
_PATIENCE_SECONDS = 60.0
_ACCEPT_SECONDS = 0.2
_GENERATOR = Path(__file__).with_name("generator.py")


@dataclass(frozen=True, kw_only=True)
class Found:
    """
    The result of all captures of one kind.

    @ivar lost: packets that were sent, and are in no file: the sum over all captures.
    @ivar extra_bytes: the memory at the end, without the captures' size.
    """

    lost: int
    cpu_seconds: float
    extra_bytes: int


def run(rounds: int | None = None) -> None:
    """Measure, and print the results."""
    ours, theirs = [], []
    singles: list[float] = []
    alls: list[float] = []
    with ExitStack() as stack:
        wire = Wire()
        stack.callback(wire.stop)
        wire.start()
        daemon = Daemon(
            f"[capture]\nbuffersize = {_RING_BYTES}\n",
            general=f"maxpackets = 1000000\nmaxmemory = {4 << 30}",
        )
        stack.callback(daemon.stop)
        daemon.start()
        for number in range(rounds or ROUNDS):
            tell(f"many: round {number + 1}")
            for who in (0, 1) if number % 2 == 0 else (1, 0):
                if who == 0:
                    ours.append(_ours(daemon, wire))
                else:
                    theirs.append(_theirs(wire))
            single, together = _armed(daemon, wire)
            singles.append(single)
            alls.append(together)
    tell("")
    print_table(
        f"{CAPTURES} captures on one interface, {_SIZE} B, {_RATE:,}/s",
        ("who", "lost", "CPU µs/packet", "memory MB"),
        [_row("pcapsvc", ours), _row(f"{CAPTURES} × tcpdump", theirs)],
    )
    ratio = median(one.cpu_seconds / other.cpu_seconds for one, other in zip(ours, theirs, strict=True))
    print_target(f"CPU at most {CPU_RATIO} × tcpdump's", f"{ratio:.2f}", ratio <= CPU_RATIO)
    lost = [(one.lost, other.lost) for one, other in zip(ours, theirs, strict=True)]
    print_target("no more loss than tcpdump's", f"{lost}", all(one <= other for one, other in lost))
    ratio = median(together / single for single, together in zip(singles, alls, strict=True))
    print_target(
        f"{CAPTURES} requests armed within {ARMED_RATIO:g} × the time of one",
        f"{median(alls) * 1e3:.0f} ms, {ratio:.1f} × {median(singles) * 1e3:.0f} ms",
        ratio <= ARMED_RATIO,
    )


def _row(who: str, found: list[Found]) -> list[str]:
    return [
        who,
        f"{sum(one.lost for one in found) / (len(found) * CAPTURES * _PACKETS):.3%}",
        f"{median(one.cpu_seconds for one in found) / (CAPTURES * _PACKETS) * 1e6:.3f}",
        f"{max(one.extra_bytes for one in found) / 1e6:.0f}",
    ]


def _send(wire: Wire) -> None:
    subprocess.run(
        [
            *(require_command("ip", "iproute2"), "netns", "exec", wire.namespace),
            *(sys.executable, str(_GENERATOR), wire.far, "--size", str(_SIZE)),
            *("--packets", str(_PACKETS), "--rate", str(_RATE), "--seconds", "30"),
        ],
        stdout=subprocess.PIPE,
        check=True,
        timeout=_PATIENCE_SECONDS,
    )


def _memory(pid: int) -> int:
    """The memory of a process, in bytes; of what it shares, its part."""
    words = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(words[1]) * 1024 if words else 0


def _ours(daemon: Daemon, wire: Wire) -> Found:
    ids = [
        daemon.capture(interface=[wire.interface], packets=2 * _PACKETS, snap=_SIZE, timeout=60)
        for _ in range(CAPTURES)
    ]
    armed = usage.cpu_seconds(daemon.pid)
    _send(wire)
    # The last packets are handed over.
    time.sleep(0.2)
    memory = _memory(daemon.pid) + usage.memory_files(daemon.pid)
    spent = usage.cpu_seconds(daemon.pid) - armed
    lost = written = 0
    for each in ids:
        state = daemon.read(each)
        lost += _PACKETS - state["packets"]
        written += state["bytes"]
        daemon.file_of(each).unlink()
    return Found(lost=lost, cpu_seconds=spent, extra_bytes=memory - written)


def _theirs(wire: Wire) -> Found:
    with ExitStack() as stack:
        running = [
            start_tcpdump(stack, wire.interface, snap_length=_SIZE, ring_bytes=_RING_BYTES)
            for _ in range(CAPTURES)
        ]
        armed = sum(usage.cpu_seconds(process.pid) for process, _ in running)
        _send(wire)
        # It gets the last packets a second late.
        time.sleep(1.5)
        memory = sum(_memory(process.pid) for process, _ in running)
        spent = sum(usage.cpu_seconds(process.pid) for process, _ in running) - armed
        for process, _ in running:
            end_tcpdump(process)
        lost = sum((_FILE_BYTES - path.stat().st_size) // (16 + _SIZE) for _, path in running)
        return Found(lost=lost, cpu_seconds=spent, extra_bytes=memory)


def _armed(daemon: Daemon, wire: Wire) -> tuple[float, float]:
    """The seconds until one request is answered, at the median, and until all of many at once are."""
    singles = []
    for _ in range(_SINGLE_REQUESTS):
        singles.append(_request_all(daemon, wire, 1))
        time.sleep(0.1)
    # Until the captures are over, and their handles are closed.
    time.sleep(1.5)
    together = _request_all(daemon, wire, CAPTURES)
    time.sleep(1.5)
    return median(singles), together


def _request_all(daemon: Daemon, wire: Wire, count: int) -> float:
    fields = {"node": daemon.node, "interface": [wire.interface], "duration": 1, "bytes": 10_000}
    body = json.dumps(fields).encode()
    head = f"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    request = b"POST /captures HTTP/1.1\r\n" + head.encode() + b"\r\n" + body
    address = ("127.0.0.1", daemon.port)
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        connections = [
            stack.enter_context(socket.create_connection(address, timeout=_PATIENCE_SECONDS))
            for _ in range(count)
        ]
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ, connection)
        time.sleep(_ACCEPT_SECONDS)
        began = time.monotonic()
        for connection in connections:
            connection.sendall(request)
        while selector.get_map():
            ready = selector.select(_PATIENCE_SECONDS)
            if not ready:
                raise RuntimeError(f"{len(selector.get_map())} requests were not answered")
            for key, _ in ready:
                answer = key.data.recv(65536)
                if not answer.startswith(b"HTTP/1.1 202 "):
                    raise RuntimeError(f"not all requests were accepted: {answer!r}")
                selector.unregister(key.data)
        return time.monotonic() - began
