"""Waits until every node that accepted a request is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

from pcapsvc.client.status import ClientError, ExitStatus
from pcapsvc.client.tally import MOST_ROWS, Tally
from pcapsvc.client.views import IView
from pcapsvc.core.text import counted

#: Why a file isn't there that was still being saved at the end of the wait.
UNFINISHED = "not finished at the deadline"

_TURN_SECONDS = 0.2


class IEvents(Protocol):
    """Where events come from. See L{pcapsvc.client.reader.EventReader}."""

    def take(self, seconds: float) -> Iterator[dict[str, Any] | str]:
        """What has arrived, events and problems in words. Waits this long for the first."""
        ...


class IFiles(Protocol):
    """What saves the files of captures."""

    def update(self, tally: Tally) -> None:
        """Look at what has changed."""
        ...

    def is_busy(self) -> bool:
        """Whether a file is still to be saved."""
        ...

    def finish(self) -> None:
        """
        Everything is saved, or never will be: what is still being saved, at a deadline, has a problem.

        @raise ClientError: if what is left to do fails.
        """
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class NoFiles:
    """Saves nothing."""

    def update(self, tally: Tally) -> None:
        """Nothing."""

    def is_busy(self) -> bool:
        """It is not."""
        return False

    def finish(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """
    How long to wait.

    @ivar expect: how many nodes will answer; L{None} if that isn't known.
    @ivar answer_seconds: how long answers may take.
    @ivar deadline_seconds: how long all of it may take; L{None} for as long as it takes.
    """

    expect: int | None
    answer_seconds: float
    deadline_seconds: float | None


class Waiting:
    """
    One wait.

    @param clock: the time in seconds, of a monotonic clock.
    """

    def __init__(
        self,
        tally: Tally,
        events: IEvents,
        view: IView,
        files: IFiles,
        patience: Patience,
        clock: Callable[[], float],
    ) -> None:
        self._tally = tally
        self._events = events
        self._view = view
        self._files = files
        self._patience = patience
        self._clock = clock
        self._began = clock()
        self._has_ignored = False

    def run(self) -> ExitStatus:
        """Wait. May be called again after an interruption."""
        while True:
            for item in self._events.take(_TURN_SECONDS):
                if isinstance(item, str):
                    self._view.note(item)
                elif self._tally.add(item, self._clock()) is not None:
                    self._view.event(item)
            if self._tally.ignored and not self._has_ignored:
                self._has_ignored = True
                self._view.note(
                    f"more than {MOST_ROWS:,} captures, or too many destinations: others are ignored"
                )
            self._files.update(self._tally)
            now = self._clock()
            if self._is_over(now):
                self._finish(now)
                return self.status()
            self._view.show(self._tally, now)

    def status(self) -> ExitStatus:
        """What to exit with now."""
        expect = self._patience.expect
        return self._tally.status(missing=0 if expect is None else expect - len(self._tally.nodes))

    def _finish(self, now: float) -> None:
        """Show the outcomes, once it is known where the files are."""
        try:
            self._files.finish()
        except ClientError:
            self._view.close(self._tally, now)
            raise
        self._view.close(self._tally, now)
        if self._tally.ignored:
            ignored = counted(self._tally.ignored, "event")
            self._view.note(f"ignored in all: {ignored} of further captures or destinations")

    def _is_over(self, now: float) -> bool:
        patience, spent = self._patience, now - self._began
        if patience.deadline_seconds is not None and spent >= patience.deadline_seconds:
            return True
        if not self._tally.is_settled(now) or self._files.is_busy():
            return False
        known = len(self._tally.nodes) + self._tally.unreached
        if patience.expect is not None and known >= patience.expect:
            return True
        return spent >= patience.answer_seconds
