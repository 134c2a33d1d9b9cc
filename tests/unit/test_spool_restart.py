"""What a start finds in the spool."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail

from pcapsvc.core.errors import SpoolError
from pcapsvc.delivery.entry import State
from pcapsvc.delivery.inventory import ENTRY_BYTES
from pcapsvc.testing import run_now
from tests.unit.spool_case import DATA, DAY, WALL, SpoolCase


def as_pipe(path: Path) -> None:
    """Replace a file by a pipe."""
    path.unlink()
    os.mkfifo(path)


def as_link(path: Path, target: Path) -> None:
    """Move something away, and replace it by a link to it."""
    path.rename(target)
    path.symlink_to(target)


#: How many directories are in one another: more than Python permits calls, and with their names longer than a
#: path, which has up to 4096 bytes (limits.h, PATH_MAX).
DEPTH = 1100


def nest(path: Path) -> None:
    """Make a directory with others in it, one in another, and a file of 5 bytes in each."""
    path.mkdir()
    (path / "file").write_bytes(b"12345")
    directory = os.open(path, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("deep", dir_fd=directory)
        inner = os.open("deep", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = inner
        file = os.open("file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=directory)
        os.write(file, b"12345")
        os.close(file)
    os.close(directory)


class RestartTests(SpoolCase):
    """What a start finds."""

    def test_all_of_it(self) -> None:
        """What was spooled is there after a restart, the oldest first, and due immediately."""
        for name in ("c.pcap", "a.pcap", "b.pcap"):
            self.put(name, tags="x")
        size = self.spool.size
        self.restart()
        self.assertEqual([entry.capture_id for entry in self.spool.due("one")], ["c", "a", "b"])
        self.assertEqual(self.spool.waiting, self.spool.due("one"))
        self.assertEqual(repr(self.spool), f"<Spool: 3 captures, {size} bytes>")
        self.assertEqual(self.spool.size, size)
        artifact = self.successResultOf(self.spool.read(self.take()[1]))
        self.assertEqual((artifact.tags, artifact.capture_id), ("x", "a"))
        with artifact.content.open() as file:
            self.assertEqual(file.read(), DATA)

    def located(self, capture_id: str) -> bytes | None:
        """The file of a capture, where the spool says it is."""
        found = self.successResultOf(Deferred.fromCoroutine(self.spool.locate(capture_id)))
        if found is None:
            return None
        entry, path = found
        self.assertEqual((entry.name, entry.size), (f"web1-eth0-1700000000-{capture_id}.pcap", len(DATA)))
        return Path(path).read_bytes()

    def test_located(self) -> None:
        """The file of a capture is found by its id, also before the first round after a start."""
        self.assertIsNone(self.located("a"))
        self.put("a.pcap")
        self.put("a.pcap", destination="two")
        self.put("b.pcap")
        self.assertEqual(self.located("a"), DATA)
        self.stop()
        self.start()
        self.assertEqual(self.located("b"), DATA)
        [one, two] = [path for path in self.path.iterdir() if "-a-" in path.name]
        (one / "manifest.json").unlink()
        self.assertEqual(self.located("a"), DATA)
        (two / "manifest.json").unlink()
        self.assertIsNone(self.located("a"))
        self.assertIsNone(self.located("c"))

    def test_located_nowhere(self) -> None:
        """If the directory can't be used, nothing is found in it."""
        self.put("a.pcap")
        self.stop()
        self.start()
        self.path.chmod(0o777)
        self.assertIsNone(self.located("a"))
        self.path.chmod(0o700)
        self.assertEqual(self.located("a"), DATA)

    def test_damaged(self) -> None:
        """What is damaged is quarantined, logged, and never delivered; what is complete, is delivered."""
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

    def test_damaged_bytes(self) -> None:
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
        """Whatever is in C{broken/} counts, and is removed if necessary; targets of links there stay."""
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
        """Something else with the name C{broken} is quarantined like anything else, and not followed."""
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
        """Set the modification time of something to now."""
        os.utime(path, (self.wall_clock(), self.wall_clock()), follow_symlinks=False)

    def test_broken_one_stays(self) -> None:
        """What can't be removed is logged, once, and stops neither the others nor a new capture."""
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

    def test_deep_leftover(self) -> None:
        """What is left of an entry is removed, however deep it is; the rest of the spool works."""
        self.put()
        nest(self.path / ".gone-deep")
        self.restart()
        self.assertEqual(sorted(path.name[:5] for path in self.path.iterdir()), ["17000", "lock"])
        self.assertEqual([entry.capture_id for entry in self.spool.due("one")], ["a"])

    def test_deep_in_broken(self) -> None:
        """Deep directories in quarantine are counted, quarantined and removed like others."""
        self.put()
        size = self.spool.size
        nest(self.path / ".new-deep")
        (self.path / "broken").mkdir()
        nest(self.path / "broken" / "deep")
        self.restart()
        self.assertEqual(len(list((self.path / "broken").iterdir())), 2)
        self.assertEqual(self.spool.size, size + 2 * (ENTRY_BYTES + (DEPTH + 1) * 5))
        self.clock.advance(DAY + 1)
        self.successResultOf(self.spool.tidy())
        self.assertEqual(list((self.path / "broken").iterdir()), [])

    def test_leftover_stays(self) -> None:
        """A leftover that can't be removed is logged by its name, and stops nothing else."""
        self.put()
        (self.path / ".gone-x" / "y").mkdir(parents=True)
        real = os.rmdir

        def refuse(path: Any, *args: Any, **keywords: Any) -> None:
            if os.fspath(path).endswith("y"):
                raise OSError(16, "Device or resource busy")
            real(path, *args, **keywords)

        self.patch(os, "rmdir", refuse)
        self.restart()
        self.assertIn(
            ".gone-x in the spool can't be removed: Device or resource busy",
            [line for _, line in self.lines],
        )
        self.assertEqual([entry.capture_id for entry in self.spool.due("one")], ["a"])
