"""
A process that spools captures, and delivers them from the spool, as fast as it can, until it is killed.
See L{tests.faults.test_spool_crash}. It is a program of L{peers.nursery_process}.

It writes what happens into a file, a line at a time (write(2), with O_APPEND): C{ready} when it starts,
C{spooled ID} when a capture is in the spool, and C{arrived ID} when the destination has it, which is
before the spool knows.

Its arguments are C{SPOOLDIR ACCOUNT SEED [drain]}.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec.structs import replace
from twisted.internet import defer, task
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import DestinationError, Problem
from pcapsvc.core.event import DeliveryFailed, Event
from pcapsvc.core.result import Receipt
from pcapsvc.core.retry import RetryPolicy
from pcapsvc.delivery.entry import Entry, Input
from pcapsvc.delivery.folder import SpoolFolder
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.delivery.rounds import Rounds
from pcapsvc.delivery.spool import Spool
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.testing import event_factory
from pcapsvc.threads import Threads
from tests.unit.contents import MemfdContent, make_artifact

#: What this module imports is all.
PRELOADED = ()
NOT_PRELOADED = "twisted.internet.reactor"


def content_of(capture_id: str) -> bytes:
    """The bytes of a capture, which follow from its id."""
    chance = random.Random(capture_id)
    return chance.randbytes(chance.randrange(1, 300_000))


class Account:
    """What happened."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, line: str) -> None:
        """Write a line, in one piece."""
        os.write(self._file, f"{line}\n".encode())


@implementer(IDestination)
class Destination:
    """Stores captures, some of them at the second attempt, and writes down those that are damaged."""

    name = "one"
    routes = ("usual",)

    def __init__(self, account: Account, chance: random.Random) -> None:
        self._account = account
        self._chance = chance

    def route(self, options: Mapping[str, Any]) -> str:
        """See L{IDestination.route}. There is only one."""
        return self.routes[0]

    def check(self, options: Mapping[str, Any]) -> Iterator[Problem]:
        """See L{IDestination.check}. All options are accepted."""
        return iter(())

    def store(self, artifact: Artifact) -> defer.Deferred[Receipt]:
        """See L{IDestination.store}."""
        with artifact.content.open() as file:
            found = hashlib.sha256(file.read()).digest()
        if found != hashlib.sha256(content_of(artifact.capture_id)).digest():
            self._account.write(f"broken {artifact.capture_id}")
        if self._chance.random() < 0.3:
            return defer.fail(DestinationError("503", retryable=True))
        self._account.write(f"arrived {artifact.capture_id}")
        return defer.succeed(Receipt(destination="one", location="here"))


@implementer(IReporter)
class Reporter:
    """Writes down the captures that are lost."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def report(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event.data, DeliveryFailed):
            self._account.write(f"lost {event.subject}")


async def put(spool: Spool, account: Account, capture_id: str) -> None:
    """Spool a capture."""
    content = MemfdContent(content_of(capture_id))
    artifact = replace(
        make_artifact(content, name=f"web1-eth0-1700000000-{capture_id}.pcap", tags=""), capture_id=capture_id
    )
    entry = Entry(capture_id=capture_id, destination="one", options={}, labels=artifact.labels)
    entry.on(Input.QUEUE)
    entry.on(Input.PUT_AWAY)
    await spool.write(entry, artifact, "503")
    content.close()
    account.write(f"spooled {capture_id}")


async def run(reactor: Any, path: str, account_path: str, seed: str, *drain: str) -> None:
    """Until it is killed; or, to drain the spool, until that is empty."""
    account, chance = Account(account_path), random.Random(seed)
    account.write("ready")
    theirs, ours = Threads(reactor), Threads(reactor)
    for pool in (theirs, ours):
        pool.startService()
    spool = Spool(
        reactor,
        SpoolFolder(path),
        run_in_thread=ours.run,
        reporter=Reporter(account),
        events=event_factory(),
        max_bytes=1 << 30,
        max_age_seconds=3600,
    )
    outbox = Outbox(
        reactor,
        Destination(account, chance),
        slots=4,
        timeout_seconds=5,
        policy=RetryPolicy(attempts=1, first_delay_seconds=1, max_delay_seconds=1),
        spool_interval_seconds=0.001,
        reporter=Reporter(account),
        events=event_factory(),
        spool=spool,
    )
    rounds = Rounds(reactor, spool, [outbox], interval_seconds=0.001)
    rounds.startService()
    await spool.tidy()
    while drain and spool.entries:
        await task.deferLater(reactor, 0.01)
    number = 0
    while not drain:
        names = [f"{seed}x{number + each}" for each in range(3)]
        await defer.gatherResults([defer.Deferred.fromCoroutine(put(spool, account, name)) for name in names])
        number += 3
    await rounds.stopService()
    os._exit(0)


def main() -> int:
    """Run it. It never returns."""
    task.react(run, sys.argv[1:])
    return 1
