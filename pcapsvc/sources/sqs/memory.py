"""Messages that were processed: SQS may deliver them again."""

from __future__ import annotations

from collections import OrderedDict


class Memory:
    """The processed messages, for a while."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._since: OrderedDict[str, float] = OrderedDict()

    def remember(self, key: str, now: float) -> None:
        """Remember a message from now on. If there are too many, forget the oldest."""
        self._since[key] = now
        self._since.move_to_end(key)
        if len(self._since) > self._most:
            self._since.popitem(last=False)

    def forget(self, key: str) -> None:
        """It is to be seen to again when it comes again."""
        self._since.pop(key, None)

    def knows(self, key: str, now: float) -> bool:
        """Whether a message is remembered."""
        while self._since and next(iter(self._since.values())) + self._seconds <= now:
            self._since.popitem(last=False)
        return key in self._since
