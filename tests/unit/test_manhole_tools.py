"""The names of the manhole's console."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial import unittest

from pcapsvc.core.history import HistoryBounds, HistoryState
from pcapsvc.core.labels import Labels
from pcapsvc.core.message import Message
from pcapsvc.delivery.entry import Entry, SpooledCapture
from pcapsvc.encoders.pcap.settings import PcapSettings
from pcapsvc.host.manhole.tools import SettingsView, namespace
from pcapsvc.reports.redis.settings import RedisReportsSettings
from pcapsvc.reports.settings import ReportsSettings
from pcapsvc.settings import Secret, Settings
from pcapsvc.settings.general import GeneralSettings
from pcapsvc.settings.interface import InterfaceSettings
from pcapsvc.sources.http.settings import HttpSettings
from pcapsvc.sources.redis.settings import RedisSettings
from pcapsvc.testing import MemoryHistories
from pcapsvc.web.settings import WebSettings


class Captures:
    """Two captures, one of which can be ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.rolling: Mapping[str, Any] | None = None

    def list(self, state: str | None = None) -> list[Mapping[str, Any]]:
        """As C{ICaptures.list}."""
        one = {"id": "b", "state": "capturing", "packets": 3, "bytes": 180, "bpf": "icmp"}
        return [{**one, "rolling": self.rolling}]

    def get(self, capture_id: str) -> Mapping[str, Any] | None:
        """As C{ICaptures.get}."""
        return {"id": "b", "state": "capturing"} if capture_id == "b" else None

    def end(self, capture_id: str) -> str:
        """As C{ICaptures.end}."""
        self.ended.append(capture_id)
        return "ended"


class Pipeline:
    """Takes messages."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def submit(self, message: Message) -> Deferred[str]:
        """As C{IRequestSink.submit}."""
        self.messages.append(message)
        return succeed("accepted")


class Source:
    """A source with a name."""

    name = "redis"


class Outbox:
    """An outbox with one delivery."""

    waiting = (Entry(capture_id="b", destination="s3", options={}, labels=Labels(via="redis")),)


class Spool:
    """A spool with these entries."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries

    @property
    def waiting(self) -> list[Entry]:
        """As C{Spool.waiting}."""
        return self._entries


class Node(Struct, frozen=True):
    """As C{pcapsvc.app.Node}, as far as consoles look at it."""

    settings: Settings
    captures: Captures
    pipeline: Pipeline
    sources: Mapping[str, Any] = field(default_factory=lambda: {"redis": Source()})
    destinations: Mapping[str, Any] = field(default_factory=dict)
    channels: Mapping[str, Any] = field(default_factory=dict)
    outboxes: Mapping[str, Any] = field(default_factory=lambda: {"s3": Outbox()})
    spool: Any = None
    histories: Any = field(default_factory=MemoryHistories)


class Reactor(Clock):
    """A reactor with one reader."""

    def getReaders(self) -> list[Any]:
        """As C{IReactorFDSet.getReaders}."""
        return [self]

    def getWriters(self) -> list[Any]:
        """As C{IReactorFDSet.getWriters}."""
        return []

    def fileno(self) -> int:
        """As a reader."""
        return 7


class Documented:
    """
    Something, as in L{C{C}.d}.

    @ivar captures: the captures; L{None} if there are none.
    @return: a thing.
    @raise ValueError: never.
    """


class NamespaceTests(unittest.SynchronousTestCase):
    """What a console begins with."""

    def setUp(self) -> None:
        """The names of a node with a password."""
        self.reactor = Reactor()
        self.node = Node(
            Settings(sections=(RedisSettings(auth=Secret("hunter2")), GeneralSettings(node_name="n"))),
            Captures(),
            Pipeline(),
        )
        self.names = namespace(self.node, self.reactor)

    def test_captures(self) -> None:
        """Captures are listed as a table, and one is shown key by key."""
        self.assertEqual(
            repr(self.names["captures"]),
            "id  state      source  interface  packets  bytes  filter\n"
            "b   capturing                     3        180    icmp",
        )
        self.node.captures.rolling = {"first": "2026-11-22T03:00:00Z"}
        self.assertEqual(
            repr(self.names["captures"]),
            "id  state      source  interface  packets  bytes  rolling since         filter\n"
            "b   capturing                     3        180    2026-11-22T03:00:00Z  icmp",
        )
        self.assertEqual(self.names["captures"][0]["id"], "b")
        self.assertEqual(repr(self.names["captures"].get("b")), "id     b\nstate  capturing")
        self.assertIsNone(self.names["captures"].get("c"))

    def test_start(self) -> None:
        """A request goes through the pipeline as every other, in a turn of the reactor of its own."""
        verdict = self.names["captures"].start({"packets": 1}, bpf="port 53")
        self.assertEqual(self.node.pipeline.messages, [])
        self.reactor.advance(0)
        self.assertEqual(self.successResultOf(verdict), "accepted")
        self.assertEqual(
            self.node.pipeline.messages,
            [Message(source="manhole", body=b'{"packets": 1, "bpf": "port 53", "node": "n"}')],
        )

    def test_start_elsewhere(self) -> None:
        """A request that says for which nodes it is stays as it is."""
        self.names["captures"].start(nodere="^x")
        self.reactor.advance(0)
        self.assertEqual(self.node.pipeline.messages, [Message(source="manhole", body=b'{"nodere": "^x"}')])

    def test_end(self) -> None:
        """A capture is ended in a turn of its own."""
        ended = self.names["captures"].end("b")
        self.assertEqual(self.node.captures.ended, [])
        self.reactor.advance(0)
        self.assertEqual(self.successResultOf(ended), "ended")
        self.assertEqual(self.node.captures.ended, ["b"])

    def test_settings(self) -> None:
        """Neither the settings nor the node lead to a secret."""
        settings, of_node = self.names["settings"], self.names["node"].settings.named("redis")
        for shown in (settings.redis, of_node):
            self.assertNotIn("hunter2", repr(shown))
            self.assertRaises(PermissionError, shown.auth.reveal)
        first, *lines = repr(settings).splitlines()
        self.assertEqual("[redis]", first)
        self.assertLessEqual({"listen = False", "host = 'localhost'"}, {*lines})
        self.assertIn("auth = <secret>", repr(settings))

    def test_settings_by_table(self) -> None:
        """Settings are found where the file has them; sections of one table are shown as one."""
        sections = (
            ReportsSettings(queue=500),
            RedisSettings(channel="c"),
            RedisReportsSettings(channel="e"),
            HttpSettings(listen="unix:/s"),
            WebSettings(url="http://h"),
        )
        settings = SettingsView(Settings(sections=sections))
        self.assertEqual((settings.redis.channel, settings.reports.redis.channel), ("c", "e"))
        self.assertEqual((settings.http.listen, settings.http.url), ("unix:/s", "http://h"))
        titles = [line for line in repr(settings).splitlines() if line.startswith("[")]
        self.assertEqual(titles, ["[reports]", "[reports.redis]", "[redis]", "[http]"])
        self.assertTrue(repr(settings.reports).startswith("[reports]\n"))
        self.assertIn("\n\n[reports.redis]\n", repr(settings.reports))

    def test_settings_of_interfaces(self) -> None:
        """Each interface is shown as a section of its own."""
        interfaces = (InterfaceSettings(name="eth0", alias=("up",)), InterfaceSettings(name="lo"))
        shown = repr(SettingsView(Settings(sections=(), interfaces=interfaces))).split("\n\n")
        self.assertTrue(shown[0].startswith("[[interface]]\nname = 'eth0'\nalias = ('up',)\n"), shown)
        self.assertTrue(shown[1].startswith("[[interface]]\nname = 'lo'\n"), shown)

    def test_settings_without_keys(self) -> None:
        """What has no keys is not shown."""
        self.assertEqual(repr(SettingsView(Settings(sections=(PcapSettings(),)))), "")

    def test_spool(self) -> None:
        """What waits is shown, in the spool and before each destination."""
        self.assertEqual(repr(self.names["spool"]), "There is no spool.")
        self.assertEqual(repr(self.names["outboxes"]), "destination  waiting\ns3           1")
        self.assertEqual(
            repr(self.names["outboxes"].list()),
            "capture  destination  state  bytes  attempts  problem\nb        s3           new           0",
        )
        entry = Entry(
            capture_id="a",
            destination="s3",
            options={},
            labels=Labels(via="redis"),
            spooled=SpooledCapture(name="n", size=4096, since=0.0),
            problem="timed out",
        )
        entry.due = 30.0
        names = namespace(replace(self.node, spool=Spool([entry])), self.reactor)
        self.assertEqual(
            repr(names["spool"]),
            "capture  destination  state    bytes  attempts  problem    next in\n"
            "a        s3           spooled  4096   0         timed out  30 s",
        )

    def test_parts(self) -> None:
        """Parts are shown by name and type."""
        self.assertEqual(repr(self.names["sources"]), "name   is\nredis  Source")
        self.assertEqual(repr(self.names["destinations"]), "(none)")
        self.assertIs(self.names["sources"]["redis"], self.node.sources["redis"])

    def test_reactor(self) -> None:
        """The reactor's delayed calls and readers are shown."""
        self.reactor.callLater(2, self.reactor.getReaders)
        self.assertEqual(
            repr(self.names["delayed_calls"]()), "in       calls\n2.000 s  Reactor.getReaders of Reactor"
        )
        self.assertEqual(repr(self.names["readers"]()), "fd  waits to  is\n7   read      Reactor")

    def test_objects(self) -> None:
        """Live objects are counted by type."""
        self.assertEqual(len(self.names["objects"](3)), 3)
        (found,) = self.names["objects"](5, "test_manhole_tools.Pipeline")
        self.assertGreaterEqual(found["objects"], 1)

    def test_histories(self) -> None:
        """Each history is a row: how far it reaches, how large it is, and what is wrong with it."""
        self.assertEqual(repr(self.names["histories"]), "(none)")
        state = HistoryState(
            interface="eth0",
            bounds=HistoryBounds(seconds=60, size_bytes=4096, snap_length=128),
            since=1_700_000_000.0,
            seconds=42.46,
            packets=7,
            bytes=900,
            dropped=3,
            problem="it is down",
        )
        names = namespace(replace(self.node, histories=MemoryHistories(state)), self.reactor)
        self.assertEqual(
            repr(names["histories"]),
            "interface  reaches  of    packets  bytes  of bytes  dropped  problem\n"
            "eth0       42.5 s   60 s  7        900    4096      3        it is down",
        )

    def test_help_is_plain(self) -> None:
        """The markup of documentation is not shown."""
        printed = io.StringIO()
        with redirect_stdout(printed):
            self.names["help"](Documented())
        self.assertEqual(
            "Something, as in C.d.\n\n"
            "captures: the captures; None if there are none.\n"
            "Returns: a thing.\n"
            "Raises ValueError: never.\n",
            printed.getvalue(),
        )

    def test_help(self) -> None:
        """Every name is described, and so is every object that is asked about."""
        text = repr(self.names["help"])
        for name in self.names:
            self.assertIn(f"{name}", text)
        printed = io.StringIO()
        with redirect_stdout(printed):
            self.names["help"](self.names["captures"], 1)
        self.assertIn(".start(request=None, **more)", printed.getvalue())
        self.assertIn("start(interface=['eth0'], bpf='port 53')", printed.getvalue())
        self.assertIn("int", printed.getvalue())
