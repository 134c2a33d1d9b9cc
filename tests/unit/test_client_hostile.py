"""What is received by pcapctl may come from anybody who can publish to the channel: no event can harm it."""

from __future__ import annotations

import copy
import io
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from twisted.trial import unittest

from pcapsvc.client import nodes
from pcapsvc.client.api import NodeApi
from pcapsvc.client.main import parser
from pcapsvc.client.table import captures_table
from pcapsvc.client.tally import Tally
from pcapsvc.client.views import LineView
from pcapsvc.core.rolling import RollingPackets
from tests.unit import client_case as case

_VALUES = (None, -1, 10**400, float("nan"), [None], {}, "\x1b[2J\x9b2J\r\n\u202e[red]")


def hostile(event: Any) -> Iterator[Any]:
    """The event, with each of its fields removed, and with other values in it."""
    for path in _paths(event):
        for value in (..., *_VALUES):
            changed = copy.deepcopy(event)
            place = changed
            for name in path[:-1]:
                place = place[name]
            if value is ...:
                del place[path[-1]]
            else:
                place[path[-1]] = value
            yield changed


def _paths(value: Any, *before: Any) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in items:
        yield (*before, name)
        yield from _paths(each, *before, name)


class EventTests(unittest.SynchronousTestCase):
    """Events as nodes report them, each with one field that isn't as it should be."""

    def test_shown(self) -> None:
        """In lines and in the table, each is ignored or shown without control characters."""
        rolling = RollingPackets(captured=5, released=1)
        events = [
            *(case.accepted("web-1", "a"), case.started("web-1", "a", rolling)),
            *(case.progress("web-1", "a", 10, 1.0, rolling), case.stopped("web-1", "a")),
            *(case.rejected("web-1"), case.busy("web-1")),
            *(case.delivered("web-1", "a"), case.failed("web-1", "a")),
        ]
        shown = 0
        for event in events:
            for changed in hostile(event):
                # As it arrives. Others are not passed on by the reader.
                changed = json.loads(json.dumps(changed))
                if not isinstance(changed.get("data"), dict):
                    continue
                self.look(changed, events)
                shown += 1
        self.assertGreater(shown, 500)

    def look(self, event: dict[str, Any], others: list[dict[str, Any]]) -> None:
        """Show an event alone, and among others."""
        tally, stream = Tally(case.REQUEST), io.StringIO()
        view = LineView(stream)
        for each in (*others[:2], event):
            tally.add(each, 1.0)
            # As pcapctl watch does, whatever it is about.
            view.event(each)
        console = Console(file=stream, width=120, force_terminal=False, highlight=False)
        console.print(captures_table(tally, 2.0, 120))
        tally.is_settled(2.0)
        tally.status()
        view.close(tally, 2.0)
        found = re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", stream.getvalue())
        self.assertIsNone(found, (event, stream.getvalue()))


class AnswerTests(unittest.SynchronousTestCase):
    """Something that answers, but not as a node does."""

    def test_lists(self) -> None:
        """It is reported, as nobody who answers; what another node answers is shown."""
        good = {
            "/captures": {"captures": []},
            "/node": dict.fromkeys(("name", "version", "spool"))
            | {"captures": {"running": 0}, "sources": [], "destinations": []},
            "/interfaces": {"interfaces": []},
        }
        for answer in (None, 5, [], {}, {"captures": [{}], "interfaces": [{}]}, {"captures": 5, "name": []}):
            for command in ("list", "nodes", "interfaces"):
                calls: dict[str, Any] = {"a": lambda path: good[path], "b": lambda path, a=answer: a}
                self.patch(
                    NodeApi,
                    "call",
                    lambda api, method, path, body=None, calls=calls, **query: calls[api.address.host](path),
                )
                output, errors = io.StringIO(), io.StringIO()
                self.patch(sys, "stdout", output)
                self.patch(sys, "stderr", errors)
                options = parser().parse_args([command, "--api", "http://a", "--api", "http://b"])
                run = {"list": nodes.list_captures, "nodes": nodes.nodes, "interfaces": nodes.interfaces}
                self.assertEqual(run[command](options), 1, (command, answer))
                self.assertEqual(errors.getvalue(), "pcapctl: http://b:80 does not answer as a node does\n")
