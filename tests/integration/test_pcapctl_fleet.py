"""pcapctl and a fleet of twenty real daemons: what it shows, and what it exits with."""

from __future__ import annotations

import atexit
import json
import re
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.process import free_port
from peers.redis import RedisServer
from peers.tmux import Tmux
from peers.wire import Wire
from tests.integration.pcapctl_case import PROGRAM, ROOT, Ended, Running, environment, pcapctl
from tests.integration.test_pcapctl import Traffic

_SIZE = 20
# It rejects requests for more packets than this.
_MODEST, _MOST = "node-19", 30
# It is busy with one capture.
_BUSY = "node-20"

_shared: list[Fleet] = []


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Twenty daemons on one wire, with a Redis server. Every second one has HTTP on a unix socket."""

    wire: Wire
    redis: RedisServer
    daemons: Sequence[Daemon]

    @property
    def by_redis(self) -> Sequence[str]:
        """The options that send a request to all of them through Redis."""
        return ("--via", f"redis://127.0.0.1:{self.redis.port}", "--all")

    @property
    def by_http(self) -> Sequence[str]:
        """The options that send it to each of them."""
        return [word for daemon in self.daemons for word in ("--via", daemon.api)]


def shared_fleet() -> Fleet:
    """The fleet of all these tests, as starting it takes a while. It ends with this process."""
    if not _shared:
        wire, redis = Wire(), RedisServer()
        for peer in (wire, redis):
            atexit.register(peer.stop)
            peer.start()
        daemons = []
        for number in range(1, _SIZE + 1):
            node = f"node-{number:02}"
            general = {_MODEST: f"maxpackets = {_MOST}", _BUSY: "maxcaptures = 1"}.get(node, "")
            daemon = Daemon(
                f'[redis]\nlisten = true\nhost = "127.0.0.1"\nport = {redis.port}\n'
                "[reports.redis]\nsend = true\n[reports]\nprogressinterval = 0.5\n",
                node=node,
                general=general,
                has_socket=number % 2 == 0,
            )
            atexit.register(daemon.stop)
            daemon.start()
            daemons.append(daemon)
        for daemon in daemons:
            prepare(daemon, wire)
        _shared.append(Fleet(wire=wire, redis=redis, daemons=daemons))
    return _shared[0]


def prepare(daemon: Daemon, wire: Wire) -> None:
    """
    Wait until a daemon is subscribed, and have it compile the filter of the requests: if all of them begin
    with that at the same time, a busy machine has too little time for some.
    """
    daemon.logged("subscribed to channel")
    body = json.dumps({"bpf": "udp", "interface": wire.interface}).encode()
    daemon.until(lambda: daemon.request("POST", "/filters", body)[0] == 200 or None, "the filter")


class FleetTests(SynchronousTestCase):
    """One request to all of them at a time."""

    timeout = 600

    def setUp(self) -> None:
        """Their wire has traffic."""
        self.fleet = shared_fleet()
        traffic = Traffic(self.fleet.wire)
        self.addCleanup(traffic.stop)

    def words(self, way: Sequence[str], *more: str) -> list[str]:
        """The words of a request through Redis or HTTP."""
        return ["capture", *way, "-i", self.fleet.wire.interface, *more, "--wait", "udp"]

    def outcomes(self, ended: Ended) -> dict[str, str]:
        """The state of each node at the end, each of which has one line."""
        lines = [line for line in ended.lines if re.match(r"node-\d\d", line)]
        states = {re.split("[: ]", line)[0]: line.replace(":", " :").split(" ") for line in lines}
        self.assertEqual(len(states), len(lines), lines)
        return {
            node: words[2] if words[1].startswith(":") else words[1].rstrip(":")
            for node, words in states.items()
        }

    def test_delivered(self) -> None:
        """Through Redis, and through HTTP over TCP and unix sockets, all of them deliver: 0."""
        for way in (self.fleet.by_redis, self.fleet.by_http):
            ended = pcapctl(*self.words(way, "-c", "10"))
            self.assertEqual((ended.status, ended.errors), (0, ""), ended)
            states = self.outcomes(ended)
            self.assertEqual((len(states), set(states.values())), (_SIZE, {"delivered"}), states)

    def test_terminal(self) -> None:
        """On the screen of a terminal, each has one line, while it captures and at the end."""
        tmux = Tmux()
        self.addCleanup(tmux.stop)
        tmux.start(
            [*PROGRAM, *self.words(self.fleet.by_redis, "--duration", "10")],
            environment=environment(),
            directory=ROOT,
        )
        nodes = {daemon.node for daemon in self.fleet.daemons}
        screen = tmux.shows(" capturing ")
        self.assertLessEqual({line.split()[0] for line in screen if " capturing " in line}, nodes)
        status = tmux.end()
        screen = tmux.screen()
        self.assertEqual(status, 0, "\n".join(screen))
        (title,) = [number for number, line in enumerate(screen) if line.startswith("node ")]
        rows = [line.split() for line in screen[title + 1 : title + 1 + _SIZE]]
        self.assertEqual(
            [row[:3] for row in rows],
            [[node, self.fleet.wire.interface, "delivered"] for node in sorted(nodes)],
            "\n".join(screen),
        )
        places = [line for line in screen[title + 1 + _SIZE :] if line.startswith("node-")]
        self.assertEqual(len(places), _SIZE, places)

    def test_some_refuse(self) -> None:
        """One is busy, and one rejects: 1."""
        busy = self.fleet.daemons[-1]
        capture_id = busy.capture(interface=[self.fleet.wire.interface], duration=300)
        for way in (self.fleet.by_redis, self.fleet.by_http):
            ended = pcapctl(*self.words(way, "-c", str(_MOST + 1)))
            states = self.outcomes(ended)
            self.assertEqual(ended.status, 1, ended)
            self.assertEqual((states.pop(_BUSY), states.pop(_MODEST)), ("busy", "rejected"))
            self.assertEqual((len(states), set(states.values())), (_SIZE - 2, {"delivered"}), states)
        busy.request("DELETE", f"/captures/{capture_id}")
        busy.done(capture_id)

    def test_all_reject(self) -> None:
        """All of them reject: 3."""
        for way in (self.fleet.by_redis, self.fleet.by_http):
            ended = pcapctl("capture", *way, "-i", "nosuch", "-c", "1", "--wait")
            self.assertEqual(ended.status, 3, ended)
            self.assertEqual(Counter(self.outcomes(ended).values()), {"rejected": _SIZE})

    def test_killed(self) -> None:
        """One is killed midway: 1. Without it, those that are asked over HTTP deliver, and it has a line."""
        killed = self.fleet.daemons[0]
        running = Running(*self.words(self.fleet.by_redis, "--duration", "12"))
        running.line_with(r"node-01:\S+ \S+ capturing")
        killed.signal(signal.SIGKILL)
        ended = running.end()
        states = self.outcomes(ended)
        self.assertEqual((ended.status, states.pop("node-01")), (1, "silent"), ended)
        self.assertEqual((len(states), set(states.values())), (_SIZE - 1, {"delivered"}), states)
        missing = pcapctl(*self.words(self.fleet.by_http, "-c", "5"))
        self.assertEqual(missing.status, 1, missing)
        self.assertEqual(Counter(self.outcomes(missing).values()), {"delivered": _SIZE - 1})
        (line,) = [line for line in missing.lines if line.startswith(killed.api)]
        self.assertEqual(line, f"{killed.api} no answer: Connection refused")
        killed.restart()
        prepare(killed, self.fleet.wire)

    def test_nobody(self) -> None:
        """Nobody is there, or nobody is meant: 4."""
        empty = [word for _ in range(3) for word in ("--via", f"http://127.0.0.1:{free_port()}")]
        for way in (empty, (*self.fleet.by_redis[:2], "--nodere", "^nobody")):
            ended = pcapctl(*self.words(way, "-c", "1"))
            self.assertEqual((ended.status, ended.lines), (4, []), ended)
        ended = pcapctl(*self.words((*self.fleet.by_http[:4], "--node", "nobody"), "-c", "1"))
        self.assertEqual((ended.status, ended.lines), (4, []), ended)
        self.assertIn("the message is for other nodes", ended.errors)

    def test_one_of_several(self) -> None:
        """Of the nodes that are asked over HTTP, those that aren't meant are neither waited for nor shown."""
        ended = pcapctl(*self.words((*self.fleet.by_http[:6], "--node", "node-01"), "-c", "5"))
        self.assertEqual((ended.status, self.outcomes(ended)), (0, {"node-01": "delivered"}), ended)
        stopped = pcapctl("stop", *self.fleet.by_http[:6], "--node", "node-01", "--request", "a name")
        self.assertEqual((stopped.status, stopped.errors), (0, ""), stopped)

    def test_stopped(self) -> None:
        """C{pcapctl stop} reaches the other nodes although one refuses or isn't there."""
        ways = (*self.fleet.by_http[:8], "--via", f"http://127.0.0.1:{free_port()}")
        sent = pcapctl("capture", *ways, "-i", self.fleet.wire.interface, "--duration", "300", "udp")
        self.assertEqual((sent.status, len(sent.lines)), (1, 1), sent)
        stopped = pcapctl("stop", "--via", f"unix:{Path('/nonexistent')}", *ways, "--request", sent.lines[0])
        self.assertEqual(stopped.status, 1, stopped)
        for daemon in self.fleet.daemons[:4]:
            states = daemon.request("GET", f"/captures?requestid={sent.lines[0]}")[1]["captures"]
            self.assertEqual([state["reason"] for state in states], ["cancelled"])
