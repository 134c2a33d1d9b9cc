"""Which packets are the daemon's own."""

from __future__ import annotations

from ipaddress import ip_address

from twisted.trial import unittest

from pcapsvc.core.own_traffic import (
    MOST_CONNECTIONS,
    REMEMBERED_SECONDS,
    Connection,
    Listener,
    OwnSockets,
    OwnTraffic,
    without,
)


def connection(port: int, *, local: str = "10.0.0.1", remote: str = "192.0.2.1") -> Connection:
    """A connection from a local port to port 443."""
    return Connection(local=ip_address(local), local_port=port, remote=ip_address(remote), remote_port=443)


def sockets(*ports: int) -> OwnSockets:
    """Connections from these ports."""
    return OwnSockets(connections=frozenset(map(connection, ports)))


class OwnTrafficTests(unittest.SynchronousTestCase):
    """L{OwnTraffic}. What its filters let pass is shown where packets are."""

    def setUp(self) -> None:
        """Nothing is known."""
        self.traffic = OwnTraffic()

    def test_nothing(self) -> None:
        """If nothing is open, there is no filter."""
        self.traffic.update(OwnSockets(), 0.0)
        self.assertEqual(self.traffic.bpf, "")

    def test_both_ways(self) -> None:
        """A connection is known by its exact addresses and ports, either way."""
        self.traffic.update(sockets(40000), 0.0)
        self.assertEqual(
            self.traffic.bpf,
            "(tcp and src host 10.0.0.1 and dst host 192.0.2.1 and (tcp[0:4] = 0x9c4001bb))"
            " or (tcp and src host 192.0.2.1 and dst host 10.0.0.1 and (tcp[0:4] = 0x01bb9c40))",
        )

    def test_ipv6(self) -> None:
        """Likewise one of IPv6, whose ports are behind a header of 40 bytes."""
        here, there = "2001:db8::1", "2001:db8::2"
        one = connection(40000, local=here, remote=there)
        self.traffic.update(OwnSockets(connections=frozenset({one})), 0.0)
        self.assertEqual(
            self.traffic.bpf,
            f"(ip6 proto 6 and src host {here} and dst host {there} and (ip6[40:4] = 0x9c4001bb))"
            f" or (ip6 proto 6 and src host {there} and dst host {here} and (ip6[40:4] = 0x01bb9c40))",
        )

    def test_remembered(self) -> None:
        """One that was closed is known for a minute more."""
        self.traffic.update(sockets(40000), 0.0)
        before = self.traffic.bpf
        self.traffic.update(sockets(), REMEMBERED_SECONDS)
        self.assertEqual(self.traffic.bpf, before)
        self.traffic.update(sockets(), REMEMBERED_SECONDS + 1)
        self.assertEqual(self.traffic.bpf, "")

    def test_accepted(self) -> None:
        """A connection that was accepted is its listener's: clients that come and go change no filter."""
        listener = Listener(local=ip_address("10.0.0.1"), port=8480)
        accepted = Connection(
            local=listener.local, local_port=8480, remote=ip_address("192.0.2.7"), remote_port=50000
        )
        self.traffic.update(OwnSockets(listeners=frozenset({listener})), 0.0)
        before = self.traffic.bpf
        self.traffic.update(
            OwnSockets(connections=frozenset({accepted}), listeners=frozenset({listener})), 0.0
        )
        self.assertEqual(self.traffic.bpf, before)
        self.assertIn("dst host 10.0.0.1 and tcp dst port 8480", before)

    def test_bounded(self) -> None:
        """If there are too many, those that are open come first; how many of these are left out is known."""
        self.traffic.update(sockets(*range(1000, 1000 + MOST_CONNECTIONS)), 0.0)
        self.assertEqual(self.traffic.left_out, 0)
        self.traffic.update(sockets(*range(1000, 1002 + MOST_CONNECTIONS)), 0.5)
        self.assertEqual(self.traffic.left_out, 2)
        self.traffic.update(sockets(9999), 1.0)
        self.assertEqual(self.traffic.left_out, 0)
        self.assertIn(f"{9999 << 16 | 443:#010x}", self.traffic.bpf)
        for port in range(20_000, 20_000 + 10 * MOST_CONNECTIONS):
            self.traffic.update(sockets(port), 2.0)
        self.assertLess(len(self.traffic.bpf), 10_000)

    def test_with_a_filter(self) -> None:
        """The request's filter comes last, in brackets of its own."""
        self.assertEqual(without("", "udp"), "udp")
        for nothing in ("", " ", " \t\n"):
            self.assertEqual(without("tcp port 1", nothing), "not (tcp port 1)")
        self.assertEqual(without("tcp port 1", "udp or vlan 5"), "not (tcp port 1) and (udp or vlan 5)")
