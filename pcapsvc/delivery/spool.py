"""The spool: captures that wait on disk for destinations that could not take them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import SpoolError
from pcapsvc.core.event import DeliveryFailed, EventFactory
from pcapsvc.core.retry import honoured_seconds
from pcapsvc.core.spool_entry import SpoolEntry
from pcapsvc.core.text import one_line
from pcapsvc.delivery.folder import Aside, NotWhole, SpoolFolder
from pcapsvc.delivery.inventory import ENTRY_BYTES, Inventory, Kept
from pcapsvc.interfaces.delivery import IHeldCapture, ISpool
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.interfaces.threads import RunInThread

_GONE = "it is gone from the spool"


@implementer(ISpool)
class Spool(Service):
    """
    Keeps captures in a folder, within a size and an age. Where there is no room, the
    oldest ones go; every loss is told as an error.

    A folder that is missing, or that another process uses, is tried again whenever it
    is needed.

    @param folder: where.
    @param reporter: hears of captures that are lost.
    @param events: makes the events.
    @param max_bytes: what all entries may take of the disk.
    @param max_age_seconds: how long one is kept.
    @param retry_seconds: how long one waits, at least, until it is tried first.
    @param wall_clock: the time in seconds since the Unix epoch.
    """

    name = "spool"
    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        folder: SpoolFolder,
        run_in_thread: RunInThread,
        *,
        reporter: IReporter,
        events: EventFactory,
        max_bytes: int,
        max_age_seconds: float,
        retry_seconds: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._folder = folder
        self._run_in_thread = run_in_thread
        self._reporter = reporter
        self._events = events
        self._max_bytes = max_bytes
        self._max_age = max_age_seconds
        self._retry_seconds = retry_seconds
        self._wall_clock = wall_clock
        self._one_at_a_time = DeferredLock()
        # What was given up, and has the folder until the disk is done with it.
        self._late: Deferred[Any] | None = None
        self._inventory = Inventory()
        # Entries that went away while they were busy, by their names.
        self._away: dict[str, Kept] = {}
        self._told: set[str] = set()

    @property
    def entries(self) -> int:
        """How many captures wait."""
        return sum(not kept.delivered for kept in self._inventory)

    @property
    def size(self) -> int:
        """What all takes of the disk, in bytes, C{broken/} included."""
        return self._inventory.size

    def stopService(self) -> Deferred[None]:
        """
        Let others have the folder.

        @return: fires when what was being written is on the disk.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self._one_at_a_time.run(self._folder.close)

    def put(
        self, artifact: Artifact, destination: str, problem: str, asked_seconds: float | None = None
    ) -> Deferred[None]:
        """See L{ISpool.put}."""
        return Deferred.fromCoroutine(self._put(artifact, destination, problem, asked_seconds))

    async def _put(
        self, artifact: Artifact, destination: str, problem: str, asked_seconds: float | None
    ) -> None:
        await self._write(artifact, destination, problem, asked_seconds, held=False)

    def hold(self, artifact: Artifact, destination: str, problem: str) -> Deferred[IHeldCapture]:
        """See L{ISpool.hold}."""
        return Deferred.fromCoroutine(self._hold(artifact, destination, problem))

    async def _hold(self, artifact: Artifact, destination: str, problem: str) -> IHeldCapture:
        kept, entry = await self._write(artifact, destination, problem, None, held=True)
        return _HeldCapture(self, kept, entry.artifact(self._folder.content(entry)))

    def release(self, kept: Kept, problem: str, asked_seconds: float | None) -> bool:
        """Deliver from here what somebody else was about to deliver: whether it is here still."""
        kept.busy = False
        self._away.pop(kept.name, None)
        if kept.gone:
            return False
        kept.problem = problem
        self._postpone(kept, asked_seconds)
        return True

    def leave(self, kept: Kept) -> None:
        """Have an entry be busy no more. One that went away meanwhile is told to be lost."""
        kept.busy = False
        self._away.pop(kept.name, None)
        if kept.gone and not kept.delivered:
            self._lost(kept, _GONE)

    def _postpone(self, kept: Kept, asked_seconds: float | None) -> None:
        kept.due = self._reactor.seconds() + max(self._retry_seconds, honoured_seconds(asked_seconds))

    async def _write(
        self,
        artifact: Artifact,
        destination: str,
        problem: str,
        asked_seconds: float | None,
        *,
        held: bool,
    ) -> tuple[Kept, SpoolEntry]:
        cancelled = False
        async with self._the_folder():
            self._check_room(artifact.content.size + ENTRY_BYTES)
            # Not before it is its turn: of many that wait, each would have a descriptor open.
            try:
                source = artifact.content.open()
            except OSError as error:
                raise SpoolError(f"it can't be read: {error}") from error
            try:
                entry: SpoolEntry = await self._run_alone(
                    self._folder.write,
                    artifact,
                    source,
                    destination,
                    problem,
                    self._wall_clock(),
                    lambda: cancelled,
                    undo=self._take_out if held else None,
                )
            except CancelledError:
                # The thread notices, and closes what it reads.
                cancelled = True
                raise
            except BaseException:
                source.close()
                raise
            kept = self._kept(entry)
            kept.busy = held
            self._inventory.add(kept)
            self._postpone(kept, asked_seconds)
            await self._make_room(kept)
        return kept, entry

    def _take_out(self, entry: SpoolEntry) -> None:
        """Whoever gave it up delivers it otherwise; but where all stops, after the next start."""
        if self.running:
            self._folder.remove(entry.entry_name)

    def due(self, destination: str) -> list[Kept]:
        """The entries that are to be tried now, the oldest first."""
        now = self._reactor.seconds()
        return [
            kept
            for kept in self._inventory
            if kept.destination == destination and kept.due <= now and not (kept.busy or kept.delivered)
        ]

    def destinations(self) -> set[str]:
        """The names of all destinations that captures wait for."""
        return {kept.destination for kept in self._inventory if not kept.delivered}

    def holds(self, kept: Kept) -> bool:
        """Whether an entry is still here, to be delivered."""
        return self._inventory.has(kept) and not kept.delivered

    def read(self, kept: Kept) -> Deferred[Artifact]:
        """
        What is to be delivered.

        @return: fires with it; fails with L{SpoolError}. Where it is no longer what was
            written, it is set aside, and told to be lost.
        """
        return Deferred.fromCoroutine(self._read(kept))

    async def _read(self, kept: Kept) -> Artifact:
        try:
            entry, content = await self._run(self._folder.read, kept.name)
        except NotWhole as error:
            async with self._the_folder():
                aside = await self._run(self._folder.set_aside, kept.name)
                self._inventory.add_aside(aside)
                self._inventory.remove(kept)
            self._lost(kept, f"it is broken, and set aside in the spool: {error}")
            raise
        artifact: Artifact = entry.artifact(content)
        return artifact

    def delivered(self, kept: Kept) -> Deferred[None]:
        """
        Take note that an entry was delivered.

        @return: fires when no restart will find it again, or when that can't be had for
            now, which is told.
        """
        kept.delivered = True
        return Deferred.fromCoroutine(self._remove_delivered(kept))

    async def _remove_delivered(self, kept: Kept) -> None:
        try:
            # Beside whatever is being written: the sooner it is done, the smaller the chance of a repetition.
            await self._remove(kept)
        except SpoolError as error:
            self._log.error(
                "{capture_id}: delivered to {destination}, and can't be taken out of the spool; it may be"
                " delivered again after a restart: {problem}",
                capture_id=kept.capture_id,
                destination=kept.destination,
                problem=str(error),
            )
        finally:
            # Where it is here still, the next round takes it away.
            kept.busy = False

    def tidy(self) -> Deferred[None]:
        """
        Open the folder, where it isn't, and take away what is too old.

        @return: fires when that is done, or can't be, which is told. Never fails.
        """
        return Deferred.fromCoroutine(self._tidy())

    async def _tidy(self) -> None:
        try:
            async with self._the_folder():
                for kept in self._inventory:
                    if kept.delivered or self._reactor.seconds() - kept.since > self._max_age:
                        await self._take_away(kept, f"it could not be delivered within {self._max_age:g} s")
                now = self._wall_clock()
                for aside in self._inventory.asides():
                    if now - aside.written > self._max_age:
                        await self._remove_aside(aside)
        except SpoolError as error:
            self._tell(error)

    def _check_room(self, size: int) -> None:
        """L{SpoolError} where there is no room for so much, whatever is taken away."""
        if size > self._max_bytes:
            raise SpoolError(f"it takes {size} bytes, and the spool may have {self._max_bytes}")
        # Only where it may be so: to look at each entry takes its time.
        full = self.size + size > self._max_bytes
        if full and self._inventory.busy_size() + size > self._max_bytes:
            raise SpoolError("the spool is full of captures that are being delivered now")

    async def _make_room(self, new: Kept) -> None:
        """Take away what is broken, then what is delivered, then the oldest: as much as a new entry needs."""
        if self.size <= self._max_bytes:
            return
        making_room: Deferred[None] = Deferred.fromCoroutine(self._shrink(new))
        try:
            await self._until_ended(making_room)
        except CancelledError:
            # The new one is kept, all the same; and room is made yet, before anybody else has the folder.
            pass

    async def _shrink(self, new: Kept) -> None:
        for aside in self._inventory.asides():
            if self.size <= self._max_bytes:
                return
            await self._remove_aside(aside)
        for kept in self._inventory.in_order_of_going():
            if self.size <= self._max_bytes:
                return
            if kept is not new:
                await self._take_away(kept, "the spool is full, and newer captures need its place")

    async def _take_away(self, kept: Kept, why: str) -> None:
        """Take an entry away that is not busy. One that can't be is told, and stops no other."""
        if kept.busy or not self._inventory.has(kept):
            return
        kept.busy = True
        try:
            await self._remove(kept)
        except SpoolError as error:
            self._tell(error, "a capture can't be removed from the spool")
        else:
            if not kept.delivered:
                self._lost(kept, f"{why}; the last problem was: {kept.problem}")
        finally:
            kept.busy = False

    def _lost(self, kept: Kept, problem: str) -> None:
        self._reporter.report(
            self._events.event(
                DeliveryFailed(destination=kept.destination, problem=problem), kept.labels, kept.capture_id
            )
        )

    async def _remove(self, kept: Kept) -> None:
        await self._run(self._folder.remove, kept.name)
        self._inventory.remove(kept)

    async def _remove_aside(self, aside: Aside) -> None:
        """Take away what is broken. What can't be is told, and stops nothing else."""
        try:
            await self._run(self._folder.remove_aside, aside.name)
        except SpoolError as error:
            self._tell(error, "something in broken/ can't be removed from the spool")
            return
        self._inventory.remove_aside(aside)
        self._log.warn("broken/{name} is removed from the spool", name=one_line(aside.name))

    def _kept(self, entry: SpoolEntry, age: float = 0.0) -> Kept:
        return Kept(
            name=entry.entry_name,
            capture_id=entry.capture,
            destination=entry.destination,
            options=entry.options,
            labels=entry.request_labels,
            size=entry.size + ENTRY_BYTES,
            since=self._reactor.seconds() - age,
            problem=entry.problem,
        )

    @asynccontextmanager
    async def _the_folder(self) -> AsyncIterator[None]:
        """The folder, open, and for nobody else meanwhile. L{SpoolError} where it can't be had."""
        await self._one_at_a_time.acquire()
        try:
            if not await self._run_alone(self._folder.is_open):
                await self._open()
            yield
        finally:
            late, self._late = self._late, None
            if late is None:
                self._one_at_a_time.release()
            else:
                late.addBoth(lambda _: self._one_at_a_time.release())

    async def _open(self) -> None:
        try:
            found = await self._run_alone(self._folder.open, undo=lambda found: self._folder.close())
        except SpoolError as error:
            self._tell(error)
            raise
        self._told.clear()
        before, now = self._inventory, self._wall_clock()
        self._inventory = Inventory(
            (
                self._known(before, entry.entry_name) or self._kept(entry, entry.age(now))
                for entry in found.entries
            ),
            found.broken,
        )
        for kept in before:
            if self._inventory.has(kept) or kept.delivered:
                continue
            # Who has it may deliver it all the same; else it is told to be lost then.
            kept.gone = kept.busy
            if kept.busy:
                self._away[kept.name] = kept
            else:
                self._lost(kept, _GONE)
        for name, why in found.set_aside:
            self._log.error("{name} is set aside in the spool: {why}", name=one_line(name), why=why)
        for name, why in found.unreadable:
            self._log.error("{name} can't be read in the spool: {why}", name=one_line(name), why=why)
        self._log.info(
            "the spool holds {entries} captures, {size} bytes", entries=self.entries, size=self.size
        )

    def _known(self, before: Inventory, name: str) -> Kept | None:
        """What is known of an entry is known still: that it was delivered, or that somebody has it."""
        kept = before.named(name) or self._away.pop(name, None)
        if kept is not None:
            kept.gone = False
        return kept

    def _tell(self, error: Exception, what: str = "the spool can't be used") -> None:
        """Log a problem that every round may meet again: once, until the folder is opened."""
        problem = one_line(str(error))
        if problem not in self._told:
            self._told.add(problem)
            self._log.error("{what}: {problem}", what=what, problem=problem)

    async def _run_alone(
        self, function: Callable[..., Any], *args: Any, undo: Callable[[Any], object] | None = None
    ) -> Any:
        """
        Run a function that needs the folder for itself. Whoever waits for it may be cancelled, but a
        thread can't, and the disk may hang: so the folder is not let go of before it has ended.

        @param undo: takes back what comes of it, where nobody waits for it any more.
        """
        work: Deferred[Any] = Deferred.fromCoroutine(self._run(function, *args))
        try:
            return await self._until_ended(work)
        except CancelledError:
            if self._late is work:
                self._late = Deferred.fromCoroutine(self._take_back(work, undo))
            raise

    async def _until_ended(self, work: Deferred[Any]) -> Any:
        """What comes of work. On cancel it goes on, and has the folder for itself until it ends."""
        waiting: Deferred[Any] = Deferred()

        def ended(result: Any) -> Any:
            if waiting.called:
                return result
            waiting.callback(result)
            return None

        work.addBoth(ended)
        try:
            return await waiting
        except CancelledError:
            if not work.called:
                self._late = work
            raise

    async def _take_back(self, work: Deferred[Any], undo: Callable[[Any], object] | None) -> None:
        try:
            result = await work
        except (SpoolError, CancelledError):
            return
        try:
            if undo is not None:
                await self._run(undo, result)
        except (SpoolError, CancelledError) as error:
            self._tell(error, "what was given up stays in the spool, and may be delivered after a restart")

    async def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return await self._run_in_thread(function, *args)
        except (SpoolError, CancelledError):
            raise
        except Exception as error:
            # Such as threads that have stopped.
            raise SpoolError(str(error) or type(error).__name__) from error


@implementer(IHeldCapture)
class _HeldCapture:
    def __init__(self, spool: Spool, kept: Kept, artifact: Artifact) -> None:
        self._spool = spool
        self._kept = kept
        self.artifact = artifact

    def delivered(self) -> Deferred[None]:
        return self._spool.delivered(self._kept)

    def release(self, problem: str, asked_seconds: float | None = None) -> bool:
        return self._spool.release(self._kept, problem, asked_seconds)
