"""C{/interfaces}."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail, succeed

from pcapsvc.core.network_interface import NetworkInterface
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
        interfaces = Interfaces(
            self.clock,
            self.host,
            aliases={"uplink-of-rack-7": ("uplink", "<script>"), "eth9": ("none",)},
            standby=["enp1s0"],
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

    def test_shared(self) -> None:
        """However many ask at once, the kernel is asked once."""
        asked: list[Deferred[Sequence[NetworkInterface]]] = []

        def list_interfaces() -> Deferred[Sequence[NetworkInterface]]:
            asked.append(Deferred())
            return asked[-1]

        self.host.list_interfaces = list_interfaces  # type: ignore[method-assign]
        self.source.root.putChild(b"interfaces", Interfaces(self.clock, self.host, aliases={}, standby=()))
        transports = [self.say(b"GET /interfaces HTTP/1.0\r\n\r\n") for _ in range(3)]
        [only] = asked
        only.callback((_TUNNEL,))
        for transport in transports:
            self.assertIn(b'"tun0"', transport.value())
