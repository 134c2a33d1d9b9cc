"""Filters compiled in real processes."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pcapy
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial import unittest

from pcapsvc.core.errors import NodeBusy
from pcapsvc.core.filter import FilterRejected, Program
from pcapsvc.packets import filter_child
from pcapsvc.packets.filter_compiler import FilterCompiler
from pcapsvc.packets.libpcap import library_path

reactor: Any = global_reactor

# linux/prctl.h, linux/capability.h.
PR_CAPBSET_DROP, CAP_SYS_RESOURCE = 24, 24

# libpcap 1.9.1 never comes to an end on these (its issue 112).
ENDLESS = (
    "ip and (dst host 1.2.3.4 or host 10.0.0.1) and (dst host 1.2.3.4 or host 10.0.0.2)",
    "(ip[12:4]=1 or ip[16:4]=1)and(ip[12:4]=2 or ip[16:4]=2)",
)


class FilterProcessTests(unittest.TestCase):
    """L{FilterCompiler}, with real processes."""

    async def setUp(self) -> None:
        """At the end, no child and no additional descriptor is left."""
        await deferLater(reactor, 0, lambda: None)  # it has all of its own by then
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.compiler = self.make()

    def make(self, **more: Any) -> FilterCompiler:
        """A compiler for the libpcap that pcapy uses."""
        self.compiler = FilterCompiler(reactor, library_path(pcapy.__file__), **more)
        self.compiler.startService()
        return self.compiler

    async def tearDown(self) -> None:
        """Stop it, and look for what it left."""
        await self.compiler.stopService()
        self.assertEqual(children(), [])
        self.assertEqual(len(os.listdir("/proc/self/fd")), self.descriptors)

    def compile(self, bpf: str) -> Deferred[Program]:
        """Compile a filter for Ethernet."""
        return self.compiler.compile(bpf, link_type=1, snap_length=512)

    async def test_endless(self) -> None:
        """Filters on which libpcap's optimizer never ends can be used, and delay no others."""
        if b"1.9.1" not in Path(library_path(pcapy.__file__)).read_bytes():
            raise unittest.SkipTest("this libpcap's optimizer comes to an end")
        self.make(optimizer_seconds=2.0, limit_seconds=2.0)
        endless = [self.compile(bpf) for bpf in ENDLESS]
        easy = await self.compile("udp port 53")
        self.assertTrue(easy.is_optimized)
        self.assertFalse(any(one.called for one in endless))
        for program in await gatherResults(endless):
            self.assertFalse(program.is_optimized)
            self.assertLess(len(program.instructions), 100 * 8)

    async def test_child_is_bounded(self) -> None:
        """The child inherits nothing, has little memory, and the kernel bounds it."""
        secret = "PCAPSVC_TEST_SECRET"
        os.environ[secret] = "x"
        self.addCleanup(os.environ.pop, secret)
        inherited = os.open("/dev/null", os.O_RDONLY)
        os.set_inheritable(inherited, True)
        await self.compile("udp")
        [child] = children()
        self.assertEqual(sorted(os.listdir(f"/proc/{child}/fd")), ["0", "1", "2"])
        self.assertNotIn(secret, Path(f"/proc/{child}/environ").read_text())
        self.assertLess(resource.prlimit(child, resource.RLIMIT_AS)[0], 300 << 20)
        self.assertLess(resource.prlimit(child, resource.RLIMIT_CPU)[0], 10)
        status = Path(f"/proc/{child}/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        self.assertLess(int(resident.split()[1]), 16 << 10)
        os.close(inherited)

    def test_lower_limits(self) -> None:
        """It works under limits that are lower than its own, and that nobody may raise."""

        def limit() -> None:
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_RESOURCE)
            resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))
            resource.setrlimit(resource.RLIMIT_CPU, (20, 20))

        child = subprocess.run(
            [
                sys.executable,
                "-I",
                "-S",
                filter_child.__file__,
                library_path(pcapy.__file__),
                str(os.getpid()),
                "60",
            ],
            input=filter_child.REQUEST.pack(1, 512, 0, 3) + b"udp",
            capture_output=True,
            preexec_fn=limit,
            timeout=60,
        )
        self.assertEqual(child.stderr, b"")
        kinds, answers = [], child.stdout
        while answers:
            kind, length = filter_child.ANSWER.unpack_from(answers)
            kinds.append(kind)
            answers = answers[filter_child.ANSWER.size + length :]
        self.assertEqual(kinds, [filter_child.READY, filter_child.ROUGH, filter_child.PROGRAM])

    async def test_in_another_directory(self) -> None:
        """It works wherever the daemon goes."""
        before = os.getcwd()
        os.chdir("/")
        self.addCleanup(os.chdir, before)
        await self.compile("udp")

    async def test_stop_while_compiling(self) -> None:
        """A stop leaves nothing, whatever is being compiled."""
        compiling = [self.compile(bpf) for bpf in (*ENDLESS, "udp")]
        await deferLater(reactor, 0.1, lambda: None)
        await self.compiler.stopService()
        # None of them came to an end by itself.
        for one in compiling:
            one.addErrback(lambda failure: failure.trap(NodeBusy))
            await one

    async def test_killed_from_outside(self) -> None:
        """A filter whose process is killed from outside is compiled by another one."""
        await self.compile("tcp")
        [child] = children()
        # So that it can't answer before it is killed.
        os.kill(child, signal.SIGSTOP)
        compiling = self.compile("udp")
        os.kill(child, signal.SIGKILL)
        self.assertTrue((await compiling).is_optimized)
        self.assertNotIn(child, children())

    async def test_stopped(self) -> None:
        """A filter whose process is stopped from outside is compiled by another one."""
        self.make(limit_seconds=2.0)
        await self.compile("tcp")
        [child] = children()
        os.kill(child, signal.SIGSTOP)
        await self.compile("udp")
        # It has been killed; to reap it may take another moment.
        deadline = time.monotonic() + 60
        while child in children() and time.monotonic() < deadline:
            await deferLater(reactor, 0.01, lambda: None)
        self.assertNotIn(child, children())

    async def test_memory(self) -> None:
        """What takes more memory than it may does not compile, and harms nothing else."""
        many = " or ".join(f"port {number}" for number in range(20000))
        with self.assertRaises(FilterRejected):
            await self.compile(many)
        await self.compile("udp")


def children() -> list[int]:
    """The processes that this one has started, and that have not been reaped."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
