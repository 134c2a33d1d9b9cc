"""What is known to be in the spool, by age, and what it takes of the disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from pcapsvc.core.labels import Labels
from pcapsvc.delivery.folder import Aside

#: What an entry takes of the disk beside its capture, in bytes: two folders' blocks and a manifest.
ENTRY_BYTES = 12 * 1024


@dataclass(kw_only=True)
class Kept:
    """
    An entry that is known to be on the disk.

    @ivar options: what its request says of the destination, by field.
    @ivar size: what it counts for, in bytes.
    @ivar since: when it was spooled, by the reactor's clock, which nobody sets.
    @ivar problem: why it could not be delivered the last time.
    @ivar attempts: how often that was tried from the spool, by this process.
    @ivar due: when it is to be tried again, by the reactor's clock.
    @ivar busy: whether it is being tried, or dropped.
    @ivar delivered: whether it was, and only could not be removed.
    @ivar gone: whether it went away while it was busy.
    """

    name: str
    capture_id: str
    destination: str
    options: Mapping[str, Any]
    labels: Labels
    size: int
    since: float
    problem: str
    attempts: int = 0
    due: float = 0.0
    busy: bool = False
    delivered: bool = False
    gone: bool = False


class Inventory:
    """
    The entries, from the oldest to the newest, and what is in C{broken/}. There may be a
    hundred thousand: what each capture pays for doesn't grow with their number.

    @param entries: those that were found; their age is by C{since}, as a name is by the
        wall clock, which may have been set between two of them.
    @ivar size: what all takes of the disk, in bytes.
    """

    def __init__(self, entries: Iterable[Kept] = (), asides: Iterable[Aside] = ()) -> None:
        self._entries: dict[str, Kept] = {}
        self._asides = {aside.name: aside for aside in asides}
        self.size = sum(map(_size_of, self._asides.values()))
        for kept in sorted(entries, key=attrgetter("since", "name")):
            self.add(kept)

    def __iter__(self) -> Iterator[Kept]:
        """All entries as they are now, the oldest first."""
        return iter(list(self._entries.values()))

    def add(self, kept: Kept) -> None:
        """An entry that was just written: no other is newer."""
        self._entries[kept.name] = kept
        self.size += kept.size

    def remove(self, kept: Kept) -> None:
        """Forget an entry. Nothing happens where it is not known."""
        if self.has(kept):
            del self._entries[kept.name]
            self.size -= kept.size

    def has(self, kept: Kept) -> bool:
        """Whether this very entry is here."""
        return self._entries.get(kept.name) is kept

    def named(self, name: str) -> Kept | None:
        """The entry of a name."""
        return self._entries.get(name)

    def in_order_of_going(self) -> list[Kept]:
        """All entries as they are to make room: what is delivered, then the oldest."""
        return sorted(self, key=attrgetter("delivered"), reverse=True)

    def busy_size(self) -> int:
        """What the busy ones take of the disk, in bytes: looks at each entry."""
        return sum(kept.size for kept in self if kept.busy)

    def asides(self) -> list[Aside]:
        """What is in C{broken/}, the oldest first."""
        return sorted(self._asides.values(), key=attrgetter("written"))

    def add_aside(self, aside: Aside) -> None:
        """Something that was just put into C{broken/}."""
        self._asides[aside.name] = aside
        self.size += _size_of(aside)

    def remove_aside(self, aside: Aside) -> None:
        """Forget something of C{broken/}. Nothing happens where it is not known."""
        if self._asides.pop(aside.name, None) is not None:
            self.size -= _size_of(aside)


def _size_of(aside: Aside) -> int:
    return aside.size + ENTRY_BYTES
