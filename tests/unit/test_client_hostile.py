"""What is received by pcapctl may come from anybody who can publish to the channel: no event can harm it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from twisted.trial import unittest

from pcapsvc.client import nodes
from pcapsvc.client.address import HttpAddress, SqsAddress
from pcapsvc.client.api import NodeApi
from pcapsvc.client.connections import NodeNames
from pcapsvc.client.credentials import Credentials
from pcapsvc.client.main import parser
from pcapsvc.client.reader import MOST_EVENT_BYTES, MOST_WAITING, MOST_WAITING_BYTES, EventReader
from pcapsvc.client.status import NoAnswer
from pcapsvc.client.table import captures_table
from pcapsvc.client.tally import Tally
from pcapsvc.client.views import JsonView, LineView
from pcapsvc.client.words import json_text
from pcapsvc.core.mask import of_process
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


class NameTests(unittest.SynchronousTestCase):
    """A node that has no name."""

    def test_lists(self) -> None:
        """It is unknown if it isn't a text of an object."""
        for answer in ([], None, 5, {}, {"name": 5}):
            self.patch(NodeApi, "call", lambda *_, answer=answer: answer)
            address = HttpAddress(host="a")
            connections: Any = SimpleNamespace(api=lambda address: NodeApi(address, Credentials()))
            self.assertIsNone(NodeNames(connections).name(address))

    def test_at_once(self) -> None:
        """Of many nodes, one that doesn't answer doesn't keep the others from being asked for their names."""
        is_asked = threading.Event()

        def call(api: NodeApi, *_: Any) -> Any:
            if api.address.host == "b":
                is_asked.set()
                return {"name": "web-2"}
            self.assertTrue(is_asked.wait(60.0))
            raise NoAnswer("a: timed out")

        self.patch(NodeApi, "call", call)
        connections: Any = SimpleNamespace(
            api=lambda address: NodeApi(address, Credentials()),
            apis=[HttpAddress(host="a"), HttpAddress(host="b")],
        )
        self.assertEqual(NodeNames(connections).api("web-2", None).address.host, "b")

    def test_named(self) -> None:
        """What a user names, perhaps a tunnel, goes before what a node says, unless that is named as well."""
        self.patch(NodeApi, "call", lambda api, *_: {"name": {"tunnel": "web-1"}.get(api.address.host)})
        for node, trusted, expected in (
            ("web-1", ("http://tunnel:80",), "tunnel"),
            ("web-1", ("http://tunnel:80", "http://*:80"), "said"),
            ("web-2", ("http://tunnel:80",), "said"),
        ):
            credentials = Credentials(trusted=trusted)
            connections: Any = SimpleNamespace(
                api=lambda address: NodeApi(address, Credentials()),
                apis=[HttpAddress(host="tunnel")],
                credentials=credentials,
            )
            found = NodeNames(connections).api(node, "http://said:80").address
            self.assertEqual(found.host, expected, (node, trusted))


class RepeatedSecretTests(unittest.SynchronousTestCase):
    """What is printed as JSON, or as an error, has no secret that a server repeats."""

    def setUp(self) -> None:
        """A token, as known to pcapctl."""
        self.token = 'hunter2-"hunter2"'
        of_process.hide([self.token])
        self.addCleanup(of_process.hide, ())

    def test_json(self) -> None:
        """It is still JSON, in which a secret is hidden in texts and names, and nothing else is changed."""
        sent = {"a": [f"Bearer {self.token}", "\x1b[31m\\"], self.token: 1.5, "b": None, "c": True}
        expected = {"a": ["Bearer <secret>", "\x1b[31m\\"], "<secret>": 1.5, "b": None, "c": True}
        for indent in (None, 2):
            text = json_text(sent, indent=indent)
            self.assertEqual(json.loads(text), expected)
            self.assertTrue(text.replace("\n", "").isprintable())
        stream = io.StringIO()
        JsonView(stream).event(sent)
        self.assertEqual(json.loads(stream.getvalue()), expected)

    def test_no_json(self) -> None:
        """What Python's parser takes, and no other, is not printed."""
        deep = json.loads('{"a":' * 900 + "1" + "}" * 900)
        for value in (float("nan"), float("inf"), _nested(deep, 200)):
            self.assertRaises(NoAnswer, json_text, {"a": value})
            with contextlib.redirect_stderr(io.StringIO()) as errors:
                JsonView(io.StringIO()).event({"a": value})
            self.assertIn("an event is not shown", errors.getvalue())

    def test_error(self) -> None:
        """An error has neither secrets nor control characters, and keeps its lines."""
        error = NoAnswer(f"redis://h/\x1b[31m:\n  {self.token}: wrong\x9b")
        self.assertEqual(str(error), "redis://h/ [31m:\n  <secret>: wrong")


def _nested(value: Any, times: int) -> Any:
    for _ in range(times):
        value = [value]
    return value


class ReaderTests(unittest.SynchronousTestCase):
    """L{EventReader}: whatever a library raises, its thread goes on."""

    def test_anything(self) -> None:
        """An error of any kind, when events are read or a place is opened, is reported with the place."""
        places = [SqsAddress(url="https://one.example/q"), SqsAddress(url="https://two.example/q")]

        class Events:
            def __iter__(self) -> Iterator[bytes]:
                yield b'{"data": {}}'
                raise KeyError("secret")

            def close(self) -> None:
                """Nothing."""

        class Transport:
            def __init__(self, place: Any) -> None:
                self.place = place

            def events(self, requestid: str | None) -> Any:
                if self.place is places[1]:
                    raise TypeError("secret")
                return Events()

        connections: Any = SimpleNamespace(transport=Transport)
        reader = EventReader(connections, places, None)
        self.addCleanup(reader.close)
        found: list[Any] = []
        while len(found) < 3:
            found += reader.take(20.0)
        self.assertEqual(
            sorted(map(str, found[:3])),
            [
                "events: sqs:https://one.example/q: the answer can't be understood (KeyError)",
                "events: sqs:https://two.example/q: the answer can't be understood (TypeError)",
                "{'data': {}}",
            ],
        )

    def test_endless(self) -> None:
        """Events that come faster than they are taken wait at their place, and each turn comes to an end."""
        passed_on: list[int] = []

        class Events:
            def __iter__(self) -> Iterator[bytes]:
                for number in range(100 * MOST_WAITING):
                    passed_on.append(number)
                    yield b'{"data": {}}'

            def close(self) -> None:
                """Nothing."""

        transport = SimpleNamespace(events=lambda requestid: Events())
        connections: Any = SimpleNamespace(transport=lambda place: transport)
        reader = EventReader(connections, [SqsAddress(url="https://one.example/q")], None)
        self.addCleanup(reader.close)
        taken = 0
        for _ in range(5):
            found = len(list(reader.take(20.0)))
            self.assertLessEqual(found, MOST_WAITING + 1)
            taken += found
            self.assertLessEqual(len(passed_on), taken + MOST_WAITING + 1)

    def test_large(self) -> None:
        """Those that wait have a bounded size together; one that is too long is reported, and ignored."""
        large = b'{"data": {"x": "%s"}}' % (b"x" * (MOST_EVENT_BYTES - 100))
        passed_on = []

        class Events:
            def __iter__(self) -> Iterator[bytes]:
                yield large + bytes(200)
                for number in range(1000):
                    passed_on.append(number)
                    yield large

            def close(self) -> None:
                """Nothing."""

        transport = SimpleNamespace(events=lambda requestid: Events())
        connections: Any = SimpleNamespace(transport=lambda place: transport)
        reader = EventReader(connections, [SqsAddress(url="https://one.example/q")], None)
        self.addCleanup(reader.close)
        found: list[Any] = []
        while len(found) < 20:
            found += reader.take(20.0)
            self.assertLessEqual((len(passed_on) - len(found)) * len(large), MOST_WAITING_BYTES + len(large))
        self.assertEqual(found[0], "events: sqs:https://one.example/q: an event is too long, and is ignored")
        self.assertEqual({len(each["data"]["x"]) for each in found[1:]}, {MOST_EVENT_BYTES - 100})
