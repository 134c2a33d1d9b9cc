"""Captures without the daemon's own packets."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.core.own_traffic import Connection, Listener, OwnSockets, OwnTraffic
from pcapsvc.interfaces.capture import IPacketHandle, IReadHook
from pcapsvc.packets.own_sockets import SocketTable
from pcapsvc.packets.own_traffic import FRESH_SECONDS, OwnTrafficFilter
from pcapsvc.testing_packets import MemoryPacketSystem
from peers.requirement import require_ipv6

_OWN = Connection(
    local=ip_address("10.0.0.1"), local_port=40000, remote=ip_address("192.0.2.1"), remote_port=443
)


class Reactor(MemoryReactorClock):
    """A reactor that does at once what threads give it to do."""

    def callFromThread(self, callable: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Call it."""
        callable(*args, **kwargs)


class Table:
    """A table of sockets that a test fills."""

    def __init__(self, connecting: Callable[[], object]) -> None:
        self.connecting = connecting
        self.sockets = OwnSockets()
        self.has_news = False
        self.watched = False
        self.looks = 0
        self.later: list[OwnSockets] = []

    def watch(self) -> None:
        """Take note."""
        self.watched = True

    def unwatch(self) -> None:
        """Take note."""
        self.watched = False

    def look(self) -> OwnSockets:
        """What the test says."""
        self.looks += 1
        if self.later:
            self.sockets = self.later.pop(0)
            self.has_news = bool(self.later)
        return self.sockets


class Capture:
    """A handle, and what happens before each read of it."""

    def __init__(self, hook: IReadHook, handle: IPacketHandle) -> None:
        self._hook = hook
        self._handle = handle

    def read(self) -> list[bytes]:
        """All packets that have arrived."""
        found: list[bytes] = []
        self._hook.before_read(self._handle)
        self._handle.read(100, lambda _, data: found.append(data))
        return found

    def close(self) -> None:
        """Close both."""
        self._handle.close()
        self._hook.close()


class OwnTrafficFilterTests(unittest.SynchronousTestCase):
    """Filters that change while a capture runs."""

    def setUp(self) -> None:
        """A packet system that knows the filter without the daemon's one connection."""
        self.reactor = Reactor()
        self.memory = MemoryPacketSystem("mem0")
        traffic = OwnTraffic()
        traffic.update(OwnSockets(connections=frozenset({_OWN})), 0.0)
        self.memory.filters["udp"] = lambda data: data.startswith((b"u", b"own"))
        self.memory.filters[traffic.bpf] = lambda data: data.startswith(b"own")
        self.tables: list[Table] = []
        self.filter = OwnTrafficFilter(
            self.reactor, compile_now=self.memory.compile_now, table=self.make_table
        )

    def make_table(self, connecting: Callable[[], object]) -> Table:
        """A table, kept."""
        self.tables.append(Table(connecting))
        return self.tables[-1]

    def open(self, bpf: str = "udp") -> Capture:
        """A capture."""
        hook = self.filter.watch("mem0")
        return Capture(hook, self.successResultOf(self.memory.open("mem0", snap_length=100, bpf=bpf)))

    def test_left_out(self) -> None:
        """What came before the connection was known is left out as well, and all else is there."""
        handle = self.open()
        self.memory.deliver("mem0", b"u1", b"own1", b"u2")
        [table] = self.tables
        table.sockets = OwnSockets(connections=frozenset({_OWN}))
        self.assertEqual(handle.read(), [b"u1", b"u2"])
        self.memory.deliver("mem0", b"own2", b"u3")
        self.assertEqual(handle.read(), [b"u3"])
        handle.close()

    def test_no_way(self) -> None:
        """If they can't be excluded, that is logged once for each interface, and all packets are captured."""
        handle = self.open()
        self.memory.deliver("mem0", b"u1", b"own1")
        [table] = self.tables
        table.sockets = OwnSockets(connections=frozenset({_OWN}))
        self.memory.filters = {}
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.assertEqual(handle.read(), [b"u1", b"own1"])
        handle.read()
        [line] = [formatEvent(event) for event in events]
        self.assertTrue(line.startswith("mem0: the daemon's own packets can't be excluded: bpf = "), line)
        handle.close()

    def test_looks_are_few(self) -> None:
        """Reads within a millisecond share a look; a connection that begins is one more."""
        handle = self.open()
        [table] = self.tables
        for _ in range(5):
            handle.read()
        self.assertEqual(table.looks, 1)
        table.connecting()
        self.assertEqual(table.looks, 2)
        self.reactor.advance(FRESH_SECONDS)
        handle.read()
        self.assertEqual(table.looks, 3)
        handle.close()

    def test_slow_looks(self) -> None:
        """If a look takes long, as there are many descriptors, there are few of them."""
        handle = self.open()
        [table] = self.tables
        quick = table.look

        def slow() -> OwnSockets:
            self.reactor.advance(0.002)
            return quick()

        self.patch(table, "look", slow)
        handle.read()
        for _ in range(36):
            self.reactor.advance(0.001)
            handle.read()
        self.assertEqual(table.looks, 1)
        table.has_news = True
        table.later = [OwnSockets()]
        handle.read()
        self.assertEqual(table.looks, 2)
        self.reactor.advance(0.05)
        handle.read()
        self.assertEqual(table.looks, 3)
        handle.close()

    def test_just_beginning(self) -> None:
        """What other threads begin while it looks is looked for, too, before packets are read."""
        handle = self.open()
        [table] = self.tables
        self.memory.deliver("mem0", b"u1", b"own1", b"u2")
        table.has_news = True
        table.later = [OwnSockets(), OwnSockets(connections=frozenset({_OWN}))]
        self.assertEqual(handle.read(), [b"u1", b"u2"])
        self.assertFalse(table.has_news)
        handle.close()

    def test_begin_all_the_time(self) -> None:
        """However many other threads begin, packets are read."""
        handle = self.open()
        [table] = self.tables
        table.has_news = True
        self.memory.deliver("mem0", b"u1")
        self.assertEqual(handle.read(), [b"u1"])
        handle.close()

    def test_watched_while_needed(self) -> None:
        """Connections are recorded only while something captures."""
        [table] = self.tables
        one = self.open()
        other = self.open()
        for handle in (one, one):
            handle.close()
        self.assertTrue(table.watched)
        other.close()
        self.assertFalse(table.watched)
        # One that a thread was just about to tell is let go of.
        table.watched = True
        table.connecting()
        self.assertEqual((table.looks, table.watched), (0, False))


class SocketTableTests(unittest.SynchronousTestCase):
    """The sockets of this very process."""

    def setUp(self) -> None:
        """A listener, and a table that watches."""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.port: int = self.listener.getsockname()[1]
        self.reported = 0
        self.table = SocketTable(self.hear)
        self.table.watch()
        self.addCleanup(self.table.unwatch)

    def hear(self) -> None:
        """Count."""
        self.reported += 1

    def to_listener(self) -> set[int]:
        """The local ports of the connections to the listener that are known now."""
        return {one.local_port for one in self.table.look().connections if one.remote_port == self.port}

    def test_open(self) -> None:
        """What listens and what is connected, both its ends, as often as it is asked."""
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            port = client.getsockname()[1]
            server = self.listener.accept()[0]
            self.addCleanup(server.close)
            here = ip_address("127.0.0.1")
            for _ in range(2):
                found = self.table.look()
                self.assertIn(Listener(local=here, port=self.port), found.listeners)
                for ends in ((port, self.port), (self.port, port)):
                    self.assertIn(
                        Connection(local=here, local_port=ends[0], remote=here, remote_port=ends[1]),
                        found.connections,
                    )
        self.assertEqual(self.to_listener(), set())

    def test_come_and_gone(self) -> None:
        """One that was opened and closed since the last look is known at the next, and its descriptors go."""
        before = len(os.listdir("/proc/self/fd"))
        client = socket.create_connection(("127.0.0.1", self.port))
        port = client.getsockname()[1]
        client.close()
        self.assertEqual(self.reported, 1)
        self.assertEqual(self.to_listener(), {port})
        self.assertEqual(self.to_listener(), set())
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_before_the_answer(self) -> None:
        """One whose peer has not answered yet is known."""
        client = socket.socket()
        self.addCleanup(client.close)
        client.setblocking(False)
        # TEST-NET-1 (RFC 5737): nobody answers.
        if client.connect_ex(("192.0.2.77", 9)) != 115:
            return  # there is no route
        self.assertIn(9, {one.remote_port for one in self.table.look().connections})

    def test_no_way(self) -> None:
        """One that can't begin leaves no descriptor behind."""
        require_ipv6()
        before = len(os.listdir("/proc/self/fd"))
        for family, nowhere in ((socket.AF_INET, "255.255.255.255"), (socket.AF_INET6, "ff02::1")):
            with socket.socket(family) as client:
                # TCP has no broadcast and no multicast (RFC 9293, section 3.9.2.3).
                self.assertRaises(OSError, client.connect, (nowhere, 9))
        self.assertEqual(self.reported, 2)
        self.assertTrue(self.table.has_news)
        self.table.look()
        self.assertFalse(self.table.has_news)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_before_it_begins(self) -> None:
        """One is known by its addresses before its first packet."""
        require_ipv6()
        for family, to, here in (
            (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
            (socket.AF_INET6, "::1", "::1"),
            (socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1"),
        ):
            with socket.socket(family) as client:
                sys.audit("socket.connect", client, (to, self.port))
                local_port, address = client.getsockname()[1], ip_address(here)
                self.assertNotEqual(local_port, 0)
                own = Connection(local=address, local_port=local_port, remote=address, remote_port=self.port)
                self.assertIn(own, self.table.look().connections)
                if here == "127.0.0.1":
                    client.connect((to, self.port))
                    self.assertEqual(client.getsockname()[1], local_port)

    def test_own_port(self) -> None:
        """One that was given an address and a port keeps them."""
        with socket.socket() as client:
            client.bind(("127.0.0.2", 0))
            own = client.getsockname()
            client.connect(("127.0.0.1", self.port))
            self.assertEqual(client.getsockname(), own)
            self.assertEqual(self.to_listener(), {own[1]})

    def test_refused(self) -> None:
        """One that was refused is known by all that was sent, also if it was opened again."""
        require_ipv6()
        for family, here in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            # Bound, and not listening: it is nobody else's.
            with socket.socket(family) as closed, socket.socket(family) as client:
                closed.bind((here, 0))
                port = closed.getsockname()[1]
                client.setblocking(False)
                self.assertEqual(client.connect_ex((here, port)), errno.EINPROGRESS)
                local_port = client.getsockname()[1]
                self.assertEqual(client.connect_ex((here, port)), errno.ECONNREFUSED)
                address = ip_address(here)
                sent = Connection(local=address, local_port=local_port, remote=address, remote_port=port)
                found = {one for one in self.table.look().connections if one.remote_port == port}
                self.assertEqual(found, {sent})

    def test_mapped(self) -> None:
        """One of an IPv6 socket to an IPv4 address is of IPv4, as its packets are."""
        require_ipv6()
        with socket.socket(socket.AF_INET6) as client:
            client.connect(("::ffff:127.0.0.1", self.port))
            here = ip_address("127.0.0.1")
            own = Connection(
                local=here, local_port=client.getsockname()[1], remote=here, remote_port=self.port
            )
            for _ in range(2):
                self.assertIn(own, self.table.look().connections)

    def test_unwatched(self) -> None:
        """What is not watched for leaves no descriptor."""
        socket.create_connection(("127.0.0.1", self.port)).close()
        self.table.unwatch()
        before = len(os.listdir("/proc/self/fd"))
        socket.create_connection(("127.0.0.1", self.port)).close()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        self.assertEqual(self.reported, 1)

    def test_every_address(self) -> None:
        """A listener on all addresses listens on each; not on those of other hosts."""
        with socket.create_server(("", 0)) as everywhere:
            port = everywhere.getsockname()[1]
            found = {one.local for one in self.table.look().listeners if one.port == port}
        self.assertIn(ip_address("127.0.0.1"), found)
        self.assertNotIn(ip_address("0.0.0.0"), found)

    def test_every_address_of_ipv6(self) -> None:
        """One on all addresses of IPv6 listens on those of IPv4 as well, unless it is of IPv6 alone."""
        require_ipv6()
        for both in (True, False):
            everywhere = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=both)
            with everywhere:
                port = everywhere.getsockname()[1]
                found = {one.local for one in self.table.look().listeners if one.port == port}
            self.assertIn(ip_address("::1"), found)
            self.assertEqual(ip_address("127.0.0.1") in found, both)
