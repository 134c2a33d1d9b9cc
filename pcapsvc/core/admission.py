"""Whether there is capacity for more captures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from pcapsvc.core.errors import Problem

#: How many captures may wait for their destinations. Besides its bytes, each costs some 20 KiB of objects
#: (measured), whether it is on disk or not.
MOST_WAITING = 10_000


class Impossible(msgspec.Struct, frozen=True, kw_only=True):
    """There can never be room: the request asks for too much."""

    problem: Problem


class NoRoom(msgspec.Struct, frozen=True, kw_only=True):
    """
    There is no room now.

    @ivar reason: which limit would be exceeded, in words.
    """

    reason: str


Refusal = Impossible | NoRoom


class Spare(Protocol):
    """
    Memory that is used only until it is needed for captures.

    @ivar held_bytes: how much there is of it.
    @ivar held_files: how many files it is in. Each has a descriptor.
    """

    @property
    def held_bytes(self) -> int: ...

    @property
    def held_files(self) -> int: ...

    def reclaim(self, *, least_bytes: int = 0, least_files: int = 0, even_watched: bool = True) -> None:
        """
        Free as many bytes and files, or all that there are.

        @param even_watched: whether to free what somebody reads.
        """


class _NoSpare:
    held_bytes = 0
    held_files = 0

    def reclaim(self, *, least_bytes: int = 0, least_files: int = 0, even_watched: bool = True) -> None:
        """There is nothing to free."""


class Reservation:
    """
    Room for captures that are being prepared.

    @ivar captures: how many more may be started with it.
    @ivar most_bytes: the size that each may grow to.
    """

    def __init__(self, admission: Admission, captures: int, most_bytes: int) -> None:
        self._admission = admission
        self.captures = captures
        self.most_bytes = most_bytes

    def started(self, capture_id: str) -> None:
        """One of the captures has started, and takes over its share of the reservation."""
        assert self.captures > 0
        self.captures -= 1
        self._admission.started(capture_id, self.most_bytes)

    def release(self) -> None:
        """Release what was not used. A second call does nothing."""
        self.captures = 0
        self._admission.released(self)


class Admission:
    """
    Counts the resources that captures hold, and those that they may still need.

    @param max_captures: how many may run at once.
    @param max_memory_bytes: how much all may hold, from their start until their last
        delivery: a running one by its limit of bytes, one that has ended by its size, one
        that is on the disk not at all.
    @param max_in_memory: how many may be in memory, running or not, as each has a descriptor;
        L{None} is no bound.
    @param free_bytes: how much memory the process may still use; L{None} if that isn't known. Its argument
        is how much is enough: then it need not be exact.
    @param held_bytes: how much the running captures hold by now.
    @param capture_overhead_bytes: what each running capture needs beside its file.
    @param max_waiting: how many may have ended, and not be delivered.
    @param spare: what is freed rather than refusing a capture. It counts as memory and as descriptors, too.
    """

    def __init__(
        self,
        *,
        max_captures: int,
        max_memory_bytes: int,
        max_in_memory: int | None = None,
        max_waiting: int = MOST_WAITING,
        free_bytes: Callable[[int], int | None] = lambda enough: None,
        held_bytes: Callable[[], int] = lambda: 0,
        capture_overhead_bytes: int = 0,
        spare: Spare | None = None,
    ) -> None:
        self._max_captures = max_captures
        self._max_memory = max_memory_bytes
        self._max_in_memory = max_in_memory
        self._max_waiting = max_waiting
        self._free_bytes = free_bytes
        self._held_bytes = held_bytes
        self._overhead = capture_overhead_bytes
        self._spare: Spare = spare or _NoSpare()
        self._reserved: set[Reservation] = set()
        self._running: set[str] = set()
        self._waiting: set[str] = set()
        # Only of those in memory.
        self._bytes: dict[str, int] = {}

    def reserve(self, captures: int, most_bytes: int) -> Reservation | Refusal:
        """
        Reserve room for this many captures, each of up to C{most_bytes}.

        @return: the reservation, or why there is none.

        The room is held until the captures have started, or the reservation is released.
        """
        refusal = self._impossible(captures, most_bytes) or self._no_room(captures, most_bytes)
        if refusal is not None:
            return refusal
        self._make_room(captures, most_bytes)
        refusal = self._no_memory(captures, most_bytes)
        if refusal is not None:
            return refusal
        reservation = Reservation(self, captures, most_bytes)
        self._reserved.add(reservation)
        return reservation

    def refuse_spare(self, size: int) -> NoRoom | None:
        """
        Find room for one more file that is spare itself. What nobody reads is freed for it.

        @param size: how much memory it needs, in bytes.

        @return: why there is none; L{None} if there is.
        """
        if (excess := self._excess(files=1, size=size)) != (0, 0):
            self._spare.reclaim(least_bytes=excess[0], least_files=excess[1], even_watched=False)
        if self._excess(files=1, size=size) != (0, 0):
            return NoRoom(reason=f"captures need the memory, and {size} bytes more are not free")
        return self._no_memory_for(size, even_watched=False)

    def take(self, key: str, size: int) -> bool:
        """
        Take room for one more file of a capture that has ended, such as one that is compressed. What nobody
        reads of what is spare is freed for it.

        @param key: of the file, for L{holds} and L{on_disk}. No capture has this id.
        @param size: how much memory it needs, in bytes.

        @return: whether there was room.
        """
        if self.refuse_spare(size) is not None:
            return False
        self._bytes[key] = size
        return True

    def holds(self, key: str, size: int) -> None:
        """A file holds this many bytes."""
        self._bytes[key] = size

    def started(self, capture_id: str, most_bytes: int) -> None:
        """A capture has started, and may grow to this size. Called by L{Reservation.started}."""
        self._running.add(capture_id)
        self._bytes[capture_id] = most_bytes

    def released(self, reservation: Reservation) -> None:
        """A reservation holds nothing any more. Called by L{Reservation.release}."""
        self._reserved.discard(reservation)

    def ended(self, capture_id: str, size: int) -> None:
        """A capture has ended, and holds this many bytes."""
        self._running.discard(capture_id)
        self._waiting.add(capture_id)
        self._bytes[capture_id] = size

    def on_disk(self, capture_id: str) -> None:
        """A capture has ended, and its file is on the disk; or a file that was taken room for is freed."""
        self._bytes.pop(capture_id, None)

    def done(self, capture_id: str) -> None:
        """A capture holds nothing any more."""
        self._running.discard(capture_id)
        self._waiting.discard(capture_id)
        self._bytes.pop(capture_id, None)

    def _impossible(self, captures: int, most_bytes: int) -> Impossible | None:
        most = min(self._max_captures, self._max_in_memory or self._max_captures)
        if captures > most:
            rule = f"means {captures} captures, and only {most} may run at once on this node"
            return Impossible(problem=Problem(path="interface", rule=rule))
        total = captures * most_bytes
        if total > self._max_memory:
            rule = f"comes to {total} bytes on {captures} interfaces; this node may hold {self._max_memory}"
            return Impossible(problem=Problem(path="bytes", value=str(most_bytes), rule=rule))
        return None

    def _no_room(self, captures: int, most_bytes: int) -> NoRoom | None:
        reserved = self._reserved_captures()
        running = len(self._running) + reserved
        if running + captures > self._max_captures:
            return NoRoom(
                reason=f"too many captures: {running} running, {captures} more requested,"
                f" and the limit is {self._max_captures}"
            )
        in_memory = len(self._bytes) + reserved
        if self._max_in_memory is not None and in_memory + captures > self._max_in_memory:
            return NoRoom(
                reason=f"too many captures in memory: {in_memory}, {captures} more requested,"
                f" and there are file descriptors for {self._max_in_memory}"
            )
        if len(self._waiting) >= self._max_waiting:
            return NoRoom(reason=f"{len(self._waiting)} captures are waiting for their destinations")
        held = self._held()
        if held + captures * most_bytes > self._max_memory:
            return NoRoom(
                reason=f"captures may grow to {held} bytes, and {captures * most_bytes} more would exceed the"
                f" limit of {self._max_memory}"
            )
        return None

    def _reserved_captures(self) -> int:
        return sum(reservation.captures for reservation in self._reserved)

    def _held(self) -> int:
        """What captures may grow to, in bytes."""
        return sum(self._bytes.values()) + sum(one.captures * one.most_bytes for one in self._reserved)

    def _make_room(self, captures: int, most_bytes: int) -> None:
        """Free what is spare, as far as it stands in the way."""
        more_bytes, more_files = self._excess(files=captures, size=captures * most_bytes)
        self._spare.reclaim(least_bytes=more_bytes, least_files=more_files)

    def _excess(self, *, files: int, size: int) -> tuple[int, int]:
        """How many bytes and files there would be too many with so many more."""
        held = self._held() + size + self._spare.held_bytes
        in_memory = len(self._bytes) + self._reserved_captures() + files + self._spare.held_files
        most = in_memory if self._max_in_memory is None else self._max_in_memory
        return max(0, held - self._max_memory), max(0, in_memory - most)

    def _no_memory(self, captures: int, most_bytes: int) -> NoRoom | None:
        """Whether the process may not use as much memory as all captures may yet need."""
        return self._no_memory_for(captures * (most_bytes + self._overhead), even_watched=True)

    def _no_memory_for(self, size: int, *, even_watched: bool) -> NoRoom | None:
        """Whether the process may not use so much memory besides what captures may yet need."""
        growth = sum(self._bytes[capture_id] for capture_id in self._running & self._bytes.keys())
        growth = max(0, growth - self._held_bytes())
        growth += sum(one.captures * (one.most_bytes + self._overhead) for one in self._reserved)
        needed = growth + size
        free = self._free_bytes(needed)
        if free is not None and free < needed and self._spare.held_bytes:
            self._spare.reclaim(least_bytes=needed - free, even_watched=even_watched)
            free = self._free_bytes(needed)
        if free is None or free >= needed:
            return None
        return NoRoom(
            reason=f"{free} bytes of memory are free for this process, and captures may grow by {needed}"
        )
