"""How long the spool's disk may take before a capture goes on without it."""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from pcapsvc.core.errors import SpoolError

_T = TypeVar("_T")

#: How long it may take, in seconds, including everything that already waits for the disk. If it takes longer,
#: it hangs or is overloaded, and the destination may be fine.
LONGEST_HOLD_SECONDS = 30.0


class DiskWait:
    """
    Limits how long the spool's disk may take.

    @param stop_seconds: how long it may take once a stop has begun, if that is less. A hurried stop leaves it
        half of that.

    @ivar is_hanging: whether the last work that ended had taken too long.
    """

    def __init__(self, reactor: IReactorTime, *, stop_seconds: float) -> None:
        self._reactor = reactor
        self._stop_seconds = min(stop_seconds, LONGEST_HOLD_SECONDS)
        self._seconds = LONGEST_HOLD_SECONDS
        self._ends: set[IDelayedCall] = set()
        self.is_hanging = False

    def restore(self) -> None:
        """No stop has begun."""
        self._seconds = LONGEST_HOLD_SECONDS

    def shorten(self) -> None:
        """A stop has begun: this concerns what is waited for, and what will be."""
        self._shorten_to(self._stop_seconds)

    def hurry(self) -> None:
        """A stop is hurried, or will be: likewise."""
        self._shorten_to(self._stop_seconds / 2)

    def _shorten_to(self, seconds: float) -> None:
        self._seconds = min(self._seconds, seconds)
        for end in self._ends:
            if end.getTime() > self._reactor.seconds() + self._seconds:
                end.reset(self._seconds)

    def limit(self, work: Deferred[_T]) -> Deferred[_T]:
        """
        Limit work of the disk, which is cancelled if it takes longer.

        @return: C{work}; fails with L{SpoolError} then.
        """
        began = self._reactor.seconds()
        end = self._reactor.callLater(self._seconds, work.cancel)
        self._ends.add(end)

        def ended(result: _T | Failure) -> _T | Failure:
            self._ends.discard(end)
            self.is_hanging = not end.active()
            if end.active():
                end.cancel()
            elif isinstance(result, Failure):
                seconds = round(self._reactor.seconds() - began, 1)
                raise SpoolError(f"its disk timed out after {seconds:g} s")
            return result

        return work.addBoth(ended)
