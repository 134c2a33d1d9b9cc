"""
The capture engine compared with C{tcpdump -w}: loss, CPU time per packet, and memory.

What is compared is in L{benchmarks.engines}. Each load is measured in two ways, and each figure is the median
of the rounds:

 - I{beside}: both capture the same packets at the same time. On two CPUs they share the one that the
   generator leaves. So this is the harder way, and the one in which losses can be compared.
 - I{alone}: one after the other, each with a CPU to itself. They take turns at going first.

CPU time begins when a capture is armed. Ours ends when its file is complete; I{delivered} adds the copy into
the directory. tcpdump's ends with its process. What the kernel does when a packet arrives counts for the
generator in both cases.

Memory is the peak resident size plus the size of the memory file, minus the size of the capture.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

from benchmarks import usage
from benchmarks.engines import Bench, DaemonCapture, Found, Load, Round, TcpdumpCapture
from benchmarks.table import print_table, print_target, tell

ROUNDS = 3
MEMORY_BYTES = 60_000_000

LOADS = (
    Load(size=128, rate=300_000, snap_length=512),
    Load(size=128, rate=None, snap_length=512),
    Load(size=1400, rate=300_000, snap_length=512),
    Load(size=1400, rate=None, snap_length=512),
    Load(size=1400, rate=300_000, snap_length=65535),
    Load(size=128, rate=300_000, snap_length=262144),
    Load(size=1400, rate=300_000, snap_length=262144),
)

_LARGEST_SNAP = 262144
# How many times tcpdump's CPU time per packet ours may be, at the median, and for which loads.
CPU_RATIOS: dict[str, tuple[float, Callable[[Load], bool]]] = {
    "128 B": (1.1, lambda load: load.size == 128 and load.snap_length < _LARGEST_SNAP),
    "1,400 B": (1.2, lambda load: load.size == 1400 and load.snap_length < _LARGEST_SNAP),
    "snap length 262144": (1.5, lambda load: load.snap_length == _LARGEST_SNAP),
}

# The columns of CPU time per packet.
_CPU: tuple[Callable[[Round], float], ...] = (
    lambda one: one.ours.cpu,
    lambda one: one.ours.delivered_cpu,
    lambda one: one.theirs.cpu,
)


def _alone(bench: Bench, load: Load, number: int) -> Round:
    """Measure one after the other; the order changes from round to round."""
    packets = load.packets
    sent, rates = [0, 0], [0.0, 0.0]
    found: list[Found | None] = [None, None]
    for who in (0, 1) if number % 2 == 0 else (1, 0):
        with ExitStack() as stack:
            one = (
                DaemonCapture(bench.daemon, bench.wire.interface, load, packets)
                if who == 0
                else TcpdumpCapture(stack, bench.wire.interface, load)
            )
            sent[who], rates[who] = bench.send(load, packets)
            found[who] = one.finish()
    ours, theirs = found
    assert ours is not None and theirs is not None
    return Round(sent=(sent[0], sent[1]), rate=min(rates), ours=ours, theirs=theirs)


def run(rounds: int | None = None) -> None:
    """Measure, and print the results."""
    rows: list[list[str]] = []
    all_rounds: list[Round] = []
    ratios: list[tuple[Load, float]] = []
    with ExitStack() as stack:
        bench = Bench(stack)
        at_rest = usage.memory(bench.daemon.pid)[0]
        for load in LOADS:
            for way in ("beside", "alone"):
                done = []
                for number in range(rounds or ROUNDS):
                    tell(f"capture: {load}, {way}, round {number + 1}")
                    done.append(bench.beside(load) if way == "beside" else _alone(bench, load, number))
                all_rounds += done
                ratio = median(one.ours.cpu / one.theirs.cpu for one in done)
                ratios.append((load, ratio))
                rows.append([str(load), way, *_figures(done, ratio, at_rest)])
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
    for words, (most_allowed, belongs) in CPU_RATIOS.items():
        found = [ratio for load, ratio in ratios if belongs(load)]
        print_target(
            f"CPU per packet at most {most_allowed} × tcpdump's, {words}",
            f"{min(found):.2f} to {max(found):.2f}",
            max(found) <= most_allowed,
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
        *(f"{median(find(one) for one in rounds):.3f}" for find in _CPU),
        f"{ratio:.2f}",
        f"{extra / 1e6:.1f}",
        f"{(extra - at_rest) / 1e6:+.1f}",
    ]
