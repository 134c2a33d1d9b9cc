"""
Draws the picture of the live table that is in the documentation: C{python -m scripts.picture}.

It shows what pcapctl shows in a terminal after the events in docs/pcapctl.jsonl. These were recorded with
C{pcapctl capture --json} from five daemons, of which one was busy. Then their names and addresses were
replaced, and all but the last progress of each capture was left out.
"""

from __future__ import annotations

import io
import json
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pcapsvc.client.table import captures_table
from pcapsvc.client.tally import Tally

_DOCUMENTATION = Path(__file__).resolve().parents[1] / "docs"
EVENTS = _DOCUMENTATION / "pcapctl.jsonl"
PICTURE = _DOCUMENTATION / "pcapctl.svg"
_COLUMNS = 120
_COMMAND = "pcapctl capture --via redis://redis.example.org --nodere '^web-' -i eth0 -c 5000 --wait udp"
# A program that shows pictures fetches no font, so whatever it has must do.
_FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<title>pcapctl capture --wait: one line for each node, with its state, progress, packets and drops</title>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
 font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def picture(events: str) -> str:
    """
    The picture, as SVG.

    @param events: as they were recorded, one on each line. The picture is of the time of the last one.
    """
    found = [json.loads(line) for line in events.splitlines()]
    tally = Tally(found[0]["data"]["requestid"])
    now = 0.0
    for event in found:
        now = datetime.fromisoformat(event["time"]).timestamp()
        tally.add(event, now)
    console = Console(
        record=True,
        width=_COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
        legacy_windows=False,
        _environ={},
    )
    console.print(Text.assemble(("$ ", "dim"), (_COMMAND, "bold")))
    console.print(captures_table(tally, now, _COLUMNS))
    return console.export_svg(title="", code_format=_FORMAT, unique_id="pcapctl")


if __name__ == "__main__":
    PICTURE.write_text(picture(EVENTS.read_text()))
