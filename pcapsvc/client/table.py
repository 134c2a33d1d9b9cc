"""The live table: one line for each capture, which is redrawn as it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pcapsvc.client import words
from pcapsvc.client.tally import Row, Tally

_STYLES = {
    "starting": "dim",
    "capturing": "cyan",
    "delivering": "yellow",
    "delivered": "green",
    "nothing": "green",
    "spooled": "yellow",
    "busy": "yellow",
}
_BAR = 10
# With fewer columns, the size and the rate are left out.
_WIDE = 100
_UNITS = {"packets": "packets", "bytes": "size", "duration": "time"}


class TableView:
    """
    A table on a terminal. See L{pcapsvc.client.views.IView}.

    @param stream: the terminal.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._console = Console(file=stream, highlight=False)
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
        self._live.update(captures_table(tally, now, self._console.width), refresh=True)

    def close(self, tally: Tally, now: float) -> None:
        """Draw the last state, and leave it there. Below are the locations and the reasons, in full."""
        self._live.vertical_overflow = "visible"
        if self._live.is_started:
            self._live.update(captures_table(tally, now, self._console.width), refresh=True)
            self._live.stop()
            # Started again, it would draw over the last state.
            self._live = self._new_live()
        else:
            self._console.print(captures_table(tally, now, self._console.width))
        self._drawn_at = float("-inf")
        for row in tally.rows:
            if where := words.where(row):
                place = row.node if row.interface is None else f"{row.node}:{row.interface}"
                self._console.print(Text(f"{words.clean(place)}: {where}"), soft_wrap=True)

    def _new_live(self) -> Live:
        return Live(console=self._console, auto_refresh=False, vertical_overflow="ellipsis")


def captures_table(tally: Tally, now: float, columns: int) -> Table | Text:
    """
    The table, as it is now.

    @param columns: how wide the terminal is.
    """
    if not tally.rows:
        return Text("waiting for answers …", "dim")
    is_wide = columns >= _WIDE
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    # If there is too little room, the columns that may be wrapped become narrower, the widest first. Their
    # texts are cut off instead.
    table.add_column("node", min_width=6)
    table.add_column("interface", min_width=9)
    table.add_column("state", no_wrap=True, min_width=10)
    table.add_column("limit", no_wrap=True, min_width=10)
    for title in ("packets", *(("size", "rate") if is_wide else ()), "drops"):
        table.add_column(title, no_wrap=True, justify="right", min_width=7)
    table.add_column("where", min_width=5)
    for row in tally.rows:
        table.add_row(*_cells(row, now, is_wide))
    return table


def _cells(row: Row, now: float, is_wide: bool) -> list[Text]:
    state = words.state(row, now)
    numbers = [Text()] * (4 if is_wide else 2)
    if row.capture_id is not None:
        rate = "" if row.rate is None else f"{row.rate:,.0f}/s"
        drops = "" if row.dropped is None else f"{row.dropped:,}"
        more = [Text(words.size(row.bytes)), Text(rate)] if is_wide else []
        numbers = [Text(f"{row.packets:,}"), *more, Text(drops, "red" if row.dropped else "")]
    return [
        _cut_off(words.clean(row.node)),
        _cut_off(words.clean(row.interface or "")),
        Text(state, _STYLES.get(state, "red")),
        _limit(row, now),
        *numbers,
        _cut_off(words.where_briefly(row)),
    ]


def _limit(row: Row, now: float) -> Text:
    nearest = row.nearest_limit(now)
    if row.is_over or row.state == "delivering":
        return Text(words.clean(row.reason or ""), "dim")
    if nearest is None:
        return Text("")
    name, share = nearest
    done = int(share * _BAR)
    return Text.assemble(
        ("━" * done, "cyan"), ("─" * (_BAR - done), "dim"), f" {share * 100:3.0f} % {_UNITS[name]}"
    )


def _cut_off(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")
