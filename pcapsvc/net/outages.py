"""What everything needs that stays connected: pauses that grow, and one log line for an outage."""

from __future__ import annotations

import random
from collections.abc import Callable

from twisted.logger import Logger

from pcapsvc.core.text import one_line

#: The first and the longest pause after a failure.
RETRY_SECONDS = (0.5, 10.0)


class Backoff:
    """
    How long to wait before the next attempt: twice as long after each failure.

    @param first_seconds: the pause after the first failure.
    @param longest_seconds: the longest pause.
    @param chance: returns a number from 0 to 1. It shortens each pause by up to half, so that the nodes of a
        fleet don't all come back at once.
    """

    def __init__(
        self,
        first_seconds: float = RETRY_SECONDS[0],
        longest_seconds: float = RETRY_SECONDS[1],
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._chance = chance
        self._seconds = first_seconds

    def failed(self) -> float:
        """Count a failure; returns the seconds to wait before the next attempt."""
        seconds = self._seconds * (1 + self._chance()) / 2
        self._seconds = min(self._seconds * 2, self._longest_seconds)
        return seconds

    def worked(self) -> None:
        """Start over: the next failure is a first one."""
        self._seconds = self._first_seconds


class Outage:
    """
    Logs an outage once for each kind of problem in it, and its end.

    @param who: what a log line begins with: C{Kafka a.example:9092}.
    @param each_change: log a problem again that comes back after another one.
    """

    def __init__(self, log: Logger, who: str, *, each_change: bool = False) -> None:
        self._log = log
        self._who = who
        self._each_change = each_change
        self._reported: set[str] = set()
        self._works = False

    def report(self, kind: str, problem: str) -> None:
        """
        Report a problem.

        @param kind: is logged only once, until the outage has ended.
        @param problem: in words, without secrets. They may be a server's: one bounded line without
            control characters is logged.
        """
        self._works = False
        if kind not in self._reported:
            if self._each_change:
                self._reported.clear()
            self._reported.add(kind)
            self._log.warn("{who}: {problem}; retrying", who=self._who, problem=one_line(problem))

    def ended(self, news: str) -> None:
        """
        Report that it works. This is logged the first time, and after an outage.

        @param news: what works now, in words.
        """
        if not self._works:
            self._log.info("{who}: {news}", who=self._who, news=news)
        self._works = True
        self._reported.clear()
