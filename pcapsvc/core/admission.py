"""Whether there is room for one more capture."""

from __future__ import annotations

from pcapsvc.core.errors import Problem

#: How many captures may wait for their destinations: beside its bytes, each costs some 20 KiB of objects, as
#: measured, on the disk or not.
MOST_WAITING = 10_000


class Admission:
    """
    Counts what captures hold, and what they may still grow to.

    @param max_captures: how many may run at once.
    @param max_memory_bytes: how much all may hold, from their start until their last
        delivery: a running one by its limit of bytes, one that has ended by its size, one
        that is on the disk not at all.
    @param max_in_memory: how many may be in memory, running or not, as each has a descriptor;
        L{None} is no bound.
    @param max_waiting: how many may have ended, and not be delivered.
    """

    def __init__(
        self,
        *,
        max_captures: int,
        max_memory_bytes: int,
        max_in_memory: int | None = None,
        max_waiting: int = MOST_WAITING,
    ) -> None:
        self._max_captures = max_captures
        self._max_memory = max_memory_bytes
        self._max_in_memory = max_in_memory
        self._max_waiting = max_waiting
        self._running: set[str] = set()
        self._waiting: set[str] = set()
        # Of those in memory, and of no others.
        self._bytes: dict[str, int] = {}

    def impossible(self, captures: int, max_bytes: int) -> Problem | None:
        """The problem that so many captures, each of up to C{max_bytes}, can never have room; or L{None}."""
        most = min(self._max_captures, self._max_in_memory or self._max_captures)
        if captures > most:
            rule = f"means {captures} captures, and at most {most} may run at once on this node"
            return Problem(path="interface", rule=rule)
        if captures * max_bytes > self._max_memory:
            rule = f"comes to {captures * max_bytes} on {captures} interfaces, and at most {self._max_memory}"
            return Problem(
                path="bytes", value=str(max_bytes), rule=f"{rule} may be held at once on this node"
            )
        return None

    def refusal(self, captures: int, max_bytes: int) -> str | None:
        """
        Why there is no room for so many captures more, each of up to C{max_bytes};
        L{None} where there is.
        """
        if len(self._running) + captures > self._max_captures:
            return (
                f"{len(self._running)} captures are running, and {captures} more would be over"
                f" the {self._max_captures} that may run at once"
            )
        if self._max_in_memory is not None and len(self._bytes) + captures > self._max_in_memory:
            return (
                f"{len(self._bytes)} captures are in memory, and {captures} more would be over"
                f" the {self._max_in_memory} for which there are descriptors"
            )
        if len(self._waiting) >= self._max_waiting:
            return f"{len(self._waiting)} captures wait for their destinations, and no more may"
        held = sum(self._bytes.values())
        if held + captures * max_bytes > self._max_memory:
            return (
                f"captures may grow to {held} bytes, and {captures * max_bytes} more would be over"
                f" the {self._max_memory} that they may hold at once"
            )
        return None

    def started(self, capture_id: str, max_bytes: int) -> None:
        """A capture has begun, and may grow to so many bytes."""
        self._running.add(capture_id)
        self._bytes[capture_id] = max_bytes

    def ended(self, capture_id: str, size: int) -> None:
        """A capture has ended, and holds so many bytes."""
        self._running.discard(capture_id)
        self._waiting.add(capture_id)
        self._bytes[capture_id] = size

    def on_disk(self, capture_id: str) -> None:
        """A capture has ended, and what it brought is on the disk."""
        self._bytes.pop(capture_id, None)

    def done(self, capture_id: str) -> None:
        """A capture holds nothing any more."""
        self._running.discard(capture_id)
        self._waiting.discard(capture_id)
        self._bytes.pop(capture_id, None)
