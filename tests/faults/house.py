"""All of the delivery, in this process: an outbox, a spool on disk, and the rounds through it."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred

from pcapsvc.core.event import CaptureDelivered, DeliveryFailed, DeliveryPostponed, DeliverySpooled
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.folder import SpoolFolder
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.delivery.rounds import Rounds
from pcapsvc.delivery.settings import DeliverySettings
from pcapsvc.delivery.spool import SPOOL_THREADS, Spool
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.lifecycle import OrderedServices
from pcapsvc.net.names import NameLookups
from pcapsvc.testing import MemoryReporter, event_factory
from pcapsvc.threads import Threads
from tests.unit.contents import MemfdContent, make_artifact, resident_bytes

_PATIENCE_SECONDS = 120.0
#: How long an attempt may take if it is not to be what makes it fail, on a busy machine either.
PATIENT_SECONDS = 30.0
# As L{pcapsvc.app.build} has it by default.
_SLOTS = DeliverySettings().concurrency
_DESTINATION_THREADS = 2 * _SLOTS


class House:
    """
    From a capture to one destination, with little patience.

    @param make: makes the destination, with threads of its own.
    @param options: what the request of a capture says of the destination, by the name of its file.
    @ivar reporter: the events since the last start.
    @ivar timeout_seconds: how long an attempt may take, from the next start on.
    """

    def __init__(
        self,
        spool_path: Path,
        make: Callable[[RunInThread], IDestination],
        *,
        attempts: int = 2,
        timeout_seconds: float = PATIENT_SECONDS,
        retry_seconds: float = 0.1,
        max_delay_seconds: float | None = None,
        options: Callable[[str], Mapping[str, Any]] = lambda name: {},
    ) -> None:
        self._path = spool_path
        self._make = make
        self._options = options
        self._policy = RetryPolicy(
            attempts=attempts,
            first_delay_seconds=retry_seconds,
            max_delay_seconds=max_delay_seconds or retry_seconds,
        )
        self.timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        self.running = False

    def start(self) -> None:
        """Start it, as after a start of the daemon."""
        self.reporter, events = MemoryReporter(), event_factory(wall_clock=time.time)
        theirs, ours = Threads(reactor, most=_DESTINATION_THREADS), Threads(reactor, most=SPOOL_THREADS)
        lookups = Threads(reactor)
        # Those that are done are taken out by other threads.
        busy: deque[None] = deque()

        def run_in_thread(function: Callable[..., Any], *args: Any) -> Deferred[Any]:
            def run() -> Any:
                busy.append(None)
                try:
                    return function(*args)
                finally:
                    busy.pop()

            return theirs.run(run)

        self._busy = busy
        self._folder = SpoolFolder(str(self._path))
        destination = self._make(run_in_thread)
        self.spool = Spool(
            reactor,
            self._folder,
            run_in_thread=ours.run,
            reporter=self.reporter,
            events=events,
            max_bytes=1 << 30,
            max_age_seconds=3600,
        )
        self.outbox = Outbox(
            reactor,
            destination,
            slots=_SLOTS,
            timeout_seconds=self.timeout_seconds,
            policy=self._policy,
            spool_interval_seconds=self._retry_seconds,
            reporter=self.reporter,
            events=events,
            spool=self.spool,
        )
        rounds = Rounds(reactor, self.spool, [self.outbox], interval_seconds=self._retry_seconds)
        self._services = OrderedServices(
            reactor,
            [[rounds], self.outbox, self.spool, [theirs, ours, lookups, NameLookups(reactor, lookups.run)]],
            stop_timeout_seconds=10,
        )
        self._services.startService()
        self.running = True

    async def stop(self) -> None:
        """Stop it. Nothing happens if it is stopped already."""
        if self.running:
            self.running = False
            await self._services.stopService()

    async def deliver(self, data: bytes, name: str = "web1-eth0-1700000000-abc.pcap") -> None:
        """Deliver a capture, until it is delivered, spooled or lost."""
        content = MemfdContent(data)
        try:
            artifact = make_artifact(
                content,
                capture_id=name.removesuffix(".pcap").rpartition("-")[2],
                name=name,
                tags="customer:Zoë",
                destination=self.outbox.destination,
                **self._options(name),
            )
            await self.outbox.deliver(artifact, lambda: None)
        finally:
            content.close()

    def reported(self, kind: type) -> list[Any]:
        """The payloads of the events of a kind since the last start."""
        return [data for data in self.reporter.data if isinstance(data, kind)]

    @property
    def problems(self) -> list[str]:
        """Why attempts failed, since the last start."""
        kinds = (DeliveryPostponed, DeliverySpooled, DeliveryFailed)
        return [data.problem for kind in kinds for data in self.reported(kind)]

    @property
    def busy_threads(self) -> int:
        """How many of the destination's threads are busy."""
        return len(self._busy)

    async def has_looked(self) -> None:
        """Wait until it has opened its spool, and knows what is in it."""
        await until(self._folder.is_open)

    async def emptied(self) -> None:
        """Wait until the spool is empty."""
        await until(lambda: self.spool.entries == 0 and bool(self.reported(CaptureDelivered)))


async def until(condition: Callable[[], bool], what: Callable[[], str] = str) -> None:
    """
    Wait for a condition.

    @param what: says what is wrong if it is waited for in vain.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what()}"
        await task.deferLater(reactor, 0.02)


def memory_bytes() -> int:
    """The memory that this process uses, without what is free already."""
    gc.collect()
    # malloc_trim(3)
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def possessions() -> Counter[str]:
    """The descriptors and the threads of this process, the reactor's own threads left out."""
    gc.collect()
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            # Without the number of the pipe or socket.
            found[re.sub(r":\[[0-9]+\]", "", os.readlink(f"/proc/self/fd/{number}"))] += 1
    for thread in threading.enumerate():
        if "twisted" not in thread.name:
            found[f"thread {thread.name}"] += 1
    return found


async def left_as(before: Counter[str]) -> None:
    """Wait until there are no more descriptors and threads than before."""
    await until(lambda: not possessions() - before, lambda: str(possessions() - before))
