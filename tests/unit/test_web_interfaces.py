"""C{/interfaces}."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail, succeed

from pcapsvc.core.history import HistoryBounds, HistoryState
from pcapsvc.core.network_interface import NetworkInterface
from pcapsvc.testing import MemoryHistories
from pcapsvc.testing_packets import MemoryPacketSystem
from pcapsvc.web.interfaces import Interfaces
from tests.unit.http_case import HTTPTestCase

_ETHERNET = NetworkInterface(
    name="eth0",
    index=4,
    is_up=True,
    link_type="ether",
    altnames=("enp1s0", "uplink-of-rack-7"),
    addresses=("192.0.2.1/24", "2001:db8::1/64"),
)
_TUNNEL = NetworkInterface(name="tun0", index=7, is_up=False, link_type="none")

# It is configured by another name of the interface.
_HISTORY = HistoryState(
    interface="enp1s0",
    bounds=HistoryBounds(seconds=60, size_bytes=1 << 26, snap_length=128, bpf="not port 22"),
    since=1_700_000_000.5,
    seconds=42.1254,
    packets=7,
    bytes=900,
    dropped=3,
    problem="the interface is down",
)


class Host(MemoryPacketSystem):
    """
    A packet system whose interfaces are given.

    @ivar found: what C{list_interfaces} returns.
    """

    found: Deferred[Sequence[NetworkInterface]]

    def list_interfaces(self) -> Deferred[Sequence[NetworkInterface]]:
        """Those that are given."""
        return self.found


class InterfacesTests(HTTPTestCase):
    """What can be captured on."""

    def setUp(self) -> None:
        """Two interfaces, one with aliases."""
        super().setUp()
        self.host = Host()
        self.host.found = succeed((_ETHERNET, _TUNNEL))
        self.histories = MemoryHistories(_HISTORY)
        interfaces = Interfaces(
            self.clock,
            self.host,
            aliases={"uplink-of-rack-7": ("uplink", "<script>"), "eth9": ("none",)},
            standby=["enp1s0"],
            histories=self.histories,
        )
        self.source.root.putChild(b"interfaces", interfaces)

    def test_list(self) -> None:
        """Each interface, with the aliases of any of its names."""
        ethernet = {
            "name": "eth0",
            "altnames": ["enp1s0", "uplink-of-rack-7"],
            "aliases": ["uplink", "<script>"],
            "index": 4,
            "up": True,
            "link_type": "ether",
            "addresses": ["192.0.2.1/24", "2001:db8::1/64"],
            "standby": True,
            "history": {
                "seconds": 42.125,
                "since": "2023-11-14T22:13:20.500000Z",
                "packets": 7,
                "bytes": 900,
                "dropped": 3,
                "problem": "the interface is down",
                "bounds": {"seconds": 60, "bytes": 1 << 26, "snap_length": 128, "bpf": "not port 22"},
            },
        }
        tunnel = {
            "name": "tun0",
            "altnames": [],
            "aliases": [],
            "index": 7,
            "up": False,
            "link_type": "none",
            "addresses": [],
            "standby": False,
            "history": None,
        }
        response = self.ask("GET", "/interfaces")
        self.assertEqual((response.code, response.content), (200, {"interfaces": [ethernet, tunnel]}))
        self.assertEqual(self.ask("HEAD", "/interfaces").code, 200)

    def test_no_answer(self) -> None:
        """If the kernel doesn't answer, that is said."""
        self.host.found = fail(OSError(11, "Resource temporarily unavailable"))
        response = self.ask("GET", "/interfaces")
        self.assertEqual(response.code, 503)
        self.assertIn("Resource temporarily unavailable", response.content["detail"])

    def nothing_known(self) -> Interfaces:
        """The resource of a node whose configuration says nothing of interfaces."""
        return Interfaces(self.clock, self.host, aliases={}, standby=(), histories=MemoryHistories())

    def test_nothing_recorded(self) -> None:
        """A history that has just begun reaches back to nowhere."""
        state = replace(_HISTORY, interface="tun0", since=None, seconds=0.0, packets=0, bytes=0, problem=None)
        self.histories.known = (state,)
        ethernet, tunnel = self.ask("GET", "/interfaces").content["interfaces"]
        self.assertIsNone(ethernet["history"])
        self.assertEqual((tunnel["history"]["since"], tunnel["history"]["problem"]), (None, None))

    def test_gone(self) -> None:
        """An interface that is gone is listed as long as its past is kept."""
        self.histories.known = (replace(_HISTORY, interface="eth9", problem="the interface is gone"),)
        *_, gone = self.ask("GET", "/interfaces").content["interfaces"]
        self.assertEqual(
            (gone["name"], gone["aliases"], gone["index"], gone["up"]), ("eth9", ["none"], None, False)
        )
        self.assertEqual(
            (gone["history"]["packets"], gone["history"]["problem"]), (7, "the interface is gone")
        )

    def test_shared(self) -> None:
        """However many ask at once, the kernel is asked once."""
        asked: list[Deferred[Sequence[NetworkInterface]]] = []

        def list_interfaces() -> Deferred[Sequence[NetworkInterface]]:
            asked.append(Deferred())
            return asked[-1]

        self.host.list_interfaces = list_interfaces  # type: ignore[method-assign]
        self.source.root.putChild(b"interfaces", self.nothing_known())
        transports = [self.say(b"GET /interfaces HTTP/1.0\r\n\r\n") for _ in range(3)]
        [only] = asked
        only.callback((_TUNNEL,))
        for transport in transports:
            self.assertIn(b'"tun0"', transport.value())
