"""A daemon on file systems that can't do everything: it delivers."""

from __future__ import annotations

import errno
import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.process import free_port
from tests.faults.shim import Shim


class SimpleFileSystemTests(SynchronousTestCase):
    """The local directory and the spool, with system calls that fail."""

    def started(self, **errors: int) -> tuple[Daemon, Path]:
        """A daemon whose system calls fail for both directories, and for nothing else."""
        path = Path(self.mktemp()).absolute()
        disk = path / "disk"
        (disk / "spool").mkdir(parents=True)
        daemon = Daemon(
            f"""
            [cloudshark]
            upload = true
            host = "localhost"
            port = {free_port()}
            token = "t0k3n-t0k3n"
            [delivery]
            attempts = 1
            spooldir = {json.dumps(str(disk / "spool"))}
            """,
            captures=disk / "local",
        )
        self.addCleanup(daemon.stop)
        shim = Shim(path, disk, **{f"SHIM_{name}": str(number) for name, number in errors.items()})
        shim.begin()
        daemon.start(*shim.wrapper)
        return daemon, disk

    def test_unsupported(self) -> None:
        """Without syncing of directories, and without permissions, a capture is stored, and spooled."""
        for number in (errno.EINVAL, errno.EBADF):
            daemon, disk = self.started(FSYNC=number, FCHMOD=errno.EPERM)
            for words in ("doesn't sync directories", "doesn't set permissions"):
                daemon.logged(f"the file system of the spool: it {words}")
                daemon.logged(f"the file system of {disk / 'local'}: it {words}")
            capture_id = daemon.capture(interface=["lo"], packets=1, timeout=30)
            daemon.done(capture_id)
            self.assertEqual(len(list((disk / "local").glob(f"*{capture_id}.pcap"))), 1)
            self.assertEqual(len(list((disk / "spool").glob(f"*{capture_id}-cloudshark/capture.pcap"))), 1)
            self.assertEqual(sum("file system of" in line for line in daemon.log.splitlines()), 4)
            daemon.stop()

    def test_broken(self) -> None:
        """An I/O error is an error: nothing stays that may be incomplete."""
        daemon, disk = self.started(FSYNC=errno.EIO)
        capture_id = daemon.capture(interface=["lo"], packets=1, timeout=30)
        daemon.logged("Input/output error")
        daemon.done(capture_id)
        self.assertEqual(list((disk / "local").glob("*.pcap")), [])
        self.assertEqual(list((disk / "spool").glob("*-cloudshark")), [])
