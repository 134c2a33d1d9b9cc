"""Whether a history is being recorded, since when, and when it was not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from twisted.logger import Logger

from pcapsvc.core.history import Outage, Reach

# How many outages are remembered.
_MOST_OUTAGES = 256


class HistoryHealth:
    """
    Remembers when a history was recorded, and logs each change once.

    @param interface: the interface's name.
    @param seconds: how far back the history reaches, at most.
    @param wall_clock: the time in seconds since the Unix epoch.

    @ivar problem: why nothing is being recorded; L{None} if it is.
    """

    _log = Logger()

    def __init__(self, interface: str, seconds: float, *, wall_clock: Callable[[], float]) -> None:
        self._interface = interface
        self._seconds = seconds
        self._wall_clock = wall_clock
        self._started: float | None = None
        self._outages: deque[Outage] = deque(maxlen=_MOST_OUTAGES)
        self._reported: str | None = None
        self.problem: str | None = "it has not begun"

    def reach(self, released: float | None) -> Reach:
        """
        How complete the history is.

        @param released: the time stamp of the oldest packet that is kept since others were overwritten, in
            seconds since the Unix epoch; L{None} if none were.
        """
        return Reach(
            seconds=self._seconds, started=self._started, released=released, outages=tuple(self._outages)
        )

    def begins_anew(self) -> None:
        """What was recorded is forgotten."""
        self._started = None
        self._outages.clear()

    def works(self) -> None:
        """It is being recorded from here on."""
        if self._started is None:
            self._started = self._wall_clock()
        if self._outages and self._outages[-1].ended is None:
            self._outages[-1] = replace(self._outages[-1], ended=self._wall_clock())
        if self._reported is not None:
            self._log.info("the history of {interface} is being recorded again", interface=self._interface)
        self.problem = self._reported = None

    def fails(self, problem: str) -> None:
        """Nothing is recorded from here on."""
        if self._started is not None and not (self._outages and self._outages[-1].ended is None):
            self._outages.append(Outage(began=self._wall_clock()))
        self.problem = problem
        if problem != self._reported:
            self._reported = problem
            self._log.warn(
                "the history of {interface} is not being recorded: {problem}",
                interface=self._interface,
                problem=problem,
            )

    def expire(self) -> None:
        """Forget outages that are older than the history."""
        oldest = self._wall_clock() - self._seconds
        while self._outages and (self._outages[0].ended or oldest) < oldest:
            self._outages.popleft()
