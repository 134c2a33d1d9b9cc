"""A spool in a directory, for tests of it and of what uses it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import SpoolError
from pcapsvc.core.event import DeliveryFailed
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.entry import Entry, Input
from pcapsvc.delivery.folder import SpoolFolder
from pcapsvc.delivery.inventory import ENTRY_BYTES
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.delivery.rounds import Rounds
from pcapsvc.delivery.spool import Spool
from pcapsvc.testing import MemoryDestination, event_factory, run_now
from tests.unit.contents import MemfdContent, make_artifact
from tests.unit.event_schema import checked_reporter

WALL = 1_700_000_000.0
DATA = b"some packets"
DAY = 86400


class SpoolCase(unittest.SynchronousTestCase):
    """A spool in a directory, and a destination."""

    max_bytes = 10 * (ENTRY_BYTES + len(DATA))

    def setUp(self) -> None:
        """Build it."""
        self.lines: list[tuple[LogLevel, str]] = []
        globalLogPublisher.addObserver(self._line)
        self.addCleanup(globalLogPublisher.removeObserver, self._line)
        self.path = Path(self.mktemp()).absolute()
        self.path.mkdir(0o700)
        self.clock = Clock()
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))
        gc.collect()  # what other tests left behind would be closed while this one counts
        self.before = len(os.listdir("/proc/self/fd"))
        self.reporter = checked_reporter(self)
        self.run_in_thread: Callable[..., Deferred[Any]] = run_now
        self.wall = WALL
        self.one = MemoryDestination("one", ("usual", "https://slow.example.com"))
        self.content = MemfdContent(DATA)
        self.addCleanup(self.content.close)
        self.entries: list[Entry] = []
        self.start()
        self.addCleanup(lambda: self.assertEqual(len(os.listdir("/proc/self/fd")), self.before + 1))
        self.addCleanup(lambda: self.assertTrue(self.content.all_closed))
        self.addCleanup(self.stop)

    def _line(self, event: Any) -> None:
        if event.get("log_namespace", "").startswith("pcapsvc."):
            self.lines.append((event["log_level"], formatEvent(event)))

    def start(self) -> None:
        """The spool, as after a start of the daemon."""
        self.spool = Spool(
            self.clock,
            SpoolFolder(str(self.path)),
            run_in_thread=lambda *args: self.run_in_thread(*args),
            reporter=self.reporter,
            events=event_factory(),
            max_bytes=self.max_bytes,
            max_age_seconds=DAY,
            wall_clock=self.wall_clock,
        )
        self.spool.startService()
        self.outbox = Outbox(
            self.clock,
            self.one,
            slots=2,
            timeout_seconds=300,
            policy=RetryPolicy(attempts=5, first_delay_seconds=1, max_delay_seconds=60),
            spool_interval_seconds=60,
            reporter=self.reporter,
            events=event_factory(),
            spool=self.spool,
            wall_clock=self.wall_clock,
            chance=lambda: self.chance(),
        )
        self.rounds = Rounds(self.clock, self.spool, [self.outbox], interval_seconds=60)

    def chance(self) -> float:
        """The random number of each jitter."""
        return 1.0

    def wall_clock(self) -> float:
        """The time of day."""
        return self.wall + self.clock.seconds()

    def stop(self) -> None:
        """Stop the spool."""
        self.successResultOf(self.rounds.stopService())
        self.successResultOf(self.spool.stopService())

    def restart(self) -> None:
        """Stop it, and start it anew."""
        self.stop()
        self.start()
        self.successResultOf(self.spool.tidy())

    def put(self, name: str = "a.pcap", destination: str = "one", **values: Any) -> None:
        """Spool a capture, whose id is its name's beginning, and let a second pass."""
        artifact = make_artifact(self.content, name=name, destination=destination, **values)
        self.successResultOf(self.write(replace_id(artifact, name), destination))
        self.clock.advance(1)

    def write(self, artifact: Artifact, destination: str = "one", *, ahead: bool = False) -> Deferred[Any]:
        """
        Write a capture to the spool, due in a minute.

        @param ahead: before its first attempt, instead of after its last one.
        """
        entry = self.entry_of(artifact, destination)
        if ahead:
            entry.on(Input.WRITE_AHEAD)
        else:
            entry.on(Input.QUEUE)
            entry.on(Input.PUT_AWAY)
        entry.due = self.clock.seconds() + 60
        return self.spool.write(entry, artifact, "503")

    def entry_of(self, artifact: Artifact, destination: str) -> Entry:
        """The entry of an artifact, which the test finds in C{entries}."""
        options = artifact.options.get(destination, {})
        entry = Entry(
            capture_id=artifact.capture_id, destination=destination, options=options, labels=artifact.labels
        )
        self.entries.append(entry)
        return entry

    def write_ahead(self, name: str) -> Entry:
        """Write a capture to the spool that the test is about to deliver."""
        artifact = replace_id(make_artifact(self.content, name=name), name)
        self.successResultOf(self.write(artifact, ahead=True))
        return self.entries[-1]

    def delivered(self, entry: Entry) -> Deferred[None]:
        """Deliver an entry that is taken, and remove it."""
        entry.on(Input.SLOT)
        entry.on(Input.DELIVER)
        return self.spool.remove(entry)

    def take(self, number: int | None = None) -> list[Entry]:
        """Take what is due, as an outbox does: all, or a number of the oldest."""
        taken = self.spool.due("one")[:number]
        for entry in taken:
            entry.on(Input.TAKE)
        return taken

    def refused(self, name: str = "a.pcap") -> str:
        """Spool a capture in vain: why."""
        putting = self.write(replace_id(make_artifact(self.content, name=name), name))
        return str(self.failureResultOf(putting, SpoolError).value)

    def hang(self, name: str) -> list[Deferred[Any]]:
        """Have the disk hang at one kind of work, which is done when the test fires its Deferred."""
        hanging: list[Deferred[Any]] = []

        def run(function: Any, *args: Any) -> Deferred[Any]:
            if function.__name__ != name:
                return run_now(function, *args)
            hanging.append(Deferred())
            return hanging[-1].addCallback(lambda _: function(*args))

        self.run_in_thread = run
        return hanging

    def stored(self) -> list[str]:
        """The ends of the names of the files that the destination has."""
        return [name.rpartition("-")[2] for name in self.one.files]

    def names(self) -> list[str]:
        """What is in the directory, except for the lock."""
        return sorted(name for name in os.listdir(self.path) if name != "lock")

    def entry(self, number: int = 0) -> Path:
        """The directory of an entry, by age."""
        return self.path / [name for name in self.names() if name[0].isdigit()][number]

    def lost(self) -> list[tuple[str | None, str]]:
        """The captures that were reported as lost, and why."""
        return [
            (event.subject, event.data.problem)
            for event in self.reporter.events
            if isinstance(event.data, DeliveryFailed)
        ]

    def events(self, kind: type) -> list[Any]:
        """The payloads of the events of a kind."""
        return [data for data in self.reporter.data if isinstance(data, kind)]

    def errors(self) -> list[str]:
        """What was logged as an error."""
        return [line for level, line in self.lines if level >= LogLevel.error]


def replace_id(artifact: Any, name: str) -> Any:
    """The artifact of another capture: C{a.pcap} or C{a} has the id C{a}, and a file of that id."""
    capture_id = name.partition(".")[0]
    return replace(artifact, capture_id=capture_id, name=f"web1-eth0-1700000000-{capture_id}.pcap")
