"""The files that a configuration names must be regular ones: nothing else is waited for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.delivery.folder import SpoolFile
from pcapsvc.net.kafka.token import TokenFile, UnusableToken
from pcapsvc.regular_file import read_regular_file
from pcapsvc.settings import files


class RegularFileTests(SynchronousTestCase):
    """L{read_regular_file}, and everything that goes through it."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.mkdir()

    def others(self) -> list[str]:
        """A FIFO that nobody writes to for a long time, a device without an end, and a directory."""
        fifo = self.path / "fifo"
        os.mkfifo(fifo)

        def write() -> None:
            try:
                os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                pass  # nobody waits for it

        release = threading.Timer(2, write)
        release.start()
        self.addCleanup(release.join)
        self.addCleanup(release.cancel)
        return [str(fifo), "/dev/zero", str(self.path)]

    def test_regular(self) -> None:
        """A file is read up to a length, also through a link."""
        (self.path / "file").write_bytes(b"abcdef")
        (self.path / "link").symlink_to("file")
        self.assertEqual(read_regular_file(str(self.path / "link"), 100), b"abcdef")
        self.assertEqual(read_regular_file(str(self.path / "file"), 3), b"abc")

    def test_others(self) -> None:
        """Anything else is an error at once, and leaves no descriptor open."""
        paths = self.others()
        before = os.listdir("/proc/self/fd")
        for path in paths:
            self.assertRaises(OSError, read_regular_file, path, 100)
        self.assertEqual(os.listdir("/proc/self/fd"), before)

    def test_settings(self) -> None:
        """So it is for secrets, certificates, keys and tokens; the problem says why."""
        reads: list[Callable[[str], Any]] = [
            files.read_secret,
            files.check_certificates,
            files.check_key,
            files.check_dh_parameters,
        ]
        for path, reason in zip(
            self.others(), ("not a regular file", "not a regular file", "Is a directory"), strict=True
        ):
            for read in reads:
                self.assertIn(reason, str(self.assertRaises(ValueError, read, path)))
            self.assertIn(reason, str(self.assertRaises(UnusableToken, TokenFile, path)))


class SpoolFileTests(SynchronousTestCase):
    """A spooled capture is opened by who reads it, in a thread."""

    def test_late(self) -> None:
        """Opening it touches nothing on disk; the first read does."""
        path = Path(self.mktemp())
        with SpoolFile(str(path), 6).open() as reader:
            path.write_bytes(b"abcdef")
            self.assertEqual(reader.read(2), b"ab")
            self.assertEqual(reader.seek(-1, os.SEEK_END), 5)
            self.assertEqual(reader.read(), b"f")
            self.assertEqual((reader.seek(1), reader.tell()), (1, 1))
            path.unlink()
            self.assertEqual(reader.read(), b"bcdef")

    def test_missing(self) -> None:
        """If it is missing, or anything but a regular file, the first read fails."""
        path = Path(self.mktemp())
        with SpoolFile(str(path), 6).open() as reader:
            self.assertRaises(FileNotFoundError, reader.read)
        os.mkfifo(path)
        with SpoolFile(str(path), 6).open() as reader:
            self.assertRaises(OSError, reader.read)
