"""Keeps the state of a connection."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from pcapsvc.core.source_state import SourceState
from pcapsvc.core.text import one_line


class Connectivity:
    """
    Whether a source, or a channel of events, is connected, and since when.

    @param wall_clock: returns the time in seconds since the Unix epoch.

    @ivar state: the state.
    """

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self.state = SourceState()

    def started(self) -> None:
        """The source has started, and isn't connected yet."""
        self.state = SourceState(since=self._wall_clock())

    def connected(self) -> None:
        """It is connected."""
        if not self.state.connected:
            self.state = SourceState(connected=True, since=self._wall_clock())

    def failed(self, problem: str) -> None:
        """
        It isn't connected.

        @param problem: why not, in words, without secrets.
        """
        since = self._wall_clock() if self.state.connected else self.state.since
        self.state = SourceState(since=since, problem=one_line(problem))

    def stopped(self) -> None:
        """The source is stopping."""
        if self.state.connected:
            self.state = SourceState(since=self._wall_clock())
        else:
            self.state = replace(self.state, problem=None)
