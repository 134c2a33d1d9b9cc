"""
What it takes to make a pcapng file of a recording, and what other captures notice of it.

First a recording is encoded and read in this process, with nothing else to do, as often as there are rounds.
Its CPU time is the kernel's, too: to find out how large the file becomes, and to make it. Beside it is what
the kernel alone takes to copy the recording into new memory, as it would have to if the file were kept.

Then the daemon captures 300,000 packets of 128 bytes a second twice at the same time, beside C{tcpdump -w}.
One capture ends with its 1,500,000th packet, and is encoded, while the other one goes on for as long again.
It is measured how long anything held up the reactor, and how many packets the other one has lost. The same is
done with files that need not be encoded.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from msgspec.structs import replace
from twisted.internet.defer import maybeDeferred

from benchmarks.engines import Bench, Load, TcpdumpCapture
from benchmarks.held import Held
from benchmarks.table import print_table, print_target, tell
from pcapsvc.core.pcap_file import file_header
from pcapsvc.core.recording import Content, Recording
from pcapsvc.encoders.pcapng.describe import Origin
from pcapsvc.encoders.pcapng.encoder import PcapngEncoder
from pcapsvc.memory_file import MemoryFile
from tests.core.test_artifact import recording

ROUNDS = 3
MICROSECONDS = 0.5
LOAD = Load(size=128, rate=300_000, snap_length=512, seconds=10.0)
ENCODED_PACKETS = 1_500_000

# By name: how many packets, and the sizes that they have, in bytes.
_KINDS = {
    "128 bytes": (1_500_000, (128,)),
    "60 to 1,514 bytes": (500_000, (60, 66, 74, 128, 590, 1400, 1514)),
    "1,400 bytes": (200_000, (1400,)),
}
_RECORD = struct.Struct("=IIII")
_CHUNK_PACKETS = 1000
_CHUNK_BYTES = 1 << 20
_NOWHERE = Origin(hardware="", operating_system="", application="")
_WATCHED = Path(__file__).with_name("held.py")
_PATIENCE_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class _Live:
    """
    What became of the captures.

    @ivar lost: the packets that the other capture has lost, and tcpdump.
    @ivar held: the longest time that the reactor was held up, in seconds.
    """

    rate: float
    lost: tuple[int, int]
    held: float


def run(rounds: int | None = None) -> None:
    """Measure, and print the results."""
    rows, dearest = [], 0.0
    for name, (packets, sizes) in _KINDS.items():
        recorded = _recorded(packets, sizes)
        try:
            tell(f"encoding: {name}")
            done = [_encode(recorded) for _ in range(rounds or ROUNDS)]
            copied = [_copy(recorded) for _ in range(rounds or ROUNDS)]
        finally:
            recorded.content.close()
        each = [median(seconds) / packets * 1e6 for seconds in zip(*done, strict=True)]
        dearest = each[0] if len(sizes) == 1 and not dearest else dearest
        alone = median(copied) / packets * 1e6
        rows.append([name, f"{packets:,}", *(f"{value:.3f}" for value in (*each, alone))])
    tell("")
    print_table(
        f"To make a pcapng file, in microseconds for each packet: load average {os.getloadavg()[0]:.1f}",
        ("packets of", "packets", "CPU", "time", "size alone", "copied by the kernel alone"),
        rows,
    )
    print_target(
        f"at most {MICROSECONDS} µs of CPU time per packet of 128 bytes",
        f"{dearest:.3f} µs",
        dearest <= MICROSECONDS,
    )
    print()
    _run_live(rounds or ROUNDS)


def _run_live(rounds: int) -> None:
    rows, lost, fair, held = [], 0, 0, 0.0
    for name in ("pcap", "pcapng"):
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pcapsvc-")))
            watch = Held(directory / "held")
            wrapper = (sys.executable, str(_WATCHED), str(directory / "held"))
            bench = Bench(stack, general=f'format = "{name}"', wrapper=wrapper)
            done = []
            for number in range(rounds):
                tell(f"encoding: captures as {name}, round {number + 1}")
                done.append(_live(bench, watch))
        rows.append(
            [
                name,
                f"{median(one.rate for one in done):,.0f}",
                *(", ".join(f"{one.lost[who]:,}" for one in done) for who in (0, 1)),
                ", ".join(f"{one.held * 1e3:.0f}" for one in done),
            ]
        )
        fair = sum(one.lost[1] == 0 for one in done)
        lost = sum(one.lost[0] > 0 and one.lost[1] == 0 for one in done)
        held = max(one.held for one in done)
    tell("")
    print_table(
        f"A capture while {ENCODED_PACKETS:,} packets of another one are encoded: {LOAD}, load average"
        f" {os.getloadavg()[0]:.1f}",
        ("delivered as", "sent/s", "lost", "tcpdump lost", "reactor held up ms"),
        rows,
    )
    print_target(
        "no loss if tcpdump has none", f"loss in {lost} of the {fair} runs in which it had none", lost == 0
    )
    print(f"the reactor was held up for {held * 1e3:.0f} ms at most while a file was encoded")


def _recorded(packets: int, sizes: tuple[int, ...]) -> Recording:
    """A recording in memory."""
    content = MemoryFile("pcapsvc-encoding")
    content.write_at(0, file_header(1, 65535))
    chance, number = random.Random(1), 0

    def records() -> Iterator[bytes]:
        for at in range(number, min(number + _CHUNK_PACKETS, packets)):
            size = chance.choice(sizes)
            yield _RECORD.pack(1_700_000_000 + at // 300_000, at % 300_000 * 3, size, size) + bytes(size)

    while number < packets:
        content.write_at(content.size, b"".join(records()))
        number += _CHUNK_PACKETS
    return replace(recording(), content=content, packets=packets)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """What it takes, in seconds: the CPU time, and the time."""
    cpu, began = time.thread_time(), time.monotonic()
    work()
    return time.thread_time() - cpu, time.monotonic() - began


def _encode(recorded: Recording) -> tuple[float, float, float]:
    """What it takes: the CPU time, the time, and the part of the CPU time for which its size is found out."""
    # Where it runs makes no difference to how much it takes.
    encoder = PcapngEncoder(maybeDeferred, origin=_NOWHERE)
    encoded: list[Content] = []
    sized, first = _timed(lambda: encoder.encode(recorded).addCallback(encoded.append))
    # It is made when it is read.
    made, then = _timed(lambda: _read(*encoded))
    return sized + made, first + then, sized


def _read(content: Content) -> None:
    with content.open() as file:
        while file.read(_CHUNK_BYTES):
            pass


def _copy(recorded: Recording) -> float:
    """How much CPU time the kernel takes to copy a recording, in seconds."""
    content = recorded.content
    assert isinstance(content, MemoryFile)
    copy = MemoryFile("pcapsvc-encoding")

    def work() -> None:
        at = 0
        while count := os.sendfile(copy.descriptor, content.descriptor, at, _CHUNK_BYTES):
            at += count

    spent, _ = _timed(work)
    copy.close()
    return spent


def _live(bench: Bench, watch: Held) -> _Live:
    daemon, interface, sent = bench.daemon, bench.wire.interface, (0, 0.0)

    def send() -> None:
        nonlocal sent
        sent = bench.send(LOAD, LOAD.packets)

    with ExitStack() as stack:
        theirs = TcpdumpCapture(stack, interface, LOAD)
        of_both = {"interface": [interface], "snap": LOAD.snap_length, "timeout": 3}
        first = daemon.capture(packets=ENCODED_PACKETS, **of_both)
        other = daemon.capture(packets=10**9, **of_both)
        sender = threading.Thread(target=send)
        watch.begin()
        sender.start()
        sender.join(_PATIENCE_SECONDS)
        daemon.done(first)
        held = watch.end()
        state = daemon.done(other)
        found = theirs.finish()
    for capture in (first, other):
        daemon.file_of(capture).unlink()
    packets, rate = sent
    return _Live(rate=rate, lost=(packets - state["packets"], packets - found.packets), held=held)
