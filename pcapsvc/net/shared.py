"""Answers that are worked out once for all who ask at about the same time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

Found = TypeVar("Found")


class Shared(Generic[Found]):
    """
    What takes a thread or a disk to find out. However many ask, it is done once at a time, and what was found
    is good for a while.

    @param find: finds it out.
    @param keep_seconds: how long what was found is good.
    """

    def __init__(
        self, reactor: IReactorTime, find: Callable[[], Deferred[Found]], *, keep_seconds: float
    ) -> None:
        self._reactor = reactor
        self._find = find
        self._keep_seconds = keep_seconds
        self._waiting: list[Deferred[Found]] = []
        self._found: Found | Failure | None = None
        self._until = -1.0

    def get(self) -> Deferred[Found]:
        """
        Ask.

        @return: fires with what was found, or fails with why it wasn't. On cancel, only this one is given up.
        """
        wanted: Deferred[Found] = Deferred()
        if self._found is not None and self._reactor.seconds() < self._until:
            wanted.callback(self._found)
            return wanted
        self._waiting.append(wanted)
        if len(self._waiting) == 1:
            maybeDeferred(self._find).addBoth(self._is_found)
        return wanted

    def _is_found(self, found: Found | Failure) -> None:
        self._found = found
        self._until = self._reactor.seconds() + self._keep_seconds
        waiting, self._waiting = self._waiting, []
        for wanted in waiting:
            wanted.callback(found)
