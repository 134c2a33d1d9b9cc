"""Whether a history is being recorded, since when, and when it was not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from msgspec.structs import replace
from twisted.logger import Logger
from twisted.python.failure import Failure

from pcapsvc.core.errors import CaptureUnavailable, PcapsvcError
from pcapsvc.core.filter import FilterRejected
from pcapsvc.core.history import Outage, Reach

# How many outages are remembered. If there are more, some are joined.
_MOST_OUTAGES = 256


def _problem_of(error: BaseException | None) -> str | None:
    """Why an interface can't be recorded; L{None} if that is an internal error."""
    if isinstance(error, CaptureUnavailable):
        return error.reason
    if isinstance(error, FilterRejected):
        # It is not the filter of a request.
        return "; ".join(str(replace(problem, path="historyfilter")) for problem in error.problems)
    return str(error) if isinstance(error, PcapsvcError | OSError) else None


class HistoryHealth:
    """
    Remembers when a history was recorded, and logs each change once.

    @param interface: the interface's name.
    @param seconds: how far back the history reaches, at most.
    @param now: the time in seconds of a monotonic clock: the wall clock may be set at any time.

    @ivar problem: why nothing is being recorded; L{None} if it is.
    """

    _log = Logger()

    def __init__(self, interface: str, seconds: float, *, now: Callable[[], float]) -> None:
        self._interface = interface
        self._seconds = seconds
        self._now = now
        self._started: float | None = None
        # By the monotonic clock, like the time at which it started.
        self._outages: list[Outage] = []
        self._reported: str | None = None
        self.problem: str | None = "it has not begun"

    def reach(self, released: float | None, *, wall: float) -> Reach:
        """
        How complete the history is.

        @param wall: the time now, in seconds since the Unix epoch.
        @param released: the time stamp of the oldest packet that is kept since others were overwritten, in
            seconds since the Unix epoch; L{None} if none were.
        """
        ahead = wall - self._now()
        return Reach(
            seconds=self._seconds,
            started=None if self._started is None else ahead + self._started,
            released=released,
            outages=tuple(
                Outage(began=ahead + each.began, ended=None if each.ended is None else ahead + each.ended)
                for each in self._outages
            ),
        )

    def begins_anew(self) -> None:
        """What was recorded is forgotten."""
        self._started = None
        self._outages.clear()

    def not_looked_for(self, failure: Failure) -> None:
        """The interface could not be looked for by its name. It is recorded nevertheless."""
        if not isinstance(failure.value, OSError):
            self._log.failure("looking for {interface} failed", failure, interface=self._interface)

    def works(self) -> None:
        """It is being recorded from here on."""
        if self._started is None:
            self._started = self._now()
        if self._outages and self._outages[-1].ended is None:
            self._outages[-1] = replace(self._outages[-1], ended=self._now())
        if self._reported is not None:
            self._log.info("the history of {interface} is being recorded again", interface=self._interface)
        self.problem = self._reported = None

    def fails(self, problem: str, *, since: float | None = None) -> None:
        """
        Nothing is recorded from here on.

        @param since: since when that may have been so before it was noticed, by the monotonic clock.
        """
        if self._started is not None and not (self._outages and self._outages[-1].ended is None):
            worked = self._outages[-1].ended if self._outages else None
            earliest = self._started if worked is None else worked
            self._outages.append(Outage(began=self._now() if since is None else max(since, earliest)))
            if len(self._outages) > _MOST_OUTAGES:
                self._join_two()
        self.problem = problem
        if problem != self._reported:
            self._reported = problem
            self._log.warn(
                "the history of {interface} is not being recorded: {problem}",
                interface=self._interface,
                problem=problem,
            )

    def failed(self, failure: Failure) -> None:
        """Nothing is recorded from here on, because of an exception."""
        problem = _problem_of(failure.value)
        if problem is None:
            self._log.failure("the history of {interface} failed", failure, interface=self._interface)
        self.fails(problem or "internal error")

    def expire(self) -> None:
        """Forget outages that are older than the history."""
        oldest = self._now() - self._seconds
        while self._outages and (self._outages[0].ended or oldest) < oldest:
            del self._outages[0]

    def _join_two(self) -> None:
        """Remember the two outages that are closest together as one, so that none is forgotten."""
        between = [after.began - (before.ended or after.began) for before, after in pairwise(self._outages)]
        at = between.index(min(between))
        before, after = self._outages[at : at + 2]
        self._outages[at : at + 2] = [Outage(began=before.began, ended=after.ended)]
