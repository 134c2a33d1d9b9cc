"""The spool: captures that wait on disk for destinations that could not store them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from msgspec.structs import replace
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import SpoolError
from pcapsvc.core.event import DeliveryFailed, EventFactory
from pcapsvc.core.kept_file import SteadyClock
from pcapsvc.core.spool_entry import SpoolEntry
from pcapsvc.core.text import counted, one_line
from pcapsvc.delivery.access import ExclusiveAccess
from pcapsvc.delivery.entry import DELIVERED, Entry, Input, SpooledCapture, State
from pcapsvc.delivery.folder import Damaged, Found, QuarantinedEntry, SpoolFolder
from pcapsvc.delivery.inventory import ENTRY_BYTES, Inventory, spooled
from pcapsvc.delivery.ispool import ISpool
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.interfaces.threads import RunInThread

#: How many threads it can use: one writes, the others read, one for each route of each destination.
SPOOL_THREADS = 5

# How many are looked at in one turn of the reactor, when there may be tens of thousands.
_ENTRIES_PER_TURN = 1000

_VANISHED = "no longer in the spool"


@implementer(ISpool)
class Spool(Service):
    """
    Keeps captures in a directory, up to a size and an age. If it is full, the oldest ones are dropped.
    Every capture that is lost is reported.

    If the directory is missing, or another process uses it, it is tried again whenever it is needed.

    @param folder: the directory.
    @param reporter: receives the events about captures that are lost.
    @param events: makes the events.
    @param max_age_seconds: how long a capture is kept.
    @param wall_clock: returns the time in seconds since the Unix epoch.
    @ivar max_bytes: how much of the disk everything may use.
    """

    name = "spool"
    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        folder: SpoolFolder,
        *,
        run_in_thread: RunInThread,
        reporter: IReporter,
        events: EventFactory,
        max_bytes: int,
        max_age_seconds: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._folder = folder
        self._access = ExclusiveAccess(run_in_thread, self._not_undone)
        self._reporter = reporter
        self._events = events
        self.max_bytes = max_bytes
        self._max_age = max_age_seconds
        self._wall_clock = wall_clock
        self._clock = SteadyClock(wall_clock, reactor.seconds)
        self._inventory = Inventory()
        # Whether the directory has been listed since the start.
        self._is_listed = False
        # Whether it is of no use to list it any more.
        self._is_ending = False
        # Entries that vanished while they were taken, by their names.
        self._vanished: dict[str, Entry] = {}
        self._logged: set[str] = set()

    def __repr__(self) -> str:
        return f"<Spool: {self.entries} captures, {self.size} bytes>"

    @property
    def waiting(self) -> list[Entry]:
        """The captures that wait here, the oldest first."""
        return [entry for entry in self._inventory if not entry.is_delivered]

    @property
    def entries(self) -> int:
        """How many captures wait here."""
        counts = self._inventory.tally.items()
        return sum(count for (_, state), count in counts if state not in DELIVERED)

    @property
    def left(self) -> Mapping[str, int]:
        """How many captures were left here and are not being attempted now, by destination."""
        counts = self._inventory.tally.items()
        return {destination: count for (destination, state), count in counts if state is State.SPOOLED}

    @property
    def size(self) -> int:
        """How much of the disk everything uses, in bytes, including the quarantine."""
        return self._inventory.size

    def startService(self) -> None:
        """Begin."""
        super().startService()  # type: ignore[no-untyped-call]
        self._is_ending = False

    def stopService(self) -> Deferred[None]:
        """
        Release the directory.

        @return: fires when what was being written is on disk.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self.end_listing()
        return Deferred.fromCoroutine(self._stop())

    def end_listing(self) -> None:
        """See L{ISpool.end_listing}."""
        self._is_ending = True

    async def _stop(self) -> None:
        async with self._access.alone():
            # In a thread, as the disk may hang. Without threads, the end of the process unlocks it.
            try:
                await self._access.run_alone(self._folder.close)
            except SpoolError as error:
                self._log_once(error)

    def write(self, entry: Entry, artifact: Artifact, problem: str) -> Deferred[Artifact]:
        """See L{ISpool.write}."""
        return Deferred.fromCoroutine(self._write(entry, artifact, problem))

    async def _write(self, entry: Entry, artifact: Artifact, problem: str) -> Artifact:
        cancelled = False
        undo = self._undo_write if entry.state is State.WRITING_AHEAD else None
        async with self._open_folder():
            self._check_room(artifact.content.size + ENTRY_BYTES)
            # Not any sooner: of many that wait, each would have a descriptor open.
            try:
                source = artifact.content.open()
            except OSError as error:
                raise SpoolError(f"it can't be read: {error}") from error
            try:
                written: SpoolEntry = await self._access.run_alone(
                    self._folder.write,
                    artifact,
                    source,
                    entry.destination,
                    problem,
                    self._wall_clock(),
                    lambda: cancelled,
                    undo=undo,
                )
            except CancelledError:
                # The thread notices, and closes what it reads.
                cancelled = True
                raise
            except BaseException:
                source.close()
                raise
            entry.spooled = self._spooled(written)
            entry.problem = written.problem
            entry.on(Input.WRITTEN)
            self._inventory.add(entry)
            self._log_shortcomings()
            await self._make_room(entry)
        return replace(written.artifact(self._folder.content(written)), may_be_there=artifact.may_be_there)

    def _undo_write(self, written: SpoolEntry) -> None:
        """Remove what is delivered from memory instead; but if the service stops, after the next start."""
        if self.running:
            self._folder.remove(written.entry_name)

    def read(self, entry: Entry) -> Deferred[Artifact]:
        """See L{ISpool.read}."""
        return Deferred.fromCoroutine(self._read(entry))

    async def _read(self, entry: Entry) -> Artifact:
        name = spooled(entry).name
        try:
            found, content = await self._access.run(self._folder.read, name)
        except Damaged as error:
            async with self._open_folder():
                self._inventory.add_quarantined(await self._access.run(self._folder.quarantine, name))
                self._inventory.remove(entry)
            self._vanished.pop(name, None)
            entry.on(Input.QUARANTINE)
            self._report_lost(entry, f"it is damaged, and in quarantine: {error}")
            raise
        except SpoolError:
            await self._look_for(entry)
            raise
        artifact: Artifact = found.artifact(content)
        return artifact

    async def _look_for(self, entry: Entry) -> None:
        """If somebody removed an entry that was taken, it has vanished. L{SpoolError} if that is unknown."""
        async with self._open_folder():
            there = await self._access.run_alone(self._folder.has, spooled(entry).name)
            if not there and self._inventory.has(entry):
                self._inventory.remove(entry)
                self._vanish(entry)

    async def locate(self, capture_id: str) -> tuple[SpoolEntry, str] | None:
        """
        Where the file of a capture is, so that it can be read here. It may be removed at any time.

        @return: its entry for one of the destinations, and the path of the file; L{None} if there is none.
        """
        if not self._is_listed:
            try:
                async with self._open_folder():
                    pass
            except SpoolError:
                return None
        for entry in self._inventory:
            if entry.capture_id == capture_id:
                try:
                    found: tuple[SpoolEntry, str] = await self._access.run(
                        self._folder.locate, spooled(entry).name
                    )
                    return found
                except SpoolError:
                    continue  # it was removed in the meantime, or is damaged
        return None

    def remove(self, entry: Entry) -> Deferred[None]:
        """See L{ISpool.remove}."""
        self._vanished.pop(spooled(entry).name, None)
        return Deferred.fromCoroutine(self._remove_delivered(entry))

    async def _remove_delivered(self, entry: Entry) -> None:
        try:
            # Not exclusively: the sooner it is removed, the less likely it is delivered twice.
            await self._remove(entry)
        except SpoolError as error:
            self._log.error(
                "{capture_id}: delivered to {destination}, but can't be removed from the spool; it may be"
                " delivered again after a restart: {problem}",
                capture_id=entry.capture_id,
                destination=entry.destination,
                problem=str(error),
            )

    async def _remove(self, entry: Entry) -> State:
        """Remove an entry that is C{REMOVING} or C{DROPPING}."""
        try:
            await self._access.run(self._folder.remove, spooled(entry).name)
        except BaseException:
            # If it is removed late, L{tidy} finds out.
            entry.on(Input.NOT_REMOVED)
            raise
        self._inventory.remove(entry)
        return entry.on(Input.REMOVED)

    def put_back(self, entry: Entry) -> bool:
        """See L{ISpool.put_back}."""
        self._vanished.pop(spooled(entry).name, None)
        return entry.on(Input.PUT_AWAY) is State.SPOOLED

    def due(self, destination: str) -> list[Entry]:
        """See L{ISpool.due}."""
        now = self._reactor.seconds()
        return [
            entry
            for entry in self._inventory
            if entry.destination == destination and entry.due <= now and entry.state is State.SPOOLED
        ]

    def destinations(self) -> set[str]:
        """See L{ISpool.destinations}."""
        return {entry.destination for entry in self._inventory if not entry.is_delivered}

    def tidy(self) -> Deferred[None]:
        """See L{ISpool.tidy}."""
        return Deferred.fromCoroutine(self._tidy())

    async def _tidy(self) -> None:
        try:
            async with self._open_folder():
                for number, entry in enumerate(self._inventory, 1):
                    if number % _ENTRIES_PER_TURN == 0:
                        await deferLater(self._reactor, 0)
                    too_old = self._reactor.seconds() - spooled(entry).since > self._max_age
                    if too_old or entry.state is State.UNREMOVED:
                        await self._take_away(entry, f"it could not be delivered within {self._max_age:g} s")
                for quarantined in self._inventory.quarantined():
                    if self._clock.age(quarantined.written) > self._max_age:
                        await self._remove_quarantined(quarantined)
        except SpoolError as error:
            self._log_once(error)

    def _check_room(self, size: int) -> None:
        """L{SpoolError} if there is no room for so many bytes, whatever is removed."""
        if size > self.max_bytes:
            raise SpoolError(f"it needs {size} bytes, and the spool may use up to {self.max_bytes}")
        # Looking at every entry takes time: only if the spool is full.
        full = self.size + size > self.max_bytes
        if full and self._inventory.size_in_use() + size > self.max_bytes:
            raise SpoolError("the spool is full of captures that are being delivered now")

    async def _make_room(self, new: Entry) -> None:
        """Remove what is in quarantine, then what is delivered, then the oldest, until a new entry fits."""
        if self.size <= self.max_bytes:
            return
        making_room: Deferred[None] = Deferred.fromCoroutine(self._shrink(new))
        try:
            await self._access.finish(making_room)
        except CancelledError:
            # The new one is in the spool, nevertheless. Room is made before anybody else has access.
            pass

    async def _shrink(self, new: Entry) -> None:
        for quarantined in self._inventory.quarantined():
            if self.size <= self.max_bytes:
                return
            await self._remove_quarantined(quarantined)
        for entry in self._inventory.in_order_of_removal():
            if self.size <= self.max_bytes:
                return
            if entry is not new:
                await self._take_away(entry, "the spool is full, and newer captures need the room")

    async def _take_away(self, entry: Entry, reason: str) -> None:
        """Remove an entry that is not in use. If it can't be removed, that is logged, and stops no other."""
        if entry.state is State.UNREMOVED:
            entry.on(Input.REMOVE)
        elif entry.state is State.SPOOLED:
            entry.on(Input.DROP)
        else:
            return
        try:
            end = await self._remove(entry)
        except SpoolError as error:
            self._log_once(error, "a capture can't be removed from the spool")
            return
        if end is State.LOST:
            self._report_lost(entry, f"{reason}; the last problem was: {entry.problem}")

    async def _remove_quarantined(self, quarantined: QuarantinedEntry) -> None:
        """Remove what is in quarantine. If it can't be removed, that is logged, and stops nothing else."""
        try:
            await self._access.run(self._folder.remove_quarantined, quarantined.name)
        except SpoolError as error:
            self._log_once(error, "something in broken/ can't be removed from the spool")
            return
        self._inventory.remove_quarantined(quarantined)
        self._log.warn("removed broken/{name} from the spool", name=one_line(quarantined.name))

    @asynccontextmanager
    async def _open_folder(self) -> AsyncIterator[None]:
        """The directory, open, with exclusive access. L{SpoolError} if it can't be opened."""
        async with self._access.alone():
            if not await self._access.run_alone(self._folder.is_open):
                await self._open()
            yield

    def _list(self) -> tuple[Found, Sequence[Entry]] | None:
        """In a thread, as there may be tens of thousands: open the directory, and make the entries."""
        found = self._folder.open(lambda: self._is_ending)
        return None if found is None else (found, [self._entry(one) for one in found.entries])

    async def _open(self) -> None:
        try:
            listed: tuple[Found, Sequence[Entry]] | None = await self._access.run_alone(
                self._list, undo=lambda listed: self._folder.close()
            )
        except SpoolError as error:
            self._log_once(error)
            raise
        self._logged.clear()
        self._log_shortcomings()
        if listed is None:
            return
        found, entries = listed
        self._is_listed = True
        before = self._inventory
        entries = [self._known(before, spooled(entry).name) or entry for entry in entries]
        self._inventory = Inventory(entries, found.quarantined)
        for entry in before:
            if not self._inventory.has(entry):
                self._vanish(entry)
        for name, reason in found.damaged:
            self._log.error("{name} in the spool is quarantined: {why}", name=one_line(name), why=reason)
        for name, reason in found.unreadable:
            self._log.error("{name} in the spool can't be read: {why}", name=one_line(name), why=reason)
        for name, reason in found.leftovers:
            self._log.error("{name} in the spool can't be removed: {why}", name=one_line(name), why=reason)
        self._log.info(
            "the spool holds {entries}, {size} bytes",
            entries=counted(self.entries, "capture"),
            size=self.size,
        )

    def _known(self, before: Inventory, name: str) -> Entry | None:
        """An entry that is known already, with its state: it may be delivered, or taken."""
        entry = before.named(name)
        if entry is None and (entry := self._vanished.pop(name, None)) is not None:
            entry.on(Input.REAPPEAR)
        return entry

    def _vanish(self, entry: Entry) -> None:
        entry.on(Input.VANISH)
        if entry.is_vanished:
            # The outbox that has taken it may still deliver it, and reports it otherwise.
            self._vanished[spooled(entry).name] = entry
        elif entry.state is State.LOST:
            self._report_lost(entry, _VANISHED)

    def _entry(self, found: SpoolEntry) -> Entry:
        """An entry that was found in the directory."""
        return Entry(
            capture_id=found.capture,
            destination=found.destination,
            options=found.options,
            labels=found.request_labels,
            spooled=self._spooled(found, found.age(self._wall_clock())),
            problem=found.problem,
        )

    def _spooled(self, entry: SpoolEntry, age: float = 0.0) -> SpooledCapture:
        since = self._reactor.seconds() - age
        return SpooledCapture(name=entry.entry_name, size=entry.size + ENTRY_BYTES, since=since)

    def _report_lost(self, entry: Entry, problem: str) -> None:
        self._reporter.report(
            self._events.event(
                DeliveryFailed(destination=entry.destination, problem=problem), entry.labels, entry.capture_id
            )
        )

    def _log_once(self, error: Exception, what: str = "the spool can't be used") -> None:
        """Log a problem that may come again with every round: once, until the directory is opened again."""
        problem = one_line(str(error))
        if problem not in self._logged:
            self._logged.add(problem)
            self._log.error("{what}: {problem}", what=what, problem=problem)

    def _log_shortcomings(self) -> None:
        for what in self._folder.shortcomings.take_new():
            self._log.warn("the file system of the spool: {what}", what=what)

    def _not_undone(self, error: Exception) -> None:
        self._log_once(
            error, "a capture that was given up stays in the spool, and may be delivered after a restart"
        )
