"""Events that wait to be published: which are next, and which are dropped if there are too many."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from pcapsvc.core.event import CaptureProgress, Event


class Report(msgspec.Struct, frozen=True):
    """
    An event that is ready to be published.

    @ivar event_id: the event's id.
    @ivar subject: the capture's id; L{None} if the event isn't about a capture.
    @ivar is_progress: whether it is the first to be dropped.
    @ivar json: the event, as in L{Event.json}.
    """

    event_id: str
    subject: str | None
    is_progress: bool
    json: bytes

    @classmethod
    def of(cls, event: Event) -> Report:
        """The report of an event."""
        return cls(event.id, event.subject, isinstance(event.data, CaptureProgress), event.json)


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """
    Events that were dropped.

    @ivar count: how many.
    @ivar since: when the first of them was dropped, in seconds of the clock that L{ReportQueue} is used with.
    """

    count: int
    since: float


class ReportQueue:
    """
    A bounded queue. If it is full, the oldest progress event is dropped first, and the oldest of all if there
    is no progress event.

    An event that was taken counts until it is settled. It is never dropped: it may have arrived, even if that
    was not confirmed. So every event that is dropped was never sent, and the number of dropped events is
    exactly the number of those that are missing at the other side.

    Each call takes constant time for each event, whatever the length of the queue.

    @param limit: how many events there may be.
    @param max_bytes: how many bytes they may have together.

    @ivar dropped: how many were dropped, in total.
    """

    def __init__(self, *, limit: int, max_bytes: int) -> None:
        self._limit = limit
        self._max_bytes = max_bytes
        # Each with a number, by which the older one is known.
        self._progress: deque[tuple[int, Report]] = deque()
        self._others: deque[tuple[int, Report]] = deque()
        self._number = 0
        self._taken: dict[str, Report] = {}
        self._bytes = 0
        self._unreported = 0
        self._since = 0.0
        self.dropped = 0

    def __len__(self) -> int:
        """How many there are, with those that are taken and not settled."""
        return len(self._progress) + len(self._others) + len(self._taken)

    @property
    def untaken(self) -> int:
        """How many there are that can be taken."""
        return len(self._progress) + len(self._others)

    def put(self, report: Report, now: float) -> None:
        """
        Append an event, and drop what is too much.

        @param now: the time in seconds of any clock.
        """
        self._number += 1
        (self._progress if report.is_progress else self._others).append((self._number, report))
        self._bytes += len(report.json)
        while (len(self) > self._limit or self._bytes > self._max_bytes) and self.untaken:
            _, oldest = (self._progress or self._others).popleft()
            self._bytes -= len(oldest.json)
            self._count_dropped(1, now)

    def take(self, most: int, most_bytes: int) -> list[Report]:
        """
        Take the oldest events. They count until they are settled.

        @param most: how many.
        @param most_bytes: how many bytes they may have together; but at least one event is taken, if there is
            one.
        """
        taken: list[Report] = []
        size = 0
        while len(taken) < most and self.untaken:
            source = self._older()
            size += len(source[0][1].json)
            if taken and size > most_bytes:
                break
            _, report = source.popleft()
            taken.append(report)
            self._taken[report.event_id] = report
        return taken

    def hold(self, report: Report) -> None:
        """Add an event that counts as taken."""
        self._taken[report.event_id] = report
        self._bytes += len(report.json)

    def settle(self, reports: Iterable[Report]) -> None:
        """Forget events that were taken, and have arrived."""
        for report in reports:
            if self._taken.pop(report.event_id, None) is not None:
                self._bytes -= len(report.json)

    def refuse(self, reports: Iterable[Report], now: float) -> None:
        """Drop events that were taken, because they will never be accepted."""
        for report in reports:
            if report.event_id in self._taken:
                self.settle([report])
                self._count_dropped(1, now)

    def drop_all(self, now: float) -> int:
        """Drop everything. Returns how many that were."""
        count = len(self)
        if count:
            self._count_dropped(count, now)
        self._progress.clear()
        self._others.clear()
        self._taken.clear()
        self._bytes = 0
        return count

    @property
    def has_unreported(self) -> bool:
        """Whether any were dropped since the last call of L{take_dropped}."""
        return self._unreported > 0

    def take_dropped(self) -> Dropped:
        """What was dropped since the last call."""
        found = Dropped(count=self._unreported, since=self._since)
        self._unreported = 0
        return found

    def _count_dropped(self, count: int, now: float) -> None:
        if not self._unreported:
            self._since = now
        self._unreported += count
        self.dropped += count

    def _older(self) -> deque[tuple[int, Report]]:
        if not self._others or (self._progress and self._progress[0][0] < self._others[0][0]):
            return self._progress
        return self._others
