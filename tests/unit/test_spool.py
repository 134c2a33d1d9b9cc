"""The spool: what is on the disk, and what becomes of it."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from pcapsvc import durable
from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import SpoolError
from pcapsvc.core.event import DeliveryFailed
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.entry import Entry, Input, State
from pcapsvc.delivery.folder import SpoolFolder
from pcapsvc.delivery.inventory import ENTRY_BYTES
from pcapsvc.delivery.ispool import ISpool
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.delivery.rounds import Rounds
from pcapsvc.delivery.spool import Spool
from pcapsvc.interfaces.lifecycle import IHurriable
from pcapsvc.testing import MemoryDestination, event_factory, run_now
from tests.unit.contents import MemfdContent, PeakMemory, make_artifact
from tests.unit.event_schema import checked_reporter

WALL = 1_700_000_000.0
DATA = b"some packets"
DAY = 86400


class SpoolCase(unittest.SynchronousTestCase):
    """A spool in a folder, and a destination."""

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
        """Take what is due, as an outbox does: all, or so many of the oldest."""
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

    def names(self) -> list[str]:
        """What is in the folder, the lock left out."""
        return sorted(name for name in os.listdir(self.path) if name != "lock")

    def entry(self, number: int = 0) -> Path:
        """The folder of an entry, by age."""
        return self.path / [name for name in self.names() if name[0].isdigit()][number]

    def lost(self) -> list[tuple[str | None, str]]:
        """The captures that were told to be lost, and why."""
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


def as_pipe(path: Path) -> None:
    """Put a pipe in the place of a file."""
    path.unlink()
    os.mkfifo(path)


def as_link(path: Path, target: Path) -> None:
    """Move something away, and put a link to it in its place."""
    path.rename(target)
    path.symlink_to(target)


def replace_id(artifact: Any, name: str) -> Any:
    """The artifact of another capture."""
    return dataclasses.replace(artifact, capture_id=name.partition(".")[0])


class FolderTests(SpoolCase):
    """What is on the disk."""

    def test_interfaces(self) -> None:
        """They are what the others ask for."""
        self.assertTrue(verifyObject(ISpool, self.spool))
        self.assertTrue(verifyObject(IHurriable, self.rounds))

    def test_entry(self) -> None:
        """An entry is a folder of two files, for nobody else to read, with the capture byte for byte."""
        for umask in (0o000, 0o077, 0o777):
            before = os.umask(umask)
            self.addCleanup(os.umask, before)
            self.put("a.pcap", destination=f"d{umask}", tags="customer:Zoë", bucket="b", encryption=True)
            os.umask(before)
        for number in range(3):
            entry = self.entry(number)
            self.assertEqual(stat.S_IMODE(entry.stat().st_mode), 0o700)
            self.assertEqual(sorted(path.name for path in entry.iterdir()), ["capture.pcap", "manifest.json"])
            for path in entry.iterdir():
                self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
            self.assertEqual((entry / "capture.pcap").read_bytes(), DATA)
        manifest = json.loads((self.entry() / "manifest.json").read_text())
        self.assertEqual(
            {
                key: manifest[key]
                for key in ("v", "capture", "destination", "name", "media_type", "tags", "options", "size")
            },
            {
                "v": 2,
                "capture": "a",
                "destination": "d0",
                "name": "a.pcap",
                "tags": "customer:Zoë",
                "media_type": "application/vnd.tcpdump.pcap",
                "options": {"bucket": "b", "encryption": True},
                "size": len(DATA),
            },
        )
        self.assertEqual(self.spool.size, 3 * (len(DATA) + ENTRY_BYTES))

    def test_order_on_the_disk(self) -> None:
        """Both files and their folder are on the disk before the one rename, and the rename after it."""
        calls: list[str] = []
        fsync, rename = os.fsync, os.rename

        def noted_fsync(descriptor: int) -> None:
            name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
            calls.append(".new" if name.startswith(".new-") else name)
            fsync(descriptor)

        def noted_rename(old: str, new: str) -> None:
            calls.append("rename")
            rename(old, new)

        self.successResultOf(self.spool.tidy())
        self.patch(os, "fsync", noted_fsync)
        self.patch(os, "rename", noted_rename)
        self.put()
        self.assertEqual(calls, ["capture.pcap", "manifest.json", ".new", "rename", self.path.name])
        calls.clear()
        self.clock.advance(60)
        [entry] = self.take()
        self.successResultOf(self.delivered(entry))
        self.assertEqual(calls, ["rename", self.path.name])
        self.assertEqual(self.names(), [])

    def test_disk_full(self) -> None:
        """Where the disk is full, nothing is left of it, and it is told."""
        self.patch(os, "write", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        self.assertIn("No space left on device", self.refused())
        self.assertEqual((self.names(), self.spool.size), ([], 0))

    def test_not_synced(self) -> None:
        """Where it can't be brought to the disk, it is not spooled."""
        self.successResultOf(self.spool.tidy())
        self.patch(os, "fsync", lambda *args: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        self.assertIn("Input/output error", self.refused())
        self.assertEqual(self.names(), [])

    def test_name_not_synced(self) -> None:
        """Where its name can't be brought to the disk, nothing stays that a restart would find."""
        self.successResultOf(self.spool.tidy())
        failures = self.fail_for_the_folder()
        for _ in range(3):
            self.assertIn("Input/output error", self.refused())
            self.clock.advance(1)
        self.assertEqual((self.names(), self.spool.entries), ([], 0))
        failures.restore()
        self.put()
        self.restart()
        self.assertEqual(self.spool.entries, 1)

    def test_name_stays(self) -> None:
        """Where it can't have its hidden name again either, it is an entry, and known."""
        self.successResultOf(self.spool.tidy())
        self.fail_for_the_folder()
        rename = os.rename

        def failing(old: str, new: str) -> None:
            if os.path.basename(new).startswith(".new-"):
                raise OSError(30, "Read-only file system")
            rename(old, new)

        self.patch(os, "rename", failing)
        self.put()
        self.assertEqual((len(self.names()), self.spool.entries), (1, 1))

    def fail_for_the_folder(self) -> Any:
        """Have the disk fail where names are brought to it."""
        fsync = os.fsync

        def failing(descriptor: int) -> None:
            if os.readlink(f"/proc/self/fd/{descriptor}") == str(self.path):
                raise OSError(5, "Input/output error")
            fsync(descriptor)

        return self.patch(os, "fsync", failing)

    def test_content_gone(self) -> None:
        """A content that can't be opened, or is shorter than it says, is not spooled."""
        content = MemfdContent(DATA)
        content.size += 1
        putting = self.write(make_artifact(content))
        self.assertIn(
            "only 12 of 13 bytes could be read", str(self.failureResultOf(putting, SpoolError).value)
        )
        content.open = lambda: (_ for _ in ()).throw(OSError(24, "Too many open files"))  # type: ignore[method-assign]
        putting = self.write(make_artifact(content))
        self.failureResultOf(putting, SpoolError)
        self.assertEqual(self.names(), [])
        content.close()

    def test_folder_missing(self) -> None:
        """A folder that is missing is told as an error, once; when it is there, it is used."""
        self.path.rmdir()
        for _ in range(3):
            self.assertIn("No such file or directory", self.refused())
            self.successResultOf(self.spool.tidy())
        self.assertEqual(len(self.errors()), 1)
        self.assertIn("the spool can't be used", self.errors()[0])
        self.path.mkdir(0o700)
        self.put()
        self.assertEqual(self.spool.entries, 1)

    def test_folder_replaced(self) -> None:
        """A folder that goes away takes its captures along, which is told; another in its place is used."""
        self.put("a.pcap")
        self.path.rename(self.path.with_name(self.path.name + "-away"))
        self.assertIn("No such file or directory", self.refused("b.pcap"))
        self.path.mkdir(0o700)
        self.put("c.pcap")
        self.assertEqual([capture for capture, _ in self.lost()], ["a"])
        self.assertEqual(self.spool.entries, 1)

    def test_replaced_while_held(self) -> None:
        """What went away while somebody else had it is not here when it is given back; what didn't, is."""
        first, second = (self.write_ahead(name) for name in ("a.pcap", "b.pcap"))
        self.path.rename(self.path.with_name(self.path.name + "-away"))
        self.path.mkdir(0o700)
        self.put("c.pcap")
        third = self.write_ahead("d.pcap")
        self.assertFalse(self.spool.put_back(first))
        self.successResultOf(self.delivered(second))
        self.assertTrue(self.spool.put_back(third))
        self.assertEqual(self.lost(), [])
        self.assertEqual(self.spool.entries, 2)

    def test_not_ours_alone(self) -> None:
        """A folder that others may write to, or that is another user's, is told as an error, and not used."""
        self.put()
        before = self.names()
        for mode in (0o720, 0o702, 0o1777):
            self.stop()
            self.path.chmod(mode)
            self.start()
            for _ in range(3):
                self.successResultOf(self.spool.tidy())
                self.assertIn(f"its mode is {mode:04o}", self.refused("b.pcap"))
        self.assertEqual(len(self.errors()), 3)
        self.assertIn("nobody else may write to it", self.errors()[0])
        self.path.chmod(0o755)
        self.patch(os, "geteuid", lambda: os.getuid() + 1)
        self.assertIn(f"it belongs to {os.getuid()}", self.refused("b.pcap"))
        self.patch(os, "geteuid", os.getuid)
        self.assertEqual(self.names(), before)
        self.put("c.pcap")
        self.assertEqual(self.spool.entries, 2)

    def test_used_by_another(self) -> None:
        """Two processes never use one folder: what one writes now isn't half-written for the other."""
        self.put()
        other = SpoolFolder(str(self.path))
        error = self.assertRaises(SpoolError, other.open)
        self.assertIn("another process uses it", str(error))
        self.stop()
        self.assertEqual(len(other.open().entries), 1)
        self.assertIn("another process uses it", self.refused("b.pcap"))
        other.close()

    def test_cancelled(self) -> None:
        """A capture that is given up while it waits for the disk leaves nothing open."""
        waiting: list[tuple[Deferred[Any], Any]] = []

        def later(*call: Any) -> Deferred[Any]:
            waiting.append((Deferred(), call))
            return waiting[-1][0]

        self.successResultOf(self.spool.tidy())
        self.run_in_thread = later
        first = self.write(make_artifact(self.content))
        second = self.write(make_artifact(self.content), "two")
        second.cancel()
        self.failureResultOf(second)
        waiting.pop()[0].callback(True)
        [(writing, (write, *args))] = waiting
        first.cancel()
        self.failureResultOf(first)
        error = self.assertRaises(SpoolError, write, *args)
        self.run_in_thread = run_now
        writing.errback(error)
        self.assertEqual((self.names(), self.errors()), ([], []))

    def test_too_late(self) -> None:
        """What is on the disk when it was given up already is taken out before anything else is written."""
        hanging = self.hang("write")
        first, second, third = (
            self.write(replace_id(make_artifact(self.content), name), ahead=True) for name in "abc"
        )
        first.cancel()
        second.cancel()
        for given_up in (first, second):
            self.failureResultOf(given_up, CancelledError)
        # One alone is open while the disk hangs, however many wait.
        self.assertEqual((len(hanging), len(self.content.opened)), (1, 1))
        self.patch(SpoolFolder, "remove", self.noting(remove := [], SpoolFolder.remove))
        # The thread has the last of it already, and doesn't look any more.
        self.patch(durable, "read_chunks", lambda source, cancelled: iter([source.read()]))
        hanging[0].callback(None)
        self.assertEqual((len(remove), self.names(), len(hanging)), (1, [], 2))
        hanging[1].callback(None)
        self.successResultOf(third)
        self.assertEqual((len(self.names()), self.spool.entries, self.errors()), (1, 1, []))

    def noting(self, calls: list[Any], function: Callable[..., Any]) -> Callable[..., Any]:
        """A function, and what it is called with."""

        def noted(*args: Any) -> Any:
            calls.append(args)
            return function(*args)

        return noted

    def test_given_up_at_the_stop(self) -> None:
        """
        What is on the disk when it is given up stays there, where nobody delivers it otherwise: it
        was to be kept for later, or all stops.
        """
        self.patch(durable, "read_chunks", lambda source, cancelled: iter([source.read()]))
        hanging = self.hang("write")
        putting = self.write(replace_id(make_artifact(self.content), "a"))
        putting.cancel()
        self.failureResultOf(putting, CancelledError)
        hanging[0].callback(None)
        holding = self.write(replace_id(make_artifact(self.content), "b"), ahead=True)
        stopping = self.spool.stopService()
        holding.cancel()
        self.failureResultOf(holding, CancelledError)
        hanging[1].callback(None)
        self.successResultOf(stopping)
        self.run_in_thread = run_now
        self.start()
        self.successResultOf(self.spool.tidy())
        self.assertEqual((self.spool.entries, self.errors()), (2, []))

    def test_too_late_to_take_out(self) -> None:
        """Where that can't be, as when there are no threads any more, it is told."""
        hanging = self.hang("write")
        holding = self.write(make_artifact(self.content), ahead=True)
        holding.cancel()
        self.failureResultOf(holding, CancelledError)
        self.patch(durable, "read_chunks", lambda source, cancelled: iter([source.read()]))
        self.run_in_thread = lambda *args: fail(RuntimeError("the threads are not running"))
        hanging[0].callback(None)
        self.assertIn("a capture that was given up stays in the spool", self.errors()[0])
        self.run_in_thread = run_now
        self.restart()
        self.assertEqual(self.spool.entries, 1)

    def test_opened_too_late(self) -> None:
        """A folder that is open when nobody waits for it any more is opened again, and looked through."""
        self.put()
        self.stop()
        self.start()
        hanging = self.hang("open")
        tidying = self.spool.tidy()
        tidying.cancel()
        self.failureResultOf(tidying, CancelledError)
        self.run_in_thread = run_now
        hanging[0].callback(None)
        self.successResultOf(self.spool.tidy())
        self.assertEqual(self.spool.entries, 1)

    def test_delivered_and_stuck(self) -> None:
        """What was held, and can't be taken out when it is delivered, is later."""
        entry = self.write_ahead("a.pcap")
        hanging = self.hang("remove")
        delivered = self.delivered(entry)
        delivered.cancel()
        self.failureResultOf(delivered, CancelledError)
        self.assertEqual(len(hanging), 1)
        self.run_in_thread = run_now
        self.successResultOf(self.spool.tidy())
        self.assertEqual((self.names(), self.lost()), ([], []))

    def test_threads_stopped(self) -> None:
        """Where there is no thread any more, nothing stays open."""
        self.run_in_thread = lambda *args: fail(RuntimeError("the threads are not running"))
        self.assertIn("the threads are not running", self.refused())

    def test_memory(self) -> None:
        """60 MB are spooled, checked and read without holding them."""
        self.max_bytes = 10**9
        self.restart()
        large = MemfdContent(zeros=60_000_000)
        self.addCleanup(large.close)
        with PeakMemory() as memory:
            self.successResultOf(self.write(make_artifact(large, name="l.pcap")))
            self.clock.advance(60)
            [entry] = self.take()
            artifact = self.successResultOf(self.spool.read(entry))
        self.assertLess(memory.grown_bytes, 4_000_000)
        self.assertEqual(artifact.content.size, 60_000_000)


class RestartTests(SpoolCase):
    """What a start finds."""

    def test_all_of_it(self) -> None:
        """What was spooled is there after a restart, the oldest first, and due at once."""
        for name in ("c.pcap", "a.pcap", "b.pcap"):
            self.put(name, tags="x")
        size = self.spool.size
        self.restart()
        self.assertEqual([entry.capture_id for entry in self.spool.due("one")], ["c", "a", "b"])
        self.assertEqual(self.spool.waiting, self.spool.due("one"))
        self.assertEqual(repr(self.spool), f"<Spool: 3 captures, {size} bytes>")
        self.assertEqual(self.spool.size, size)
        artifact = self.successResultOf(self.spool.read(self.take()[1]))
        self.assertEqual((artifact.name, artifact.tags, artifact.capture_id), ("a.pcap", "x", "a"))
        with artifact.content.open() as file:
            self.assertEqual(file.read(), DATA)

    def test_never_whole(self) -> None:
        """What is not whole is set aside, told, and never delivered; what is, is."""
        harms: list[Callable[[Path], object]] = [
            lambda entry: (entry / "manifest.json").unlink(),
            lambda entry: (entry / "manifest.json").write_bytes(b""),
            lambda entry: (entry / "manifest.json").write_bytes(bytes(300)),
            lambda entry: (entry / "manifest.json").write_text('{"v": 3}'),
            lambda entry: (entry / "capture.pcap").unlink(),
            lambda entry: (entry / "capture.pcap").write_bytes(DATA[:-1]),
            lambda entry: (entry / "capture.pcap").write_bytes(DATA + b"x"),
            lambda entry: entry.rename(entry.with_name(entry.name.replace("-h-", "-x-"))),
            lambda entry: (entry / "manifest.json").write_text('{"v": 1, "s3": {"bucket": "../../evil"}}'),
            lambda entry: as_pipe(entry / "manifest.json"),
            lambda entry: as_pipe(entry / "capture.pcap"),
            lambda entry: as_link(entry / "manifest.json", away / "manifest"),
            lambda entry: as_link(entry / "capture.pcap", away / "capture"),
            lambda entry: as_link(entry, away / "entry"),
            lambda entry: (entry.rename(away / "another"), entry.write_bytes(b"")),
        ]
        away = Path(self.mktemp()).absolute()
        away.mkdir()
        names = ["whole", *"abcdefghijklmno"]
        self.max_bytes *= 2
        self.restart()
        for name in names:
            self.put(f"{name}.pcap")
        self.stop()
        entries = [self.entry(number) for number in range(len(names))]
        for harm, entry in zip(harms, entries[1:], strict=True):
            harm(entry)
        (self.path / ".new-0123456789abcdef").mkdir()
        (self.path / ".new-0123456789abcdef" / "capture.pcap").write_bytes(DATA)
        (self.path / ".gone-1700000000000-z-one").mkdir()
        (self.path / ".gone-1700000000000-z-one" / "capture.pcap").write_bytes(DATA)
        (self.path / "lost+found").mkdir()
        self.start()
        self.successResultOf(self.spool.tidy())
        self.assertEqual([entry.capture_id for entry in self.spool.due("one")], ["whole"])
        self.assertEqual(len(os.listdir(self.path / "broken")), len(harms) + 1)
        self.assertEqual(len(self.errors()), len(harms) + 1)
        self.assertEqual(sorted(os.listdir(away)), ["another", "capture", "entry", "manifest"])
        self.assertEqual(self.names()[1:], ["broken", "lost+found"])
        self.restart()
        self.assertEqual(len(os.listdir(self.path / "broken")), len(harms) + 1)
        self.assertGreater(self.spool.size, (len(harms) + 1) * ENTRY_BYTES)

    def test_rotten(self) -> None:
        """Bytes that changed on the disk are noticed before they are delivered."""
        self.put()
        (self.entry() / "capture.pcap").write_bytes(b"xxxx packets")
        self.restart()
        [entry] = self.take()
        self.failureResultOf(self.spool.read(entry), SpoolError)
        self.assertIs(entry.state, State.QUARANTINED)
        self.assertEqual([capture for capture, _ in self.lost()], ["a"])
        self.assertEqual(len(os.listdir(self.path / "broken")), 1)
        self.assertEqual(self.spool.entries, 0)

    def test_anything_in_broken(self) -> None:
        """Whatever is in C{broken/} counts, and goes when it must; what a link there names stays."""
        away = Path(self.mktemp()).absolute()
        away.mkdir()
        (away / "dear").write_text("x" * 100_000)
        (self.path / "broken").mkdir()
        (self.path / "broken" / "notes").write_text("x" * 5000)
        (self.path / "broken" / "away").symlink_to(away)
        (self.path / ".new-0123456789abcdef").write_text("x" * 5000)
        (self.path / f".new-{'ö' * 120}").write_text("")
        (self.path / ".gone-1").symlink_to(away)
        self.restart()
        self.assertEqual(self.names(), ["broken"])
        self.assertEqual(self.spool.size, 10_000 + len(str(away)) + 4 * ENTRY_BYTES)
        for number in range(10):
            self.put(f"{number}.pcap")
        self.assertEqual((os.listdir(self.path / "broken"), self.lost()), ([], []))
        self.assertEqual(os.listdir(away), ["dear"])
        self.assertEqual(self.errors()[2:], [])

    def test_broken_is_no_folder(self) -> None:
        """What only bears the name of C{broken/} is set aside like anything else, and not followed."""
        away = Path(self.mktemp()).absolute()
        (away / "dear").mkdir(parents=True)
        for make in (lambda path: path.symlink_to(away), lambda path: path.write_text("x")):
            make(self.path / "broken")
            self.age(self.path / "broken")
            self.restart()
            self.assertEqual(len(os.listdir(self.path / "broken")), 1)
            self.clock.advance(2 * DAY)
            self.successResultOf(self.spool.tidy())
            self.assertEqual((os.listdir(self.path / "broken"), os.listdir(away)), ([], ["dear"]))
            (self.path / "broken").rmdir()
        (self.path / ".new-0").mkdir()
        self.age(self.path / ".new-0")
        self.restart()
        (self.path / "broken").rename(away / "broken")
        (self.path / "broken").symlink_to(away / "broken")
        self.clock.advance(2 * DAY)
        self.successResultOf(self.spool.tidy())
        self.assertEqual(len(os.listdir(away / "broken")), 1)
        self.assertIn("Not a directory", self.errors()[-1])

    def age(self, path: Path) -> None:
        """Have something be of just now."""
        os.utime(path, (self.wall_clock(), self.wall_clock()), follow_symlinks=False)

    def test_broken_one_stays(self) -> None:
        """One that can't be removed is told, once, and stops no other, nor a new capture."""
        for name in ("stuck", "gone", "other"):
            (self.path / f".new-{name}").mkdir()
            os.utime(self.path / f".new-{name}", (WALL, WALL))
        self.restart()
        [gone] = (self.path / "broken").glob("new-gone.*")
        gone.rmdir()

        def failing(function: Any, *args: Any) -> Deferred[Any]:
            if function.__name__ == "remove_quarantined" and "stuck" in args[0]:
                return fail(SpoolError("Operation not permitted"))
            return run_now(function, *args)

        self.run_in_thread = failing
        before = len(self.errors())
        self.clock.advance(DAY + 1)
        for _ in range(3):
            self.successResultOf(self.spool.tidy())
        [stuck] = os.listdir(self.path / "broken")
        self.assertTrue(stuck.startswith("new-stuck."))
        self.assertEqual(len(self.errors()), before + 1)
        for number in range(12):
            self.put(f"{number}.pcap")
        self.assertEqual(self.spool.entries, 9)
        self.assertLessEqual(self.spool.size, self.max_bytes)
