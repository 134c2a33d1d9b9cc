"""
How long it takes from a request to the first captured packet.

Numbered packets arrive all the time, about one every tenth of a millisecond. The kernel's time stamp of the
first packet after which none is missing in the file tells when the capture was armed, to within the pause
between two packets. So no program has to report that it is ready. The request is timed by the same clock.

Our time begins with PUBLISH on a real redis-server, and is measured with a standby handle on the interface
(C{[capture] standby}) and without one. tcpdump's time begins with the call that starts its process. Kernels
differ, because setsockopt(2) and bind(2) spend most of the time waiting for an RCU grace period. So all are
measured in the same run.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

from benchmarks.publisher import Publisher
from benchmarks.table import print_table, print_target, tell
from pcapsvc.packets.standby import REPLACE_SECONDS
from peers.daemon import Daemon
from peers.frames import number_of
from peers.process import OwnProcess
from peers.redis import RedisServer
from peers.requirement import require_command
from peers.tcpdump import Packet, read_packets
from peers.wire import Wire

ROUNDS = 100
ARMED_SECONDS = 0.003

# A round of tcpdump takes up to a second, because the kernel may hold back a block for that long.
_OURS_FOR_ONE_OF_THEIRS = 4
_PACKETS = 20
_TURN_SECONDS = 0.00005
_LONGEST_SECONDS = 300
_PATIENCE_SECONDS = 15.0
_GENERATOR = Path(__file__).with_name("generator.py")
_FILTERS = {"no filter": "", "a filter": "udp port 9 and net 192.0.2.0/24"}


def run(rounds: int | None = None) -> None:
    """Measure, and print the results."""
    rounds = rounds or ROUNDS
    ours: dict[str, list[float]] = {}
    waiting: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    pauses: list[float] = []
    with ExitStack() as stack:
        wire, redis = Wire(), RedisServer()
        stack.callback(wire.stop)
        wire.start()
        stack.callback(redis.stop)
        redis.start()
        daemon = _daemon(stack, redis, "cold")
        ready = _daemon(stack, redis, "ready", f'[capture]\nstandby = ["{wire.interface}"]\n')
        publisher = Publisher(redis.port)
        stack.callback(publisher.close)
        _keep_sending(stack, wire)
        for words, bpf in _FILTERS.items():
            ours[words], waiting[words], theirs[words] = [], [], []
            for number in range(rounds):
                tell(f"armed: {words}, round {number + 1}")
                # Not in step with any timer.
                time.sleep(random.uniform(0.01, 0.05))
                ours[words].append(_round(lambda b=bpf: _ours(daemon, publisher, wire, b), pauses))
                # Until the standby handle that the last round took is replaced.
                time.sleep(REPLACE_SECONDS + random.uniform(0.05, 0.1))
                waiting[words].append(_round(lambda b=bpf: _ours(ready, publisher, wire, b), pauses))
                if number % _OURS_FOR_ONE_OF_THEIRS == 0:
                    theirs[words].append(_round(lambda b=bpf: _theirs(wire, b), pauses))
    tell("")
    print_table(
        f"From a request to the first packet, in milliseconds; one packet every {median(pauses) * 1e3:.2f}",
        ("from", "median", "9 of 10 within", "minimum", "rounds"),
        [
            _row(f"{who}, {words}", seconds)
            for who, found in (
                ("PUBLISH", ours),
                ("PUBLISH, standby handle", waiting),
                ("starting tcpdump", theirs),
            )
            for words, seconds in found.items()
        ],
    )
    for how, found in (("", ours), (", with a standby handle", waiting)):
        slowest = max(median(seconds) for seconds in found.values())
        print_target(
            f"armed within {ARMED_SECONDS * 1e3:.0f} ms at the median{how}",
            f"{slowest * 1e3:.1f} ms",
            slowest <= ARMED_SECONDS,
        )


def _daemon(stack: ExitStack, redis: RedisServer, node: str, more: str = "") -> Daemon:
    configuration = f'[redis]\nlisten = true\nhost = "127.0.0.1"\nport = {redis.port}\n{more}'
    daemon = Daemon(configuration, node=node)
    stack.callback(daemon.stop)
    daemon.start()
    daemon.logged("subscribed")
    return daemon


def _row(name: str, seconds: list[float]) -> list[str]:
    most = quantiles(seconds, n=10)[-1] if len(seconds) > 1 else seconds[0]
    figures = (median(seconds), most, min(seconds))
    return [name, *(f"{value * 1e3:.1f}" for value in figures), str(len(seconds))]


def _keep_sending(stack: ExitStack, wire: Wire) -> None:
    generator = OwnProcess("generator")
    stack.callback(generator.clean_up)
    rate, seconds = round(1 / _TURN_SECONDS), _LONGEST_SECONDS
    generator.start(
        [
            *(require_command("ip", "iproute2"), "netns", "exec", wire.namespace),
            *(sys.executable, str(_GENERATOR), wire.far, "--packets", str(rate * seconds)),
            *("--rate", str(rate), "--turn", str(_TURN_SECONDS), "--seconds", str(seconds)),
        ],
        lambda: _has_received(wire.interface),
    )


def _has_received(interface: str) -> bool:
    return int(Path(f"/sys/class/net/{interface}/statistics/rx_packets").read_text()) > 0


def _round(capture: Callable[[], tuple[float, list[Packet]]], pauses: list[float]) -> float:
    """The seconds from the request to the first packet after which none is missing."""
    asked, packets = capture()
    # Setting a filter leaves a gap after the packets that were captured before (pcap-linux.c).
    numbers = [number_of(packet.data) for packet in packets]
    at = max((at for at in range(1, len(numbers)) if numbers[at] != numbers[at - 1] + 1), default=0)
    times = [packet.seconds + packet.fraction / 1e6 for packet in packets[at:]]
    if len(times) > 1:
        pauses.append((times[-1] - times[0]) / (len(times) - 1))
    return times[0] - asked


def _ours(daemon: Daemon, publisher: Publisher, wire: Wire, bpf: str) -> tuple[float, list[Packet]]:
    request = {"node": daemon.node, "interface": [wire.interface], "packets": _PACKETS, "bpf": bpf}
    command = publisher.command(json.dumps(request).encode())
    asked = time.time()
    publisher.publish([command])
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (files := list(daemon.captures.glob("[!.]*.pcap"))):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no capture arrived:\n{daemon.log}")
        time.sleep(0.005)
    packets = read_packets(files[0])
    files[0].unlink()
    return asked, packets


def _theirs(wire: Wire, bpf: str) -> tuple[float, list[Packet]]:
    process = OwnProcess("tcpdump")
    try:
        path = process.directory / "tcpdump.pcap"
        command = [
            *(require_command("tcpdump", "tcpdump"), "-i", wire.interface, "-n", "-Z", "root", "-B", "8192"),
            *("-s", "512", "-c", str(_PACKETS), "-w", str(path), *([bpf] if bpf else [])),
        ]
        asked = time.time()
        process.start(command, lambda: True)
        process.wait(_PATIENCE_SECONDS)
        return asked, read_packets(path)
    finally:
        process.clean_up()
