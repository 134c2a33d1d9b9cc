"""What scripts/screenshot runs in its namespaces."""

from __future__ import annotations

import json
import math
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from peers.chromium import Chromium
from peers.cloudshark import CloudSharkServer
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.redis import RedisServer

_INTERFACES = {"eth0": "192.0.2.17/24", "bond0": "198.51.100.17/24", "eth1": "203.0.113.17/24"}
_ALIASES = {"eth0": ["public"], "bond0": ["storage", "backup"]}
# A plot is a minute wide.
_SECONDS = 63
_PORTS = (443, 53, 5432)

# Each ends before the picture is taken; the last ones don't.
_ENDED: list[dict[str, Any]] = [
    {"interface": ["eth0"], "bpf": "udp port 53", "packets": 400, "customer": "acme", "alertid": 655443},
    {"interface": ["bond0"], "bpf": "port 5432", "duration": 9, "tags": "slow-queries"},
    {"interface": ["eth1"], "bytes": 40000, "requestid": "incident-2093"},
    {"interface": ["eth1"], "bpf": "port 22", "duration": 6, "customer": "initech"},
]
_RUNNING: list[dict[str, Any]] = [
    {"interface": ["eth0"], "bpf": "port 443", "packets": 50000, "customer": "acme", "alertid": 655443},
    {"interface": ["bond0"], "bpf": "", "packets": 30000, "duration": 90, "tags": "backup,nightly"},
    {"interface": ["eth1"], "bpf": "udp port 53", "bytes": 6_000_000, "requestid": "incident-2094"},
]

Peer = TypeVar("Peer", bound=Any)


def main(file: str) -> None:
    """Take the picture."""
    with ExitStack() as stack:
        for interface in _INTERFACES:
            _add(interface)
        _ip("link", "set", "lo", "up")
        redis = _running(stack, RedisServer())
        cloudshark = _running(stack, CloudSharkServer())
        daemon = Daemon(
            f'[redis]\nlisten = true\nhost = "127.0.0.1"\nport = {redis.port}\n'
            f'[cloudshark]\nupload = true\nhost = "localhost"\nport = {cloudshark.port}\n'
            f'token = "{cloudshark.token}"\nverify = "{cloudshark.ca_file}"\n'
            + "".join(
                f'[[interface]]\nname = "{name}"\nalias = {json.dumps(aliases)}\n'
                for name, aliases in _ALIASES.items()
            ),
            node="web-17",
            captures=Path("/srv/captures"),
        )
        _running(stack, daemon)
        daemon.logged("subscribed")
        page = _running(stack, Chromium()).visitor(viewport={"width": 1280, "height": 900}).page
        page.goto(f"http://127.0.0.1:{daemon.port}/")
        stack.enter_context(_traffic())
        for message in _ENDED:
            daemon.capture(**message)
        for message in _RUNNING:
            redis.publish("capture", json.dumps({"node": "web-17", "duration": 300, **message}).encode())
        time.sleep(_SECONDS)
        page.screenshot(path=file)


def _running(stack: ExitStack, peer: Peer) -> Peer:
    stack.callback(peer.stop)
    peer.start()
    return peer


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=60)


def _add(interface: str) -> None:
    """An interface with an address, and the other end of it."""
    _ip("link", "add", interface, "type", "veth", "peer", "name", f"{interface}-peer")
    _ip("address", "add", _INTERFACES[interface], "dev", interface)
    for end in (interface, f"{interface}-peer"):
        _ip("link", "set", end, "up")


@contextmanager
def _traffic() -> Iterator[None]:
    """Packets arrive at every interface, now more and now less."""
    over = threading.Event()
    threads = [threading.Thread(target=_send, args=(name, over)) for name in _INTERFACES]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _send(interface: str, over: threading.Event) -> None:
    chance = random.Random(interface)
    frames = [udp_frame(number, size=400, port=port) for number, port in enumerate(_PORTS)]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packets:
        packets.bind((f"{interface}-peer", 0))
        while not over.wait(0.1):
            wave = 1.5 + math.sin(time.monotonic() / chance.choice((5, 5, 6)))
            for _ in range(int(wave * chance.uniform(12, 30))):
                packets.send(chance.choice(frames))


if __name__ == "__main__":
    main(sys.argv[1])
