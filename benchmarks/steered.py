"""
What it costs a capture if many watch the daemon, and how much memory a daemon needs that can be watched.

300,000 packets of 128 bytes a second are captured by the daemon and by C{tcpdump -w} at the same time:

 - with nobody watching;
 - with one C{GET /metrics} a second, and 50 readers of C{/events};
 - the same, where one of the readers is the page, open in a headless Chromium;
 - the same, with twenty more captures that report their progress ten times a second, so that each reader gets
   210 events a second.

tcpdump shows what the machine has room for. Whoever watches needs CPU time, too, and Chromium most of it,
because it draws without a graphics card.

Captures and the generator are as in L{benchmarks.engines}.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median

from benchmarks import usage
from benchmarks.engines import Bench, Load, Round
from benchmarks.table import print_table, print_target, tell
from peers.audience import Audience, Watched
from peers.chromium import Chromium
from peers.daemon import Daemon
from peers.requirement import require_command

ROUNDS = 3
LOAD = Load(size=128, rate=300_000, snap_length=512, seconds=5.0)
READERS = 50
AT_REST_BYTES = 50_000_000

_OTHERS = 20
_PROGRESS_SECONDS = 0.1
_WINDOW = {"width": 1280, "height": 900}


@dataclass(frozen=True, kw_only=True)
class _Way:
    """
    How the daemon is watched.

    @ivar readers: of events, including the page.
    @ivar others: how many more captures run.
    @ivar progress_seconds: how often each reports its progress.
    """

    name: str
    readers: int = 0
    is_page_open: bool = False
    others: int = 0
    progress_seconds: float = 1.0


_WAYS = (
    _Way(name="alone"),
    _Way(name="scrapes, readers", readers=READERS),
    _Way(name="… and the page", readers=READERS, is_page_open=True),
    _Way(
        name="… and 210 events/s",
        readers=READERS,
        is_page_open=True,
        others=_OTHERS,
        progress_seconds=_PROGRESS_SECONDS,
    ),
)


@contextmanager
def _page(daemon: Daemon) -> Iterator[None]:
    """The page, open in a browser and live."""
    chromium = Chromium()
    try:
        chromium.start()
        page = chromium.visitor(viewport=_WINDOW).page
        page.goto(f"http://127.0.0.1:{daemon.port}/")
        page.locator("#link-text", has_text="Live").wait_for()
        yield
    finally:
        chromium.stop()


def _measure(bench: Bench, way: _Way) -> tuple[Round, Watched | None]:
    with ExitStack() as stack:
        if way.is_page_open:
            stack.enter_context(_page(bench.daemon))
        audience = None
        if way.readers:
            audience = Audience(bench.daemon.port, readers=way.readers - way.is_page_open)
            stack.callback(audience.stop)
            audience.start()
        done = bench.beside(LOAD)
        watched = audience and audience.finish()
    if watched and watched.problems:
        raise RuntimeError(f"not all were served: {watched.problems}")
    return done, watched


def run(rounds: int | None = None) -> None:
    """Measure, and print the results."""
    # Before minutes are spent on what can't be finished.
    require_command("chromium", "chromium")
    rows, fair, lost, at_rest = [], 0, 0, 0
    for way in _WAYS:
        with ExitStack() as stack:
            bench = Bench(stack, f"[reports]\nprogressinterval = {way.progress_seconds}\n")
            at_rest = max(at_rest, usage.memory(bench.daemon.pid)[0])
            for _ in range(way.others):
                bench.daemon.capture(
                    interface=["lo"], bpf="udp port 9", bytes=1000, duration=600, timeout=600
                )
            done = []
            for number in range(rounds or ROUNDS):
                tell(f"steered: {way.name}, round {number + 1}")
                done.append(_measure(bench, way))
            rows.append([way.name, *_figures(done), f"{usage.memory(bench.daemon.pid)[0] / 1e6:.1f}"])
        fair += sum(one.lost[1] == 0 for one, _ in done)
        lost += sum(one.lost[0] > 0 and one.lost[1] == 0 for one, _ in done)
    tell("")
    print_table(
        f"A capture that is watched: {LOAD}, load average {os.getloadavg()[0]:.1f}",
        (
            *("watched by", "sent/s", "lost", "tcpdump lost", "CPU µs/packet", "tcpdump"),
            *("events/s sent", "slowest scrape ms", "memory MB"),
        ),
        rows,
    )
    print_target(
        "no loss if tcpdump has none", f"loss in {lost} of the {fair} runs in which it had none", lost == 0
    )
    print_target(
        f"at most {AT_REST_BYTES / 1e6:.0f} MB at rest",
        f"{at_rest / 1e6:.1f} MB with HTTP and a local directory, before the first request",
        at_rest <= AT_REST_BYTES,
    )


def _figures(done: list[tuple[Round, Watched | None]]) -> list[str]:
    rounds = [one for one, _ in done]
    audiences = [watched for _, watched in done if watched is not None]
    events = [sum(one.events) / one.seconds for one in audiences]
    return [
        f"{median(one.rate for one in rounds):,.0f}",
        *(", ".join(f"{one.lost[who]:,}" for one in rounds) for who in (0, 1)),
        f"{median(one.ours.cpu for one in rounds):.3f}",
        f"{median(one.theirs.cpu for one in rounds):.3f}",
        f"{median(events):,.0f}" if events else "",
        f"{max(one.slowest for one in audiences) * 1000:.0f}" if audiences else "",
    ]
