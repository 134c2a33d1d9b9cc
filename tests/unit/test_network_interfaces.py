"""Network interfaces by their index. What needs a wire is in C{tests/contracts}."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.packets.filter_compiler import FilterCompiler
from pcapsvc.packets.network_interfaces import (
    bound_index,
    find_index,
    is_up,
    known_index,
    missed_packets,
    name_of,
)
from pcapsvc.packets.pcapy_system import PcapySystem

_LOOPBACK = 1


class NetworkInterfaceTests(SynchronousTestCase):
    """The loopback interface, which always has the same index."""

    def test_by_name(self) -> None:
        """An interface is found by its name, and has it."""
        self.assertEqual((find_index("lo"), name_of(_LOOPBACK)), (_LOOPBACK, "lo"))

    def test_none(self) -> None:
        """There is no interface of an unknown name or index, however long the name is."""
        for name in ("nosuch0", "nosuch0" * 10, "x" * 127, "\N{SNOWMAN}" * 30):
            self.assertIsNone(find_index(name))
        self.assertIsNone(name_of(2**31 - 1))
        self.assertFalse(is_up(2**31 - 1))
        self.assertIsNone(missed_packets(2**31 - 1))

    def test_known(self) -> None:
        """Without waiting, a name is found that an interface has in sysfs, and in this network namespace."""
        self.assertEqual(known_index("lo"), _LOOPBACK)
        for name in ("nosuch0", "", ".", "..", "lo/", "lo/../lo", "lo\0", "l" * 16, "\udcff"):
            self.assertIsNone(known_index(name), name)
        self.assertEqual(known_index("lo", self.sysfs(ifindex="1\n")), _LOOPBACK)
        for other in ("2\n", "", "many\n"):
            self.assertIsNone(known_index("lo", self.sysfs(ifindex=other)), other)

    def test_terminated(self) -> None:
        """What follows a zero byte isn't left out."""
        self.assertIsNone(find_index("lo\0"))
        self.assertIsNone(find_index(""))

    def test_no_descriptors(self) -> None:
        """Without descriptors it can't be found out whether there is an interface."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        calls: tuple[tuple[Callable[..., object], object], ...] = (
            (find_index, "lo"),
            (find_index, "nosuch0"),
            (find_index, "nosuch0" * 10),
            (name_of, _LOOPBACK),
            (is_up, _LOOPBACK),
        )
        errors = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
        for function, value in calls:
            try:
                errors.append(function(value))
            except OSError as error:
                errors.append(error.errno)
        missed = missed_packets(_LOOPBACK)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        self.assertEqual((errors, missed), ([errno.EMFILE] * len(calls), None))

    def test_not_a_packet_socket(self) -> None:
        """A socket of another kind is bound to no interface."""
        with socket.socket() as other:
            self.assertIsNone(bound_index(other.fileno()))

    def test_find(self) -> None:
        """A name that sysfs doesn't know is looked up in a thread: that may take long."""
        in_threads = []

        def run_in_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            in_threads.append(arguments)
            return execute(function, *arguments)

        system = PcapySystem(
            compiler=FilterCompiler(Clock(), ""),
            run_in_thread=run_in_thread,
            buffer_size_bytes=1 << 20,
            read_timeout_ms=10,
            promiscuous=False,
        )
        found = [self.successResultOf(system.find(name)) for name in ("lo", "any", "nosuch0", "x" * 40)]
        self.assertEqual(found, [_LOOPBACK, 0, None, None])
        self.assertEqual(in_threads, [("nosuch0",), ("x" * 40,)])

    def sysfs(self, **files: str) -> Path:
        """A directory of interfaces with some files of the loopback interface."""
        directory = Path(self.mktemp())
        (directory / "lo" / "statistics").mkdir(parents=True)
        for name, text in files.items():
            directory.joinpath("lo", *name.split("__")).write_text(text)
        return directory

    def test_missed(self) -> None:
        """What the hardware missed is the sum of two counters; what the kernel did not want is left out."""
        directory = self.sysfs(
            ifindex="1\n",
            statistics__rx_missed_errors="5\n",
            statistics__rx_fifo_errors="2\n",
            statistics__rx_dropped="9\n",
        )
        self.assertEqual(missed_packets(_LOOPBACK, directory), 7)

    def test_unknown(self) -> None:
        """It is unknown if a counter is missing, or belongs to another interface."""
        self.assertIsNone(missed_packets(_LOOPBACK, self.sysfs(ifindex="1\n")))
        other = self.sysfs(
            ifindex="2\n", statistics__rx_missed_errors="5\n", statistics__rx_fifo_errors="2\n"
        )
        self.assertIsNone(missed_packets(_LOOPBACK, other))
