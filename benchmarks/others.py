"""
How many requests for other nodes the daemon handles per second of CPU time.

In a fleet, nearly every message is for other nodes. A publisher sends bursts of what an alerting system sends
to a real redis-server, to which the daemon is subscribed. The figure that counts is messages per second of
the daemon's CPU time, all of which is in one thread. Messages per second of real time are printed as well,
but there three processes share the CPUs.

The publisher waits while redis-server holds much back, so that it doesn't cut the daemon off. The last
request is one that the daemon rejects in its log: by then it has judged all earlier ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

from benchmarks import usage
from benchmarks.publisher import Publisher
from benchmarks.table import print_table, print_target, tell
from peers.daemon import Daemon
from peers.redis import RedisServer

ROUNDS = 3
MESSAGES_A_SECOND = 15_000

_MESSAGES = 60_000
_IN_ONE_PIECE = 250
_RULES = 40

_NODE = "edge-0007.ams.example.net"


def _body(**address: str) -> bytes:
    """A request as an alerting system sends it: only the address differs."""
    return json.dumps(
        {
            **address,
            "alias": ["public"],
            "packets": 5000,
            "timeout": 60,
            "snap": 512,
            "bpf": "tcp port 443 and net 192.0.2.0/24",
            "customer": "Example Networks, Amsterdam",
            "alertid": 655443,
            "alertstr": "connection-errors",
            "tags": "alert,errors,tls",
        }
    ).encode()


_FORMS: dict[str, Callable[[int], bytes]] = {
    "node": lambda at: _body(node=f"edge-{at % 5000 + 1000:04}.fra.example.net"),
    f"nodere, {_RULES} different ones": lambda at: _body(
        nodere=rf"^(web|api)-0{at % _RULES:02}\d\.(ams|fra)\."
    ),
    "nodere, always different": lambda at: _body(nodere=rf"^(web|api)-{at}\d\.(ams|fra)\."),
}


def run(rounds: int | None = None) -> None:
    """Measure, and print the results."""
    rows, slowest = [], float("inf")
    with ExitStack() as stack:
        redis = RedisServer()
        stack.callback(redis.stop)
        redis.start()
        daemon = Daemon(
            f'[redis]\nlisten = true\nhost = "127.0.0.1"\nport = {redis.port}\n'
            '[[interface]]\nname = "lo"\nalias = ["public"]\n',
            node=_NODE,
        )
        stack.callback(daemon.stop)
        daemon.start()
        daemon.logged("subscribed")
        publisher = Publisher(redis.port)
        stack.callback(publisher.close)
        for form, make in _FORMS.items():
            commands = [publisher.command(make(at)) for at in range(_MESSAGES)]
            cpu, passed, lost = [], [], 0
            for number in range(rounds or ROUNDS):
                tell(f"others: {form}, round {number + 1}")
                seconds, cpu_seconds, heard = _round(daemon, publisher, commands, f"{len(rows)}-{number}")
                passed.append(_MESSAGES / seconds)
                cpu.append(_MESSAGES / cpu_seconds)
                lost += _MESSAGES - heard
            slowest = min(slowest, median(cpu))
            rows.append([form, f"{median(cpu):,.0f}", f"{median(passed):,.0f}", str(lost)])
        cut_off = daemon.log.count("not subscribed")
    tell("")
    print_table(
        f"Requests for other nodes: {len(_body(node=_NODE))} bytes each, over Redis",
        ("addressed by", "per CPU second", "per second", "lost"),
        rows,
    )
    print_target(
        f"at least {MESSAGES_A_SECOND:,} a second on one CPU",
        f"{slowest:,.0f}, and cut off {cut_off} times",
        slowest >= MESSAGES_A_SECOND and cut_off == 0,
    )


def _round(
    daemon: Daemon, publisher: Publisher, commands: list[bytes], mark: str
) -> tuple[float, float, int]:
    """
    Publish all messages, and wait until they are judged.

    @return: the seconds that it took, the daemon's CPU seconds, and how many messages it received.
    """
    heard = 0
    began, cpu_began = time.monotonic(), usage.cpu_seconds(daemon.pid)
    for at in range(0, len(commands), _IN_ONE_PIECE):
        heard += publisher.publish(commands[at : at + _IN_ONE_PIECE])
        publisher.wait_for_subscribers()
    publisher.publish([publisher.command(json.dumps({"node": _NODE, f"end-{mark}": 1}).encode())])
    daemon.logged(f"end-{mark}")
    return time.monotonic() - began, usage.cpu_seconds(daemon.pid) - cpu_began, heard
