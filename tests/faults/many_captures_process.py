"""
A node in a process of its own, whose packets are in memory. On its standard input it is told what to do:

    start N      request N captures of five packets each, on ten interfaces
    deliver      let five packets arrive at all of them
    state        print a line of JSON
    stop         stop

usage: python -m tests.faults.many_captures_process CONFIGURATION EVENTS

The id, type and subject of each event that is reported are written to the file EVENTS at the end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from typing import Any

from twisted.internet import reactor, stdio, task
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc import app
from pcapsvc.components import COMPONENTS
from pcapsvc.core.event import CaptureDelivered, CaptureStopped, Event
from pcapsvc.core.message import Message
from pcapsvc.core.result import Accepted, Verdict
from pcapsvc.interfaces.reports import IProgressReporter
from pcapsvc.settings import load_settings
from pcapsvc.testing_packets import MemoryPacketSystem
from peers.frames import udp_frame

PACKETS = 5
# Each request starts a capture on all of them.
_INTERFACES = tuple(f"mem{number}" for number in range(10))


@implementer(IProgressReporter)
class Recorder:
    """Records every event; and of captures how long it took to end them, and what they have."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str | None]] = []
        self.arrived_at = 0.0
        self.longest_seconds = 0.0
        self.complete = 0
        self.delivered = 0

    def report(self, event: Event) -> None:
        """Record an event."""
        self.events.append((event.id, event.type, event.subject))
        if isinstance(event.data, CaptureStopped):
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - self.arrived_at)
            self.complete += event.data.packets == PACKETS
        elif isinstance(event.data, CaptureDelivered):
            self.delivered += 1

    def wants_progress(self) -> bool:
        """It wants all events."""
        return True


class Control(LineReceiver):
    """Does what it is told."""

    delimiter = b"\n"

    def __init__(self, path: str, events: str) -> None:
        self.system = MemoryPacketSystem(*_INTERFACES)
        settings = load_settings(path, COMPONENTS)
        self.node = app.build(settings, reactor, system=self.system)
        self.recorder = Recorder()
        self.node.reporter.add(self.recorder)
        self.events = events
        self.accepted = 0

    def connectionMade(self) -> None:
        """Start the node."""
        self.node.service.privilegedStartService()
        self.node.service.startService()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Stop at once if whoever has started it is gone."""
        with suppress(ReactorNotRunning):
            reactor.stop()  # type: ignore[attr-defined]

    def lineReceived(self, line: bytes) -> None:
        """Do what a line says."""
        word, *arguments = line.decode().split()
        getattr(self, f"do_{word}")(*arguments)

    def do_start(self, count: str) -> None:
        """Request captures."""
        Deferred.fromCoroutine(self._start(int(count))).addErrback(lambda why: why.printTraceback())

    async def _start(self, count: int) -> None:
        request = {
            "node": "node-1",
            "interface": _INTERFACES,
            "packets": PACKETS,
            "timeout": 300,
            "bytes": 99999,
        }
        for number in range(count // len(_INTERFACES)):
            body = json.dumps({**request, "requestid": f"r-{number}"}).encode()
            verdict: Verdict = await self.node.pipeline.submit(Message(source="http", body=body))
            assert isinstance(verdict, Accepted), verdict
            self.accepted += len(verdict.captures)
            await task.deferLater(reactor, 0)  # type: ignore[arg-type]

    def do_deliver(self) -> None:
        """Let packets arrive."""
        self.recorder.arrived_at, self.recorder.longest_seconds = time.monotonic(), 0.0
        for interface in _INTERFACES:
            self.system.deliver(interface, *(udp_frame(number) for number in range(PACKETS)))

    def do_state(self) -> None:
        """Say how it is."""
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        state: dict[str, Any] = {
            "accepted": self.accepted,
            "running": len(self.node.captures.running),
            "complete": self.recorder.complete,
            "delivered": self.recorder.delivered,
            "longest_seconds": self.recorder.longest_seconds,
            "rss": pages * os.sysconf("SC_PAGE_SIZE"),
            "channels": {
                name: {
                    "waiting": channel.waiting,
                    "dropped": channel.dropped,
                    "connected": channel.state().connected,
                }
                for name, channel in self.node.channels.items()
            },
        }
        self.sendLine(json.dumps(state).encode())

    def do_stop(self) -> None:
        """Stop, and write what was reported."""
        stopping = task.ensureDeferred(self._stop())
        stopping.addBoth(lambda _: reactor.stop())  # type: ignore[attr-defined]

    async def _stop(self) -> None:
        await self.node.service.stopService()
        with open(self.events, "w") as file:
            json.dump(self.recorder.events, file)


def main() -> None:
    """Run until it is told to stop."""
    reactor.seconds = time.monotonic  # type: ignore[attr-defined]
    stdio.StandardIO(Control(*sys.argv[1:]))
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
