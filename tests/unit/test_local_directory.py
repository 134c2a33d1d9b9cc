"""Captures in a directory."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from typing import Any

from twisted.internet import defer, reactor
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import DestinationError
from pcapsvc.destinations.local.destination import LocalDirectory
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.testing import run_now
from pcapsvc.threads import NotRunning, Threads
from peers.requirement import require, require_root
from tests.unit.bad_disk import refuse_modes, refuse_syncing
from tests.unit.contents import MemfdContent, PeakMemory, make_artifact


class LocalDirectoryTests(SynchronousTestCase):
    """L{LocalDirectory}, with no thread."""

    def setUp(self) -> None:
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.destination = LocalDirectory(directory=self.directory, run_in_thread=run_now)

    def content(self, data: bytes = b"some packets", **kwargs: int) -> MemfdContent:
        content = MemfdContent(data, **kwargs)
        self.addCleanup(content.close)
        return content

    def refused(self, artifact: Artifact) -> DestinationError:
        error = self.failureResultOf(self.destination.store(artifact), DestinationError).value
        assert isinstance(error, DestinationError)
        return error

    def test_interface(self) -> None:
        """It is a destination, called local."""
        self.assertTrue(verifyObject(IDestination, self.destination))
        self.assertEqual([self.destination.route({"endpoint": "x"})], list(self.destination.routes))
        self.assertEqual(
            [str(problem) for problem in self.destination.check({"bucket": "b"})],
            ["bucket: is not a known key"],
        )
        self.assertEqual(self.destination.name, "local")

    def test_store(self) -> None:
        """A capture is stored byte for byte; its location is its path; nothing else is left behind."""
        data = os.urandom(1_000_000)
        content = self.content(data)
        receipt = self.successResultOf(self.destination.store(make_artifact(content, name="a.pcap")))
        path = os.path.join(self.directory, "a.pcap")
        self.assertEqual((receipt.destination, receipt.location), ("local", path))
        with open(path, "rb") as file:
            self.assertEqual(file.read(), data)
        self.assertEqual(os.listdir(self.directory), ["a.pcap"])
        self.assertTrue(content.all_closed)

    def test_mode(self) -> None:
        """The mode is 0640, whatever the umask says."""
        for umask in (0o000, 0o022, 0o777):
            before = os.umask(umask)
            self.addCleanup(os.umask, before)
            name = f"{umask}.pcap"
            self.successResultOf(self.destination.store(make_artifact(self.content(), name=name)))
            os.umask(before)
            mode = stat.S_IMODE(os.stat(os.path.join(self.directory, name)).st_mode)
            self.assertEqual(mode, 0o640)

    def test_never_overwrites(self) -> None:
        """An existing file stays as it is, and the error is not retryable."""
        path = os.path.join(self.directory, "a.pcap")
        with open(path, "w") as file:
            file.write("before")
        error = self.refused(make_artifact(self.content(), name="a.pcap"))
        self.assertFalse(error.retryable)
        self.assertIn("File exists", str(error))
        with open(path) as file:
            self.assertEqual(file.read(), "before")
        self.assertEqual(os.listdir(self.directory), ["a.pcap"])

    def test_again(self) -> None:
        """A file with the same name and size is the capture itself, from an earlier attempt."""
        path = os.path.join(self.directory, "a.pcap")
        for _ in range(2):
            receipt = self.successResultOf(
                self.destination.store(make_artifact(self.content(), name="a.pcap"))
            )
            self.assertEqual(receipt.location, path)
            self.assertEqual(os.listdir(self.directory), ["a.pcap"])
            self.assertEqual(os.stat(path).st_nlink, 1)

    def test_never_follows(self) -> None:
        """A symbolic link of the name is not followed."""
        outside = self.mktemp()
        os.symlink(os.path.abspath(outside), os.path.join(self.directory, "a.pcap"))
        self.refused(make_artifact(self.content(), name="a.pcap"))
        self.assertFalse(os.path.exists(outside))

    def test_missing_folder(self) -> None:
        """A missing directory is not retryable."""
        os.rmdir(self.directory)
        content = self.content()
        error = self.refused(make_artifact(content))
        self.assertFalse(error.retryable)
        self.assertIn("No such file or directory", str(error))
        self.assertFalse(os.path.exists(self.directory))
        self.assertTrue(content.all_closed)

    def test_folder_is_a_file(self) -> None:
        """Nor is something else in its place."""
        os.rmdir(self.directory)
        open(self.directory, "w").close()
        error = self.refused(make_artifact(self.content()))
        self.assertFalse(error.retryable)
        self.assertIn("Not a directory", str(error))

    def test_full_file_system(self) -> None:
        """
        Where the file system is full, the delivery fails, to be tried again, and leaves
        nothing behind.
        """
        require_root("to mount a small file system")
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", self.directory]
        require(subprocess.run(mount, check=False).returncode == 0, "a tmpfs can't be mounted")
        self.addCleanup(subprocess.run, ["umount", self.directory], check=True)
        content = self.content(b"", zeros=3_000_000)
        error = self.refused(make_artifact(content))
        self.assertTrue(error.retryable)
        self.assertIn("No space left on device", str(error))
        self.assertEqual(os.listdir(self.directory), [])
        self.assertTrue(content.all_closed)

    def test_failure_to_read(self) -> None:
        """A failure to read leaves nothing behind, either."""

        class Broken(MemfdContent):
            def open(self) -> Any:
                reader = super().open()
                outer = self

                class Reader:
                    closed = False

                    def read(self, size: int) -> bytes:
                        raise OSError(errno.EIO, os.strerror(errno.EIO))

                    def close(self) -> None:
                        reader.close()

                    def __enter__(self) -> Any:
                        return self

                    def __exit__(self, *exception: object) -> None:
                        self.close()

                assert outer.opened
                return Reader()

        content = Broken(b"data")
        self.addCleanup(content.close)
        error = self.refused(make_artifact(content))
        self.assertTrue(error.retryable)
        self.assertIn("Input/output error", str(error))
        self.assertEqual(os.listdir(self.directory), [])
        self.assertTrue(content.all_closed)

    def test_without_links(self) -> None:
        """On a file system without hard links it is renamed, and does not overwrite either."""

        def no_link(*args: object, **kwargs: object) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        self.patch(os, "link", no_link)
        for _ in range(2):
            self.successResultOf(self.destination.store(make_artifact(self.content(), name="a.pcap")))
        other = make_artifact(self.content(b"other packets"), name="a.pcap")
        self.assertIn("File exists", str(self.refused(other)))
        self.assertEqual(os.listdir(self.directory), ["a.pcap"])

    def test_directory_not_synced(self) -> None:
        """If the directory can't be synced, the attempt has failed, and the name is free for another one."""
        fsync = os.fsync

        def fail_for_folders(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            fsync(descriptor)

        self.patch(os, "fsync", fail_for_folders)
        self.assertTrue(self.refused(make_artifact(self.content())).retryable)
        self.assertEqual(os.listdir(self.directory), [])

    def test_unsupported(self) -> None:
        """
        What a file system doesn't support prevents nothing, and is logged once, when the service starts:
        neither syncing of directories (CIFS, vboxsf, FUSE), nor permissions (FAT, mounts of S3).
        """
        logged: list[str] = []
        observer = lambda event: logged.append(formatEvent(event) or "")  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        for number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
            logged.clear()
            refuse_syncing(self, number)
            refuse_modes(self, errno.EPERM)
            destination = LocalDirectory(directory=self.directory, run_in_thread=run_now)
            destination.startService()
            self.assertEqual(os.listdir(self.directory), [])
            self.assertEqual(len(logged), 2, logged)
            self.assertIn("doesn't set permissions", logged[0])
            self.assertIn("doesn't sync directories", logged[1])
            for name in ("a.pcap", "b.pcap", "a.pcap"):
                self.successResultOf(destination.store(make_artifact(self.content(), name=name)))
            self.assertEqual(sorted(os.listdir(self.directory)), ["a.pcap", "b.pcap"])
            self.assertEqual(len(logged), 2, logged)
            destination.stopService()
            for name in os.listdir(self.directory):
                os.unlink(os.path.join(self.directory, name))

    def test_mode_not_set(self) -> None:
        """Other errors of setting permissions are errors."""
        refuse_modes(self, errno.EIO)
        self.assertTrue(self.refused(make_artifact(self.content())).retryable)
        self.assertEqual(os.listdir(self.directory), [])

    def test_unusable(self) -> None:
        """A directory that can't be used is logged when the service starts, which is no problem."""
        os.rmdir(self.directory)
        logged: list[str] = []
        observer = lambda event: logged.append(formatEvent(event) or "")  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.destination.startService()
        self.assertEqual(logged, [f"captures can't be stored in {self.directory}: No such file or directory"])
        self.destination.stopService()

    def test_hanging(self) -> None:
        """A directory that hangs when it is tried out is not waited for when the service stops."""
        hanging: defer.Deferred[Any] = defer.Deferred()
        destination = LocalDirectory(directory=self.directory, run_in_thread=lambda *args: hanging)
        destination.startService()
        destination.stopService()
        self.assertTrue(hanging.called)

    def test_disk_full(self) -> None:
        """A full disk, a quota, and an I/O error can be tried again."""
        content = self.content()
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO):

            def full(descriptor: int, data: bytes, number: int = number) -> int:
                raise OSError(number, os.strerror(number))

            self.patch(os, "write", full)
            error = self.refused(make_artifact(content))
            self.assertTrue(error.retryable)
            self.assertIn(os.strerror(number), str(error))
            self.assertEqual(os.listdir(self.directory), [])

    def test_threads_stopped(self) -> None:
        """If there are no threads any more, nothing stays open."""
        destination = LocalDirectory(
            directory=self.directory, run_in_thread=lambda *args: defer.fail(NotRunning("stopped"))
        )
        content = self.content()
        failure = self.failureResultOf(destination.store(make_artifact(content)), DestinationError)
        self.assertTrue(failure.value.retryable)
        self.assertTrue(content.all_closed)

    def test_memory(self) -> None:
        """60 MB are copied without holding them."""
        content = self.content(b"", zeros=60_000_000)
        with PeakMemory() as memory:
            self.successResultOf(self.destination.store(make_artifact(content, name="a.pcap")))
        self.assertEqual(os.path.getsize(os.path.join(self.directory, "a.pcap")), 60_000_000)
        self.assertLess(memory.grown_bytes, 4_000_000)


class ThreadedLocalDirectoryTests(TestCase):
    """L{LocalDirectory}, in threads."""

    def setUp(self) -> None:
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.threads = Threads(reactor)
        self.threads.startService()
        self.addCleanup(self.threads.stopService)
        self.destination = LocalDirectory(directory=self.directory, run_in_thread=self.threads.run)

    async def test_side_by_side(self) -> None:
        """One content is stored many times at once, each with a reader of its own."""
        data = os.urandom(2_000_000)
        content = MemfdContent(data)
        self.addCleanup(content.close)
        receipts = await defer.gatherResults(
            [self.destination.store(make_artifact(content, name=f"{n}.pcap")) for n in range(8)]
        )
        for receipt in receipts:
            with open(receipt.location, "rb") as file:
                self.assertEqual(file.read(), data)

    async def test_cancel(self) -> None:
        """On cancel the Deferred fires at once; the thread stops copying, and leaves nothing behind."""
        content = MemfdContent(zeros=200_000_000)
        self.addCleanup(content.close)
        stored = self.destination.store(make_artifact(content))
        stored.cancel()
        await self.assertFailure(stored, defer.CancelledError)
        await self.threads.stopService()
        self.assertTrue(content.all_closed)
        self.assertEqual(os.listdir(self.directory), [])
