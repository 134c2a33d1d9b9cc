"""What is known to be in the spool, by age, and how much of the disk it uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from operator import attrgetter

from pcapsvc.delivery.entry import Entry, SpooledCapture, State, Tally
from pcapsvc.delivery.folder import QuarantinedEntry

#: What an entry uses of the disk beside its capture, in bytes: two directories' blocks and a manifest.
ENTRY_BYTES = 12 * 1024


class Inventory:
    """
    The entries in the spool, from the oldest to the newest, and what is in quarantine. There may be
    a hundred thousand: the cost of a new one doesn't depend on their number.

    @param entries: those that were found. Their age is by L{SpooledCapture.since}, not by their names:
        those are by the wall clock, which may have been set in between.
    @ivar size: what everything uses of the disk, in bytes.
    @ivar tally: how many entries there are, by destination and state.
    """

    def __init__(self, entries: Iterable[Entry] = (), quarantined: Iterable[QuarantinedEntry] = ()) -> None:
        self._entries: dict[str, Entry] = {}
        self.tally: Tally = Counter()
        self._quarantined = {one.name: one for one in quarantined}
        self.size = sum(map(_quarantined_size, self._quarantined.values()))
        for entry in sorted(entries, key=lambda entry: (spooled(entry).since, spooled(entry).name)):
            self.add(entry)

    def __iter__(self) -> Iterator[Entry]:
        """All entries as they are now, the oldest first."""
        return iter(list(self._entries.values()))

    def add(self, entry: Entry) -> None:
        """Add an entry that was just written: it is the newest."""
        self._entries[spooled(entry).name] = entry
        entry.count_in(self.tally)
        self.size += spooled(entry).size

    def remove(self, entry: Entry) -> None:
        """Remove an entry. Nothing happens if it is not in the inventory."""
        if self.has(entry):
            del self._entries[spooled(entry).name]
            entry.count_in(None)
            self.size -= spooled(entry).size

    def has(self, entry: Entry) -> bool:
        """Whether this entry is in the inventory: this one, not another of its name."""
        return self._entries.get(spooled(entry).name) is entry

    def named(self, name: str) -> Entry | None:
        """The entry with a name, or L{None}."""
        return self._entries.get(name)

    def in_order_of_removal(self) -> list[Entry]:
        """All entries, in the order in which they make room: what is delivered already, then the oldest."""
        return sorted(self, key=lambda entry: entry.state is not State.UNREMOVED)

    def size_in_use(self) -> int:
        """What the entries in use need of the disk, in bytes. Looks at every entry."""
        return sum(spooled(entry).size for entry in self if entry.is_in_use)

    def quarantined(self) -> list[QuarantinedEntry]:
        """What is in quarantine, the oldest first."""
        return sorted(self._quarantined.values(), key=attrgetter("written"))

    def add_quarantined(self, quarantined: QuarantinedEntry) -> None:
        """Add what was just put into quarantine."""
        self._quarantined[quarantined.name] = quarantined
        self.size += _quarantined_size(quarantined)

    def remove_quarantined(self, quarantined: QuarantinedEntry) -> None:
        """Remove something from quarantine. Nothing happens if it is not there."""
        if self._quarantined.pop(quarantined.name, None) is not None:
            self.size -= _quarantined_size(quarantined)


def spooled(entry: Entry) -> SpooledCapture:
    """Where an entry is in the spool, for those that are."""
    if entry.spooled is None:
        raise AssertionError(f"{entry!r} is not in the spool")
    return entry.spooled


def _quarantined_size(quarantined: QuarantinedEntry) -> int:
    return quarantined.size + ENTRY_BYTES
