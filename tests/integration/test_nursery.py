"""Daemons that are forked are like any others."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers import nursery
from peers.daemon import Daemon
from peers.nursery import Nursery


class NurseryTests(SynchronousTestCase):
    """L{Nursery}, and the daemons that it forks."""

    def daemon(self) -> Daemon:
        """A daemon that runs until the end of the test."""
        daemon = Daemon()
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def nursery(self) -> Nursery:
        """A nursery besides the one of the run."""
        of_run = os.environ.get(nursery.VARIABLE)
        if of_run is None:
            self.addCleanup(os.environ.pop, nursery.VARIABLE)
        else:
            self.addCleanup(os.environ.__setitem__, nursery.VARIABLE, of_run)
        one = Nursery("peers.twistd_program")
        os.environ[nursery.VARIABLE] = one.path
        self.addCleanup(one.close)
        return one

    def wait_until_gone(self, pid: int) -> None:
        """Wait until a process doesn't run any more."""
        while self._runs(pid):
            time.sleep(0.01)

    def _runs(self, pid: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        return False

    def test_status(self) -> None:
        """It is noticed how a daemon ended."""
        self.nursery()
        daemon = self.daemon()
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        daemon.restart()
        daemon.signal(signal.SIGKILL)
        self.assertEqual(daemon.wait(), -signal.SIGKILL)

    def test_like_any_other(self) -> None:
        """It has the environment, directory, descriptors and command that it would have had by itself."""
        os.environ["PCAPSVC_OF_THE_TEST"] = "set"
        self.addCleanup(os.environ.pop, "PCAPSVC_OF_THE_TEST")
        seen = []
        for is_there in (False, True):
            if is_there:
                self.nursery()
                self.daemon()
            daemon = Daemon()
            self.addCleanup(daemon.stop)
            daemon.start(is_cold=not is_there)
            place = Path(f"/proc/{daemon.pid}")
            self.assertEqual(place.joinpath("cwd").readlink(), place.joinpath("fd/1").readlink().parent)
            described = daemon.until(
                lambda d=daemon: self._descriptors(d), "its last connection to be closed"
            )
            seen.append((described, re.search(r"twistd \S+ \(.*", daemon.log)))
            self.assertNotIn("Traceback", daemon.log)
        self.assertEqual(*[one for one, _ in seen])
        self.assertEqual(*[said and said[0] for _, said in seen])

    def _descriptors(self, daemon: Daemon) -> list[str] | None:
        """What they are: which number each has depends on when it was opened. Not with a connection."""
        described = sorted(re.sub(r"^\d+: |\[\d+\]|/tmp/.*", "", one) for one in daemon.descriptors())
        return described if described.count("socket:") == 1 else None

    def test_none_is_left(self) -> None:
        """A daemon ends with the process that started it, and with the nursery."""
        one = self.nursery()
        pid = self.daemon().pid
        script = "from peers.daemon import Daemon; d = Daemon(); d.start(); print(d.pid, flush=True); input()"
        words = [sys.executable, "-c", script]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            its_own = int(other.stdout.readline())
            self.assertTrue(self._runs(its_own))
            other.kill()
        self.wait_until_gone(its_own)
        self.assertTrue(self._runs(pid))
        one.close()
        self.wait_until_gone(pid)

    def test_time(self) -> None:
        """What its daemons take counts as this process's."""
        self.nursery()
        before = nursery.processor_seconds()
        daemon = self.daemon()
        running = nursery.processor_seconds()
        self.assertGreater(running, before)
        daemon.end()
        self.assertGreaterEqual(nursery.processor_seconds(), running)
