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
    has_name,
    is_quick_to_find,
    is_up,
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

    def test_quick_to_find(self) -> None:
        """Without waiting, only a name that an interface has is looked up, whatever path it resembles."""
        self.assertTrue(is_quick_to_find("lo"))
        for name in ("nosuch0", "", ".", "..", "lo/", "lo/../lo", "lo\0", "l" * 16, "\udcff"):
            self.assertFalse(is_quick_to_find(name), name)

    def test_names(self) -> None:
        """An interface that is there has its own name, and none that is unknown; long ones are believed."""
        for name, expected in (("lo", True), ("nosuch0", False), ("nosuch0" * 10, True)):
            self.assertEqual(has_name(_LOOPBACK, name), expected, name)
        self.assertTrue(has_name(2**31 - 1, "nosuch0"))

    def test_no_descriptors(self) -> None:
        """Without descriptors it can't be found out whether there is an interface."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        calls: tuple[tuple[Callable[..., object], object], ...] = (
            (find_index, "lo"),
            (find_index, "nosuch0"),
            (find_index, "nosuch0" * 10),
            (name_of, _LOOPBACK),
            (lambda name: has_name(_LOOPBACK, name), "lo"),
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
        """A name that no interface has is looked up in a thread: the kernel may run modprobe(8) for it."""
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
