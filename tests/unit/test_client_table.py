"""The live table: one line for each capture, at any width; and its picture in the documentation."""

from __future__ import annotations

import html
import io
import os
import re

from rich.console import Console
from twisted.trial import unittest

from pcapsvc.client.table import TableView, captures_table
from scripts.picture import EVENTS, PICTURE, picture
from tests.unit import client_case as case
from tests.unit.client_case import accepted, busy, progress, started, tally, whole

_LONG = "a-node-with-a-name-that-is-rather-long.example.org"


class TableTests(unittest.SynchronousTestCase):
    """A node that delivers, one that captures, and one that refuses with many words."""

    def lines(self, columns: int, **options: object) -> list[str]:
        """The lines of the table, without the title."""
        counted = tally(
            *whole("web-1", "a"),
            *(accepted(_LONG, "b"), started(_LONG, "b"), progress(_LONG, "b", 30, 1.0)),
            busy("web-3"),
        )
        stream = io.StringIO()
        console = Console(file=stream, width=columns, force_terminal=True, **options)  # type: ignore[arg-type]
        console.print(captures_table(counted, 0.0, columns))
        return stream.getvalue().splitlines()[1:]

    def test_one_line_each(self) -> None:
        """Each has one line, which isn't longer than the terminal is wide."""
        for columns in (40, 51, 52, 67, 68, 77, 78, 107, 108, 200):
            lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in self.lines(columns)]
            self.assertEqual(len(lines), 3, columns)
            self.assertLessEqual(max(map(len, lines)), columns)
            self.assertRegex(lines[0], r"^a-no\S* .*capturing .*30 % packets")
            self.assertRegex(lines[1], "^web-1 ")
            if columns >= 52:
                self.assertRegex(lines[0], r" 30( |$)")
            if columns >= 68:
                self.assertRegex(lines[0], r" 3( |$)")
            if columns >= 108:
                self.assertIn("━━━─────── ", lines[0])
                self.assertRegex(lines[0], r"^a-n\S+ +eth0 +capturing .* 30 % packets +30 ")

    def test_unknown_size(self) -> None:
        """COLUMNS=0 and LINES=0 don't say how large the terminal is, so it is taken for a usual one."""
        self.patch(os, "environ", {**os.environ, "COLUMNS": "0", "LINES": "0"})
        stream = io.StringIO()
        view = TableView(stream)
        view.note("a note")
        view.close(tally(*whole("web-1", "a")), 0.0)
        note, title, line, where = stream.getvalue().splitlines()
        self.assertEqual((note, title.split()[:3]), ("a note", ["node", "interface", "state"]))
        self.assertEqual(
            (line.split()[:3], where), (["web-1", "eth0", "delivered"], "web-1:eth0: /captures/a.pcap")
        )

    def test_too_many(self) -> None:
        """If there are more than the terminal has lines, those that are over are counted in the last line."""
        counted = tally(
            *(each for number in range(10) for each in case.whole(f"web-{number:02}", f"a{number}")),
            *(each for number in range(10, 13) for each in (accepted(f"web-{number}", f"b{number}"),)),
            busy("web-13"),
        )
        for lines, expected in (
            (15, 15),
            (14, ["web-10", "web-11", "web-12", *(f"web-{number:02}" for number in range(9)), "… and"]),
            (5, ["web-10", "web-11", "web-12", "… and"]),
            (4, ["web-10", "web-11", "… and"]),
            (1, ["… and"]),
        ):
            stream = io.StringIO()
            console = Console(file=stream, width=120, highlight=False)
            console.print(captures_table(counted, 0.0, 120, lines=lines))
            shown = stream.getvalue().splitlines()
            if isinstance(expected, int):
                self.assertEqual(len(shown), expected)
            else:
                self.assertEqual([re.sub(r"(\S+( and)?) .*", r"\1", line) for line in shown[1:]], expected)
        self.assertEqual(shown[-1].strip(), "… and 10 delivered, 3 starting, 1 busy")

    def test_no_color(self) -> None:
        """Without colours, the bar still shows how much is done."""
        (line, _, _) = self.lines(108, no_color=True)
        self.assertNotRegex(line, r"\x1b\[[\d;]*3\d")
        self.assertIn("━━━", line)
        self.assertIn("───────", re.sub(r"\x1b\[[\d;]*m", "", line))


class PictureTests(unittest.SynchronousTestCase):
    """The picture in the documentation."""

    def test_up_to_date(self) -> None:
        """It shows the table as it is now. C{make picture} draws it again."""
        drawn, expected = map(self.words, (PICTURE.read_text(), picture(EVENTS.read_text())))
        self.assertGreater(len(drawn), 40)
        self.assertEqual(drawn, expected)

    def words(self, svg: str) -> list[str]:
        """What can be read there. What is cut off is left out: versions of rich differ in widths."""
        text = " ".join(re.findall(r">([^<]+)</text>", html.unescape(svg)))
        return [word for word in text.split() if "…" not in word]

    def test_self_contained(self) -> None:
        """Whoever opens it fetches nothing."""
        links = re.findall(r"""https?://[^"')\s]+""", PICTURE.read_text())
        self.assertEqual(links, ["http://www.w3.org/2000/svg"])
