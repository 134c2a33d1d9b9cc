"""
Leaks: what grows in a daemon that records interfaces which come and go, and is asked for their past.

There is little traffic, and there are many requests: of random length, with and without filters and limits,
for one interface or several, some of which are down or gone. Interfaces go down and up, and are deleted and
created again, when another one has the old index. The figures are related to the number of requests.
"""

from __future__ import annotations

import json
import random
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

from benchmarks.soak import Sample, report, sample
from benchmarks.table import print_table, print_target, tell
from pcapsvc.captures import REMEMBERED_CAPTURES
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.wire import Wire

MINUTES = 30.0

_WIRES = 3
_INTERVALS = 12
# So little that all memory is in use long before the end of the first quarter, and from then on.
_HISTORY_SECONDS = 10
_HISTORY_BYTES = 4 << 20
_PACKETS_EACH = 200
_PORTS = (9, 53, 80)
_PAUSE_SECONDS = 0.1
# One of so many turns takes an interface down, or up; and one deletes it, or creates it.
_DOWN_EACH, _DELETE_EACH = 15, 40
_REST_SECONDS = 2.0
_PATIENCE_SECONDS = 60.0


class _Interfaces:
    """The wires, each of which is up, down, or deleted."""

    def __init__(self, stack: ExitStack) -> None:
        self.wires = [Wire() for _ in range(_WIRES)]
        self.changes = 0
        self._states = ["up"] * _WIRES
        for wire in self.wires:
            stack.callback(wire.stop)
            wire.start()

    def change(self) -> None:
        """Perhaps change the state of one of them."""
        at = random.randrange(_WIRES)
        wire, state = self.wires[at], self._states[at]
        if random.randrange(_DELETE_EACH) == 0 or (state == "deleted" and random.randrange(5) == 0):
            new = "up" if state == "deleted" else "deleted"
            wire.make() if new == "up" else wire.delete()
        elif state != "deleted" and (random.randrange(_DOWN_EACH) == 0 or state == "down"):
            new = "down" if state == "up" else "up"
            wire.down() if new == "down" else wire.up()
        else:
            return
        self._states[at] = new
        self.changes += 1

    def restore(self) -> None:
        """Have all of them up."""
        for at, (wire, state) in enumerate(zip(self.wires, self._states, strict=True)):
            if state == "deleted":
                wire.make()
            elif state == "down":
                wire.up()
            self._states[at] = "up"

    def send(self) -> None:
        """Send some packets over each that is up."""
        for wire, state in zip(self.wires, self._states, strict=True):
            if state == "up":
                with suppress(OSError):
                    wire.send([udp_frame(at, 256, port) for at in range(_PACKETS_EACH) for port in _PORTS])


def run(minutes: float | None = None) -> None:
    """Ask for the past of interfaces that come and go, and print what grows."""
    seconds = (minutes or MINUTES) * 60
    samples: list[Sample] = []
    answers: dict[int, int] = {}
    with ExitStack() as stack:
        interfaces = _Interfaces(stack)
        sections = "".join(
            f'[[interface]]\nname = "{wire.interface}"\nhistory = {_HISTORY_SECONDS}\n'
            f"historysize = {_HISTORY_BYTES}\n"
            for wire in interfaces.wires
        )
        daemon = Daemon(f"[capture]\nbuffersize = 1048576\n{sections}", general="maxcaptures = 64")
        stack.callback(daemon.stop)
        daemon.start()
        began = time.monotonic()
        for number in range(_INTERVALS):
            until = began + seconds * (number + 1) / _INTERVALS - _REST_SECONDS
            while time.monotonic() < until:
                interfaces.change()
                interfaces.send()
                asking = threading.Thread(target=_ask, args=(daemon, interfaces.wires, answers))
                asking.start()
                time.sleep(_PAUSE_SECONDS)
                asking.join()
            interfaces.restore()
            _wait_for_captures(daemon)
            time.sleep(_REST_SECONDS)
            samples.append(sample(daemon, sum(answers.values())))
            for path in daemon.captures.glob("*.pcap"):
                path.unlink()
            tell(f"remembering: {samples[-1]}")
        _, told = daemon.request("GET", "/interfaces")
        named = {wire.interface for wire in interfaces.wires}
        working = [each["history"] for each in told["interfaces"] if each["name"] in named]
        faults = daemon.log.count("#error]") + daemon.log.count("#critical]") + daemon.log.count("Traceback")
    tell("")
    words = ", ".join(f"{count:,} answered {status}" for status, count in sorted(answers.items()))
    title = f"{seconds / 60:g} minutes with {interfaces.changes:,} changes of interfaces; requests: {words}"
    report(title, "requests", samples, REMEMBERED_CAPTURES)
    thirds = samples[: _INTERVALS // 3], samples[-(_INTERVALS // 3) :]
    print()
    print_table(
        "On average",
        ("", "descriptors", "threads", "resident, MiB"),
        [_row(name, third) for name, third in zip(("first third", "last third"), thirds, strict=True)],
    )
    recording = sum(history is not None and history["problem"] is None for history in working)
    print_target("every history is recorded at the end", f"{recording} of {_WIRES}", recording == _WIRES)
    print_target("no error in the log", str(faults), faults == 0)


def _row(name: str, samples: list[Sample]) -> list[str]:
    count = len(samples)
    return [
        name,
        f"{sum(one.descriptors for one in samples) / count:.1f}",
        f"{sum(one.threads for one in samples) / count:.1f}",
        f"{sum(one.resident for one in samples) / count / 1024:.1f}",
    ]


def _ask(daemon: Daemon, wires: list[Wire], answers: dict[int, int]) -> None:
    """Make a random request. It is rejected if the interface is gone, and nothing of it was recorded."""
    chosen = random.sample(wires, random.choice((1, 1, 1, _WIRES)))
    message: dict[str, Any] = {
        "node": daemon.node,
        "interface": [wire.interface for wire in chosen],
        "before": random.randrange(1, 2 * _HISTORY_SECONDS),
        "duration": random.randrange(1, 3),
        "bpf": random.choice(("", f"udp dst port {random.choice(_PORTS)}", "tcp")),
    }
    if random.random() < 0.5:
        message["pastonly"] = True
    if random.random() < 0.3:
        message["packets"] = random.randrange(1, 1000)
    if random.random() < 0.3:
        message["snap"] = random.choice((40, 100))
    status, _ = daemon.request("POST", "/captures", json.dumps(message).encode())
    answers[status] = answers.get(status, 0) + 1


def _wait_for_captures(daemon: Daemon) -> None:
    """Wait until no capture is running."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        _, told = daemon.request("GET", "/captures")
        if all(each["state"] in ("done", "failed") for each in told["captures"]):
            return
        if time.monotonic() > deadline:
            raise RuntimeError("captures did not end")
        time.sleep(0.1)
