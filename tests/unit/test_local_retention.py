"""What is removed from the local directory, and what isn't."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from typing import Any

from twisted.internet import defer, task
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.kept_file import KeptFile, Limits, SteadyClock
from pcapsvc.destinations.local.destination import LocalDirectory
from pcapsvc.destinations.local.ledger import LEDGER
from pcapsvc.destinations.local.retention import INTERVAL_SECONDS, Retention
from pcapsvc.destinations.local.settings import RetentionSettings
from pcapsvc.destinations.local.sweep import FILES_A_TURN, REMOVALS_A_TURN
from pcapsvc.testing import run_now
from tests.unit.contents import MemfdContent, make_artifact
from tests.unit.logged import logged
from tests.unit.settings_case import LEAST, SettingsTestCase

_DAY = 86400.0


def name_of(number: int, suffix: str = ".pcap") -> str:
    """The name of a capture."""
    return f"web1-eth0-{1_700_000_000 + number}-{number:012x}{suffix}"


class RetentionCase(SynchronousTestCase):
    """A directory with limits, and a clock."""

    def setUp(self) -> None:
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.clock = task.Clock()
        # What files are written by is the kernel's own clock.
        self.wall = 1_800_000_000.0
        self.messages = logged(self)

    def make(self, **limits: Any) -> LocalDirectory:
        """The destination, started."""
        self.retention = Retention(
            self.clock,
            directory=self.directory,
            limits=Limits(**limits),
            run_in_thread=run_now,
            clock=SteadyClock(lambda: self.wall, self.clock.seconds),
        )
        destination = LocalDirectory(
            directory=self.directory, run_in_thread=run_now, retention=self.retention
        )
        destination.startService()
        self.addCleanup(destination.stopService)
        return destination

    def store(self, destination: LocalDirectory, number: int, size: int = 1000, **kwargs: Any) -> str:
        """
        Store a capture.

        @return: its name.
        """
        content = MemfdContent(zeros=size)
        self.addCleanup(content.close)
        name = name_of(number, **kwargs)
        self.successResultOf(destination.store(make_artifact(content, name=name)))
        self.assertTrue(content.all_closed)
        return name

    def there(self) -> list[str]:
        """The files in the directory, except for the list."""
        return sorted(name for name in os.listdir(self.directory) if name != LEDGER)

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)


class SizeTests(RetentionCase):
    """C{maxsize}."""

    def test_oldest_first(self) -> None:
        """What was written first is removed first; each removal is logged and counted, its path is gone."""
        destination = self.make(max_bytes=3000)
        # Not in the order of the names, nor of any clock: the wall clock is set back meanwhile.
        names = [self.store(destination, number) for number in (7, 3, 9)]
        self.assertEqual(self.there(), sorted(names))
        self.clock.advance(5)
        self.wall -= _DAY
        names.append(self.store(destination, 1, size=1500))
        self.assertEqual(self.there(), sorted(names[2:]))
        self.assertEqual(
            [line for line in self.messages() if "removed" in line],
            [
                f"removed the capture {name} (1000 bytes, 5 s old): the captures in {self.directory} exceed"
                " [local] maxsize"
                for name in names[:2]
            ],
        )
        self.assertEqual([destination.path(self.path(name)) for name in names[:2]], [None, None])
        self.assertEqual(destination.path(self.path(names[2])), self.path(names[2]))
        kept = self.retention.kept()
        self.assertEqual((kept.files, kept.bytes, kept.removed), (2, 2500, {"size": 2, "age": 0}))

    def test_the_newest_stays(self) -> None:
        """A capture that is larger than the limit by itself is kept until there is a newer one."""
        destination = self.make(max_bytes=500)
        first = self.store(destination, 1)
        self.assertEqual(self.there(), [first])
        second = self.store(destination, 2)
        self.assertEqual(self.there(), [second])

    def test_after_a_restart(self) -> None:
        """A later process knows what was written, whatever its suffix is, and what was removed."""
        before = self.make(max_bytes=10_000)
        names = [
            self.store(before, number, suffix=suffix)
            for number, suffix in enumerate((".pcap", ".pcapng", ".pcapng.zst", ".pcap.gz"))
        ]
        before.stopService()
        self.make(max_bytes=2500)
        self.assertEqual(self.there(), names[2:])
        # Somebody restores one, with its time. It isn't removed again.
        shutil.copy2(self.path(names[2]), self.path("copy"))
        self.make(max_bytes=1500)
        os.rename(self.path("copy"), self.path(names[2]))
        self.make(max_bytes=500, max_age_seconds=1)
        self.assertEqual(self.there(), names[2:])

    def test_enabled_later(self) -> None:
        """What was written while there was no limit isn't known, and stays."""
        plain = LocalDirectory(directory=self.directory, run_in_thread=run_now)
        first = self.store(plain, 1)
        self.assertEqual(os.listdir(self.directory), [first])
        destination = self.make(max_bytes=1000)
        rest = [self.store(destination, number) for number in (2, 3)]
        self.assertEqual(self.there(), [first, rest[1]])

    def test_again(self) -> None:
        """A second attempt with the same capture changes nothing."""
        destination = self.make(max_bytes=2500)
        for number in (1, 1, 2, 2):
            self.store(destination, number)
        self.assertEqual(self.there(), [name_of(1), name_of(2)])
        self.assertEqual(self.retention.kept().bytes, 2000)

    def test_removed_by_somebody(self) -> None:
        """What somebody else has removed counts no longer, before anything is removed for it."""
        destination = self.make(max_bytes=3500)
        names = [self.store(destination, number) for number in range(3)]
        self.clock.advance(3600)
        os.unlink(self.path(names[1]))
        names.append(self.store(destination, 3))
        self.assertEqual(self.there(), [names[0], *names[2:]])
        self.assertEqual(self.retention.kept().files, 3)

    def test_many(self) -> None:
        """Thousands are looked at and removed in parts, between which others may use the directory."""
        number = FILES_A_TURN + 3 * REMOVALS_A_TURN
        destination = self.make(max_bytes=10**9)
        found = os.stat(self.directory)
        with open(self.path(LEDGER), "a") as ledger:
            for n in range(number):
                with open(self.path(name_of(n)), "w"):
                    pass
                found = os.stat(self.path(name_of(n)))
                file = KeptFile(
                    name=name_of(n),
                    size=0,
                    written=self.wall - 2 * _DAY,
                    modified=int(found.st_mtime),
                    owner=found.st_uid,
                )
                ledger.write(f"{file.line()}\n")
        destination.stopService()
        turns: list[Any] = []

        def counting(function: Any, *args: Any) -> defer.Deferred[Any]:
            result = run_now(function, *args)
            turns.append(result.result)
            return result

        retention = Retention(
            self.clock,
            directory=self.directory,
            limits=Limits(max_age_seconds=_DAY),
            run_in_thread=counting,
            clock=SteadyClock(lambda: self.wall, self.clock.seconds),
        )
        retention.start()
        self.addCleanup(retention.stop)
        self.assertEqual(self.there(), [])
        self.assertEqual(retention.kept().removed, {"size": 0, "age": number})
        self.assertLessEqual(max(len(swept.removals) for swept in turns), REMOVALS_A_TURN)
        self.assertGreater(len(turns), number / REMOVALS_A_TURN)
        # The list doesn't grow for ever.
        self.assertLess(os.path.getsize(self.path(LEDGER)), 200_000)


class AgeTests(RetentionCase):
    """C{maxage}."""

    def test_age(self) -> None:
        """What is too old is removed, although nothing is delivered; the newest as well."""
        destination = self.make(max_age_seconds=600)
        first = self.store(destination, 1)
        self.clock.advance(300)
        second = self.store(destination, 2)
        for _ in range(5):
            self.clock.advance(INTERVAL_SECONDS)
        self.assertEqual(self.there(), [first, second])
        self.clock.advance(INTERVAL_SECONDS)
        self.assertEqual(self.there(), [second])
        for _ in range(5):
            self.clock.advance(INTERVAL_SECONDS)
        self.assertEqual(self.there(), [])
        self.assertIn(
            f"removed the capture {second} (1000 bytes, 660 s old): it is older than [local] maxage",
            self.messages(),
        )

    def test_after_a_restart(self) -> None:
        """The time in which no process ran counts."""
        destination = self.make(max_age_seconds=600)
        self.store(destination, 1)
        destination.stopService()
        self.wall += 500
        self.make(max_age_seconds=600).stopService()
        self.assertEqual(self.there(), [name_of(1)])
        self.wall += 200
        self.make(max_age_seconds=600)
        self.assertEqual(self.there(), [])

    def test_unset_clock(self) -> None:
        """If the clock was wrong when something was written, or is wrong now, that makes nothing old."""
        written = self.wall
        for wrong in (60.0, written + 10 * _DAY):
            self.wall = wrong
            destination = self.make(max_age_seconds=600)
            self.store(destination, int(wrong))
            destination.stopService()
        self.wall = written
        names = self.there()
        self.make(max_age_seconds=600)
        self.clock.advance(540)
        self.assertEqual(self.there(), names)
        # From the start on, they age.
        self.clock.advance(2 * INTERVAL_SECONDS)
        self.assertEqual(self.there(), [])


class OthersTests(RetentionCase):
    """Files that pcapsvc has not written, or that are not as it wrote them."""

    def test_others(self) -> None:
        """They stay, whatever they are called, and however old and large they are."""
        destination = self.make(max_bytes=1, max_age_seconds=1)
        mine = self.store(destination, 1)
        outside = os.path.abspath(self.mktemp())
        with open(outside, "w") as file:
            file.write("x" * 1000)
        shutil.copy2(self.path(mine), self.path(name_of(1000)))
        shutil.copy2(self.path(mine), self.path("keep.pcap"))
        os.symlink(outside, self.path(name_of(1001)))
        os.mkdir(self.path(name_of(1002)))
        others = [name for name in self.there() if name != mine]
        os.utime(self.path(others[0]), (0, 0))
        self.clock.advance(3600)
        self.store(destination, 2)
        self.clock.advance(3600)
        self.assertEqual(self.there(), sorted(others))
        self.assertTrue(os.path.exists(outside))

    def test_changed(self) -> None:
        """What was replaced, changed, renamed or linked by somebody is theirs."""

        def replace(path: str) -> None:
            os.unlink(path)
            os.symlink("/etc/hostname", path)

        def append(path: str) -> None:
            with open(path, "a") as file:
                file.write("x")

        def rewrite(path: str) -> None:
            with open(path, "r+") as file:
                file.write("other")
            os.utime(path, (0, 0))

        changes = (
            replace,
            append,
            rewrite,
            lambda path: os.rename(path, f"{path}.keep"),
            lambda path: os.link(path, f"{path}.keep"),
        )
        destination = self.make(max_age_seconds=_DAY)
        for number, change in enumerate(changes):
            change(self.path(self.store(destination, number)))
        before = self.there()
        for _ in range(50):
            self.clock.advance(3600)
        self.assertEqual(self.there(), before)
        self.assertEqual([line for line in self.messages() if "removed" in line], [])

    def test_a_list_of_somebody_else(self) -> None:
        """A list that others may have written isn't believed. Captures are stored, which is logged once."""
        victim = name_of(5)
        with open(self.path(victim), "w") as file:
            file.write("x" * 10)
        found = os.stat(self.path(victim))
        line = KeptFile(
            name=victim, size=10, written=1.7e9, modified=int(found.st_mtime), owner=found.st_uid
        ).line()
        elsewhere = os.path.abspath(self.mktemp())
        for make in (
            lambda: os.symlink(elsewhere, self.path(LEDGER)),
            lambda: os.mkfifo(self.path(LEDGER)),
            lambda: os.mkdir(self.path(LEDGER)),
            lambda: open(self.path(LEDGER), "w").close() or os.chmod(self.path(LEDGER), 0o666),
            lambda: open(self.path(LEDGER), "w").close() or os.truncate(self.path(LEDGER), (256 << 20) + 1),
        ):
            with open(elsewhere, "w") as file:
                file.write(f"{line}\n")
            make()
            if os.path.isfile(self.path(LEDGER)) and not os.path.islink(self.path(LEDGER)):
                with open(self.path(LEDGER), "r+") as file:
                    file.write(f"{line}\n")
            destination = self.make(max_bytes=1, max_age_seconds=1)
            for number in (1, 2):
                self.store(destination, number)
            self.clock.advance(3600)
            self.assertEqual(self.there(), [name_of(1), name_of(2), victim])
            said = [text for text in self.messages() if "old captures can't be removed" in text]
            self.assertEqual(len(said), 1, self.messages())
            destination.stopService()
            self.messages = logged(self)
            remove = os.rmdir if os.path.isdir(self.path(LEDGER)) else os.unlink
            remove(self.path(LEDGER))

    def test_half_a_line(self) -> None:
        """What a crash has left of a line, and rubbish, is passed over."""
        destination = self.make(max_bytes=1500)
        self.store(destination, 1)
        destination.stopService()
        with open(self.path(LEDGER), "ab") as file:
            file.write(b"\xff\x00rubbish\n1700000000.000 10 17")
        destination = self.make(max_bytes=1500)
        second = self.store(destination, 2)
        self.assertEqual(self.there(), [second])
        destination.stopService()
        self.make(max_bytes=1500)
        self.assertEqual(self.retention.kept().files, 1)

    def test_two_processes(self) -> None:
        """Two processes with one directory know of each other's captures."""
        one, other = self.make(max_bytes=2500), self.make(max_bytes=2500)
        names = [self.store((one, other)[number % 2], number) for number in range(5)]
        self.assertEqual(self.there(), names[3:])


class FailureTests(RetentionCase):
    """What goes wrong."""

    def test_refused(self) -> None:
        """What can't be removed is logged once, and removed later. The delivery has succeeded."""
        destination = self.make(max_bytes=1500)
        unlink = os.unlink
        for number in (errno.EACCES, errno.EROFS):

            def refuse(path: str, *, dir_fd: int | None = None, number: int = number) -> None:
                if path.startswith("web1-"):
                    raise OSError(number, os.strerror(number))
                unlink(path, dir_fd=dir_fd)

            self.patch(os, "unlink", refuse)
            for _ in range(3):
                self.store(destination, number * 10 + len(self.there()))
                self.clock.advance(INTERVAL_SECONDS)
            self.patch(os, "unlink", unlink)
        self.assertEqual(len(self.there()), 6)
        self.assertEqual(
            [line for line in self.messages() if "can't be removed" in line],
            [
                f"old captures can't be removed from {self.directory}: {os.strerror(number)}"
                for number in (errno.EACCES, errno.EROFS)
            ],
        )
        self.clock.advance(INTERVAL_SECONDS)
        self.assertEqual(len(self.there()), 1)

    def test_a_list_that_cant_be_written(self) -> None:
        """
        While the disk has no room for the list, captures are stored, and old ones are removed, which makes
        room. What couldn't be noted, or only in part, is noted later.
        """
        for room in (0, 10):
            destination = self.make(max_bytes=1500)
            self.store(destination, 10 * room + 1)
            write, left = os.write, [room]

            def full(descriptor: int, data: bytes, write: Any = write, left: list[int] = left) -> int:
                if os.readlink(f"/proc/self/fd/{descriptor}").endswith(LEDGER):
                    data, left[0] = data[: left[0]], 0
                    if not data:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written: int = write(descriptor, data)
                return written

            self.patch(os, "write", full)
            names = [self.store(destination, 10 * room + number) for number in (2, 3)]
            self.assertEqual(self.there(), names[1:])
            self.patch(os, "write", write)
            self.assertTrue(any(f"{LEDGER}, can't be kept up to date" in line for line in self.messages()))
            self.clock.advance(INTERVAL_SECONDS)
            destination.stopService()
            destination = self.make(max_bytes=1500)
            names.append(self.store(destination, 10 * room + 4))
            self.assertEqual(self.there(), names[2:])
            destination.stopService()

    def test_stale_links(self) -> None:
        """
        A file system may show the hidden name of a capture as a second link for a while. The capture is
        counted and removed once it doesn't.
        """
        destination = self.make(max_bytes=2500)
        real = os.stat

        def stale(path: Any, **kwargs: Any) -> os.stat_result:
            found = real(path, **kwargs)
            if not str(path).startswith("web1-"):
                return found
            values = [*found]
            values[stat.ST_NLINK] = 2
            return os.stat_result(values)

        self.patch(os, "stat", stale)
        names = [self.store(destination, number) for number in range(4)]
        self.assertEqual(self.there(), names)
        self.patch(os, "stat", real)
        self.clock.advance(INTERVAL_SECONDS)
        self.assertEqual(self.there(), names[2:])

    def test_no_directory(self) -> None:
        """A directory that is missing and comes back."""
        destination = self.make(max_bytes=1500)
        self.store(destination, 1)
        shutil.rmtree(self.directory)
        self.clock.advance(INTERVAL_SECONDS)
        os.mkdir(self.directory)
        for number in (2, 3):
            self.store(destination, number)
        self.assertEqual(self.there(), [name_of(3)])
        self.assertEqual(len([line for line in self.messages() if "can't be removed" in line]), 1)

    def test_hanging(self) -> None:
        """A disk that hangs delays no stop, and no second look begins."""
        started: list[defer.Deferred[Any]] = []

        def hang(*args: Any) -> defer.Deferred[Any]:
            started.append(defer.Deferred())
            return started[-1]

        retention = Retention(
            self.clock,
            directory=self.directory,
            limits=Limits(max_bytes=1),
            run_in_thread=hang,
            clock=SteadyClock(lambda: self.wall, self.clock.seconds),
        )
        retention.start()
        for _ in range(3):
            self.clock.advance(INTERVAL_SECONDS)
            retention.wake()
        self.assertEqual(len(started), 1)
        retention.stop()
        self.assertTrue(started[0].called)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class RetentionSettingsTests(SettingsTestCase):
    """C{[local]}."""

    def test_keys(self) -> None:
        """Nothing is removed unless one of the keys is set."""
        section = self.section(RetentionSettings, LEAST)
        self.assertEqual((section.max_bytes, section.max_age_seconds), (None, None))
        section = self.section(RetentionSettings, LEAST + "\n[local]\nmaxsize = 5\nmaxage = 6\n")
        self.assertEqual((section.max_bytes, section.max_age_seconds), (5, 6))
        self.assertEqual(
            self.problems(LEAST + "\n[local]\nmaxsize = 0\nmaxage = '1d'\nmaxfiles = 1\n"),
            [
                "local.maxfiles: is not a known key; did you mean 'maxage'?",
                "local.maxsize = 0: must be a whole number of bytes, from 1 to 9223372036854775807",
                'local.maxage = "1d": must be a whole number of seconds, from 1 to 1000000000',
            ],
        )
