"""Slots: how many attempts may go on at the same time."""

from __future__ import annotations

from collections import OrderedDict

from twisted.internet.defer import Deferred, succeed


class Slots:
    """
    A number of slots, given out in the order of asking. Tens of thousands may wait, and all of them
    may stop waiting at once: the cost of each doesn't depend on how many there are.
    """

    def __init__(self, free: int) -> None:
        self._free = free
        self._waiting: OrderedDict[Deferred[None], None] = OrderedDict()
        self._handing_out = False

    def acquire(self) -> Deferred[None]:
        """
        Get a slot.

        @return: fires when there is one; on cancel, it is no longer waited for.
        """
        if self._free and not self._waiting:
            self._free -= 1
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._waiting.pop)
        self._waiting[waiting] = None
        return waiting

    def release(self) -> None:
        """Return a slot."""
        self._free += 1
        if self._handing_out:
            # The new owner returned it at once. Calls within calls would exhaust the stack.
            return
        self._handing_out = True
        try:
            while self._free and self._waiting:
                self._free -= 1
                waiting, _ = self._waiting.popitem(last=False)
                waiting.callback(None)
        finally:
            self._handing_out = False
