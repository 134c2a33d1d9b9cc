"""The histories of all interfaces that have one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from zope.interface import implementer

from pcapsvc.capture.port import ICaptureReactor
from pcapsvc.core.history import HistoryBounds, HistoryState
from pcapsvc.interfaces.capture import IHistories, IPacketSystem, IReadHook

if TYPE_CHECKING:
    from pcapsvc.capture.history import HistoryRecorder

# In addition to the kernel's own time-out for a block that isn't full: its timer counts in jiffies of 4 ms.
_TIMER_SLACK_SECONDS = 0.008


def hand_over_seconds(read_timeout_ms: int) -> float:
    """
    How long the kernel may hold back a packet that has arrived.

    @param read_timeout_ms: after how long the kernel hands over a block that isn't full.
    """
    return read_timeout_ms / 1000 + _TIMER_SLACK_SECONDS


@implementer(IHistories)
class Histories(Service):
    """
    Records interfaces all the time.

    @param bounds: how much of each interface is kept, by its name.
    @param find: finds the index of an interface by one of its names.
    @param hook: makes the hook of a handle, by the interface's name; L{None} is nothing.
    @param wall_clock: the time in seconds since the Unix epoch.
    @param read_timeout_ms: after how long the kernel hands over a block that isn't full.
    """

    name = "histories"

    def __init__(
        self,
        reactor: ICaptureReactor,
        system: IPacketSystem,
        bounds: Mapping[str, HistoryBounds],
        *,
        find: Callable[[str], Deferred[int | None]],
        hook: Callable[[str], IReadHook] | None = None,
        wall_clock: Callable[[], float],
        read_timeout_ms: int,
    ) -> None:
        self._find = find
        self._recorders: list[HistoryRecorder] = []
        if not bounds:
            return
        # Imported here: nodes without a history do without.
        from pcapsvc.capture.history import HistoryRecorder

        self._recorders += [
            HistoryRecorder(
                reactor,
                system,
                interface,
                kept,
                find=find,
                hook=hook,
                wall_clock=wall_clock,
                hand_over_seconds=hand_over_seconds(read_timeout_ms),
            )
            for interface, kept in bounds.items()
        ]

    def startService(self) -> None:
        """Begin to record."""
        super().startService()  # type: ignore[no-untyped-call]
        for recorder in self._recorders:
            recorder.start()

    def stopService(self) -> None:
        """Stop, and forget everything."""
        super().stopService()  # type: ignore[no-untyped-call]
        for recorder in self._recorders:
            recorder.stop()

    def keep_up(self) -> None:
        """Read what has arrived, in the middle of other work."""
        for recorder in self._recorders:
            recorder.pull()

    def states(self) -> Sequence[HistoryState]:
        """How far back each of them reaches: see L{IHistories.states}."""
        return [recorder.state() for recorder in self._recorders]

    def find(self, interface: str) -> Deferred[HistoryRecorder | None]:
        """
        The history of an interface.

        @param interface: one of its names. If it is gone, the one by which it is configured.

        @return: fires with L{None} if it has none. Fails with L{OSError}.
        """
        return Deferred.fromCoroutine(self._found(interface))

    async def _found(self, interface: str) -> HistoryRecorder | None:
        if not self._recorders:
            return None
        index = await self._find(interface)
        for recorder in self._recorders:
            if index is not None and recorder.index == index:
                return recorder
        for recorder in self._recorders:
            if recorder.interface == interface:
                # Its handle may still be on an interface that had this name before.
                recorder.compare(index)
                return recorder
        return None
