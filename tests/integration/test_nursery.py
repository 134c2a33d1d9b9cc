"""Daemons that are forked are like any others."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers import nursery
from peers.daemon import Daemon
from peers.nursery import ForkedProcess, Nursery
from peers.process import free_port
from tests.integration.pcapctl_case import pcapctl

_ROOT = Path(__file__).parents[2]
_DESCRIBED = "tests.integration.described_process"
# Nothing answers at any of these.
_COMPONENTS = (
    "[redis]\nlisten = true\nhost = '127.0.0.1'\nport = 9\n",
    "[kafka]\nlisten = true\nserver = ['127.0.0.1:9']\n",
    "[sqs]\nlisten = true\nurl = 'http://127.0.0.1:9/1/q'\nregion = 'x'\n",
    "[cloudshark]\nupload = true\nhost = '127.0.0.1'\ntoken = 'x'\n",
    "[s3]\nupload = true\nbucket = 'bucket'\nregion = 'x'\naccessid = 'a'\naccesskey = 'b'\n",
    "[webhook]\nupload = true\nurl = 'https://127.0.0.1:9/'\n",
    "[puturl]\nallow = ['127.0.0.1:9']\n",
    "[reports.redis]\nsend = true\nhost = '127.0.0.1'\nport = 9\n",
    "[reports.kafka]\nsend = true\nserver = ['127.0.0.1:9']\n",
    "[reports.sqs]\nsend = true\nurl = 'http://127.0.0.1:9/1/q'\nregion = 'x'\n",
    "[[interface]]\nname = 'lo'\nhistory = 1\n",
)


class NurseryTests(SynchronousTestCase):
    """L{Nursery}, and the daemons that it forks."""

    def daemon(self) -> Daemon:
        """A daemon that runs until the end of the test."""
        daemon = Daemon()
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def nursery(self) -> Nursery:
        """A nursery besides the one of the run, which the test may end."""
        of_run = os.environ.get(nursery.VARIABLE)
        if of_run is None:
            self.addCleanup(os.environ.pop, nursery.VARIABLE)
        else:
            self.addCleanup(os.environ.__setitem__, nursery.VARIABLE, of_run)
        one = Nursery("peers.twistd_program")
        os.environ[nursery.VARIABLE] = one.path
        self.addCleanup(one.close)
        return one

    def lasting_nursery(self) -> None:
        """A nursery that the test doesn't end: the one of the run, if any, as each has much to import."""
        if not nursery.has_daemons():
            self.nursery()

    def wait_until_gone(self, pid: int) -> None:
        """Wait until a process doesn't run any more."""
        deadline = time.monotonic() + 60
        while self._runs(pid):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def _runs(self, pid: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        return False

    def test_status(self) -> None:
        """It is noticed how a daemon ended."""
        self.lasting_nursery()
        daemon = self.daemon()
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        daemon.restart()
        daemon.signal(signal.SIGKILL)
        self.assertEqual(daemon.wait(), -signal.SIGKILL)

    def test_descriptors(self) -> None:
        """A daemon has the descriptors that it would have by itself, and runs where it would run."""
        self.lasting_nursery()
        self.daemon()
        daemons = []
        for is_cold in (True, False):
            daemon = Daemon()
            self.addCleanup(daemon.stop)
            daemon.start(is_cold=is_cold)
            place = Path(f"/proc/{daemon.pid}")
            self.assertEqual(place.joinpath("cwd").readlink(), place.joinpath("fd/1").readlink().parent)
            daemons.append(daemon)

        def seen() -> list[list[str]]:
            return [self._descriptors(daemon) for daemon in daemons]

        # A thread may have a file open for a moment, and the connection that was asked whether it answers.
        daemons[0].until(lambda: True if operator.eq(*seen()) else None, lambda: f"the same: {seen()}")

    def test_like_any_other(self) -> None:
        """A program has the environment, arguments, limits and the rest that it would have by itself."""
        os.environ["PCAPSVC_OF_THE_TEST"] = "set"
        self.addCleanup(os.environ.pop, "PCAPSVC_OF_THE_TEST")
        one = Nursery(_DESCRIBED)
        self.addCleanup(one.close)
        file = Path(self.mktemp()).absolute()
        words = ["one", "two words"]
        with file.open("wb") as output:
            forked = ForkedProcess(one.path, [_DESCRIBED, *words], output=output.fileno(), directory=_ROOT)
            self.assertEqual(forked.wait(60), 3)
        cold = subprocess.run(
            [sys.executable, "-m", _DESCRIBED, *words],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            start_new_session=True,
            timeout=60,
        )
        self.assertEqual(json.loads(file.read_text()), json.loads(cold.stdout))
        self.assertEqual(json.loads(cold.stdout)["environment"]["PCAPSVC_OF_THE_TEST"], "set")

    def test_pcapctl(self) -> None:
        """pcapctl has the status, and writes the same to the same places, as when a user starts it."""
        one = Nursery("peers.pcapctl_program")
        self.addCleanup(one.close)
        self.patch(os, "environ", {**os.environ, nursery.PCAPCTL_VARIABLE: one.path})
        api = f"http://127.0.0.1:{free_port()}"
        for words, status in (
            (["--version"], 0),
            (["capture", "--help"], 0),
            (["nodes", "--api", api], 4),
            (["capture", "--via", api, "-i", "lo", "--packets", "x"], 2),
            (["list", "--api", "\udcff"], 2),
        ):
            forked, cold = (pcapctl(*words, is_cold=is_cold) for is_cold in (False, True))
            self.assertEqual((forked, cold.status), (cold, status), words)

    def test_cold(self) -> None:
        """Each component finds what it needs in a process that has imported nothing before."""
        for configuration in _COMPONENTS:
            daemon = Daemon(configuration)
            self.addCleanup(daemon.stop)
            daemon.start(is_cold=True)
            daemon.end()
            self.assertNotIn("Traceback", daemon.log, configuration)

    def test_gone(self) -> None:
        """Without its nursery, nothing can be started."""
        one = self.nursery()
        daemon = self.daemon()
        one.close()
        self.assertEqual(daemon.wait(), -signal.SIGKILL)
        self.assertRaises(RuntimeError, self.daemon)

    def _descriptors(self, daemon: Daemon) -> list[str]:
        """What they are: which number each has depends on when it was opened."""
        return sorted(re.sub(r"^\d+: |\[\d+\]|/tmp/.*", "", one) for one in daemon.descriptors())

    def test_none_is_left(self) -> None:
        """A daemon ends with the process that started it, and with the nursery."""
        one = self.nursery()
        pid = self.daemon().pid
        script = "from peers.daemon import Daemon; d = Daemon(); d.start(); print(d.pid, flush=True); input()"
        words = [sys.executable, "-c", script]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            its_own = int(other.stdout.readline())
            self.addCleanup(shutil.rmtree, Path(f"/proc/{its_own}/cwd").readlink())
            self.assertTrue(self._runs(its_own))
            other.kill()
        self.wait_until_gone(its_own)
        self.assertTrue(self._runs(pid))
        one.close()
        self.wait_until_gone(pid)

    def test_time(self) -> None:
        """What its daemons take counts as this process's."""
        self.lasting_nursery()
        before = nursery.processor_seconds()
        daemon = self.daemon()
        running = nursery.processor_seconds()
        self.assertGreater(running, before)
        daemon.end()
        self.assertGreaterEqual(nursery.processor_seconds(), running)
