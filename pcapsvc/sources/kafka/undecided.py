"""The messages of a consumer group that this node has submitted, and whose verdicts are awaited."""

from __future__ import annotations

from threading import Lock

from kafka import TopicPartition


class Undecided:
    """
    Remembers which messages must not be committed yet. The methods are for any thread: verdicts fire in the
    reactor's, and commits are made in another one.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._offsets: dict[TopicPartition, set[int]] = {}
        self._count = 0

    def add(self, partition: TopicPartition, offset: int) -> None:
        """A message was submitted, and its verdict is awaited."""
        with self._lock:
            offsets = self._offsets.setdefault(partition, set())
            self._count += offset not in offsets
            offsets.add(offset)

    def remove(self, partition: TopicPartition, offset: int) -> None:
        """Its verdict has fired."""
        with self._lock:
            offsets = self._offsets.get(partition, set())
            self._count -= offset in offsets
            offsets.discard(offset)
            if not offsets:
                self._offsets.pop(partition, None)

    def first(self, partition: TopicPartition, start: int) -> int | None:
        """The first undecided offset of a partition from C{start} on; L{None} if there is none."""
        with self._lock:
            return min((each for each in self._offsets.get(partition, ()) if each >= start), default=None)

    def __len__(self) -> int:
        """How many messages there are."""
        with self._lock:
            return self._count
