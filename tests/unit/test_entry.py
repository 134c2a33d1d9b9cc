"""The states of an entry, and its one transition table."""

from __future__ import annotations

import random

from twisted.trial import unittest

from pcapsvc.core.labels import Labels
from pcapsvc.delivery import entry as module
from pcapsvc.delivery.entry import (
    TRANSITIONS,
    Entry,
    ImpossibleTransition,
    Input,
    SpooledCapture,
    State,
)

FINAL = {State.DELIVERED, State.QUARANTINED, State.LOST}


def new() -> Entry:
    """A new entry."""
    return Entry(capture_id="abc", destination="one", options={}, labels=Labels(via="test"))


def found() -> Entry:
    """An entry that was found in the spool."""
    return Entry(
        capture_id="abc",
        destination="one",
        options={},
        labels=Labels(via="test"),
        spooled=SpooledCapture(name="1-abc-one", size=1, since=0.0),
    )


def after(*inputs: Input, entry: Entry | None = None) -> Entry:
    """An entry to which these things happened."""
    entry = entry or new()
    for what in inputs:
        entry.on(what)
    return entry


#: Some way to each state.
WAYS: dict[State, tuple[Input, ...]] = {State.NEW: ()}
_unseen = [State.NEW]
while _unseen:
    _state = _unseen.pop(0)
    for _input, _next in TRANSITIONS[_state].items():
        if _next not in WAYS:
            WAYS[_next] = (*WAYS[_state], _input)
            _unseen.append(_next)


class TableTests(unittest.SynchronousTestCase):
    """L{TRANSITIONS}."""

    def test_complete(self) -> None:
        """Every state is in the table and can be reached; every input happens in some state."""
        self.assertEqual(set(TRANSITIONS), set(State))
        self.assertEqual(set(WAYS), set(State))
        self.assertEqual({what for row in TRANSITIONS.values() for what in row}, set(Input))

    def test_final(self) -> None:
        """Nothing follows on the final states; from every other one, one of them can be reached."""
        self.assertEqual({state for state, row in TRANSITIONS.items() if not row}, FINAL)
        ends = set(FINAL)
        while more := {
            state for state, row in TRANSITIONS.items() if state not in ends and ends & set(row.values())
        }:
            ends |= more
        self.assertEqual(ends, set(State))

    def test_impossible(self) -> None:
        """What can't happen raises, with the entry and the input, and changes nothing."""
        for state in State:
            for what in set(Input) - set(TRANSITIONS[state]):
                entry = after(*WAYS[state])
                error = self.assertRaises(ImpossibleTransition, entry.on, what)
                self.assertIn(f"abc for one: {state.name}", str(error))
                self.assertIn(what.name, str(error))
                self.assertIs(entry.state, state)

    def test_only_here(self) -> None:
        """Nobody else can set the state."""
        self.assertRaises(AttributeError, setattr, new(), "state", State.DELIVERED)

    def test_documented(self) -> None:
        """The theory of operation names every state."""
        words = (module.__doc__ or "").split()
        # Those of the second and third row are in two lines of a table.
        for state in State:
            name = state.name
            if name not in words:
                prefix, _, rest = name.partition("_")
                self.assertIn(f"{prefix}_", words, name)
                self.assertIn(rest, words, name)

    def test_never_twice(self) -> None:
        """Whatever happens, what was delivered is never attempted again, and ends as delivered."""
        chance = random.Random(7)
        for _ in range(2000):
            entry, delivered = chance.choice((new, found))(), False
            while row := TRANSITIONS[entry.state]:
                what = chance.choice(list(row))
                delivered = delivered or what is Input.DELIVER
                entry.on(what)
                if delivered:
                    self.assertTrue(entry.is_delivered, entry)
            self.assertEqual(entry.state is State.DELIVERED, delivered)


class EntryTests(unittest.SynchronousTestCase):
    """What the states mean for others."""

    def test_begin(self) -> None:
        """A capture begins in memory, or, after a restart, in the spool."""
        self.assertIs(new().state, State.NEW)
        self.assertIs(found().state, State.SPOOLED)

    def test_groups(self) -> None:
        """Every state that is not final is in exactly one place."""
        for state in State:
            entry = after(*WAYS[state])
            idle = state in (State.SPOOLED, State.UNREMOVED)
            removing = state in (State.REMOVING, State.DROPPING)
            places = [entry.is_in_memory, entry.is_taken, idle, removing, state in FINAL]
            self.assertEqual(places.count(True), 1, state)
            self.assertEqual(entry.is_in_use, entry.is_taken or removing, state)
            self.assertLessEqual(entry.is_vanished, entry.is_taken)

    def test_vanished_and_back(self) -> None:
        """What vanishes while it is taken goes on where it was when it is back."""
        for state in (State.SPOOLED_WAITING, State.SPOOLED_ATTEMPTING, State.SPOOLED_BACKING_OFF):
            entry = after(*WAYS[state], Input.VANISH)
            self.assertTrue(entry.is_vanished)
            self.assertIs(entry.on(Input.REAPPEAR), state)
            entry.on(Input.VANISH)
            self.assertIs(entry.on(Input.PUT_AWAY), State.LOST)
