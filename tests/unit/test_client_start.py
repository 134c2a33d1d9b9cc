"""What pcapctl costs before it does anything."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from types import ModuleType
from typing import IO, Any
from unittest import mock

from twisted.trial import unittest

from pcapsvc.client import profile
from pcapsvc.client.__main__ import run

_PATIENCE_SECONDS = 180.0
# A command that writes more than a pipe has room for, in lines that fill its pages.
_WRITES_MUCH = """
import functools, signal, sys
from pcapsvc.client import interruption, profile
from pcapsvc.client.__main__ import run

def write(options):
    interruption.on_signal(signal.SIGTERM, functools.partial(SystemExit, 143))
    while True:
        print("x" * 1023, flush=True)

profile.print_profiles = write
sys.argv = ["pcapctl", "profiles"]
sys.exit(run())
"""


class StartTests(unittest.SynchronousTestCase):
    """How soon pcapctl is there."""

    def test_help(self) -> None:
        """Help imports nothing of ours but the options, and little of the standard library."""
        quiet = "import io, sys; sys.stdout = io.StringIO()"
        run = "from pcapsvc.client.main import main\ntry: main(['--help'])\nexcept SystemExit: pass"
        found = self.imported(f"{quiet}\n{run}\nsys.stdout = sys.__stdout__")
        ours = {name for name in found if name.startswith("pcapsvc")}
        self.assertEqual(ours, {"pcapsvc", "pcapsvc.client", "pcapsvc.client.main"})
        costly = {"msgspec", "rich", "boto3", "kafka", "twisted", "http.client", "ssl", "subprocess"}
        self.assertEqual(found & costly, set())

    def test_imports(self) -> None:
        """Without a terminal, a capture imports no table; and each transport only its own library."""
        for module in ("requesting", "nodes", "watching", "transports.redis", "transports.http"):
            found = self.imported(f"import pcapsvc.client.{module}")
            self.assertEqual(found & {"rich", "boto3", "kafka", "twisted"}, set(), module)

    def test_form(self) -> None:
        """What Wireshark asks of each interface, a process each time, imports no API and no request."""
        found = self.imported("import pcapsvc.client.extcap_form")
        costly = {"http.client", "ssl", "pcapsvc.client.api", "pcapsvc.core.request"}
        self.assertEqual(found & costly, set())

    def imported(self, code: str) -> set[str]:
        """What a program imports."""
        program = f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        return set(json.loads(done.stdout))


class InterruptionTests(unittest.SynchronousTestCase):
    """Ctrl-C, at the beginning and at the end of pcapctl."""

    def setUp(self) -> None:
        """As Python begins."""
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.found: list[Any] = []

    def look(self, *_: Any) -> int:
        """Note what a Ctrl-C does."""
        self.found.append(signal.getsignal(signal.SIGINT))
        raise KeyboardInterrupt

    def test_imports(self) -> None:
        """It ends the process at once while modules are imported, and when everything is done."""
        test = self

        class Module(ModuleType):
            @property
            def main(self) -> None:
                test.look()

        with mock.patch.dict(sys.modules, {"pcapsvc.client.main": Module("main")}):
            self.assertEqual(run(), 130)
        self.assertEqual([*self.found, signal.getsignal(signal.SIGINT)], [signal.SIG_DFL, signal.SIG_DFL])

    def test_command(self) -> None:
        """A command can handle it; and what ignored it before goes on to do so."""
        self.patch(profile, "print_profiles", self.look)
        self.patch(sys, "argv", ["pcapctl", "profiles"])
        # What could not be written is discarded: not that of the tests.
        self.patch(sys, "stdout", io.StringIO())
        self.patch(sys, "stderr", io.StringIO())
        self.assertEqual(run(), 130)
        self.assertIs(signal.getsignal(signal.SIGINT), signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.assertEqual(run(), 130)
        self.assertIs(signal.getsignal(signal.SIGINT), signal.SIG_IGN)
        handler, ignored = self.found
        self.assertRaises(KeyboardInterrupt, handler, signal.SIGINT, None)
        self.assertIs(ignored, signal.SIG_IGN)

    def test_stalled(self) -> None:
        """It ends pcapctl even if nobody reads what pcapctl has written; so does the signal of C{kill}."""
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            with subprocess.Popen(
                [sys.executable, "-c", _WRITES_MUCH],
                env={**os.environ, "PYTHONUNBUFFERED": ""},
                stdout=subprocess.PIPE,
            ) as process:
                assert process.stdout is not None
                self.addCleanup(process.kill)
                size = fcntl.fcntl(process.stdout, fcntl.F_GETPIPE_SZ)
                self.wait_until(lambda stream=process.stdout, size=size: _waiting_bytes(stream) == size)
                process.send_signal(number)
                self.assertEqual(process.wait(_PATIENCE_SECONDS), status)

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while not is_so():
            self.assertLess(time.monotonic(), until)
            time.sleep(0.01)


def _waiting_bytes(pipe: IO[bytes]) -> int:
    """How many bytes wait in a pipe to be read."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
