"""C{/node}."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.testing import MemoryReactorClock

import pcapsvc
from pcapsvc import app
from pcapsvc.components import COMPONENTS
from pcapsvc.core.message import Message
from pcapsvc.core.result import Rejected
from pcapsvc.testing_packets import MemoryPacketSystem
from pcapsvc.web.node import NodeResource, NodeState
from tests.unit.http_case import HTTPTestCase
from tests.unit.settings_case import SettingsTestCase

SETTINGS = """
[general]
nodename = "sensor1"
writelocal = true
localdir = "/tmp"
maxpackets = 1000
maxtimeout = 300
maxmemory = 10485760
maxbytes = 1048576
{more}
[redis]
listen = true
[http]
listen = "unix:/nowhere"
url = "https://sensor1.example:8443/"
"""


def build(case: SettingsTestCase, more: str = "") -> Any:
    """A node that isn't started."""
    settings = case.load(SETTINGS.format(more=more))
    system = MemoryPacketSystem("mem0")
    return app.build(settings, MemoryReactorClock(), system=system, wall_clock=lambda: 1_700_000_000.0)


class NodeTests(HTTPTestCase, SettingsTestCase):
    """What this node is."""

    def described(self, more: str = "") -> Any:
        """What it says of itself."""
        state = NodeState(build(self, more), wall_clock=lambda: 1_700_000_000.0)
        self.source.root.putChild(b"node", NodeResource(state))
        state.startService()
        response = self.ask("GET", "/node")
        self.assertEqual(response.code, 200)
        return response.content

    def test_all(self) -> None:
        """Its limits, and the state of its parts."""
        self.assertEqual(
            self.described(),
            {
                "name": "sensor1",
                "version": pcapsvc.__version__,
                "started": "2023-11-14T22:13:20.000000Z",
                "limits": {
                    "packets": 1000,
                    "bytes": 1 << 20,
                    "timeout": 300,
                    "duration": 3600,
                    "snaplength": 262144,
                    "captures": 32,
                    "memory": 10 << 20,
                    "filter_characters": 512,
                },
                "defaults": {"timeout": 60, "snaplength": 512, "format": "pcap"},
                "formats": [section.name for section in COMPONENTS.encoders],
                "api": "https://sensor1.example:8443",
                "sources": [
                    {"name": "redis", "connected": False, "since": None, "problem": None},
                    {"name": "http", "connected": False, "since": None, "problem": None},
                ],
                "channels": [],
                "destinations": [{"name": "local", "waiting": 0, "spooled": 0, "compress": "none"}],
                "spool": None,
                "captures": {"running": 0, "held_bytes": 0},
            },
        )

    def test_histories(self) -> None:
        """Captures have the memory that histories leave them, and no request may have more."""
        history = '[[interface]]\nname = "mem0"\nhistory = 60\nhistorysize = 4194304'
        self.assertEqual(self.described(history)["limits"]["memory"], 6 << 20)
        self.assertEqual(self.described()["limits"]["memory"], 10 << 20)
        self.assertIn(f"this node may hold {6 << 20}", self.rejected(history, interfaces=7))
        self.assertNotIn("this node may hold", self.rejected("", interfaces=7))

    def rejected(self, more: str, *, interfaces: int) -> str:
        """Why a request for captures of 1 MiB is rejected; at least, there are no such interfaces."""
        node = build(self, more)
        node.pipeline.startService()
        names = [f"none{number}" for number in range(interfaces)]
        fields = {"node": "sensor1", "interface": names, "bytes": 1 << 20, "snap": 2000}
        message = Message(source="http", body=json.dumps(fields).encode())
        verdict = self.successResultOf(node.pipeline.submit(message))
        assert isinstance(verdict, Rejected), verdict
        return "; ".join(map(str, verdict.problems))

    def test_channels(self) -> None:
        """How the channels are that events are published to."""
        found = self.described("[reports.redis]\nsend = true")
        expected = {"name": "redis", "connected": False, "since": None, "problem": None}
        self.assertEqual(found["channels"], [{**expected, "waiting": 0, "dropped": 0}])

    def test_spool(self) -> None:
        """How full the spool is, and may become."""
        found = self.described(f'[delivery]\nspooldir = "{self.mktemp()}"\nspoolsize = 2147483648')
        self.assertEqual(found["spool"], {"entries": 0, "bytes": 0, "max_bytes": 2 << 30})
