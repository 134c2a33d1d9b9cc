"""
Leaks: what grows in a daemon that loses its brokers again and again, or captures all day.

It does in minutes what a day of polling does, and takes thousands of captures. The figures are read at
intervals, each after a moment of rest, and are related to the number of reconnections or captures: a leak is
an amount per reconnection, or per capture. The first quarter doesn't count, because threads are started and
buffers grow when they are first needed. Nor do the first thousand captures, because that many are remembered.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import linear_regression

from benchmarks import usage
from benchmarks.cutter import Cutter
from benchmarks.publisher import CHANNEL
from benchmarks.table import print_table, print_target, tell
from pcapsvc.captures import REMEMBERED_CAPTURES
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.kafka import KafkaBroker
from peers.redis import RedisServer
from peers.sqs import SQSServer
from peers.wire import Wire

MINUTES = 15.0
CAPTURES = 10_000

_INTERVALS = 12
_LEAST_SAMPLES = 4
_IMPATIENT = Path(__file__).with_name("impatient.py")
_TOPIC = "requests"
_PATIENCE_SECONDS = 60.0

# Until all are connected again, whatever their last failure was.
_REST_SECONDS = 3.0
# How long the sources are refused, and how long they are not answered: longer than any of them waits.
_REFUSED_SECONDS = (0.2, 2.0)
_SILENT_SECONDS = 6.0
# The usual pause between failures: enough to connect again.
_TURN_SECONDS = 0.25
# One of this many intervals has a silence in it.
_SILENT_EACH = 4

# How many captures run at the same time; one packet ends them all.
_AT_ONCE = 8
_PORT = 9
_FILTERS = {"no filter": "", "a filter": f"udp port {_PORT} and net 192.0.2.0/24"}

# The growth per thousand reconnections or captures that counts as flat.
_FLAT = {"descriptors": 1.0, "threads": 1.0, "resident": 1024.0}


@dataclass(frozen=True)
class Sample:
    """
    The resources of a daemon.

    @ivar events: how many reconnections or captures there have been.
    @ivar resident: the resident size, in KiB.
    """

    events: int
    descriptors: int
    threads: int
    resident: float


def sample(daemon: Daemon, events: int) -> Sample:
    """The resources of a daemon now."""
    return Sample(
        events,
        len(os.listdir(f"/proc/{daemon.pid}/fd")),
        len(os.listdir(f"/proc/{daemon.pid}/task")),
        usage.memory(daemon.pid)[0] / 1024,
    )


def run(minutes: float | None = None) -> None:
    """Lose the brokers again and again, and print what grows."""
    seconds = (minutes or MINUTES) * 60
    with ExitStack() as stack:
        # Each broker, and the proxy in front of it that the daemon connects to.
        cutters = {name: Cutter() for name in ("redis", "kafka", "sqs")}
        for cutter in cutters.values():
            stack.callback(cutter.stop)
        redis, kafka, sqs = RedisServer(), _KafkaBehind(cutters["kafka"].port), SQSServer()
        ports = {"redis": redis.port, "kafka": _port(kafka.server), "sqs": _port(sqs.endpoint)}
        for name, cutter in cutters.items():
            cutter.start(ports[name])
            cutter.accept()
        for peer in (redis, kafka, sqs):
            stack.callback(peer.stop)
            peer.start()
        kafka.create_topic(_TOPIC)
        queue = sqs.create_queue(_TOPIC)
        daemon = Daemon(
            f'[redis]\nlisten = true\nhost = "127.0.0.1"\nport = {cutters["redis"].port}\n'
            f'[kafka]\nlisten = true\nserver = ["127.0.0.1:{cutters["kafka"].port}"]\ntopic = "{_TOPIC}"\n'
            f'[sqs]\nlisten = true\nurl = "{queue}"\naccessid = "a"\naccesskey = "b"\nwaitseconds = 1\n'
            f'endpoint = "http://127.0.0.1:{cutters["sqs"].port}"\n'
        )
        stack.callback(daemon.stop)
        for cutter in cutters.values():
            cutter.refuse()
        daemon.start(sys.executable, str(_IMPATIENT))

        def ask(mark: str) -> int:
            """Send an invalid request through each source. Return how many rejections were logged."""
            requests = {each: json.dumps({"node": daemon.node, f"{mark}-{each}": 1}) for each in cutters}
            redis.publish(CHANNEL, requests["redis"].encode())
            kafka.produce(_TOPIC, [requests["kafka"].encode()])
            sqs.send(queue, [requests["sqs"]])
            return sum(_comes(lambda words=f"{mark}-{name}": words in daemon.log) for name in cutters)

        # As long as it is refused, it starts again each time.
        time.sleep(3 * _REFUSED_SECONDS[1])
        for cutter in cutters.values():
            cutter.accept()
        samples: list[Sample] = []
        answered = asked = 0
        began = time.monotonic()
        for number in range(_INTERVALS):
            _fail(list(cutters.values()), began + seconds * (number + 1) / _INTERVALS - _REST_SECONDS, number)
            time.sleep(_REST_SECONDS)
            answered += ask(f"mark{number}")
            asked += len(cutters)
            samples.append(sample(daemon, sum(cutter.connections for cutter in cutters.values())))
            tell(f"soak: {samples[-1]}")
        tell("")
        reconnections = ", ".join(f"{name} {cutter.connections:,}" for name, cutter in cutters.items())
        faults = daemon.log.count("Traceback")
    report(f"{seconds / 60:g} minutes with connections cut: {reconnections}", "connections", samples)
    print_target(
        "every source works after each interval", f"{answered} of {asked} requests", answered == asked
    )
    print_target("no error in the log", str(faults), faults == 0)


def run_captures(captures: int | None = None) -> None:
    """Capture again and again, without a filter and with one, and print what grows."""
    each = max(1, (captures or CAPTURES) // len(_FILTERS) // _INTERVALS // _AT_ONCE) * _AT_ONCE
    for words, bpf in _FILTERS.items():
        with ExitStack() as stack:
            wire = Wire()
            stack.callback(wire.stop)
            wire.start()
            daemon = Daemon("[capture]\nbuffersize = 1048576\n", general="maxrequestrate = 0")
            stack.callback(daemon.stop)
            daemon.start()
            client = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=_PATIENCE_SECONDS)
            stack.callback(client.close)
            samples: list[Sample] = []
            done = 0
            began = time.monotonic()
            for _ in range(_INTERVALS):
                for _ in range(each // _AT_ONCE):
                    _capture(client, daemon, wire, bpf)
                    done += _AT_ONCE
                # Until the threads that close and write are done.
                time.sleep(0.5)
                samples.append(sample(daemon, done))
                tell(f"captures, {words}: {samples[-1]}")
            rate = done / (time.monotonic() - began)
            left = usage.memory_files(daemon.pid)
            faults = daemon.log.count("#error]") + daemon.log.count("#critical]")
        tell("")
        title = f"{done:,} captures of a packet with {words}, {_AT_ONCE} at once, {rate:.0f} a second"
        report(title, "captures", samples, REMEMBERED_CAPTURES)
        print_target("no memory file is left", f"{left} bytes", left == 0)
        print_target("no error in the log", str(faults), faults == 0)
        print()


class _KafkaBehind(KafkaBroker):
    """A broker that advertises another port to its clients."""

    def __init__(self, port: int) -> None:
        self._told = f"127.0.0.1:{port}"
        super().__init__()

    def _write(self, settings: dict[str, str]) -> None:  # type: ignore[override]
        name = "advertised.listeners"
        super()._write({**settings, name: settings[name].replace(self.server, self._told)})


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _comes(condition: Callable[[], bool]) -> bool:
    """Wait for a condition. Return whether it came true in time."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _fail(cutters: Sequence[Cutter], until: float, interval: int) -> None:
    """Fail in all ways, one after the other, until C{until}; then work again."""
    if interval % _SILENT_EACH == _SILENT_EACH - 1:
        for cutter in cutters:
            cutter.silence(on=True)
        time.sleep(_SILENT_SECONDS)
        for cutter in cutters:
            cutter.silence(on=False)
    while time.monotonic() < until:
        for cutter in cutters:
            match random.randrange(8):
                case 0:
                    cutter.refuse()
                case at:
                    cutter.accept()
                    cutter.cut(reset=at % 2 == 0)
        time.sleep(random.uniform(*_REFUSED_SECONDS) if random.random() < 0.1 else _TURN_SECONDS)
    for cutter in cutters:
        cutter.accept()


def _capture(client: http.client.HTTPConnection, daemon: Daemon, wire: Wire, bpf: str) -> None:
    """Take some captures at the same time, which one packet ends."""
    request = {"node": daemon.node, "interface": [wire.interface], "packets": 1, "bytes": 65536}
    body = json.dumps({**request, "bpf": bpf}).encode()
    waited = []
    for _ in range(_AT_ONCE):
        status, answer = _ask(client, "POST", "/captures", body)
        if status != 202:
            raise RuntimeError(f"a capture was rejected: {answer}")
        waited.append(answer["captures"][0]["id"])
    wire.send([udp_frame(1, port=_PORT)])
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for capture in waited:
        while (state := _ask(client, "GET", f"/captures/{capture}")[1])["state"] != "done":
            if time.monotonic() > deadline or state["state"] == "failed":
                raise RuntimeError(f"a capture did not end: {state}")
            time.sleep(0.002)
    for path in daemon.captures.glob("*.pcap"):
        path.unlink()


def _ask(
    client: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
) -> tuple[int, dict]:
    client.request(method, path, body)
    answer = client.getresponse()
    return answer.status, json.loads(answer.read())


def report(title: str, of: str, samples: Sequence[Sample], settled_after: int = 0) -> None:
    """
    Print what was found, and what grows.

    @param of: what the events are.
    @param settled_after: how many events don't count at first.
    """
    print_table(
        title,
        (of, "descriptors", "threads", "resident, MiB"),
        [
            [f"{one.events:,}", str(one.descriptors), str(one.threads), f"{one.resident / 1024:.1f}"]
            for one in samples
        ],
    )
    settled = [one for one in samples[len(samples) // 4 :] if one.events >= settled_after]
    events = [one.events for one in settled]
    if len(settled) < _LEAST_SAMPLES:
        print(f"no verdict: that needs more than {settled_after:,} {of}", flush=True)
        return
    for at, (name, bound) in enumerate(_FLAT.items(), start=1):
        slope = linear_regression(events, [astuple(one)[at] for one in settled]).slope * 1000
        unit = " KiB" if name == "resident" else ""
        what = "memory is" if name == "resident" else f"{name} are"
        print_target(
            f"{what} flat: at most {bound:g}{unit} more for 1,000 {of}",
            f"{slope:+.2f}{unit}",
            # With fewer events, the result is no more precise than that.
            slope / 1000 * min(1000, events[-1] - events[0]) <= bound,
        )
