"""
An entry: one capture that is to be delivered to one destination, and the states that it can be in.

Theory of operation. A capture arrives in memory, and may be written to the spool before its first
attempt, or after its last one. So its states come in three rows: the capture is in memory, or in the
spool, or it was in the spool and the spool's directory is gone. In each row it may wait for a slot, be
attempted, or back off until the next attempt::

                          wait for        be              back
                          a slot          attempted       off
    in memory             WAITING         ATTEMPTING      BACKING_OFF
    in the spool, taken   SPOOLED_WAITING SPOOLED_        SPOOLED_
                                          ATTEMPTING      BACKING_OFF
    vanished, taken       VANISHED_       VANISHED_       VANISHED_
                          WAITING         ATTEMPTING      BACKING_OFF

An entry moves to the right when it gets a slot and when an attempt fails, and from there back to the
left. It moves down when its capture is written (WRITING_AHEAD lies between the first two rows), or
vanishes, and up when the directory comes back. The last two rows are those entries in the spool
that an outbox has taken: nobody else touches them. SPOOLED is the state of all others: they wait
until they are due, and are dropped when the spool is full or they are too old.

::

    NEW -> WRITING_AHEAD -> SPOOLED_WAITING         spoolfirst
    NEW -> WAITING -> ... -> SPOOLING -> SPOOLED    attempts used up, or time is short
    SPOOLED -> SPOOLED_WAITING -> ... -> SPOOLED    a round through the spool
    ATTEMPTING -> DELIVERED                         from memory
    SPOOLED_ATTEMPTING -> REMOVING -> DELIVERED     from the spool
    REMOVING -> UNREMOVED -> REMOVING               the disk refuses; tidying tries again
    SPOOLED -> DROPPING -> LOST                     no room, or too old

A delivered capture is never attempted again, even if it can't be removed: UNREMOVED has no way back
to SPOOLED. DELIVERED, QUARANTINED and LOST are final. LOST is always reported; what is in the
middle of being written when that is abandoned may still turn up after a restart.

This module alone changes states, and only as L{TRANSITIONS} says. Anything else is a bug, and raises
L{ImpossibleTransition}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

import msgspec

from pcapsvc.core.labels import Labels


class State(Enum):
    """Where an entry is, and what happens to it. See the module."""

    #: Accepted; nothing has happened yet.
    NEW = auto()
    #: In memory; being written to the spool before its first attempt.
    WRITING_AHEAD = auto()
    #: In memory; waits for a slot.
    WAITING = auto()
    #: In memory; the destination is storing it, or has just failed to.
    ATTEMPTING = auto()
    #: In memory; waits for its next attempt.
    BACKING_OFF = auto()
    #: In memory; being written to the spool, as it will not be attempted from memory any more.
    SPOOLING = auto()
    #: In the spool; waits until it is due.
    SPOOLED = auto()
    #: In the spool; being read, or waits for a slot.
    SPOOLED_WAITING = auto()
    #: In the spool; the destination is storing it, or has just failed to.
    SPOOLED_ATTEMPTING = auto()
    #: In the spool; waits for its next attempt, which is still one of the first ones.
    SPOOLED_BACKING_OFF = auto()
    #: As the three above, but the spool's directory is another one now, or there is none.
    VANISHED_WAITING = auto()
    VANISHED_ATTEMPTING = auto()
    VANISHED_BACKING_OFF = auto()
    #: Delivered; being removed from the spool.
    REMOVING = auto()
    #: Delivered; still in the spool, because it could not be removed.
    UNREMOVED = auto()
    #: Being removed from the spool without having been delivered.
    DROPPING = auto()
    #: Final: the destination has it.
    DELIVERED = auto()
    #: Final: it was damaged in the spool, and is in C{broken/} now.
    QUARANTINED = auto()
    #: Final: the destination will not get it.
    LOST = auto()


class Input(Enum):
    """What happens to an entry."""

    #: It is to be written to the spool first.
    WRITE_AHEAD = auto()
    #: It is to be attempted from memory.
    QUEUE = auto()
    #: It is in the spool, whole.
    WRITTEN = auto()
    #: It could not be written to the spool, or not in time.
    NOT_WRITTEN = auto()
    #: It has a slot.
    SLOT = auto()
    #: Its attempt failed, and there will be another one soon.
    BACK_OFF = auto()
    #: It has backed off for long enough.
    RETRY = auto()
    #: It is not attempted any more for now: the spool is to keep it.
    PUT_AWAY = auto()
    #: It is not attempted any more, and nothing keeps it.
    ABANDON = auto()
    #: It is due, and an outbox takes it from the spool.
    TAKE = auto()
    #: The destination has it.
    DELIVER = auto()
    #: It is to be removed once more.
    REMOVE = auto()
    #: It is removed from the spool.
    REMOVED = auto()
    #: It could not be removed from the spool.
    NOT_REMOVED = auto()
    #: It has to go: the spool is full, or it is too old.
    DROP = auto()
    #: It is not what was once written.
    QUARANTINE = auto()
    #: The spool's directory is gone, and it with it.
    VANISH = auto()
    #: The directory is back.
    REAPPEAR = auto()


#: What follows on what. This table is all there is.
TRANSITIONS: Mapping[State, Mapping[Input, State]] = {
    State.NEW: {
        Input.WRITE_AHEAD: State.WRITING_AHEAD,
        Input.QUEUE: State.WAITING,
        Input.ABANDON: State.LOST,
    },
    State.WRITING_AHEAD: {
        Input.WRITTEN: State.SPOOLED_WAITING,
        Input.NOT_WRITTEN: State.WAITING,
        Input.ABANDON: State.LOST,
    },
    State.WAITING: {
        Input.SLOT: State.ATTEMPTING,
        Input.PUT_AWAY: State.SPOOLING,
        Input.ABANDON: State.LOST,
    },
    State.ATTEMPTING: {
        Input.DELIVER: State.DELIVERED,
        Input.BACK_OFF: State.BACKING_OFF,
        Input.PUT_AWAY: State.SPOOLING,
        Input.ABANDON: State.LOST,
    },
    State.BACKING_OFF: {
        Input.RETRY: State.WAITING,
        Input.PUT_AWAY: State.SPOOLING,
        Input.ABANDON: State.LOST,
    },
    State.SPOOLING: {
        Input.WRITTEN: State.SPOOLED,
        Input.NOT_WRITTEN: State.LOST,
        Input.ABANDON: State.LOST,
    },
    State.SPOOLED: {
        Input.TAKE: State.SPOOLED_WAITING,
        Input.DROP: State.DROPPING,
        Input.VANISH: State.LOST,
    },
    State.SPOOLED_WAITING: {
        Input.SLOT: State.SPOOLED_ATTEMPTING,
        Input.PUT_AWAY: State.SPOOLED,
        Input.QUARANTINE: State.QUARANTINED,
        Input.VANISH: State.VANISHED_WAITING,
    },
    State.SPOOLED_ATTEMPTING: {
        Input.DELIVER: State.REMOVING,
        Input.BACK_OFF: State.SPOOLED_BACKING_OFF,
        Input.PUT_AWAY: State.SPOOLED,
        Input.VANISH: State.VANISHED_ATTEMPTING,
    },
    State.SPOOLED_BACKING_OFF: {
        Input.RETRY: State.SPOOLED_WAITING,
        Input.PUT_AWAY: State.SPOOLED,
        Input.VANISH: State.VANISHED_BACKING_OFF,
    },
    State.VANISHED_WAITING: {
        Input.SLOT: State.VANISHED_ATTEMPTING,
        Input.PUT_AWAY: State.LOST,
        Input.QUARANTINE: State.QUARANTINED,
        Input.REAPPEAR: State.SPOOLED_WAITING,
    },
    State.VANISHED_ATTEMPTING: {
        # Its directory may be back already, unnoticed: so it is removed as well.
        Input.DELIVER: State.REMOVING,
        Input.BACK_OFF: State.VANISHED_BACKING_OFF,
        Input.PUT_AWAY: State.LOST,
        Input.REAPPEAR: State.SPOOLED_ATTEMPTING,
    },
    State.VANISHED_BACKING_OFF: {
        Input.RETRY: State.VANISHED_WAITING,
        Input.PUT_AWAY: State.LOST,
        Input.REAPPEAR: State.SPOOLED_BACKING_OFF,
    },
    State.REMOVING: {
        Input.REMOVED: State.DELIVERED,
        Input.NOT_REMOVED: State.UNREMOVED,
        # It goes or stays by its removal alone.
        Input.VANISH: State.REMOVING,
    },
    State.UNREMOVED: {
        Input.REMOVE: State.REMOVING,
        Input.VANISH: State.DELIVERED,
    },
    State.DROPPING: {
        Input.REMOVED: State.LOST,
        Input.NOT_REMOVED: State.SPOOLED,
    },
    State.DELIVERED: {},
    State.QUARANTINED: {},
    State.LOST: {},
}

_IN_MEMORY = frozenset(
    {
        State.NEW,
        State.WRITING_AHEAD,
        State.WAITING,
        State.ATTEMPTING,
        State.BACKING_OFF,
        State.SPOOLING,
    }
)
_VANISHED = frozenset({State.VANISHED_WAITING, State.VANISHED_ATTEMPTING, State.VANISHED_BACKING_OFF})
_TAKEN = _VANISHED | {State.SPOOLED_WAITING, State.SPOOLED_ATTEMPTING, State.SPOOLED_BACKING_OFF}
#: In these, the destination has the capture, removed from the spool or not.
DELIVERED = frozenset({State.REMOVING, State.UNREMOVED, State.DELIVERED})

#: How many entries there are, by destination and state.
Tally = Counter[tuple[str, State]]


class ImpossibleTransition(AssertionError):
    """Something happened to an entry that can't happen in its state: a bug."""


class SpooledCapture(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is in the spool of an entry.

    @ivar name: of its directory.
    @ivar size: what it counts for, in bytes.
    @ivar since: when it was spooled, by the reactor's clock, which nobody sets.
    """

    name: str
    size: int
    since: float


class Entry:
    """
    One capture that is to be delivered to one destination.

    @ivar options: what its request says of the destination, by field.
    @ivar labels: what the events about it repeat.
    @ivar spooled: where it is in the spool; L{None} if it has never been there.
    @ivar problem: why it could not be delivered the last time.
    @ivar attempts: how many have failed: of the first ones, or since it was left to the spool.
    @ivar due: when the spool is to deliver it, by the reactor's clock.
    """

    __slots__ = (
        "_state",
        "_tally",
        "attempts",
        "capture_id",
        "destination",
        "due",
        "labels",
        "options",
        "problem",
        "spooled",
    )

    def __init__(
        self,
        *,
        capture_id: str,
        destination: str,
        options: Mapping[str, Any],
        labels: Labels,
        spooled: SpooledCapture | None = None,
        problem: str = "",
    ) -> None:
        """A new one, or, if C{spooled}, one that was found in the spool."""
        self._state = State.NEW if spooled is None else State.SPOOLED
        self._tally: Tally | None = None
        self.capture_id = capture_id
        self.destination = destination
        self.options = options
        self.labels = labels
        self.spooled = spooled
        self.problem = problem
        self.attempts = 0
        self.due = 0.0

    def __repr__(self) -> str:
        return f"<Entry {self.capture_id} for {self.destination}: {self._state.name}>"

    @property
    def state(self) -> State:
        """The present state."""
        return self._state

    def on(self, what: Input) -> State:
        """
        Something happens to the entry.

        @return: the new state.

        @raise ImpossibleTransition: if it can't happen in the present state, which stays.
        """
        new = TRANSITIONS[self._state].get(what)
        if new is None:
            raise ImpossibleTransition(f"{self!r}: {what.name}")
        self._count(-1)
        self._state = new
        self._count(1)
        return new

    def count_in(self, tally: Tally | None) -> None:
        """Be counted in a tally from now on, in place of the one before; L{None} is in none."""
        self._count(-1)
        self._tally = tally
        self._count(1)

    def _count(self, by: int) -> None:
        if self._tally is not None:
            self._tally[self.destination, self._state] += by

    @property
    def is_in_memory(self) -> bool:
        """Whether the capture is in memory, and not in the spool."""
        return self._state in _IN_MEMORY

    @property
    def is_taken(self) -> bool:
        """Whether it is, or was, in the spool, and an outbox has taken it."""
        return self._state in _TAKEN

    @property
    def is_vanished(self) -> bool:
        """Whether an outbox has taken it, and it is not in the spool any more."""
        return self._state in _VANISHED

    @property
    def is_in_use(self) -> bool:
        """Whether what it has in the spool must stay: it is taken, or being removed already."""
        return self._state in _TAKEN or self._state in (State.REMOVING, State.DROPPING)

    @property
    def is_delivered(self) -> bool:
        """Whether the destination has it, removed from the spool or not."""
        return self._state in DELIVERED
