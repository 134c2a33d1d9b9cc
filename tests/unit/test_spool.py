"""The spool: what is on the disk, and what becomes of it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.logger import LogLevel
from zope.interface.verify import verifyObject

from pcapsvc import durable
from pcapsvc.core.errors import DestinationError, SpoolError
from pcapsvc.core.event import DeliveryPostponed
from pcapsvc.delivery.folder import SpoolFolder
from pcapsvc.delivery.inventory import ENTRY_BYTES
from pcapsvc.delivery.ispool import ISpool
from pcapsvc.interfaces.lifecycle import IHurriable
from pcapsvc.testing import run_now
from peers.requirement import require_root
from tests.unit.bad_disk import refuse_modes, refuse_syncing
from tests.unit.contents import MemfdContent, PeakMemory, make_artifact
from tests.unit.spool_case import DATA, SpoolCase, replace_id


class FolderTests(SpoolCase):
    """What is on the disk."""

    def test_interfaces(self) -> None:
        """They provide their interfaces."""
        self.assertTrue(verifyObject(ISpool, self.spool))
        self.assertTrue(verifyObject(IHurriable, self.rounds))

    def test_entry(self) -> None:
        """An entry is a directory with two files that only we may read, with the capture byte for byte."""
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
                "name": "web1-eth0-1700000000-a.pcap",
                "tags": "customer:Zoë",
                "media_type": "application/vnd.tcpdump.pcap",
                "options": {"bucket": "b", "encryption": True},
                "size": len(DATA),
            },
        )
        self.assertEqual(self.spool.size, 3 * (len(DATA) + ENTRY_BYTES))

    def test_order_on_the_disk(self) -> None:
        """Both files and their directory are synced before the one rename, and the rename after it."""
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
        """If the disk is full, nothing is left of it, and that is the error."""
        self.patch(os, "write", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        self.assertIn("No space left on device", self.refused())
        self.assertEqual((self.names(), self.spool.size), ([], 0))

    def test_not_synced(self) -> None:
        """If it can't be synced, it is not spooled."""
        self.successResultOf(self.spool.tidy())
        self.patch(os, "fsync", lambda *args: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        self.assertIn("Input/output error", self.refused())
        self.assertEqual(self.names(), [])

    def test_unsupported(self) -> None:
        """What the file system doesn't support prevents nothing, and is logged once, at the start."""
        for number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
            self.stop()
            self.lines.clear()
            refuse_syncing(self, number)
            refuse_modes(self, errno.EPERM)
            self.patch(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "no")))
            self.start()
            self.successResultOf(self.spool.tidy())
            self.put()
            warned = [line for level, line in self.lines if level is LogLevel.warn]
            for words in ("it has no locks", "doesn't set permissions", "doesn't sync directories"):
                self.assertEqual(len([line for line in warned if words in line]), 1, warned)
            self.assertEqual(len(warned), 3)
            self.clock.advance(60)
            [entry] = self.take()
            self.successResultOf(self.spool.read(entry))
            self.successResultOf(self.delivered(entry))
            self.assertEqual((self.names(), self.errors()), ([], []))

    def test_full_disk_at_the_start(self) -> None:
        """A full disk doesn't prevent the delivery of what is there."""
        self.put()
        self.stop()
        self.patch(os, "write", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        self.start()
        self.successResultOf(self.spool.tidy())
        self.assertEqual((self.spool.entries, len(self.names())), (1, 1))

    def test_entries_of_others(self) -> None:
        """What somebody else has put there, or may change, is not delivered."""
        require_root("to change owners")
        for name in "abc":
            self.put(f"{name}.pcap")
        os.chown(self.entry(0), 12345, -1)
        self.entry(1).chmod(0o770)
        self.restart()
        self.assertEqual(self.spool.entries, 1)
        self.assertEqual(len(os.listdir(self.path / "broken")), 2)
        self.assertEqual(len([line for line in self.errors() if "belongs to somebody else" in line]), 2)

    def test_name_not_synced(self) -> None:
        """If its name can't be synced, nothing is left for a restart to find."""
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
        """If it can't get its hidden name back either, it is an entry, and known."""
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
        """Have the disk fail when names are synced."""
        fsync = os.fsync

        def failing(descriptor: int) -> None:
            if os.readlink(f"/proc/self/fd/{descriptor}") == str(self.path):
                raise OSError(5, "Input/output error")
            fsync(descriptor)

        return self.patch(os, "fsync", failing)

    def test_content_closed(self) -> None:
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

    def test_directory_missing(self) -> None:
        """A missing directory is logged as an error, once; when it exists, it is used."""
        self.path.rmdir()
        for _ in range(3):
            self.assertIn("No such file or directory", self.refused())
            self.successResultOf(self.spool.tidy())
        self.assertEqual(len(self.errors()), 1)
        self.assertIn("the spool can't be used", self.errors()[0])
        self.path.mkdir(0o700)
        self.put()
        self.assertEqual(self.spool.entries, 1)

    def test_directory_replaced(self) -> None:
        """The captures of a directory that vanishes are reported as lost; its replacement is used."""
        self.put("a.pcap")
        self.path.rename(self.path.with_name(self.path.name + "-away"))
        self.assertIn("No such file or directory", self.refused("b.pcap"))
        self.path.mkdir(0o700)
        self.put("c.pcap")
        self.assertEqual([capture for capture, _ in self.lost()], ["a"])
        self.assertEqual(self.spool.entries, 1)

    def test_entry_removed(self) -> None:
        """A capture that somebody removed is lost, which is reported once; the others stay."""
        for name in ("a.pcap", "b.pcap"):
            self.put(name)
        shutil.rmtree(self.entry())
        size = self.spool.size
        self.one.answer = lambda: fail(DestinationError("503", retryable=True))
        for _ in range(3):
            self.clock.advance(3600)
            for entry in self.spool.due("one"):
                self.successResultOf(Deferred.fromCoroutine(self.outbox.retry(entry)))
        self.assertEqual(self.lost(), [("a", "no longer in the spool")])
        self.assertEqual([entry.capture_id for entry in self.spool.waiting], ["b"])
        self.assertEqual(self.spool.size, size // 2)
        self.assertEqual([data.problem for data in self.events(DeliveryPostponed)], ["503"] * 3)

    def test_removed_while_attempted(self) -> None:
        """If it is removed during an attempt that succeeds, it is delivered, and otherwise lost."""
        for failure, lost in ((None, []), (DestinationError("503", retryable=True), ["b"])):
            name = "a.pcap" if failure is None else "b.pcap"
            self.put(name)
            self.clock.advance(60)
            answer: Deferred[Any] = Deferred()
            self.one.answer = lambda answer=answer: answer  # type: ignore[misc]
            [entry] = self.spool.due("one")
            retrying = Deferred.fromCoroutine(self.outbox.retry(entry))
            opened = self.one.artifacts[-1].content.open()
            opened.read(1)
            shutil.rmtree(self.entry())
            self.one.artifacts[-1].content.open = lambda opened=opened: opened  # type: ignore[method-assign,misc]
            answer.callback(failure) if failure is None else answer.errback(failure)
            self.successResultOf(retrying)
            opened.close()
            self.clock.advance(3600)
            for entry in self.spool.due("one"):
                self.successResultOf(Deferred.fromCoroutine(self.outbox.retry(entry)))
            self.assertEqual([capture for capture, _ in self.lost()], lost)
            self.assertEqual(self.spool.waiting, [])

    def test_unreadable_for_now(self) -> None:
        """A capture that can't be read for now is attempted again."""
        self.put()
        self.path.chmod(0o720)
        self.clock.advance(60)
        for mode in (0o720, 0o700):
            self.path.chmod(mode)
            [entry] = self.spool.due("one")
            self.successResultOf(Deferred.fromCoroutine(self.outbox.retry(entry)))
            self.clock.advance(3600)
        self.assertEqual(self.lost(), [])
        self.assertEqual(self.stored(), ["a.pcap"])

    def test_replaced_while_taken(self) -> None:
        """What vanished while it was taken is lost when it is put back; anything else isn't."""
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
        """A directory that others may write to, or that another user owns, is an error, and not used."""
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

    def test_no_longer_ours_alone(self) -> None:
        """A directory that becomes writable for others is not used from then on, until that is over."""
        entry = self.write_ahead("a.pcap")
        self.path.chmod(0o702)
        self.assertIn("its mode is 0702", self.refused("b.pcap"))
        self.assertIn("its mode is 0702", str(self.failureResultOf(self.spool.read(entry), SpoolError).value))
        self.assertEqual(len(self.errors()), 1)
        self.path.chmod(0o700)
        self.successResultOf(self.spool.read(entry))
        self.put("c.pcap")
        self.assertEqual(self.spool.entries, 2)

    def test_used_by_another(self) -> None:
        """Two processes never use one directory: neither sees what the other is writing."""
        self.put()
        other = SpoolFolder(str(self.path))
        error = self.assertRaises(SpoolError, other.open, lambda: False)
        self.assertIn("another process uses it", str(error))
        self.stop()
        found = other.open(lambda: False)
        self.assertEqual(len(found.entries if found else ()), 1)
        self.assertIn("another process uses it", self.refused("b.pcap"))
        other.close()

    def test_cancelled(self) -> None:
        """A capture that is cancelled while it waits for the disk leaves nothing open."""
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
        """What is on disk after it was cancelled is removed before anything else is written."""
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

    def test_too_late_to_remove(self) -> None:
        """If it can't be removed, for example for want of threads, that is logged."""
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
        """A directory that is opened after that was cancelled is opened again, and listed."""
        self.put()
        self.stop()
        self.start()
        hanging = self.hang("_list")
        tidying = self.spool.tidy()
        tidying.cancel()
        self.failureResultOf(tidying, CancelledError)
        self.run_in_thread = run_now
        hanging[0].callback(None)
        self.successResultOf(self.spool.tidy())
        self.assertEqual(self.spool.entries, 1)

    def test_delivered_and_stuck(self) -> None:
        """What is delivered and can't be removed at once is removed later."""
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
        """If there are no threads any more, nothing stays open."""
        self.run_in_thread = lambda *args: fail(RuntimeError("the threads are not running"))
        self.assertIn("the threads are not running", self.refused())

    def test_memory(self) -> None:
        """60 MB are spooled, checked and read without holding them."""
        self.max_bytes = 10**9
        self.restart()
        large = MemfdContent(zeros=60_000_000)
        self.addCleanup(large.close)
        with PeakMemory() as memory:
            self.successResultOf(self.write(make_artifact(large)))
            self.clock.advance(60)
            [entry] = self.take()
            artifact = self.successResultOf(self.spool.read(entry))
        self.assertLess(memory.grown_bytes, 4_000_000)
        self.assertEqual(artifact.content.size, 60_000_000)
