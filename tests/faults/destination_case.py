"""A house with a destination in trouble, and what it must leave behind."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from pcapsvc.core.event import CaptureDelivered, DeliveryFailed, DeliverySpooled
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from tests.faults.house import PATIENT_SECONDS, House, memory_bytes, possessions, until

# Far less than the thirty captures of a megabyte.
_MOST_KEPT_BYTES = 8_000_000
NAME = "web1-eth0-1700000000-abc.pcap"


def named(node: str) -> str:
    """The name of a file of another node, and of a capture with an id of its own."""
    return f"{node}-eth0-1700000000-{node}.pcap"


@contextmanager
def _limited(descriptors: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _only(free: int) -> AbstractContextManager[None]:
    """Leave this process only so many descriptors."""
    unused = (number for number in itertools.count() if not os.path.lexists(f"/proc/self/fd/{number}"))
    return _limited(next(itertools.islice(unused, free, None)))


def no_descriptors() -> AbstractContextManager[None]:
    """Leave this process none, not even in place of those that it closes."""
    return _limited(3)


class FaultCase(TestCase):
    """A house, and what it must leave behind."""

    timeout = 240

    async def setUp(self) -> None:  # type: ignore[override]
        # The reactor has one more pipe while it runs.
        await task.deferLater(reactor, 0)
        self.data = os.urandom(500_000)
        self.path = Path(self.mktemp()).absolute()
        self.path.mkdir()

    def house(self, make: Callable[[RunInThread], IDestination], **options: Any) -> House:
        """A house that runs until the end of the test."""
        path = self.path / "spool"
        path.mkdir(exist_ok=True)
        house = House(path, make, **options)
        self.addCleanup(house.stop)
        house.start()
        return house

    async def spooled(self, house: House) -> None:
        """Deliver a capture in vain: it is in the spool, byte for byte, which is reported."""
        await house.deliver(self.data)
        self.assertEqual(house.reported(CaptureDelivered), [])
        self.assertEqual(house.reported(DeliveryFailed), [])
        self.assertEqual(len(house.reported(DeliverySpooled)), 1)
        self.assertEqual(house.spool.entries, 1)
        [file] = (self.path / "spool").glob("*/capture.pcap")
        self.assertEqual(file.read_bytes(), self.data)

    async def delivered_in_the_end(self, house: House) -> None:
        """When nothing prevents it any more, it is delivered from the spool, and not again."""
        await house.emptied()
        await house.stop()
        self.assertEqual(len(house.reported(CaptureDelivered)), 1)
        house.start()
        await house.has_looked()
        await house.stop()
        self.assertEqual(house.reported(CaptureDelivered), [])
        self.assertEqual({path.name for path in (self.path / "spool").iterdir()}, {"lock"})

    async def one_failure_mended(self, words: str, timeout_seconds: float) -> None:
        """
        Deliver the capture of the node C{first} to a server that fails once: another attempt succeeds.

        @param words: part of the problem.
        @param timeout_seconds: how long an attempt may take. If that is what makes the first one fail, the
            next ones may take too long as well, on a busy machine.
        """
        is_timed = timeout_seconds < PATIENT_SECONDS
        house = self.house(self.make, timeout_seconds=timeout_seconds, attempts=20 if is_timed else 2)
        await house.deliver(self.data, named("first"))
        self.assertEqual(len(house.reported(CaptureDelivered)), 1, house.problems)
        self.assertGreaterEqual(len(house.problems), 1)
        if not is_timed:
            self.assertEqual(len(house.problems), 1)
        for problem in house.problems:
            self.assertIn(words, problem)
        self.assertEqual(house.spool.entries, 0)
        await house.stop()

    async def patiently(self, house: House) -> None:
        """From here on, attempts may take as long as they do on a busy machine."""
        if house.timeout_seconds < PATIENT_SECONDS:
            await house.stop()
            house.timeout_seconds = PATIENT_SECONDS
            house.start()

    async def costs_no_memory(self, words: str) -> None:
        """
        Thirty failed attempts leave nothing in memory.

        @param words: part of the problem of each.
        """
        self.data = os.urandom(1_000_000)
        # A server that answers must have the time for it.
        timeout_seconds = 0.3 if "0.3 s" in words else PATIENT_SECONDS
        house = self.house(self.make, attempts=10, timeout_seconds=timeout_seconds, retry_seconds=0.02)
        # Threads are begun when several attempts go on at once, and keep their stacks.
        for node in ("first", "second"):
            await house.deliver(self.data, named(node))
        before = memory_bytes()
        for n in range(3):
            await house.deliver(self.data, named(f"node{n}"))
        self.assertLess(memory_bytes() - before, _MOST_KEPT_BYTES)
        self.assertEqual(house.spool.entries, 5)
        self.assertGreaterEqual(len(house.problems), 50)
        for problem in house.problems:
            self.assertIn(words, problem)
        await house.stop()

    async def few_descriptors(self, needed: int) -> None:
        """
        An attempt for which there are too few descriptors fails, and says why; the next one succeeds.

        @param needed: how many an attempt needs at once.
        """
        sockets = possessions()["socket"]
        for free in range(needed):
            house = self.house(self.make, attempts=10)
            # From here on, no module is missing, and no thread.
            await house.deliver(self.data, named(f"first{free}"))
            await until(lambda: possessions()["socket"] == sockets)
            # One is for the capture itself.
            with _only(1 + free):
                delivering = Deferred.fromCoroutine(house.deliver(self.data, named(f"node{free}")))
                await until(lambda house=house: bool(house.problems))  # type: ignore[misc]
            await delivering
            self.assertIn("Too many open files", house.problems[0])
            self.assertEqual(len(house.reported(CaptureDelivered)), 2, house.problems)
            await house.stop()

    def empty_spool(self) -> None:
        """For another house."""
        shutil.rmtree(self.path / "spool")

    def assert_asked(self, times: list[float]) -> None:
        """Between two attempts there was the second that the server asked for, and not much more."""
        self.assertEqual(len(times), 2)
        self.assertGreaterEqual(times[1] - times[0], 1.0)
        # On a busy machine any attempt may take some seconds.
        self.assertLess(times[1] - times[0], 15.0)


class TLSServerCase(FaultCase):
    """A server that speaks TLS, and the file with the certificate to verify it by."""

    server: Any

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.server = self.make_server()
        self.addCleanup(self.server.stop)
        self.server.start()
        self.ca_file = self.path / "ca.pem"
        self.ca_file.write_bytes(self.server.ca_file.read_bytes())
        self.before = possessions()

    def make_server(self) -> Any:
        """The server."""
        raise NotImplementedError
