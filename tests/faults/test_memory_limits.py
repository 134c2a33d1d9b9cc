"""
The installed daemon in a control group with a memory limit.

The group's figures are the test's: in a mount namespace of the daemon, a directory with them covers that of
the group which this process really is in. Nothing outside the namespace changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon

_MIB = 1 << 20
_COVER = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'


def _own_group() -> tuple[Path, bool]:
    """The directory of this process's memory group, and whether it is of version 2."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    for root, path in (("memory", paths.get("memory")), (".", paths.get(""))):
        directory = Path("/sys/fs/cgroup") / root / (path or "").strip("/")
        if path is not None and directory.is_dir():
            return directory, root == "."
    raise SkipTest("there are no control groups here")


class MemoryLimitTests(SynchronousTestCase):
    """A group that may use 200 MiB."""

    def setUp(self) -> None:
        """The group's files, and how to run something in it."""
        group, self.is_version_2 = _own_group()
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        command = ["unshare", "--mount", "--propagation", "private"]
        self.wrapper = [*command, "sh", "-c", _COVER, "sh", str(self.directory), str(group)]
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            raise SkipTest("mount namespaces need root, and unshare(1)")
        if subprocess.run([*self.wrapper, "true"], check=False, capture_output=True).returncode != 0:
            raise SkipTest("mount namespaces are not possible here")
        self.use(40 * _MIB)

    def use(self, used: int, limit: int = 200 * _MIB) -> None:
        """Have the group use C{used} bytes."""
        names = (
            ("memory.max", "memory.current")
            if self.is_version_2
            else (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        )
        for name, value in zip(names, (limit, used), strict=True):
            (self.directory / name).write_text(f"{value}\n")
        (self.directory / "memory.stat").write_text(f"hierarchical_memory_limit {limit}\n")

    def daemon(self, general: str = "") -> Daemon:
        """A daemon in the group, started."""
        daemon = Daemon(general=general)
        self.addCleanup(daemon.stop)
        daemon.start(*self.wrapper)
        return daemon

    def ask(self, daemon: Daemon, **fields: Any) -> tuple[int, str]:
        """The status and the text of the answer to a request."""
        import json

        body = json.dumps(
            {"node": daemon.node, "interface": ["lo"], "duration": 1, "snap": 65535, **fields}
        ).encode()
        status, answer = daemon.request("POST", "/captures", body)
        return status, str(answer)

    def test_defaults(self) -> None:
        """By default, captures may not come to more than the group has room for."""
        daemon = self.daemon("maxbytes = 150000000")
        daemon.logged("but this process may use 209715200 bytes of memory")
        status, text = self.ask(daemon, bytes=150_000_000)
        self.assertEqual(status, 400, text)
        self.assertEqual(self.ask(daemon, bytes=50_000_000)[0], 202)

    def test_larger_setting(self) -> None:
        """A larger limit is a warning at the start, and is not used."""
        daemon = self.daemon(f"maxmemory = {1024 * _MIB}")
        daemon.logged(f"maxmemory is {1024 * _MIB}, but this process may use {200 * _MIB} bytes")
        status, text = self.ask(daemon, interface=["lo", "any"], bytes=90_000_000)
        self.assertEqual(status, 400, text)

    def test_others_in_the_group(self) -> None:
        """While others use the group's memory, the daemon is busy, and says why."""
        daemon = self.daemon()
        self.use(150 * _MIB)
        status, text = self.ask(daemon, bytes=90_000_000)
        self.assertEqual(status, 503, text)
        self.assertIn("bytes of memory are free for this process", text)
        self.use(60 * _MIB)
        self.assertEqual(self.ask(daemon, bytes=90_000_000)[0], 202)
