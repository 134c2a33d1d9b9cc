"""The histories of all interfaces that are configured to have one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zope.interface import implementer

from pcapsvc.core.history import HistoryBounds, HistoryState
from pcapsvc.interfaces.capture import IHistories


@implementer(IHistories)
class Histories:
    """
    See L{IHistories}.

    @param bounds: of each, by the name of its interface.
    """

    def __init__(self, bounds: Mapping[str, HistoryBounds]) -> None:
        self._bounds = bounds

    def states(self) -> Sequence[HistoryState]:
        """See L{IHistories.states}."""
        return [
            HistoryState(
                interface=interface,
                bounds=bounds,
                since=None,
                seconds=0.0,
                packets=0,
                bytes=0,
                dropped=0,
                problem="it is not being recorded",
            )
            for interface, bounds in self._bounds.items()
        ]
