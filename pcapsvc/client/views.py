"""What is shown of a request while it is waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any, Protocol

from pcapsvc.client import words
from pcapsvc.client.complaint import complain
from pcapsvc.client.status import NoAnswer
from pcapsvc.client.tally import Tally
from pcapsvc.core.text import counted


class IView(Protocol):
    """Shows what happens."""

    def event(self, event: Mapping[str, Any]) -> None:
        """An event has arrived."""
        ...

    def note(self, text: str) -> None:
        """Something else is to be said."""
        ...

    def show(self, tally: Tally, now: float) -> None:
        """This is the state now."""
        ...

    def close(self, tally: Tally, now: float) -> None:
        """This is the last state."""
        ...


class LineView:
    """One line for each event, and one for each capture at the end."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def event(self, event: Mapping[str, Any]) -> None:
        """A line."""
        self._say(words.event_line(event))

    def note(self, text: str) -> None:
        """A line on standard error."""
        complain(words.clean(text))

    def show(self, tally: Tally, now: float) -> None:
        """Nothing: the events say it."""

    def close(self, tally: Tally, now: float) -> None:
        """The outcomes."""
        for row in tally.rows:
            outcome = words.state(row, now)
            where = words.where(row)
            amount = (
                ""
                if row.capture_id is None
                else f" {counted(row.packets, 'packet')}, {words.size(row.bytes)}"
            )
            colon = ": " if where and where != "no packets" else ""
            self._say(f"{words.place(row)} {outcome}{amount}{colon}{where if colon else ''}")
            if missing := words.missing(row):
                self._say(f"{words.place(row)} {missing}")

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class JsonView:
    """The events themselves, one on each line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def event(self, event: Mapping[str, Any]) -> None:
        """A line of JSON."""
        try:
            line = words.json_text(event)
        except NoAnswer as problem:
            self.note(f"an event is not shown: {problem}")
            return
        print(line, file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """A line on standard error."""
        complain(words.clean(text))

    def show(self, tally: Tally, now: float) -> None:
        """Nothing: the events say it."""

    def close(self, tally: Tally, now: float) -> None:
        """Nothing: the events said it."""
