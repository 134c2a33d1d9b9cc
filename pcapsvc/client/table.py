"""The live table: one line for each capture, which is redrawn as it goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pcapsvc.client import words
from pcapsvc.client.tally import Row, Tally

_STYLES = {
    "starting": "dim",
    "capturing": "cyan",
    "delivering": "yellow",
    "fetched": "yellow",
    "delivered": "green",
    "nothing": "green",
    "spooled": "yellow",
    "busy": "yellow",
}
_NUMBERS = ("packets", "size", "rate", "drops")
_LEAST = {"node": 6, "interface": 9, "state": 10, "limit": 10, "where": 5}
# How many columns a terminal has at least, how long the bar is then, and what is shown.
_LAYOUTS = (
    (108, 10, ("node", "interface", "state", "limit", *_NUMBERS, "where")),
    (78, 6, ("node", "interface", "state", "limit", "packets", "drops", "where")),
    (68, 0, ("node", "interface", "state", "limit", "packets", "drops", "where")),
    (52, 0, ("node", "interface", "state", "limit", "packets")),
    (0, 0, ("node", "state", "limit")),
)
# If nobody says how large the terminal is.
_UNKNOWN_COLUMNS, _UNKNOWN_LINES = 80, 25
_UNITS = {"packets": "packets", "bytes": "size", "duration": "time"}


class TableView:
    """
    A table on a terminal. See L{pcapsvc.client.views.IView}.

    @param stream: the terminal.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._console = Console(file=stream, highlight=False)
        # What COLUMNS and LINES say is taken as it is. Otherwise the terminal is asked each time.
        if self._console.width == 0:
            self._console.width = _UNKNOWN_COLUMNS
        if self._console.height == 0:
            self._console.height = _UNKNOWN_LINES
        self._live = self._new_live()
        self._drawn_at = float("-inf")

    def event(self, event: Mapping[str, Any]) -> None:
        """Nothing: the table shows the state."""

    def note(self, text: str) -> None:
        """A line above the table."""
        self._console.print(Text(words.clean(text), "yellow"))

    def show(self, tally: Tally, now: float) -> None:
        """Draw the table, up to five times a second."""
        if now - self._drawn_at < 0.2:
            return
        self._drawn_at = now
        if not self._live.is_started:
            self._live.start()
        # One line less than there are: where the cursor is.
        size = self._console.size
        self._live.update(captures_table(tally, now, size.width, lines=size.height - 1), refresh=True)

    def close(self, tally: Tally, now: float) -> None:
        """Print the last state, all of it. Below are the locations and the reasons, in full."""
        # What is drawn again and again can't be higher than the terminal, so it is removed before.
        self._live.stop()
        self._live = self._new_live()
        if tally.rows:
            self._console.print(captures_table(tally, now, self._console.width))
        self._drawn_at = float("-inf")
        for row in tally.rows:
            for text in (words.where(row), words.missing(row)):
                if text:
                    self._console.print(Text(f"{words.place(row)}: {text}"), soft_wrap=True)

    def _new_live(self) -> Live:
        return Live(console=self._console, auto_refresh=False, transient=True)


def captures_table(
    tally: Tally, now: float, columns: int, *, lines: int | None = None
) -> Table | Text | Group:
    """
    The table, as it is now.

    @param columns: how wide the terminal is.
    @param lines: how many lines there is room for; L{None} is enough. If it isn't, those that are over are
        left out first, and the last line says how many they are.
    """
    if not tally.rows:
        return Text("waiting for answers …", "dim")
    bar, titles = next((bar, titles) for least, bar, titles in _LAYOUTS if columns >= least)
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    for title in titles:
        # If there is too little room, the columns that may be wrapped become narrower, the widest first.
        # Their texts are cut off instead.
        is_number = title in _NUMBERS
        table.add_column(
            title,
            min_width=_LEAST.get(title, 7),
            no_wrap=is_number or title in ("state", "limit"),
            justify="right" if is_number else "left",
        )
    shown, others = tally.rows, Counter[str]()
    if lines is not None and len(shown) >= lines:
        ordered = sorted(shown, key=lambda row: row.is_over)
        # The title and the last line are lines as well.
        shown = ordered[: max(0, lines - 2)]
        others.update(words.state(row, now) for row in ordered[len(shown) :])
    for row in shown:
        cells = _cells(row, now, bar)
        table.add_row(*(cells[title] for title in titles))
    if not others:
        return table
    summary = ", ".join(f"{number} {state}" for state, number in others.most_common())
    return Group(table, Text(f"… and {summary}", "dim", no_wrap=True, overflow="ellipsis"))


def _cells(row: Row, now: float, bar: int) -> Mapping[str, Text]:
    """What is in each column."""
    state = words.state(row, now)
    cells = {
        **dict.fromkeys(_NUMBERS, Text()),
        "node": _cut_off(words.clean(row.node)),
        "interface": _cut_off(words.clean(row.interface or "")),
        "state": Text(state, _STYLES.get(state, "red")),
        "limit": _limit(row, now, bar),
        "where": _cut_off(words.where_briefly(row)),
    }
    if row.capture_id is not None:
        cells |= {
            "packets": Text(f"{row.packets:,}"),
            "size": Text(words.size(row.bytes)),
            "rate": Text("" if row.rate is None else f"{row.rate:,.0f}/s"),
            "drops": Text("" if row.dropped is None else f"{row.dropped:,}", "red" if row.dropped else ""),
        }
    return cells


def _limit(row: Row, now: float, bar: int) -> Text:
    """The limit that is nearest to being reached, with a bar of this length; or the one that was."""
    nearest = row.nearest_limit(now)
    if row.is_over or row.state == "delivering":
        return Text(words.clean(row.reason or ""), "dim")
    if nearest is None:
        return Text("")
    name, share = nearest
    percent = f"{share * 100:3.0f} % {_UNITS[name]}"
    if not bar:
        return Text(percent.strip())
    done = int(share * bar)
    return Text.assemble(("━" * done, "cyan"), ("─" * (bar - done), "dim"), f" {percent}")


def _cut_off(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")
