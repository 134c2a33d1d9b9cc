"""
Destinations in trouble: what was captured is delivered exactly once, or stays in the spool until it is;
descriptors and threads are as before.

CloudShark is the exception: if it accepted a capture, its answer was lost, and the token may not
search, the next attempt makes a second capture of the same name.
"""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

from twisted.internet import reactor

from pcapsvc.core.event import CaptureDelivered, DeliveryFailed, DeliverySpooled
from pcapsvc.core.kept_file import Limits, SteadyClock
from pcapsvc.destinations.local.destination import LocalDirectory
from pcapsvc.destinations.local.ledger import LEDGER
from pcapsvc.destinations.local.retention import Retention
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.threads import Threads
from peers.certificates import Authority
from peers.cloudshark import (
    Behaviour,
    accept,
    answer,
    drip,
    forget,
    hang,
    refuse,
    reset,
    slow,
)
from peers.requirement import require, require_root
from tests.faults.cloudshark_case import CloudSharkCase
from tests.faults.destination_case import NAME, FaultCase, named
from tests.faults.house import PATIENT_SECONDS, House, left_as, possessions, until
from tests.unit.logged import logged

# What Twisted says of a reset.
_RESET = "Connection to the other side was lost in a non-clean fashion"


class LocalDirectoryTests(FaultCase):
    """A directory of this host."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.directory = self.path / "captures"
        self.directory.mkdir()
        self.before = possessions()

    def make(self, run_in_thread: RunInThread) -> IDestination:
        return LocalDirectory(directory=str(self.directory), run_in_thread=run_in_thread)

    def there(self) -> list[bytes]:
        """What is in the directory."""
        return [path.read_bytes() for path in self.directory.iterdir()]

    async def test_missing_folder(self) -> None:
        """A directory that is missing, and reappears."""
        self.directory.rmdir()
        house = self.house(self.make)
        await self.spooled(house)
        self.directory.mkdir()
        await self.delivered_in_the_end(house)
        self.assertEqual(self.there(), [self.data])
        await left_as(self.before)

    async def test_full_disk(self) -> None:
        """A disk that is full, until there is room."""
        require_root("to mount a small file system")
        mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(self.directory)]
        require(subprocess.run(mount, check=False).returncode == 0, "a tmpfs can't be mounted")
        self.addCleanup(subprocess.run, ["umount", str(self.directory)], check=True)
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("No space left on device", house.problems[0])
        self.assertEqual(self.there(), [])
        subprocess.run(["mount", "-o", "remount,size=4m", str(self.directory)], check=True)
        await self.delivered_in_the_end(house)
        self.assertEqual(self.there(), [self.data])
        await left_as(self.before)

    async def test_full_spool(self) -> None:
        """If the spool's disk is full as well, the capture is lost, which is reported."""
        require_root("to mount a small file system")
        (self.path / "spool").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs", str(self.path / "spool")]
        require(subprocess.run(mount, check=False).returncode == 0, "a tmpfs can't be mounted")
        self.addCleanup(subprocess.run, ["umount", str(self.path / "spool")], check=True)
        self.directory.rmdir()
        house = self.house(self.make)
        await house.deliver(self.data)
        [failed] = house.reported(DeliveryFailed)
        self.assertIn("No such file or directory; and not spooled:", failed.problem)
        self.assertIn("No space left on device", failed.problem)
        self.assertEqual({path.name for path in (self.path / "spool").iterdir()}, {"lock"})
        await house.deliver(self.data[:1000], named("small"))
        self.assertEqual(house.spool.entries, 1)
        await house.stop()
        await left_as(self.before)

    async def test_few_descriptors(self) -> None:
        """An attempt needs two at a time: one for the capture, and one for the file."""
        self.data = os.urandom(200_000)
        await self.few_descriptors(2)
        self.assertEqual([len(data) for data in self.there()], [len(self.data)] * 4)
        self.assertEqual({*self.there()}, {self.data})
        await left_as(self.before)

    async def test_arrived_before(self) -> None:
        """An attempt that arrived without an answer doesn't lead to a second capture."""
        (self.directory / NAME).write_bytes(self.data)
        house = self.house(self.make)
        await house.deliver(self.data)
        self.assertEqual(len(house.reported(CaptureDelivered)), 1)
        self.assertEqual(self.there(), [self.data])


class LimitedLocalDirectoryTests(LocalDirectoryTests):
    """The same, if old captures are removed; and what may go wrong with that."""

    max_bytes = 1_200_000

    def make(self, run_in_thread: RunInThread) -> IDestination:
        # As in app.build: threads that deliveries don't need.
        self.threads = Threads(reactor, most=1)
        self.threads.startService()
        return LocalDirectory(
            directory=str(self.directory),
            run_in_thread=run_in_thread,
            retention=Retention(
                reactor,
                directory=str(self.directory),
                limits=Limits(max_bytes=self.max_bytes),
                run_in_thread=self.threads.run,
                clock=SteadyClock(time.time, time.monotonic),
            ),
        )

    def house(self, make: Any, **options: Any) -> House:
        """A house whose destination is started and stopped with it, as by the daemon."""
        made: list[Any] = []

        def started(run_in_thread: RunInThread) -> IDestination:
            made.append(make(run_in_thread))
            made[-1].startService()
            return made[-1]  # type: ignore[no-any-return]

        house = super().house(started, **options)
        stop = house.stop

        async def stopped() -> None:
            await stop()
            for each in made:
                if each.running:
                    each.stopService()
                    await self.threads.stopService()

        house.stop = stopped  # type: ignore[method-assign]
        self.addCleanup(stopped)
        return house

    def there(self) -> list[bytes]:
        return [path.read_bytes() for path in self.directory.iterdir() if path.name != LEDGER]

    async def test_read_only(self) -> None:
        """On a read-only file system nothing is removed, which is logged once, until it is writable again."""
        require_root("to mount a small file system")
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(self.directory)]
        require(subprocess.run(mount, check=False).returncode == 0, "a tmpfs can't be mounted")
        self.addCleanup(subprocess.run, ["umount", str(self.directory)], check=True)
        messages = logged(self)
        house = self.house(self.make)
        for node in ("one", "two"):
            await house.deliver(self.data, named(node))
        await house.stop()
        subprocess.run(["mount", "-o", "remount,ro", str(self.directory)], check=True)
        self.max_bytes = 500_000
        house.start()
        await until(lambda: any("can't be removed" in message for message in messages()))
        await house.deliver(self.data)
        self.assertEqual(house.spool.entries, 1)
        self.assertEqual(len(self.there()), 2)
        self.assertEqual(len([message for message in messages() if "can't be removed" in message]), 1)
        await house.stop()
        subprocess.run(["mount", "-o", "remount,rw", str(self.directory)], check=True)
        house.start()
        await house.emptied()
        await until(lambda: self.there() == [self.data] and len(os.listdir(self.directory)) == 2)
        self.assertIn(NAME, os.listdir(self.directory))
        await house.stop()


class CloudSharkTests(CloudSharkCase):
    """CloudShark, over TLS."""

    async def trouble(
        self,
        behaviour: Behaviour,
        words: str,
        *,
        arrives: bool = False,
        timeout_seconds: float = PATIENT_SECONDS,
    ) -> None:
        """
        One failure, which another attempt mends; and as many as bring it into the spool.

        @param words: part of their problem.
        @param arrives: whether each of them is a capture at the server, all the same.
        @param timeout_seconds: how long an attempt may take; long if it is not what makes it fail.
        """
        self.server.behave(behaviour, accept())
        await self.one_failure_mended(words, timeout_seconds)
        self.assertEqual(len(self.server.captures()), 1)
        house = self.house(self.make, timeout_seconds=timeout_seconds)
        # A search would find what has arrived.
        self.server.behave(behaviour, search=refuse(503, "later") if arrives else None)
        await self.spooled(house)
        await self.patiently(house)
        self.server.behave(accept())
        await self.delivered_in_the_end(house)
        self.assertEqual(self.server.captures(), [named("first"), NAME])
        self.assertEqual({upload.data for upload in self.uploads()}, {self.data})
        await left_as(self.before)

    async def test_internal_error(self) -> None:
        """500."""
        await self.trouble(refuse(500, "out of order"), "answered 500: out of order")

    async def test_too_many(self) -> None:
        """429, with C{Retry-After}, which is honoured: in memory, and in the spool."""
        for max_delay_seconds in (3.0, None):
            earlier = len(self.uploads())
            self.server.behave(refuse(429, "slow down", retry_after="1"), accept())
            house = self.house(self.make, max_delay_seconds=max_delay_seconds)
            await house.deliver(self.data, named(f"node{earlier}"))
            self.assertEqual(len(house.reported(DeliverySpooled)), 0 if max_delay_seconds else 1)
            await house.emptied()
            self.assert_asked([upload.time for upload in self.uploads()[earlier:]])
            await house.stop()
        await left_as(self.before)

    async def test_captive_portal(self) -> None:
        """200 with a page: it is tried again, and stays in the spool until CloudShark itself answers."""
        await self.trouble(answer("<html>Please log in</html>"), "answered 200: without the id of a capture")

    async def test_reset_before_the_body(self) -> None:
        """A reset at once."""
        await self.trouble(reset(), _RESET)

    async def test_reset_within_the_body(self) -> None:
        """A reset in the middle."""
        await self.trouble(reset(100_000), _RESET)

    async def test_reset_after_the_body(self) -> None:
        """A reset in place of the answer: the capture is found there, and not uploaded again."""
        await self.trouble(forget(), _RESET, arrives=True)

    async def test_no_search(self) -> None:
        """If the token may not search, what may have arrived is uploaded again, under the same name."""
        self.server.behave(forget(), accept(), search=refuse(401, "not permitted"))
        house = self.house(self.make)
        await house.deliver(self.data)
        self.assertEqual(len(house.reported(CaptureDelivered)), 1, house.problems)
        self.assertEqual(self.server.captures(), [NAME, NAME])
        await house.stop()

    async def test_hangs(self) -> None:
        """No answer at all."""
        await self.trouble(hang(), "timed out after 2 s", timeout_seconds=2.0)

    async def test_drips(self) -> None:
        """An answer that takes half a second for each byte."""
        await self.trouble(drip(2), "timed out after 2 s", arrives=True, timeout_seconds=2.0)

    async def test_reads_slowly(self) -> None:
        """An upload that is read too slowly."""
        # More than the buffers of a connection hold.
        self.data = os.urandom(5_000_000)
        await self.trouble(slow(500_000), "timed out after 2 s", timeout_seconds=2.0)

    async def test_wrong_certificate(self) -> None:
        """A certificate of an unknown authority, until the right one is configured."""
        Authority(self.path, "stranger").file.rename(self.ca_file)
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("certificate verify failed", house.problems[0])
        self.assertEqual(self.server.uploads(), [])
        self.ca_file.write_bytes(self.server.ca_file.read_bytes())
        await self.delivered_in_the_end_after_a_restart(house)

    async def test_wrong_token(self) -> None:
        """A token that is not valid any more."""
        self.token = "other"
        house = self.house(self.make)
        await self.spooled(house)
        self.token = self.server.token
        await self.delivered_in_the_end_after_a_restart(house)

    async def test_token_taken_back(self) -> None:
        """A token that is refused for a while, while the daemon runs."""
        house = self.house(self.make)
        await house.deliver(self.data, named("earlier"))
        self.assertEqual(len(house.reported(CaptureDelivered)), 1)
        self.server.behave(refuse(401, "Unauthorized"))
        await house.deliver(self.data)
        [spooled] = house.reported(DeliverySpooled)
        self.assertIn("answered 401: Unauthorized", spooled.problem)
        self.server.behave(accept())
        await until(lambda: len(house.reported(CaptureDelivered)) == 2)
        self.assertEqual(house.spool.entries, 0)
        self.assertEqual(self.uploads()[-1].data, self.data)
        await house.stop()
        await left_as(self.before)

    async def test_memory(self) -> None:
        """Attempts that hang, are refused or reset keep nothing of captures in memory."""
        for behaviour, words in (
            (hang(), "timed out after 0.3 s"),
            (refuse(500, "out of order"), "out of order"),
            (reset(500_000), _RESET),
        ):
            self.server.behave(behaviour)
            await self.costs_no_memory(words)
            self.empty_spool()
        await left_as(self.before)

    async def test_few_descriptors(self) -> None:
        """An attempt needs two at a time: one for certificates or the connection, and one for the capture."""
        await self.few_descriptors(2)
        wanted = sorted(map(named, ("first0", "node0", "first1", "node1")))
        self.assertEqual(sorted(map(str, self.server.captures())), wanted)
        self.assertEqual({upload.data for upload in self.uploads()}, {self.data})
        await left_as(self.before)

    async def test_gone(self) -> None:
        """No server, until there is one again."""
        self.server.end()
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("Connection was refused", house.problems[0])
        self.server.start()
        await self.delivered_in_the_end_after_a_restart(house)

    async def delivered_in_the_end_after_a_restart(self, house: House) -> None:
        """What an operator has fixed is attempted again immediately after a restart."""
        await house.stop()
        house.start()
        await self.delivered_in_the_end(house)
        self.assertEqual([upload.data for upload in self.uploads()], [self.data])
        await left_as(self.before)
