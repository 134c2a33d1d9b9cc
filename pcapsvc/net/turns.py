"""
Turns on the reactor, for work that clients cause.

Between two turns the reactor serves everything else, such as captures. Clients that have authenticated come
before those that have not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

#: How long clients that have authenticated, and strangers, may keep the reactor in one turn, in seconds. One
#: piece of work is done in any case.
KNOWN_SECONDS = 0.002
STRANGER_SECONDS = 0.001

Work = Callable[[], None]


class Turns:
    """
    Does pieces of work one after the other, few in each turn of the reactor.

    @param reactor: provides time.
    @param stranger_pause_seconds: the pause after work for strangers before there is more for them.
    """

    _log = Logger()

    def __init__(self, reactor: Any, *, stranger_pause_seconds: float = 0.0) -> None:
        self._reactor = reactor
        self._pause_seconds = stranger_pause_seconds
        self._known: deque[Work] = deque()
        self._strangers: deque[Work] = deque()
        self._strangers_from = 0.0
        self._next: Any = None

    def ask(self, work: Work, *, is_known: bool) -> None:
        """
        Have some work done, once, in a later turn.

        @param is_known: whether it is for a client that has authenticated.
        """
        (self._known if is_known else self._strangers).append(work)
        self._schedule()

    def withdraw(self, work: Work) -> None:
        """Do some work no longer, if it is still to be done."""
        for queue in (self._known, self._strangers):
            if work in queue:
                queue.remove(work)
        if not self._known and not self._strangers and self._next is not None:
            self._next.cancel()
            self._next = None

    def _schedule(self) -> None:
        if self._known or self._strangers:
            pause = 0.0 if self._known else max(0.0, self._strangers_from - self._reactor.seconds())
            if self._next is None:
                self._next = self._reactor.callLater(pause, self._turn)
            elif pause == 0.0:
                self._next.reset(0)

    def _turn(self) -> None:
        self._next = None
        self._work_on(self._known, KNOWN_SECONDS)
        if self._strangers and self._reactor.seconds() >= self._strangers_from:
            self._work_on(self._strangers, STRANGER_SECONDS)
            self._strangers_from = self._reactor.seconds() + self._pause_seconds
        self._schedule()

    def _work_on(self, queue: deque[Work], seconds: float) -> None:
        until = self._reactor.seconds() + seconds
        # What is added meanwhile is for the next turn.
        for _ in range(len(queue)):
            if not queue:
                break
            work = queue.popleft()
            try:
                work()
            except Exception:  # noqa: BLE001 - the others' work must be done
                self._log.failure("a client's work failed")
            if self._reactor.seconds() >= until and seconds:
                break
